"""genai_config.json: what onnxruntime-genai needs to run the bundle as it is, and what our own runtime reads.

The model's type there is always "llama": in onnxruntime-genai that stands for "a decoder with one key and one value
cache per layer", while its "gpt2" stands for an old layout with both in one tensor, which it would look for and not
find.

There is no `speculative` section: onnxruntime-genai 0.18 takes one, but a bundle that rounds activations then writes
other tokens than without it (`export.runtime.check_graph` says why, docs/bundle.md how many).
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from compress.checkpoints.config import TOKENS
from compress.checkpoints.folder import Checkpoint
from export.runtime.session import KEYS

if TYPE_CHECKING:
    import onnx_ir as ir

CONFIG = "genai_config.json"


def genai_config(
    checkpoint: Checkpoint, architecture: Any, model: "ir.Model", provider: Literal["cpu", "cuda"]
) -> dict[str, Any]:
    """The content of genai_config.json for the graph `model` of a checkpoint."""
    special = _special_ids(checkpoint, architecture.vocab_size)
    inputs = {
        value.name: value.name
        for value in model.graph.inputs
        if not (value.name or "").startswith("past_key_values.") and value.name not in model.graph.initializers
    }
    decoder = {
        "session_options": {
            "log_id": "onnxruntime-genai",
            "provider_options": [{"cuda": {}}] if provider == "cuda" else [],
            **KEYS[provider],
        },
        "filename": "model.onnx",
        "head_size": architecture.head_dim,
        "hidden_size": architecture.hidden_size,
        "inputs": inputs | {"past_key_names": "past_key_values.%d.key", "past_value_names": "past_key_values.%d.value"},
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
        "num_attention_heads": architecture.num_attention_heads,
        "num_hidden_layers": architecture.num_hidden_layers,
        "num_key_value_heads": architecture.num_key_value_heads,
    }
    about = {
        "type": "llama",
        "context_length": architecture.max_position_embeddings,
        "vocab_size": architecture.vocab_size,
        "decoder": decoder,
    }
    search = {"do_sample": False, "max_length": architecture.max_position_embeddings, "past_present_share_buffer": True}
    return {"model": special | about, "search": search}


def _special_ids(checkpoint: Checkpoint, vocabulary: int) -> dict[str, Any]:
    """bos, eos and pad: generation_config.json's before config.json's; an id outside of the vocabulary is none."""
    found: dict[str, Any] = {}
    for content in (checkpoint.config, checkpoint.generation):
        for key in TOKENS:
            ids = content.get(key) if isinstance(content.get(key), list) else [content.get(key)]
            if ids and all(isinstance(token, int) and 0 <= token < vocabulary for token in ids):
                found[key] = content[key]
    end = found.get("eos_token_id", found.get("bos_token_id", 0))
    first = end[0] if isinstance(end, list) else end
    return {"bos_token_id": first, "eos_token_id": end, "pad_token_id": first} | found


def write_json(file: Path, content: Any) -> None:
    """JSON that is the same, byte for byte, for the same content."""
    file.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
