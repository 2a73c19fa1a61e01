"""README.md of a bundle: how a stranger runs it, in five programs, with the text that each of them must print.

The text is what the export's own run made of a fixed prompt, greedily; the manifest holds it as `sample`. A run puts
its model card above this (`recipes.runs.folder`), in the same file.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.checkpoints.folder import load_tokenizer
from export.external_data import read_graph
from export.manifest import bundle_folder, read_manifest
from export.readme_programs import PROGRAMS, WITH_POSITIONS
from export.runtime.model import BundleConfig, OnnxCausalLM
from export.runtime.session import Provider

if TYPE_CHECKING:
    from onnx import ModelProto

README = "README.md"
PROMPT = "The old house stood"
TOKENS = 16
LEAST = {24: "1.24"}
"""Opset -> the first ONNX Runtime that has it."""


def take_sample(bundle: Path, source: Path, provider: Provider) -> dict[str, Any]:
    """What the bundle adds to the prompt: {"prompt", "ids", "tokens", "text"}; the text has the prompt in it."""
    tokenizer = load_tokenizer(source)
    ids = [int(token) for token in tokenizer(PROMPT)["input_ids"]]
    [tokens] = OnnxCausalLM.open(bundle, provider=provider).generate([ids], max_new_tokens=TOKENS)
    text = tokenizer.decode(ids + tokens, skip_special_tokens=True)
    return {"prompt": PROMPT, "ids": ids, "tokens": tokens, "text": text}


def usage(folder: Path) -> str:
    """The section that says how to run the bundle that `folder` is or holds, in Markdown."""
    bundle = bundle_folder(folder)
    graph, sample = read_graph(bundle), read_manifest(bundle)["sample"]
    words = _words(bundle, graph) | {"prompt": _quoted(sample["prompt"]), "tokens": str(TOKENS)}
    place = bundle.relative_to(folder).as_posix()
    parts = [
        "## How to run it",
        _introduction(graph, "" if place == "." else f" The files lie in `{place}/`: run these there."),
        f"Each of these programs continues a prompt greedily and prints\n\n```json\n{_quoted(sample['text'])}\n```",
        f"Inputs and outputs:\n\n{_tensors(graph)}",
        RULES,
        *(f"### {title}\n\n{_filled(text, words)}" for title, text in PROGRAMS.items()),
    ]
    return "\n\n".join(parts) + "\n"


def write_readme(folder: Path) -> None:
    """Write README.md into a folder that is or holds a bundle."""
    (folder / README).write_text(usage(folder), encoding="utf-8")


RULES = """- **Cache**: the first run gets caches of length 0; each `present.N.key` and `.value` is the next run's
  `past_key_values.N.key` and `.value`. The two may also be one buffer that holds the whole context, bound as
  input and output: then the mask is as long as the buffer.
- **Padding**: rows of unequal length are padded on the right or on the left, each on one side, with 0 in the
  mask; `position_ids`, where the graph has them, count each row's own tokens from 0. Padding on both sides of
  a row, or inside it, gives other text.
- **`logits_from`** is a constant of the graph, 0: a run gives every position's logits. A prompt needs its
  last one's only, and the head is a large part of a small model's work:
  `graph.input.append(helper.make_tensor_value_info("logits_from", TensorProto.INT64, [1]))` with the `onnx`
  package makes it an input, the first position whose logits are wanted, which may be left out. (ONNX Runtime
  warns of an input that has a default; demitasse's own runtime adds it in memory.)"""


def _introduction(graph: "ModelProto", place: str) -> str:
    opset = next(entry.version for entry in graph.opset_import if entry.domain == "")
    least = f", which ONNX Runtime has since {LEAST[opset]}" if opset in LEAST else ""
    decoder = f"An ONNX decoder with a key-value cache, of opset {opset}{least}"
    return f"{decoder}, and what other programs read beside it.{place}"


def _tensors(graph: "ModelProto") -> str:
    from onnx import TensorProto

    lines = ["| name | type | shape |", "|---|---|---|"]
    for value in (*graph.graph.input, *graph.graph.output):
        if ".0." in value.name or "." not in value.name:
            tensor = value.type.tensor_type
            shape = ", ".join(str(size.dim_value or size.dim_param) for size in tensor.shape.dim)
            kind = TensorProto.DataType.Name(tensor.elem_type).lower()
            lines.append(f"| `{value.name.replace('.0.', '.N.')}` | {kind} | {shape} |")
    return "\n".join(lines)


def _words(bundle: Path, graph: "ModelProto") -> dict[str, str]:
    """What the programs need to know of this bundle."""
    from onnx import TensorProto

    names = {value.name: value.type.tensor_type for value in graph.graph.input}
    half = names["past_key_values.0.key"].elem_type == TensorProto.FLOAT16
    positions = WITH_POSITIONS if "position_ids" in names else dict.fromkeys(WITH_POSITIONS, "")
    provider = "CUDA" if read_manifest(bundle)["provider"] == "cuda" else "CPU"
    return positions | {
        "stop": json.dumps(list(BundleConfig.read(bundle).stop_ids)),
        "float": "float16" if half else "float32",
        "float_js": "Uint16Array" if half else "Float32Array",
        "provider": provider,
        "device": provider.lower(),
    }


def _filled(text: str, words: dict[str, str]) -> str:
    for name, word in words.items():
        text = text.replace(f"@{name}@", word)
    return text


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
