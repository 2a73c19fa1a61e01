"""README.md of a bundle: how a stranger runs it, in five programs, with the text that each of them must print.

The text is what the export's own run made of a fixed prompt, greedily; the manifest holds it as `sample`. A run puts
its model card above this (`recipes.runs.folder`), in the same file.
"""

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.coverage import WIDTHS
from export.external_data import read_graph
from export.float_reference import float_of
from export.initializers import attributes_of
from export.manifest import bundle_folder, read_manifest
from export.readme_programs import FLOAT_CACHE_ONLY, PROGRAMS, WITH_POSITIONS
from export.readme_rules import rules
from export.runtime.model import BundleConfig, OnnxCausalLM
from export.runtime.session import Provider

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto
    from transformers import PreTrainedTokenizerBase

README = "README.md"
PROMPT = "The old house stood"
TOKENS = 16
LEAST = {24: "1.24"}
"""Opset -> the first ONNX Runtime that has it."""
POSITIONS = "position_ids"
ROUNDED = 4
"""The accuracy level at which MatMulNBits rounds activations."""
HUB = "onnx"
"""The bundle's folder in the layout of transformers.js, which looks for a graph there by itself."""
PENDING = (
    "Made where no GPU was: its arithmetic is proven on the CPU, and `demitasse verify` proves on a GPU what that "
    "computes (proof.json)."
)
PACKAGES = {
    "cpu": {"onnxruntime": "onnxruntime", "genai": "onnxruntime-genai", "optimum": "onnxruntime", "node": ""},
    "cuda": {
        "onnxruntime": "onnxruntime-gpu",
        "genai": "onnxruntime-genai-cuda",
        "optimum": "onnxruntime-gpu",
        "node": ", in Node 24 or newer, which has float16",
    },
}


def take_sample(bundle: Path, tokenizer: "PreTrainedTokenizerBase", provider: Provider) -> dict[str, Any]:
    """What the bundle adds to the prompt: {"prompt", "ids", "tokens", "text"}; the text has the prompt in it."""
    ids = [int(token) for token in tokenizer(PROMPT)["input_ids"]]
    [tokens] = OnnxCausalLM.open(bundle, provider=provider).generate([ids], max_new_tokens=TOKENS)
    text = tokenizer.decode(ids + tokens, skip_special_tokens=True)
    return {"prompt": PROMPT, "ids": ids, "tokens": tokens, "text": text}


def write_readme(folder: Path, *, license: str | None = None) -> None:
    """Write README.md into a folder that is or holds a bundle; `license` as `usage` has it."""
    (folder / README).write_text(usage(folder, license=license), encoding="utf-8")


def usage(folder: Path, *, license: str | None = None) -> str:
    """The section that says how to run the bundle that `folder` is or holds, in Markdown.

    Args:
        license: of the model that the bundle was made of, as its owner states it; empty: nobody did; None: this is not
            the place that tells it.
    """
    bundle = bundle_folder(folder)
    graph, manifest = read_graph(bundle), read_manifest(bundle)
    names = {value.name for value in graph.graph.input}
    words = _words(bundle, graph, manifest) | _places(bundle.relative_to(folder).as_posix())
    least = LEAST.get(_opset(graph))
    facts = [
        f"Opset {_opset(graph)}{f': ONNX Runtime {least} or newer' if least else ''}.",
        _weights(graph, manifest),
        _lineage(bundle, manifest, license),
        *([PENDING] if "pending" in manifest["arithmetic"] else []),
    ]
    parts = [
        "## How to run it",
        f"An ONNX decoder with a key-value cache, and what other programs read beside it.{words['where']}",
        "\n".join(f"- {fact}" for fact in facts),
        f"Each of the programs below continues {words['prompt']} greedily by {TOKENS} tokens at most, and prints",
        f"```json\n{_quoted(manifest['sample']['text'])}\n```",
        *(f"### {title}\n\n{_filled(text, words)}" for title, text in _programs(graph).items()),
        f"### Inputs and outputs\n\n{_tensors(graph)}",
        rules(positions=POSITIONS in names),
    ]
    return "\n\n".join(parts) + "\n"


def _opset(graph: "ModelProto") -> int:
    return int(next(entry.version for entry in graph.opset_import if entry.domain == ""))


def _weights(graph: "ModelProto", manifest: dict[str, Any]) -> str:
    """How the graph stores its matrices and multiplies by them."""
    kinds: Counter[tuple[int, int, int]] = Counter()
    for node in graph.graph.node:
        if node.op_type == "MatMulNBits":
            settings = attributes_of(node)
            kinds[settings["bits"], settings["block_size"], settings.get("accuracy_level", 0)] += 1
    held = manifest["coverage"]
    floats, size = float_of(graph), f"{held['float_bytes'] / 1e6:,.1f} MB"
    if not kinds:
        return f"Weights: {floats}, not quantized ({size})."
    parts = [
        f"{count} products by weights of {bits} bits in blocks of {block} columns "
        f"(activations {'rounded to 8 bits a block' if level == ROUNDED else 'as they are'})"
        for (bits, block, level), count in sorted(kinds.items(), reverse=True)
    ]
    codes = sum(held[f"int{width}_bytes"] for width in WIDTHS) + held["scale_bytes"]
    return f"Weights: {'; '.join(parts)}, {codes / 1e6:,.1f} MB with their scales; the rest in {floats}, {size}."


def _lineage(bundle: Path, manifest: dict[str, Any], license: str | None) -> str:
    config = json.loads((bundle / "config.json").read_text(encoding="utf-8"))
    stages = ", ".join(stage["kind"] for stage in manifest["recipe"] if "kind" in stage)
    told = {None: "", "": " Its license is not stated."}.get(
        license, f" Its license, as its owner states it: {license}."
    )
    return (
        f"Made of a {config['model_type']} with {manifest['parameters']:,} parameters ({stages}); every knob, version "
        f"and proof stands in manifest.json.{told}"
    )


def _tensors(graph: "ModelProto") -> str:
    from onnx import helper

    layers = sum(value.name.endswith(".key") for value in graph.graph.input)
    lines = [f"N is a layer's number, 0 to {layers - 1}.", "", "| name | type | shape |", "|---|---|---|"]
    for value in (*graph.graph.input, *graph.graph.output):
        if ".0." in value.name or "." not in value.name:
            tensor = value.type.tensor_type
            shape = ", ".join(str(size.dim_value or size.dim_param) for size in tensor.shape.dim)
            kind = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            lines.append(f"| `{value.name.replace('.0.', '.N.')}` | {kind} | {shape.replace(' + 0', '')} |")
    return "\n".join(lines)


def _programs(graph: "ModelProto") -> dict[str, str]:
    """Those that take the graph's cache."""
    return {title: text for title, text in PROGRAMS.items() if _cache(graph) != "int8" or title not in FLOAT_CACHE_ONLY}


def _cache(graph: "ModelProto") -> str:
    return _type(next(value for value in graph.graph.input if value.name == "past_key_values.0.key"))


def _type(value: "ValueInfoProto") -> str:
    """As numpy names it."""
    from onnx import helper

    return str(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))


def _words(bundle: Path, graph: "ModelProto", manifest: dict[str, Any]) -> dict[str, str]:
    """What the programs need to know of this bundle."""
    positions = POSITIONS in {value.name for value in graph.graph.input}
    return (WITH_POSITIONS if positions else dict.fromkeys(WITH_POSITIONS, "")) | {
        **PACKAGES[manifest["provider"]],
        "release": f">={LEAST[_opset(graph)]}" if _opset(graph) in LEAST else "",
        "prompt": _quoted(manifest["sample"]["prompt"]),
        "tokens": str(TOKENS),
        "stop": json.dumps(list(BundleConfig.read(bundle).stop_ids)),
        "cache": _cache(graph),
        "cache_js": f"{_cache(graph).capitalize()}Array",
        "provider": manifest["provider"].upper(),
        "device": manifest["provider"],
    }


def _places(place: str) -> dict[str, str]:
    """Where the bundle lies, seen from the README, and how transformers.js is told so."""
    hub = place == HUB
    return {
        "folder": place,
        "in": "" if place == "." else f"{place}/",
        "where": "" if place == "." else f" It lies in `{place}/`; the programs run where this file lies.",
        "web": "." if hub else place,
        "subfolder": "" if hub else 'subfolder: "", ',
        "hub": "" if hub else ". A folder of `demitasse export --layout transformers.js` needs no `subfolder`.",
    }


def _filled(text: str, words: dict[str, str]) -> str:
    for name, word in words.items():
        text = text.replace(f"@{name}@", word)
    return text


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
