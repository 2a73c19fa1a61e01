"""Rotation before the attention, where the attention's own kernel cannot rotate.

GroupQueryAttention rotates by tables of 8, 16, 24... columns. GPT-NeoX 20B has 12, Pythia 2.8B and StableLM 3B have 10.

    GroupQueryAttention(qkv, cos, sin)
        ->  q, k, v = Split(qkv)    GroupQueryAttention(RotaryEmbedding(q), RotaryEmbedding(k), v), do_rotary = 0

RotaryEmbedding looks its angles up by `position_ids`, which the graph then has as an input: a token's place in its own
row, by which GroupQueryAttention counts too.
"""

import numpy as np
import onnx_ir as ir

from export.attention_facts import PAST_KEY
from export.passes.context import GraphPass
from export.passes.fix_rotation import COSINES, SINES, stop_rotating

MULTIPLE = 8
POSITIONS = "position_ids"


class FixNarrowRotation(GraphPass):
    """GroupQueryAttention that would rotate by a table it does not take -> RotaryEmbedding, then attention."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = [node for node in model.graph if node.op_type == "GroupQueryAttention" and _columns(node) % MULTIPLE]
        for node in nodes:
            _rotate_before(model.graph, node)
        return ir.passes.PassResult(model, modified=bool(nodes))


def _columns(node: ir.Node) -> int:
    """Columns of the table that `node` rotates by; 0 where it does not rotate."""
    table = node.inputs[COSINES] if node.attributes["do_rotary"].as_int() else None
    return 0 if table is None or table.const_value is None else int(table.const_value.numpy().shape[1])


def _rotate_before(graph: ir.Graph, attention: ir.Node) -> None:
    query, key, value = attention.inputs[:3]
    heads = [attention.attributes[name].as_int() for name in ("num_heads", "kv_num_heads")]
    if key is None:
        split = _split(graph, attention, heads)
        graph.insert_before(attention, split)
        query, key, value = split.outputs
    columns = _columns(attention)
    rotated = [_rotary(graph, attention, part, count, columns) for part, count in zip((query, key), heads, strict=True)]
    graph.insert_before(attention, rotated)
    for index, given in enumerate([*(node.outputs[0] for node in rotated), value]):
        attention.replace_input_with(index, given)
    stop_rotating(attention)


def _split(graph: ir.Graph, attention: ir.Node, heads: list[int]) -> ir.Node:
    """Packed queries, keys and values -> the three."""
    past = attention.inputs[PAST_KEY]
    assert past is not None
    assert past.shape is not None
    width, (queries, keys) = past.shape[-1], heads
    assert isinstance(width, int)
    sizes = ir.Tensor(np.asarray([queries * width, keys * width, keys * width]), name=f"{attention.name}.sizes")
    value = ir.Value(name=sizes.name, shape=sizes.shape, type=ir.TensorType(sizes.dtype), const_value=sizes)
    graph.register_initializer(value)
    return ir.node("Split", [attention.inputs[0], value], {"axis": -1}, num_outputs=3, name=f"{attention.name}.split")


def _rotary(graph: ir.Graph, attention: ir.Node, part: ir.Value | None, heads: int, columns: int) -> ir.Node:
    interleaved = attention.attributes.get("rotary_interleaved")
    attributes = {
        "num_heads": heads,
        "rotary_embedding_dim": 2 * columns,
        "interleaved": 0 if interleaved is None else interleaved.as_int(),
    }
    inputs = [part, _positions(graph), attention.inputs[COSINES], attention.inputs[SINES]]
    return ir.node("RotaryEmbedding", inputs, attributes, domain="com.microsoft")


def _positions(graph: ir.Graph) -> ir.Value:
    """The graph's input `position_ids` [B, T], added where the graph no longer has one."""
    inputs = {value.name: value for value in graph.inputs}
    if POSITIONS not in inputs:
        ids = inputs["input_ids"]
        graph.inputs.append(ir.Value(name=POSITIONS, shape=ids.shape, type=ids.type))
    return inputs.get(POSITIONS, graph.inputs[-1])
