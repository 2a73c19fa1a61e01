"""Checkpoints of known shapes with random weights: for speed, memory and time, never for quality.

A checkpoint is written tensor by tensor, so that 1.5 billion parameters (6.2 GB in float32) need no more memory than
their largest matrix. A safetensors file is

    8 bytes: length of the header    header: {name: {dtype, shape, data_offsets}} as JSON    the tensors' bytes

Matrices are drawn from N(0, 0.02), as GPT-2 is initialized, but the embedding from N(0, 0.1), so that the likeliest
token stands out and variants can be held against each other; norms are one, biases zero. The tokenizer is trained on
the novels of the repository and knows fewer tokens than the model has, which costs a model nothing.
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from compress.training.tokenizer import train_tokenizer

ROOT = Path(__file__).resolve().parent.parent
NOVELS = ROOT / "recipes" / "data" / "novels"
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2-124m": {"model_type": "gpt2", "n_layer": 12, "n_embd": 768, "n_head": 12},
    "gpt2-355m": {"model_type": "gpt2", "n_layer": 24, "n_embd": 1024, "n_head": 16},
    "gpt2-774m": {"model_type": "gpt2", "n_layer": 36, "n_embd": 1280, "n_head": 20},
    "gpt2-1.5b": {"model_type": "gpt2", "n_layer": 48, "n_embd": 1600, "n_head": 25},
    "smollm2-135m": {
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
        "tie_word_embeddings": True,
    },
}
TOKENIZER_TOKENS = 8192
PART = 1 << 24


def write_checkpoint(shape: str, folder: Path, *, seed: int = 0, tokenizer: Path | None = None, **changes: Any) -> None:
    """Write a dense float32 checkpoint of a shape of SHAPES, with the given fields of its config changed.

    Args:
        tokenizer: a folder to take the tokenizer from; None trains one.
    """
    from transformers import AutoConfig

    fields = {**SHAPES[shape], **changes}
    config = AutoConfig.for_model(fields.pop("model_type"), **fields, bos_token_id=0, eos_token_id=0)
    config.architectures = [_class_name(config)]
    config.dtype = "float32"
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    _save_tokenizer(folder, tokenizer, config.vocab_size)
    _write_weights(folder / "model.safetensors", _tensors_of(config), np.random.default_rng(seed))


def _class_name(config: Any) -> str:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type])


def _tensors_of(config: Any) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor, from an empty model; a tied head is not one."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]  # untyped there
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def _save_tokenizer(folder: Path, source: Path | None, vocabulary: int) -> None:
    from transformers import AutoTokenizer

    if source is not None:
        AutoTokenizer.from_pretrained(source, local_files_only=True).save_pretrained(folder)
        return
    text = (NOVELS / "valid.txt").read_text(encoding="utf-8")
    train_tokenizer([text], min(vocabulary, TOKENIZER_TOKENS)).save_pretrained(folder)


def _write_weights(file: Path, tensors: dict[str, tuple[int, ...]], random: np.random.Generator) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in tensors.items():
        start, end = end, end + 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for name, shape in tensors.items():
            for part in _values(name, shape, random):
                stream.write(part.tobytes())


def _values(name: str, shape: tuple[int, ...], random: np.random.Generator) -> Iterator[Any]:
    """The values of a tensor, in parts."""
    total = int(np.prod(shape))
    if len(shape) == 1:
        yield np.full(total, 0.0 if name.endswith("bias") else 1.0, dtype=np.float32)
        return
    spread = np.float32(0.1 if "wte" in name or "embed_tokens" in name else 0.02)
    for start in range(0, total, PART):
        yield random.standard_normal(min(PART, total - start), dtype=np.float32) * spread
