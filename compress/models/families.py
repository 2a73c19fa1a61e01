"""What is known of model families, in one place: what a tensor is by its name, how a config says the sizes, where
queries, keys and values lie, and on which axis each dimension of each parameter lies.

For every decoder of transformers whose names and keys are the usual ones:

    PARTS        which component a tensor belongs to
    CONFIG_KEYS  under which key a config has a size
    PROJECTIONS  which linears give queries, keys and values

and for those that can be slimmed, `FAMILIES`, the axes:

    hidden       the residual stream's channels
    ffn          the neurons between the MLP's linears
    query        query heads, head_dim wide each
    key_value    key-value heads, head_dim wide each
    stacked      [all queries | all keys | all values], as GPT-2 packs them
    gated        [the gates of all neurons | their values], as Phi-3 packs the two linears that neurons have
    interleaved  [query, key, value] of one head after the other, as GPT-NeoX packs them
    fixed        what slimming never cuts: vocabulary, positions, the columns within a head

Removing one unit of an axis means removing its slice from every dimension that lies on it. GPT-2, OPT and GPT-NeoX
have no config key for a head's width, it is hidden / heads there: heads and hidden channels can only go together. A
Llama config wants `hidden` to be a multiple of `heads`; Mistral, Qwen2 and Qwen3 take any pair.

The axes of a family that FAMILIES lacks are found by tracing a tiny model of it (`structured/unknown_family.py`).

Not covered: mixtures of experts, parameters that a family's table lacks.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from compress.stage import StageError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Part = Literal["hidden", "query", "key", "value"]
"""What may be looked at of a layer as it runs."""
Axis = Literal["hidden", "ffn", "gated", "query", "key_value", "stacked", "interleaved", "fixed"]
Axes = tuple[Axis, ...]
Size = Literal["layers", "hidden", "heads", "kv_heads", "ffn"]
SIZES: tuple[Size, ...] = ("layers", "hidden", "heads", "kv_heads", "ffn")
CONFIG_KEYS: dict[Size | Literal["head_dim", "vocabulary", "experts"], tuple[str, ...]] = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "heads": ("num_attention_heads", "n_head", "num_heads", "n_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads"),
    "ffn": ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"),
    "head_dim": ("head_dim",),
    "vocabulary": ("vocab_size",),
    "experts": ("num_local_experts", "num_experts", "n_routed_experts"),
}
"""Size -> the keys under which config.json may have it."""
PER_LAYER = ("attention_layers", "layer_types", "mlp_layer_types", "no_rope_layers")
"""Config lists with an entry for each layer."""
PARTS: dict[str, str] = {
    "head": r"lm_head|embed_out",
    "norms": r"norm|\bln_",
    "attention": r"attn|attention",
    "mlp": r"mlp|feed_forward|experts|\bfc\d|dense_h_to_4h|dense_4h_to_h",
    "embeddings": r"embed|\bwte\b|\bwpe\b",
    "other": "",
}
"""Part -> what the names of its tensors contain; the first that fits."""
Layout = tuple[Literal["separate", "stacked", "interleaved"], str]
"""How a block holds queries, keys and values, and the name of the linear ("{}" stands for q, k or v)."""
SEPARATE: Layout = ("separate", "self_attn.{}_proj")
PROJECTIONS: dict[str, Layout] = {
    "gemma": SEPARATE,
    "gemma2": SEPARATE,
    "gemma3_text": SEPARATE,
    "gpt2": ("stacked", "attn.c_attn"),
    "gpt_neo": ("separate", "attn.attention.{}_proj"),
    "gpt_neox": ("interleaved", "attention.query_key_value"),
    "llama": SEPARATE,
    "mistral": SEPARATE,
    "opt": SEPARATE,
    "phi": SEPARATE,
    "qwen2": SEPARATE,
    "qwen3": SEPARATE,
    "smollm3": SEPARATE,
}
"""By model type."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of a model that slimming may change, and the width of a head, which it keeps."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    ffn: int
    head_dim: int

    def width(self, axis: Axis) -> int:
        """How long a dimension is that lies on `axis`."""
        query, key_value = self.heads * self.head_dim, self.kv_heads * self.head_dim
        widths = {
            "hidden": self.hidden,
            "ffn": self.ffn,
            "gated": 2 * self.ffn,
            "query": query,
            "key_value": key_value,
            "stacked": query + 2 * key_value,
            "interleaved": 3 * query,
        }
        return widths[axis]

    def sizes(self) -> dict[str, int]:
        """Size by name, for metadata and messages."""
        return {name: getattr(self, name) for name in SIZES}


@dataclass(frozen=True, kw_only=True)
class Family:
    """Where the axes lie in the parameters of one architecture."""

    blocks: str
    """Name of the list of blocks."""
    inside: Mapping[str, Axes]
    """Axes of each parameter of a block, by its name within the block; not every model has every one."""
    outside: Mapping[str, Axes]
    """The same for the parameters outside the blocks, by their names in the model."""
    keys: Mapping[Size, str]
    """Config key of each size."""
    attention_output: str
    """The linear, within a block, that is fed the heads' outputs."""
    ffn_output: str
    """The linear, within a block, that is fed the neurons' activations."""
    norms: tuple[str, ...]
    """The norms of a block that read the residual stream."""
    final_norm: str
    square: bool = False
    """Whether a head's width is hidden / heads, so that the two can only change together."""
    divides: bool = False
    """Whether `hidden` must be a multiple of `heads`."""
    follow_hidden: tuple[str, ...] = ()
    """Further config keys that are always the hidden width."""
    requires: Mapping[str, object] = field(default_factory=dict)
    """Config values without which the table does not hold."""
    frozen: Mapping[Size, str] = field(default_factory=dict)
    """Sizes that cannot change, and why."""

    def axes(self, name: str) -> Axes | None:
        """Axes of a parameter by its name in the model; None where the table has no such parameter."""
        if not name.startswith(f"{self.blocks}."):
            return self.outside.get(name)
        return self.inside.get(split_name(self, name)[1])


GPT2 = Family(
    blocks="transformer.h",
    inside={
        "ln_1.weight": ("hidden",),
        "ln_1.bias": ("hidden",),
        "attn.c_attn.weight": ("hidden", "stacked"),
        "attn.c_attn.bias": ("stacked",),
        "attn.c_proj.weight": ("query", "hidden"),
        "attn.c_proj.bias": ("hidden",),
        "ln_2.weight": ("hidden",),
        "ln_2.bias": ("hidden",),
        "mlp.c_fc.weight": ("hidden", "ffn"),
        "mlp.c_fc.bias": ("ffn",),
        "mlp.c_proj.weight": ("ffn", "hidden"),
        "mlp.c_proj.bias": ("hidden",),
    },
    outside={
        "transformer.wte.weight": ("fixed", "hidden"),
        "transformer.wpe.weight": ("fixed", "hidden"),
        "transformer.ln_f.weight": ("hidden",),
        "transformer.ln_f.bias": ("hidden",),
        "lm_head.weight": ("fixed", "hidden"),
    },
    keys={"layers": "n_layer", "hidden": "n_embd", "heads": "n_head", "ffn": "n_inner"},
    attention_output="attn.c_proj",
    ffn_output="mlp.c_proj",
    norms=("ln_1", "ln_2"),
    final_norm="transformer.ln_f",
    square=True,
)
LLAMA_PARAMETERS: dict[str, Axes] = {
    "input_layernorm.weight": ("hidden",),
    "self_attn.q_proj.weight": ("query", "hidden"),
    "self_attn.q_proj.bias": ("query",),
    "self_attn.k_proj.weight": ("key_value", "hidden"),
    "self_attn.k_proj.bias": ("key_value",),
    "self_attn.v_proj.weight": ("key_value", "hidden"),
    "self_attn.v_proj.bias": ("key_value",),
    "self_attn.o_proj.weight": ("hidden", "query"),
    "self_attn.o_proj.bias": ("hidden",),
    "self_attn.q_norm.weight": ("fixed",),
    "self_attn.k_norm.weight": ("fixed",),
    "post_attention_layernorm.weight": ("hidden",),
    "mlp.gate_proj.weight": ("ffn", "hidden"),
    "mlp.gate_proj.bias": ("ffn",),
    "mlp.up_proj.weight": ("ffn", "hidden"),
    "mlp.up_proj.bias": ("ffn",),
    "mlp.down_proj.weight": ("hidden", "ffn"),
    "mlp.down_proj.bias": ("hidden",),
}


def _like_llama(*, divides: bool = False) -> Family:
    return Family(
        blocks="model.layers",
        inside=LLAMA_PARAMETERS,
        outside={
            "model.embed_tokens.weight": ("fixed", "hidden"),
            "model.norm.weight": ("hidden",),
            "lm_head.weight": ("fixed", "hidden"),
        },
        keys={
            "layers": "num_hidden_layers",
            "hidden": "hidden_size",
            "heads": "num_attention_heads",
            "kv_heads": "num_key_value_heads",
            "ffn": "intermediate_size",
        },
        attention_output="self_attn.o_proj",
        ffn_output="mlp.down_proj",
        norms=("input_layernorm", "post_attention_layernorm"),
        final_norm="model.norm",
        divides=divides,
    )


OPT = Family(
    blocks="model.decoder.layers",
    inside={
        "self_attn.q_proj.weight": ("query", "hidden"),
        "self_attn.q_proj.bias": ("query",),
        "self_attn.k_proj.weight": ("query", "hidden"),
        "self_attn.k_proj.bias": ("query",),
        "self_attn.v_proj.weight": ("query", "hidden"),
        "self_attn.v_proj.bias": ("query",),
        "self_attn.out_proj.weight": ("hidden", "query"),
        "self_attn.out_proj.bias": ("hidden",),
        "self_attn_layer_norm.weight": ("hidden",),
        "self_attn_layer_norm.bias": ("hidden",),
        "fc1.weight": ("ffn", "hidden"),
        "fc1.bias": ("ffn",),
        "fc2.weight": ("hidden", "ffn"),
        "fc2.bias": ("hidden",),
        "final_layer_norm.weight": ("hidden",),
        "final_layer_norm.bias": ("hidden",),
    },
    outside={
        "model.decoder.embed_tokens.weight": ("fixed", "hidden"),
        "model.decoder.embed_positions.weight": ("fixed", "hidden"),
        "model.decoder.final_layer_norm.weight": ("hidden",),
        "model.decoder.final_layer_norm.bias": ("hidden",),
        "lm_head.weight": ("fixed", "hidden"),
    },
    keys={"layers": "num_hidden_layers", "hidden": "hidden_size", "heads": "num_attention_heads", "ffn": "ffn_dim"},
    attention_output="self_attn.out_proj",
    ffn_output="fc2",
    norms=("self_attn_layer_norm", "final_layer_norm"),
    final_norm="model.decoder.final_layer_norm",
    square=True,
    follow_hidden=("word_embed_proj_dim",),
    requires={"do_layer_norm_before": True, "_remove_final_layer_norm": False},
)
NEOX = Family(
    blocks="gpt_neox.layers",
    inside={
        "input_layernorm.weight": ("hidden",),
        "input_layernorm.bias": ("hidden",),
        "post_attention_layernorm.weight": ("hidden",),
        "post_attention_layernorm.bias": ("hidden",),
        "attention.query_key_value.weight": ("interleaved", "hidden"),
        "attention.query_key_value.bias": ("interleaved",),
        "attention.dense.weight": ("hidden", "query"),
        "attention.dense.bias": ("hidden",),
        "mlp.dense_h_to_4h.weight": ("ffn", "hidden"),
        "mlp.dense_h_to_4h.bias": ("ffn",),
        "mlp.dense_4h_to_h.weight": ("hidden", "ffn"),
        "mlp.dense_4h_to_h.bias": ("hidden",),
    },
    outside={
        "gpt_neox.embed_in.weight": ("fixed", "hidden"),
        "gpt_neox.final_layer_norm.weight": ("hidden",),
        "gpt_neox.final_layer_norm.bias": ("hidden",),
        "lm_head.weight": ("fixed", "hidden"),
    },
    keys={
        "layers": "num_hidden_layers",
        "hidden": "hidden_size",
        "heads": "num_attention_heads",
        "ffn": "intermediate_size",
    },
    attention_output="attention.dense",
    ffn_output="mlp.dense_4h_to_h",
    norms=("input_layernorm", "post_attention_layernorm"),
    final_norm="gpt_neox.final_layer_norm",
    square=True,
)
FAMILIES: dict[str, Family] = {
    "gpt2": GPT2,
    "gpt_neox": NEOX,
    "llama": _like_llama(divides=True),
    "mistral": _like_llama(),
    "opt": OPT,
    "qwen2": _like_llama(),
    "qwen3": _like_llama(),
}


def size_in(config: Mapping[str, Any], size: Size | Literal["head_dim", "vocabulary", "experts"]) -> int:
    """A size that a config.json gives, whatever its family calls it; 0 where it gives none."""
    return next((int(config[key]) for key in CONFIG_KEYS[size] if isinstance(config.get(key), int)), 0)


def split_name(family: Family, name: str) -> tuple[int, str]:
    """(layer, name within its block) of a block's parameter."""
    index, _, rest = name.removeprefix(f"{family.blocks}.").partition(".")
    return int(index), rest


def check_family(family: Family, config: "PreTrainedConfig", names: Sequence[str]) -> None:
    """Make sure that a table holds for a model with these parameters.

    Raises:
        StageError: a setting is not covered, or the table lacks a parameter.
    """
    for key, wanted in family.requires.items():
        if getattr(config, key, wanted) != wanted:
            raise StageError(f"slim: {key}: expected {wanted}, got {getattr(config, key)}; choose another model")
    unknown = [name for name in names if family.axes(name) is None]
    if unknown:
        raise StageError(
            f"slim: {config.model_type}: cannot tell which axes {', '.join(unknown[:3])} lie on, so they could not "
            "follow a narrower model; choose a model without them"
        )


def shape_of(config: "PreTrainedConfig", family: Family) -> Shape:
    """The sizes that a config gives."""
    found = {size: getattr(config, key) for size, key in family.keys.items()}
    heads, hidden = found["heads"], found["hidden"]
    return Shape(
        layers=found["layers"],
        hidden=hidden,
        heads=heads,
        kv_heads=found.get("kv_heads") or heads,
        ffn=(found["ffn"] or 4 * hidden)
        if "ffn" in found
        else 0,  # GPT-2 says nothing where it is four times the width
        head_dim=getattr(config, "head_dim", None) or hidden // heads,
    )


def config_for(config: "PreTrainedConfig", family: Family, shape: Shape, layers: Sequence[int]) -> "PreTrainedConfig":
    """A copy of a config that says `shape`, its layers being the source's layers `layers`."""
    changed = copy.deepcopy(config)
    for size, key in family.keys.items():
        if size not in family.frozen:
            setattr(changed, key, getattr(shape, size))
    for key in family.follow_hidden:
        setattr(changed, key, shape.hidden)
    if not family.square and (hasattr(config, "head_dim") or shape.head_dim * shape.heads != shape.hidden):
        changed.head_dim = shape.head_dim
    follow_layers(changed, layers)
    return changed


def follow_layers(config: Any, layers: Sequence[int]) -> None:
    """What a config says of single layers."""
    for key in PER_LAYER:
        if getattr(config, key, None):
            setattr(config, key, [getattr(config, key)[layer] for layer in layers])
    if getattr(config, "attention_types", None):  # GPT-Neo says it twice
        config.attention_types = [[list(config.attention_layers), 1]]
    whole = getattr(config, "max_window_layers", None)
    if whole is not None and any(layer >= whole for layer in layers):
        config.max_window_layers = sum(layer < whole for layer in layers)
