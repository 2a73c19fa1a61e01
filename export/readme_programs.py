"""The programs of a bundle's README: Python and JavaScript, of at most twenty lines of code, with @words@ for what
differs from bundle to bundle. They run in the folder where the README lies.
"""

WITH_POSITIONS = {
    "positions_python": '\n    feeds["position_ids"] = np.arange(len(text))[None, -ids.shape[1]:]',
    "positions_js": "\n  feeds.position_ids = integers([...text.keys()].slice(read));",
}
"""Lines for a graph that reads `position_ids`."""

ONNXRUNTIME = """`pip install "@onnxruntime@@release@" tokenizers`

```python
import numpy as np
import onnxruntime
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("@in@tokenizer.json")
session = onnxruntime.InferenceSession("@in@model.onnx", providers=["@provider@ExecutionProvider"])
text = tokenizer.encode(@prompt@).ids
caches = [value for value in session.get_inputs() if value.name.startswith("past_key_values.")]
past = {value.name: np.zeros((1, value.shape[1], 0, value.shape[3]), np.@cache@) for value in caches}
ids = np.array([text], np.int64)
for _ in range(@tokens@):
    feeds = past | {"input_ids": ids, "attention_mask": np.ones((1, len(text)), np.int64)}@positions_python@
    logits, *present = session.run(None, feeds)
    past = dict(zip(past, present))
    ids = logits[:, -1:].argmax(axis=-1)
    if ids[0, 0] in @stop@:
        break
    text.append(int(ids[0, 0]))
print(tokenizer.decode(text))
```"""

GENAI = """`pip install @genai@`. Without `add_special_tokens` it leaves out a token that this
tokenizer puts before a text, and a model that needs it goes on with nonsense.

```python
import onnxruntime_genai

model = onnxruntime_genai.Model("@folder@")
tokenizer = onnxruntime_genai.Tokenizer(model)
tokenizer.update_options(add_special_tokens="true")
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

NODE = """`npm install onnxruntime-node @huggingface/tokenizers`@node@

```js
import { readFileSync } from "node:fs";
import { Tokenizer } from "@huggingface/tokenizers";
import ort from "onnxruntime-node";

const files = ["@in@tokenizer.json", "@in@tokenizer_config.json"].map((file) => JSON.parse(readFileSync(file)));
const tokenizer = new Tokenizer(...files), text = tokenizer.encode(@prompt@).ids, feeds = {};
const session = await ort.InferenceSession.create("@in@model.onnx", { executionProviders: ["@device@"] });
const integers = (values) => new ort.Tensor("int64", values.map(BigInt), [1, values.length]);
for (const { name, shape } of session.inputMetadata)
  if (name.startsWith("past")) feeds[name] = new ort.Tensor("@cache@", new @cache_js@(0), [1, shape[1], 0, shape[3]]);
for (let read = 0, count = 0; count < @tokens@; count++, read = text.length - 1) {
  feeds.input_ids = integers(text.slice(read));
  feeds.attention_mask = integers(text.map(() => 1));@positions_js@
  const { logits, ...present } = await session.run(feeds);
  for (const name in present) feeds[name.replace("present", "past_key_values")] = present[name];
  const last = logits.data.slice(-logits.dims[2]), next = last.indexOf(last.reduce((a, b) => Math.max(a, b)));
  if (@stop@.includes(next)) break;
  text.push(next);
}
console.log(tokenizer.decode(text, { skip_special_tokens: true }));
```"""

TRANSFORMERS_JS = """`npm install @huggingface/transformers`@hub@

```js
import { AutoModelForCausalLM, AutoTokenizer, env } from "@huggingface/transformers";

Object.assign(env, { allowRemoteModels: false, localModelPath: "" });
const tokenizer = await AutoTokenizer.from_pretrained("@web@");
const model = await AutoModelForCausalLM.from_pretrained("@web@", { @subfolder@device: "@device@" });
const inputs = tokenizer(@prompt@);
const text = await model.generate({ ...inputs, max_new_tokens: @tokens@, do_sample: false });
console.log(tokenizer.decode(text.tolist()[0], { skip_special_tokens: true }));
```"""

OPTIMUM = """`pip install "optimum-onnx[@optimum@]" "@onnxruntime@@release@"`

```python
from optimum.onnxruntime import ORTModelForCausalLM
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("@folder@")
model = ORTModelForCausalLM.from_pretrained("@folder@", provider="@provider@ExecutionProvider")
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
FLOAT_CACHE_ONLY = {"transformers.js", "optimum-onnx"}
"""Programs that make float caches whatever the graph has."""
