"""Gemma's token embeddings are multiplied by the square root of their width.

    Mul(Gather(table, input_ids), sqrt(width))

mobius-onnx rounds the factor (to two decimals, or to float16), which is off by up to 1e-4 where the root is no short
number: at widths 640, 2048, 3072 and 3584 among others.
"""

import numpy as np
import onnx_ir as ir

from export.attention_facts import EMBEDDING_SCALE
from export.passes.context import GraphPass


class FixEmbeddingScale(GraphPass):
    """The constant factor of the token embeddings -> the exact one."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        scale = model.meta[EMBEDDING_SCALE]
        if scale is None:
            return ir.passes.PassResult(model, modified=False)
        changed = [_fix(model.graph, node, scale) for node in model.graph if _is_lookup(node)]
        return ir.passes.PassResult(model, modified=any(changed))


def _is_lookup(node: ir.Node) -> bool:
    return node.op_type == "Gather" and node.inputs[1] is not None and node.inputs[1].name == "input_ids"


def _fix(graph: ir.Graph, lookup: ir.Node, scale: float) -> bool:
    uses = [use for use in lookup.outputs[0].uses() if use.node.op_type == "Mul"]
    changed = [_replace(graph, use.node, 1 - use.idx, scale) for use in uses]
    return any(changed)


def _replace(graph: ir.Graph, product: ir.Node, index: int, scale: float) -> bool:
    given = product.inputs[index]
    if given is None or given.const_value is None or given.const_value.size != 1:
        return False
    was = given.const_value.numpy()
    exact = np.full_like(was, scale)
    if np.array_equal(was, exact):
        return False
    tensor = ir.Tensor(exact, name=EMBEDDING_SCALE)
    value = ir.Value(name=EMBEDDING_SCALE, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    product.replace_input_with(index, value)
    return True
