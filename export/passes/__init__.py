"""What is done to mobius's graph, in order: each pass is one file, an `onnx_ir` pass with the reason for it at its
head.

`PASSES` is the list. The first group works on the graph before it has weights, the second after the float weights are
in.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from export.passes.context import PassContext

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["PASSES", "PassContext", "apply_passes"]


def _fix_attention(context: PassContext) -> "ir.passes.InPlacePass":
    from export.passes.fix_attention import FixAttention

    return FixAttention()


def _fix_rotation(context: PassContext) -> "ir.passes.InPlacePass":
    from export.passes.fix_rotation import FixRotation

    return FixRotation()


def _fix_narrow_rotation(context: PassContext) -> "ir.passes.InPlacePass":
    from export.passes.fix_narrow_rotation import FixNarrowRotation

    return FixNarrowRotation()


def _fix_embedding_scale(context: PassContext) -> "ir.passes.InPlacePass":
    from export.passes.fix_embedding_scale import FixEmbeddingScale

    return FixEmbeddingScale()


def _carry_int8_linears(context: PassContext) -> "ir.passes.InPlacePass":
    from export.passes.carry_int8_linears import CarryInt8Linears

    return CarryInt8Linears(context)


def _carry_int8_embedding(context: PassContext) -> "ir.passes.InPlacePass":
    from export.passes.carry_int8_embedding import CarryInt8Embedding

    return CarryInt8Embedding(context)


def _place_float_weights(context: PassContext) -> "ir.passes.InPlacePass":
    from export.passes.place_float_weights import PlaceFloatWeights

    return PlaceFloatWeights(context)


def _share_float_head(context: PassContext) -> "ir.passes.InPlacePass":
    from export.passes.share_float_head import ShareFloatHead

    return ShareFloatHead()


def _fold_bias(context: PassContext) -> "ir.passes.InPlacePass":
    from export.passes.fold_bias import FoldBias

    return FoldBias(context)


def _fuse_silu(context: PassContext) -> "ir.passes.InPlacePass":
    from export.passes.fuse_silu import FuseSilu

    return FuseSilu()


def _slice_logits(context: PassContext) -> "ir.passes.InPlacePass":
    from export.passes.slice_logits import SliceLogits

    return SliceLogits()


def _tidy(context: PassContext) -> "ir.passes.InPlacePass":
    from export.passes.tidy import Tidy

    return Tidy()


PASSES: dict[str, Callable[[PassContext], "ir.passes.InPlacePass"]] = {
    "fix_attention": _fix_attention,
    "fix_rotation": _fix_rotation,
    "fix_narrow_rotation": _fix_narrow_rotation,
    "fix_embedding_scale": _fix_embedding_scale,
    "carry_int8_linears": _carry_int8_linears,
    "carry_int8_embedding": _carry_int8_embedding,
    "place_float_weights": _place_float_weights,
    "share_float_head": _share_float_head,
    "fold_bias": _fold_bias,
    "fuse_silu": _fuse_silu,
    "slice_logits": _slice_logits,
    "tidy": _tidy,
}


def apply_passes(model: "ir.Model", context: PassContext) -> list[str]:
    """Run every pass over `model`, in place; the names of those that changed something."""
    return [name for name, make in PASSES.items() if make(context)(model).modified]
