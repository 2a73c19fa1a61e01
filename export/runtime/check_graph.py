"""The graph of a pass over several tokens that computes, to the bit, what as many passes of one token compute.

The kernels of GroupQueryAttention add in another order for several tokens than for one. That is a difference of 5e-7,
but where activations are rounded to 8 bits it grows to 0.06 in the logits: one text in four then goes another way
within 100 tokens. MatMulNBits that rounds activations, norms and activation functions compute each row alike however
many there are (seen on AVX2). So here each token attends by itself, after those before it:

    qkv [1, T, W]  ->  T x [1, 1, W]  ->  GroupQueryAttention of one token, each on the cache that the last one left
                                      ->  out [1, T, D]

Each has its cache as an output of the graph, "present.0.key@2" for the third token; all are bound to the same memory,
as otherwise ONNX Runtime would copy the cache for each. Rotation inside of the operator goes by the cache's length.

Not covered: attention that is given positions or a bias; float products, which differ in the last digit.

    T tokens    W width of what attention takes    D width of the model
"""

from typing import TYPE_CHECKING

from export.external_data import GRAPH, BundleError
from export.runtime.batch import TOKEN

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

ATTENTION = "GroupQueryAttention"
QUERY, PAST, LENGTHS = range(3), (3, 4), 5
"""Inputs that have a place per token; the cache's; and the row's length, less one, at the last token."""
PER_TOKEN = slice(9, 11)
"""Inputs that would have to be cut too: positions and a bias."""
BEFORE = "tokens_before_the_last"


def attend_one_by_one(model: "ModelProto", tokens: int) -> "ModelProto":
    """Change a decoder's graph, in place, into one for passes of `tokens` tokens.

    Raises:
        BundleError: its attention cannot be cut.
    """
    import numpy as np
    from onnx import ValueInfoProto, numpy_helper

    graph = model.graph
    nodes = [part for node in graph.node for part in (_cut(node, tokens) if node.op_type == ATTENTION else [node])]
    del graph.node[:]
    graph.node.extend(nodes)
    for count in range(1, tokens):
        graph.initializer.append(numpy_helper.from_array(np.asarray(count, dtype=np.int32), f"{BEFORE}.{count}"))
    for value in list(graph.output)[1:]:
        for place in range(tokens - 1):
            inner = ValueInfoProto()
            inner.CopyFrom(value)
            inner.name = f"{value.name}{TOKEN}{place}"
            graph.output.append(inner)
    return model


def _cut(node: "NodeProto", tokens: int) -> "list[NodeProto]":
    """Attention of one token after another, and what it takes to cut and to join."""
    from onnx import helper

    if any(node.input[PER_TOKEN]):
        raise BundleError(f"{GRAPH}: {node.name} takes positions or a bias; leave speculation out")
    out, *presents = node.output
    cut = [index for index in QUERY if node.input[index]]
    parts = [
        helper.make_node("Split", [node.input[index]], _each(f"{out}.{index}", tokens), axis=1, num_outputs=tokens)
        for index in cut
    ]
    for place in range(tokens):
        one, last = _copy(node), place == tokens - 1
        one.name = f"{node.name}{TOKEN}{place}"
        for index in cut:
            one.input[index] = f"{out}.{index}{TOKEN}{place}"
        if place:
            for index, present in zip(PAST, presents, strict=True):
                one.input[index] = f"{present}{TOKEN}{place - 1}"
        if not last:
            one.input[LENGTHS] = f"{out}.length{TOKEN}{place}"
            inputs = [node.input[LENGTHS], f"{BEFORE}.{tokens - 1 - place}"]
            parts.append(helper.make_node("Sub", inputs, [one.input[LENGTHS]]))
        one.output[:] = [f"{out}{TOKEN}{place}", *(name if last else f"{name}{TOKEN}{place}" for name in presents)]
        parts.append(one)
    return [*parts, helper.make_node("Concat", _each(out, tokens), [out], axis=1)]


def _copy(node: "NodeProto") -> "NodeProto":
    from onnx import NodeProto

    copy = NodeProto()
    copy.CopyFrom(node)
    return copy


def _each(name: str, tokens: int) -> list[str]:
    return [f"{name}{TOKEN}{place}" for place in range(tokens)]
