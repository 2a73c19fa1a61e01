"""Models for the tests of slimming: each family of the table, with the settings that matter to its parameters."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from compress.models.families import Family, Shape, shape_of
from compress.structured.unknown_family import family_of

GROUPS = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 16}
"""Two query heads to a key-value head, as Qwen3-0.6B has them, and heads wider than hidden / heads."""
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {"n_head": 4}),
    "gpt2 untied": ("gpt2", {"n_head": 4, "n_inner": 96, "tie_word_embeddings": False}),
    "gpt2 by layer": ("gpt2", {"n_head": 4, "scale_attn_by_inverse_layer_idx": True}),
    "gpt_neox": ("gpt_neox", {"num_hidden_layers": 3}),
    "gpt_neox serial": ("gpt_neox", {"use_parallel_residual": False, "num_hidden_layers": 3}),
    "llama": ("llama", {}),
    "llama biases": ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False}),
    "llama no groups": ("llama", {"num_key_value_heads": 4}),
    "mistral": ("mistral", {"num_hidden_layers": 3}),
    "opt": ("opt", {"num_hidden_layers": 3}),
    "qwen2": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 1, "num_hidden_layers": 3},
    ),
    "qwen3": ("qwen3", {**GROUPS, "num_hidden_layers": 3}),
}
SQUARE = ("gpt2", "gpt_neox", "opt")


def anatomy(model: PreTrainedModel) -> tuple[Family, Shape]:
    """The table and the sizes of a model."""
    family = family_of(model.config, [name for name, _ in model.named_parameters()])
    return family, shape_of(model.config, family)


def loud(folder: Path) -> Path:
    """A tiny checkpoint rewritten in place with weights so large, and biases so random, that every unit matters."""
    import torch
    from safetensors.torch import load_file, save_file

    random = torch.Generator().manual_seed(5)
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        noise = torch.randn(tensor.shape, generator=random)
        tensors[name] = tensor + (0.2 * noise if tensor.ndim > 1 else 0.3 * noise)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
