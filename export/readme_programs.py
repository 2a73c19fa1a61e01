"""The programs of a bundle's README: Python and JavaScript, with @words@ for what differs from bundle to bundle."""

WITH_POSITIONS = {
    "positions_python": '\n    feeds["position_ids"] = mask.cumsum(axis=1)[:, -ids.shape[1]:] - 1',
    "positions_js": "\n  if (!past) place = ids.map((_, i) => BigInt(i)); else place = [BigInt(length - 1)];"
    '\n  feeds.position_ids = new ort.Tensor("int64", place, [1, ids.length]);',
}
"""Lines for a graph that reads `position_ids`."""

ONNXRUNTIME = """`pip install "onnxruntime>=1.24" tokenizers`

```python
import numpy as np
import onnxruntime
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("tokenizer.json")
session = onnxruntime.InferenceSession("model.onnx", providers=["@provider@ExecutionProvider"])
ids = np.array([tokenizer.encode(@prompt@).ids])
mask, text = np.ones_like(ids), ids[0].tolist()
caches = [value for value in session.get_inputs() if value.name.startswith("past_key_values.")]
past = {value.name: np.zeros((1, value.shape[1], 0, value.shape[3]), np.@float@) for value in caches}
for _ in range(@tokens@):
    feeds = {"input_ids": ids, "attention_mask": mask}@positions_python@
    logits, *present = session.run(None, feeds | past)
    past = dict(zip(past, present))
    ids = logits[:, -1:].argmax(axis=-1)
    if ids[0, 0] in @stop@:
        break
    text.append(int(ids[0, 0]))
    mask = np.concatenate([mask, np.ones_like(ids)], axis=1)
print(tokenizer.decode(text))
```"""

GENAI = """`pip install onnxruntime-genai`

```python
import onnxruntime_genai

model = onnxruntime_genai.Model(".")
tokenizer = onnxruntime_genai.Tokenizer(model)
text = [int(token) for token in tokenizer.encode(@prompt@)]
parameters = onnxruntime_genai.GeneratorParams(model)
parameters.set_search_options(max_length=len(text) + @tokens@, do_sample=False)
generator = onnxruntime_genai.Generator(model, parameters)
generator.append_tokens(text)
while not generator.is_done():
    generator.generate_next_token()
    token = int(generator.get_next_tokens()[0])
    if token not in @stop@:
        text.append(token)
print(tokenizer.decode(text))
```"""

NODE = """`npm install onnxruntime-node @huggingface/transformers` (the second for its tokenizer only; behind a firewall
add `--ignore-scripts`)

```js
import ort from "onnxruntime-node";
import { AutoTokenizer, env } from "@huggingface/transformers";

Object.assign(env, { allowRemoteModels: false, localModelPath: "" });
const tokenizer = await AutoTokenizer.from_pretrained(".");
const session = await ort.InferenceSession.create("model.onnx", { executionProviders: ["@device@"] });
const text = tokenizer.encode(@prompt@);
let ids = text.map(BigInt), past = null, place = [];
for (let count = 0; count < @tokens@; count++) {
  const length = text.length;
  const feeds = {
    input_ids: new ort.Tensor("int64", ids, [1, ids.length]),
    attention_mask: new ort.Tensor("int64", text.map(() => 1n), [1, length]),
  };@positions_js@
  for (const { name, shape } of session.inputMetadata.filter(({ name }) => name.startsWith("past_key_values."))) {
    const empty = () => new ort.Tensor("@float@", new @float_js@(0), [1, shape[1], 0, shape[3]]);
    feeds[name] = past ? past[name.replace("past_key_values", "present")] : empty();
  }
  past = await session.run(feeds);
  const [, positions, vocabulary] = past.logits.dims;
  const last = past.logits.data.slice((positions - 1) * vocabulary);
  const next = last.indexOf(last.reduce((a, b) => Math.max(a, b)));
  if (@stop@.includes(next)) break;
  text.push(next);
  ids = [BigInt(next)];
}
console.log(tokenizer.decode(text, { skip_special_tokens: true }));
```"""

TRANSFORMERS_JS = """`npm install @huggingface/transformers`. A folder of
`export --layout transformers.js` is opened by its own name and without `subfolder`.

```js
import { AutoModelForCausalLM, AutoTokenizer, env } from "@huggingface/transformers";

Object.assign(env, { allowRemoteModels: false, localModelPath: "" });
const tokenizer = await AutoTokenizer.from_pretrained(".");
const model = await AutoModelForCausalLM.from_pretrained(".", { subfolder: "", device: "@device@" });
const inputs = tokenizer(@prompt@);
const text = await model.generate({ ...inputs, max_new_tokens: @tokens@, do_sample: false });
console.log(tokenizer.decode(text.tolist()[0], { skip_special_tokens: true }));
```"""

OPTIMUM = """`pip install "optimum-onnx[onnxruntime]" "onnxruntime>=1.24"`

```python
from optimum.onnxruntime import ORTModelForCausalLM
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = ORTModelForCausalLM.from_pretrained(".", provider="@provider@ExecutionProvider")
inputs = tokenizer(@prompt@, return_tensors="pt", return_token_type_ids=False)
text = model.generate(**inputs, max_new_tokens=@tokens@, do_sample=False)
print(tokenizer.decode(text[0], skip_special_tokens=True))
```"""

PROGRAMS = {
    "ONNX Runtime": ONNXRUNTIME,
    "onnxruntime-genai": GENAI,
    "onnxruntime-node": NODE,
    "transformers.js": TRANSFORMERS_JS,
    "optimum-onnx": OPTIMUM,
}
"""Title -> text with one program in it."""
