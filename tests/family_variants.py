"""The families under test: variants as configs of the family have them, and settings that are refused.

A variant is what its config says beyond the tiny shape in conftest.py. `FAMILIES` are the supported ones; `ALSO` pass
the same proof; `MIXTURES` pass it as floats only; `REFUSALS` say with which message a config is refused.

The first variant of a family is proven whenever tests run, so it is the one that says most: every mechanism (windows,
caps, parts of a head that are rotated, each rotary type, scores scaled layer by layer, one key-value head, biases) is
in some first variant, or in `AS_WELL`. The others are thorough.
"""

from collections.abc import Callable
from typing import Any

from conftest import SHORT

Changes = dict[str, Any]
WINDOW = 12
SLIDING = {"use_sliding_window": True, "sliding_window": WINDOW, "num_hidden_layers": 3}
ALTERNATING = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0 + index / 10 for index in range(8)],
    "long_factor": [2.0 + index / 10 for index in range(8)],
    "original_max_position_embeddings": 32,
    "partial_rotary_factor": 1.0,
}


def rope(kind: str = "default", **more: Any) -> Changes:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, **more}}


def partial(factor: float) -> Changes:
    return rope(partial_rotary_factor=factor)


GPT2 = {"n_layer": 2, "n_positions": SHORT}
LLAMA = {"num_hidden_layers": 2, "intermediate_size": 96, "max_position_embeddings": SHORT}
FAMILIES: dict[str, dict[str, Changes]] = {
    "gpt2": {
        "scores divided by the layer's number": {**GPT2, "scale_attn_by_inverse_layer_idx": True},
        "tied": GPT2,
        "untied": {**GPT2, "tie_word_embeddings": False},
        "scores as they are": {**GPT2, "scale_attn_weights": False},
        "another epsilon": {**GPT2, "layer_norm_epsilon": 1e-2},
    },
    "llama": {
        "llama3": {**LLAMA, "rope_parameters": LLAMA3},
        "tied": LLAMA,
        "untied, biases": {**LLAMA, "tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True},
        "one key-value head, wide heads": {**LLAMA, "num_key_value_heads": 1, "head_dim": 32},
        "linear": {**LLAMA, **rope("linear", factor=4.0)},
        "dynamic": {**LLAMA, **rope("dynamic", factor=4.0)},
    },
    "mistral": {"window": {"sliding_window": WINDOW}, "tied, no window": {"sliding_window": None, "head_dim": 32}},
    "qwen2": {
        "windows in some layers": {**SLIDING, "max_window_layers": 1},
        "tied": {"tie_word_embeddings": True},
        "windows named but off": {**SLIDING, "use_sliding_window": False, "max_window_layers": 1},
        "yarn": {"rope_parameters": YARN},
    },
    "qwen3": {
        "yarn": {"rope_parameters": YARN},
        "tied": {"tie_word_embeddings": True, "head_dim": 32},
        "untied, biases": {"attention_bias": True},
        "windows in some layers": {**SLIDING, "max_window_layers": 1},
    },
    "gpt_neox": {
        "rotation of few columns": partial(0.25),
        "parallel residual": {"hidden_size": 128, **partial(0.5)},
        "serial residual": {"use_parallel_residual": False, **partial(1.0)},
    },
    "gpt_neo": {
        "windows in every other layer": {"attention_types": [[["global", "local"], 1]], "window_size": WINDOW},
        "no window, another width": {"attention_types": [[["global"], 2]], "intermediate_size": 96},
    },
    "phi": {
        "a part rotated": {"hidden_size": 160, "num_attention_heads": 2, **partial(0.4)},
        "few columns, grouped": {"num_key_value_heads": 2, **partial(0.5)},
    },
    "opt": {"relu": {}, "gelu, untied": {"activation_function": "gelu", "tie_word_embeddings": False}},
    "gemma": {"a root that is no short number": {"hidden_size": 72}, "one key-value head": {"num_key_value_heads": 1}},
    "gemma2": {
        "windows and caps": {
            **ALTERNATING,
            "hidden_size": 72,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
        "no caps, a key that nobody reads": {
            **ALTERNATING,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "hidden_act": "relu",
        },
    },
    "gemma3_text": {
        "two rotations": {
            **ALTERNATING,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
        "windows": {**ALTERNATING, "hidden_size": 72},
    },
}
ALSO: dict[str, dict[str, Changes]] = {
    "apertus": {"": {}},
    "arcee": {"": {}},
    "codegen": {"": {}},
    "cohere": {"": {}},
    "cohere2": {"": ALTERNATING},
    "ernie4_5": {"": {}},
    "exaone4": {"": ALTERNATING},
    "glm": {"": {"attention_bias": True, **partial(0.5)}},
    "glm4": {"": partial(0.5)},
    "gpt_bigcode": {"one key-value head": {}, "as many as heads": {"multi_query": False}},
    "gptj": {"": {}, "few columns": {"rotary_dim": 24}},
    "granite": {"": {"attention_bias": True, "mlp_bias": True}},
    "helium": {"": {}},
    "ministral": {"": ALTERNATING},
    "ministral3": {"": {}},
    "nemotron": {"": partial(0.5)},
    "olmo": {"": {}},
    "olmo2": {"": {}},
    "olmo3": {"": ALTERNATING},
    "openai-gpt": {"": {}},
    "phi3": {
        "longrope": {"rope_parameters": LONG, "original_max_position_embeddings": 32},
        "window": {"sliding_window": WINDOW},
    },
    "seed_oss": {"": {"attention_bias": True}},
    "smollm3": {"": {"no_rope_layer_interval": 2}},
    "stablelm": {"": {"use_qkv_bias": True, **partial(0.25)}},
    "starcoder2": {"window": {"sliding_window": WINDOW}, "no bias": {"use_bias": False}},
}
AS_WELL = {"llama": "dynamic"}
"""Family -> a further variant with what no first one has."""
MIXTURES = ("granitemoe", "mixtral", "olmoe", "qwen2_moe", "qwen3_moe")

REFUSALS: list[tuple[str, Changes, str]] = [
    (
        "opt",
        {"do_layer_norm_before": False, "word_embed_proj_dim": 32},
        r"`do_layer_norm_before`: expected true, got False; "
        r"`word_embed_proj_dim`: expected `hidden_size`, which is 64, got 32; choose another checkpoint",
    ),
    ("opt", {"enable_bias": False}, "`enable_bias`: expected true"),
    ("opt", {"layer_norm_elementwise_affine": False}, "`layer_norm_elementwise_affine`: expected true"),
    ("opt", {"_remove_final_layer_norm": True}, "`_remove_final_layer_norm`: expected false or none, got True"),
    ("cohere", {"use_qk_norm": True}, "`use_qk_norm`"),
    ("falcon", {"alibi": True}, "`alibi`"),
    ("gemma", {"use_bidirectional_attention": True}, "`use_bidirectional_attention`"),
    ("gemma2", {"use_bidirectional_attention": True}, "`use_bidirectional_attention`"),
    ("gemma3_text", {"final_logit_softcapping": 3.0}, "`final_logit_softcapping`: expected false or none, got 3.0"),
    ("gpt2", {"add_cross_attention": True}, "`add_cross_attention`"),
    ("gpt_neox", {"tie_word_embeddings": True}, "`tie_word_embeddings`"),
    ("llama4_text", {}, r"`layer_types`: expected one of .*, got 'chunked_attention'"),
    ("olmo", {"clip_qkv": 0.5}, r"`clip_qkv`: expected false or none, got 0\.5"),
    ("phi", {"qk_layernorm": True}, "`qk_layernorm`"),
    ("stablelm", {"qk_layernorm": True, "use_parallel_residual": True}, "`qk_layernorm`.*`use_parallel_residual`"),
    ("bert", {}, "expected a graph for 'text-generation', mobius-onnx has one for 'feature-extraction'"),
    ("bloom", {}, "ALiBi"),
    ("mpt", {}, "ALiBi"),
    ("cwm", {}, "type 'cwm' cannot be exported: mobius-onnx has no graph of it"),
    ("falcon", {"bias": True}, "no place for|cannot place its weights"),
    ("gpt_oss", {}, r"expected GroupQueryAttention to read past_key_values\.0\.key"),
    ("mamba", {}, "'linear_attention'"),
    ("rwkv", {}, "type 'rwkv' cannot be exported: mobius-onnx has no graph of it"),
    ("nanochat", {}, "parity on prefill"),
]


def without(*keys: str, **more: Any) -> Callable[[Changes], Changes]:
    return lambda config: {key: value for key, value in config.items() if key not in keys} | more


OLD = {
    "llama": ("llama3", without("rope_parameters", rope_theta=5e5, rope_scaling=LLAMA3)),
    "gpt_neox": ("rotation of few columns", without("rope_parameters", rotary_pct=0.25, rotary_emb_base=10000)),
    "phi": ("a part rotated", without("rope_parameters", partial_rotary_factor=0.4, rope_theta=10000.0)),
    "gpt_neo": ("windows in every other layer", without("attention_layers")),
    "qwen2": ("windows in some layers", without("layer_types")),
    "gemma3_text": (
        "two rotations",
        without(
            "rope_parameters",
            "layer_types",
            rope_theta=1e6,
            rope_local_base_freq=10000.0,
            rope_scaling={"rope_type": "linear", "factor": 8.0},
            sliding_window_pattern=2,
        ),
    ),
}
"""Variant -> its config as checkpoints before transformers 5 have it."""
