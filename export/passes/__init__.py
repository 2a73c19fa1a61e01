"""What is done to mobius's graph, in order: each pass is one file, an `onnx_ir` pass with the reason for it at its
head.

`PASSES` is the list. The first group works on the graph before it has weights, the second after the float weights are
in.
"""

import onnx_ir as ir

from export.passes.accept_left_padding import AcceptLeftPadding
from export.passes.canonicalize import Canonicalize
from export.passes.compute_rotation import ComputeRotation
from export.passes.context import GraphPass, PassContext
from export.passes.fix_attention import FixAttention
from export.passes.fix_embedding_scale import FixEmbeddingScale
from export.passes.fix_narrow_rotation import FixNarrowRotation
from export.passes.fix_rotation import FixRotation
from export.passes.fold_bias import FoldBias
from export.passes.fuse_silu import FuseSilu
from export.passes.load_floats import LoadFloats
from export.passes.name_dimensions import NameDimensions
from export.passes.quantized_cache import QuantizedCache
from export.passes.quantized_embedding import QuantizedEmbedding
from export.passes.quantized_linears import QuantizedLinears
from export.passes.share_float_head import ShareFloatHead
from export.passes.slice_logits import SliceLogits

__all__ = ["PASSES", "PassContext", "apply_passes"]

PASSES: dict[str, type[GraphPass]] = {
    "fix_attention": FixAttention,
    "fix_rotation": FixRotation,
    "fix_narrow_rotation": FixNarrowRotation,
    "fix_embedding_scale": FixEmbeddingScale,
    "quantized_linears": QuantizedLinears,
    "quantized_embedding": QuantizedEmbedding,
    "load_floats": LoadFloats,
    "share_float_head": ShareFloatHead,
    "fold_bias": FoldBias,
    "fuse_silu": FuseSilu,
    "compute_rotation": ComputeRotation,
    "accept_left_padding": AcceptLeftPadding,
    "quantized_cache": QuantizedCache,
    "name_dimensions": NameDimensions,
    "slice_logits": SliceLogits,
    "canonicalize": Canonicalize,
}


def apply_passes(model: ir.Model, context: PassContext) -> list[str]:
    """Run every pass over `model`, in place; the names of those that changed something."""
    return [name for name, graph_pass in PASSES.items() if graph_pass(context)(model).modified]
