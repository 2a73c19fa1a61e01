"""What each layer's attention computes besides its weights: asked of transformers' own modules, told to the graph.

mobius-onnx makes one GroupQueryAttention of each layer's attention, and on the way drops what the mask said, and what
one layer has that another has not. The passes `fix_attention` and `fix_rotation` hold the graph to what stands here.

    scale       factor of the scores                           the attention module's `scaling`
    window      tokens that a query sees, itself included      config: sliding_window or window_size, layer_types
    rotation    angle of position p at frequency f: p * f      the frequencies of the model's rotary embedding

The model that is asked need not have memory, so that this costs nothing at any size.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compress.models.block_linears import blocks
from export.families import FULL, layer_kinds, unrotated

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import nn
    from transformers import PreTrainedModel

LAYERS = "layers"
"""Under this key, a graph's `meta` holds the `Layer` of each of its layers."""
EMBEDDING_SCALE = "embedding_scale"
"""Under this key, a graph's `meta` holds the factor of the token embeddings; None where there is none."""
FREQUENCIES = "inv_freq"
"""transformers' name for a rotary embedding's frequencies; before it may stand the kind of layer that they are for."""
ORIGINAL = "original_"
PAST_KEY = 3
"""Input of GroupQueryAttention."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Rotation:
    """Rotary angles are position times frequency; cosines and sines are multiplied by `scaling`."""

    frequencies: NDArray[np.float32]
    """One for every two columns that are rotated."""
    scaling: float


@dataclass(frozen=True, eq=False, kw_only=True)
class Layer:
    """One layer's attention."""

    scale: float | None
    """None: transformers does not say; what the graph has stays."""
    window: int | None
    """None: a query sees all before it."""
    rotation: Rotation | None
    """None: transformers does not say; what the graph has stays."""
    rotates: bool
    """False: a layer without rotation among layers that rotate."""


def describe(model: "PreTrainedModel") -> dict[str, Any]:
    """What the passes need to know of `model`, for the `meta` of its graph."""
    scale = getattr(model.get_input_embeddings(), "scalar_embed_scale", None)
    return {LAYERS: read_layers(model), EMBEDDING_SCALE: scale}


def read_layers(model: "PreTrainedModel") -> list[Layer]:
    """Every layer of a model, in order."""

    rotations, parts = _rotations(model), blocks(model)
    kinds = layer_kinds(model.config) or [""] * len(parts)
    return [
        Layer(
            scale=_scale(block),
            window=_window(model.config, kind),
            rotation=rotations.get("", rotations.get(kind)),
            rotates=not (kind in FULL and unrotated(model.config)),
        )
        for (_, block), kind in zip(parts, kinds, strict=True)
    ]


def layer_of(node: "ir.Node", layers: list[Layer]) -> Layer | None:
    """The layer of a GroupQueryAttention, told from the name of its cache; None for any other node."""
    past = node.inputs[PAST_KEY] if node.op_type == "GroupQueryAttention" else None
    return None if past is None or past.name is None else layers[int(past.name.split(".")[1])]


def _window(settings: Any, kind: str) -> int | None:
    if kind in FULL or getattr(settings, "use_sliding_window", True) is False:
        return None
    return getattr(settings, "sliding_window", None) or getattr(settings, "window_size", None)


def _scale(block: "nn.Module") -> float | None:
    for module in block.modules():
        scale = getattr(module, "scaling", None)
        if type(module).__name__.endswith("Attention") and isinstance(scale, float):
            return scale
    return None


def _rotations(model: "PreTrainedModel") -> dict[str, Rotation]:
    """Kind of layer -> its rotation, under "" the one that serves all kinds."""
    found: dict[str, Rotation] = {}
    makers: dict[Any, None] = {type(module): None for module in model.modules() if _frequencies(module)}
    for maker in makers:
        embedding = maker(model.config)  # anew: the model's own may be without memory
        for name in _frequencies(embedding):
            kind = name.removesuffix(FREQUENCIES)
            found[kind.rstrip("_")] = Rotation(
                frequencies=getattr(embedding, name).numpy(),
                scaling=float(getattr(embedding, f"{kind}attention_scaling", 1.0)),
            )
    return found


def _frequencies(module: "nn.Module") -> list[str]:
    """Names of the buffers that hold a rotary embedding's frequencies; none in any other module."""
    buffers = dict(module.named_buffers(recurse=False))
    return [name for name in buffers if name.endswith(FREQUENCIES) and ORIGINAL not in name]
