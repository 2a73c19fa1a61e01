"""What a checkpoint's config says where mobius-onnx does not hear it.

mobius-onnx reads every config by one list of keys. Where a family's key is not on the list, its graph is right for
some checkpoints of the family and wrong for others. What is done about that, before anything is built:

    REFUSED_TYPES   model types for which there is no right graph
    REFUSED         settings for which there is none, by model type: refused by name, all of them in one message
    CORRECTED       fields of mobius's reading that it gets wrong
    GRAPHS          another of mobius's graphs, where a setting makes the type's own the wrong one

What mobius hears and its graph loses again is not here: `attention_facts.py`. A model type that is not named here is
tried as it is, and parity decides.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.stage import StageError

FULL = frozenset({"full_attention", "global"})
LAYER_KINDS = FULL | {"sliding_attention", "local"}
ROTATIONS = frozenset({"default", "linear", "dynamic", "llama3", "longrope", "yarn"})
"""Rotary types whose angles depend on the position alone inside a bundle's context: `dynamic` stretches them only
beyond `max_position_embeddings`; `longrope` beyond `original_max_position_embeddings`, where its bundle's context ends.
"""
WAY_OUT = "choose another checkpoint, or stop before `export`: the checkpoint itself runs in transformers"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A key of config.json and what it must say."""

    key: str
    holds: Callable[[Any], bool]
    expected: str


def _off(key: str) -> Setting:
    return Setting(key=key, holds=lambda value: not value, expected="false or none")


def _on(key: str) -> Setting:
    return Setting(key=key, holds=bool, expected="true")


ALIBI = "its positions are biases of the scores (ALiBi), which its graph would lose"
REFUSED_TYPES = {
    "bloom": ALIBI,
    "mpt": ALIBI,
    "persimmon": "its graph has no place for its biases",
}
REFUSED: dict[str, tuple[Setting, ...]] = {
    "cohere": (_off("use_qk_norm"),),
    "falcon": (_off("alibi"),),
    "gemma": (_off("use_bidirectional_attention"),),
    "gemma2": (_off("use_bidirectional_attention"),),
    "gemma3_text": (_off("use_bidirectional_attention"), _off("final_logit_softcapping")),
    "gpt2": (_off("add_cross_attention"),),
    "gpt_neox": (_off("tie_word_embeddings"),),
    "olmo": (_off("clip_qkv"),),
    "opt": (
        _on("do_layer_norm_before"),
        _on("enable_bias"),
        _on("layer_norm_elementwise_affine"),
        _off("_remove_final_layer_norm"),
    ),
    "phi": (_off("qk_layernorm"),),
    "stablelm": (_off("qk_layernorm"), _off("use_parallel_residual")),
}
CORRECTED: dict[str, Callable[[Any], dict[str, Any]]] = {
    "codegen": lambda settings: {"mlp_bias": True},
    "cohere": lambda settings: {"rope_interleave": True},
    "cohere2": lambda settings: {"rope_interleave": True},
    "ernie4_5": lambda settings: {"rope_interleave": True},
    "gemma2": lambda settings: {"hidden_act": settings.hidden_activation},
    "gemma3_text": lambda settings: {"hidden_act": settings.hidden_activation},
    "glm": lambda settings: {"attn_o_bias": False},
    "glm4": lambda settings: {"attn_o_bias": False},
    "gptj": lambda settings: {"mlp_bias": True},
    "granite": lambda settings: {"mlp_bias": settings.mlp_bias},
    "helium": lambda settings: {"rope_interleave": True},
    "llama": lambda settings: {"mlp_bias": settings.mlp_bias},
    "olmo": lambda settings: {"rms_norm_eps": 1e-5},  # no key says it: a constant of transformers' module
    "openai-gpt": lambda settings: {"hidden_act": {"gelu": "gelu_new"}.get(settings.afn, settings.afn)},
    "opt": lambda settings: {"rms_norm_eps": 1e-5},  # no key says it: nn.LayerNorm's own
    "seed_oss": lambda settings: {"attn_o_bias": settings.attention_out_bias},
}
GRAPHS: dict[str, Callable[[Any], str]] = {
    "gpt_neox": lambda settings: "gpt_neox" if settings.use_parallel_residual else "gpt_neox_japanese",
}
"""The model type whose graph is built."""
UNROTATED: dict[str, Callable[[Any], bool]] = {
    "cohere2": lambda settings: True,
    "exaone4": lambda settings: settings.sliding_window is not None,
}
"""Whether the layers of full attention do without rotation, while the others rotate."""


def check_settings(folder: Path, settings: Any) -> None:
    """Refuse a config for which no graph is right; `settings` is transformers' reading of it.

    Raises:
        StageError: every setting that is in the way, by name.
    """
    kind = settings.model_type
    if kind in REFUSED_TYPES:
        raise refusal(folder, kind, REFUSED_TYPES[kind])
    faults = [
        f"`{setting.key}`: expected {setting.expected}, got {getattr(settings, setting.key)!r}"
        for setting in REFUSED.get(kind, ())
        if not setting.holds(getattr(settings, setting.key, False))
    ]
    if kind == "opt" and settings.word_embed_proj_dim != settings.hidden_size:
        expected = f"`hidden_size`, which is {settings.hidden_size}"
        faults.append(f"`word_embed_proj_dim`: expected {expected}, got {settings.word_embed_proj_dim}")
    faults += _unknown("rope_type", rotation_types(settings) - ROTATIONS, ROTATIONS)
    faults += _unknown("layer_types", set(layer_kinds(settings) or ()) - LAYER_KINDS, LAYER_KINDS)
    if faults:
        raise refusal(folder, kind, "; ".join(faults))


def refusal(folder: Path, kind: str, reason: str) -> StageError:
    """The error that says why a model cannot be exported."""
    return StageError(f"{folder}: this model of type {kind!r} cannot be exported: {reason}; {WAY_OUT}")


def _unknown(key: str, found: set[str], known: frozenset[str]) -> list[str]:
    return [f"`{key}`: expected one of {', '.join(sorted(known))}, got {value!r}" for value in sorted(found)]


def rotation_types(settings: Any) -> set[str]:
    """Every rotary type that the config names; empty where positions are not rotary."""
    given = getattr(settings, "rope_parameters", None) or {}
    parts = (given, *(value for value in given.values() if isinstance(value, dict)))
    return {str(part["rope_type"]) for part in parts if "rope_type" in part}


def layer_kinds(settings: Any) -> list[str] | None:
    """The kind of attention of each layer; None where all are of one kind."""
    return getattr(settings, "layer_types", None) or getattr(settings, "attention_layers", None)


def corrections(settings: Any) -> dict[str, Any]:
    """Fields of mobius's reading of the config that are to be replaced."""
    family = CORRECTED.get(settings.model_type)
    fields = family(settings) if family else {}
    if "longrope" in rotation_types(settings):
        original = settings.rope_parameters["original_max_position_embeddings"]
        fields["max_position_embeddings"] = min(original, settings.max_position_embeddings)
    return fields


def graph_type(settings: Any) -> str:
    """The model type whose graph mobius is to build."""
    choose = GRAPHS.get(settings.model_type)
    return choose(settings) if choose else str(settings.model_type)


def unrotated(settings: Any) -> bool:
    """Whether the layers of full attention do without rotation, while the others rotate."""
    family = UNROTATED.get(settings.model_type)
    return family is not None and family(settings)
