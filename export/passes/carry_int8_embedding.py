"""An int8 embedding is looked up in the same table that the tied head multiplies by.

    Gather(W_VK, ids)  ->  (Cast(Gather(codes, ids)) - 128) * Gather(scales, ids), the blocks laid side by side again

GatherBlockQuantized would be one node, but takes 8 bits on some providers only. Two thousand numbers a token cost
nothing measurable.
"""

import numpy as np
import onnx_ir as ir

from export.passes.carry_int8_linears import ZERO, pack
from export.passes.context import Packed, PassContext


class CarryInt8Embedding(ir.passes.InPlacePass):
    """Gather from an int8 matrix -> Gather, Cast, Sub, Mul on the packed one."""

    def __init__(self, context: PassContext) -> None:
        super().__init__()
        self.context = context

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        lookups = [node for node in model.graph if node.op_type == "Gather" and self._is_int8(node)]
        for node in lookups:
            self._replace(model.graph, node)
        return ir.passes.PassResult(model, modified=bool(lookups))

    def _is_int8(self, node: ir.Node) -> bool:
        table = node.inputs[0]
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
        return table is not None and axis == 0 and table.name in self.context.weights.int8.rows

    def _replace(self, graph: ir.Graph, node: ir.Node) -> None:
        table, ids = node.inputs
        assert table is not None
        packed = pack(graph, self.context.weights.int8.rows[table.name or ""], self.context)
        nodes = _look_up(graph, packed, ids, f"{packed.codes.name}.embedding")
        ir.convenience.replace_nodes_and_values(graph, node, [node], nodes, node.outputs, nodes[-1].outputs)


def _look_up(graph: ir.Graph, packed: Packed, ids: ir.Value | None, name: str) -> list[ir.Node]:
    """ids [B, T] -> rows [B, T, K] in the scales' type."""
    dtype = packed.scales.dtype
    assert dtype is not None
    zero = _constant(graph, f"{name}.zero", np.asarray(ZERO, dtype=dtype.numpy()))
    last = _constant(graph, f"{name}.last", np.asarray([-1], dtype=np.int64))
    flat = _constant(graph, f"{name}.flat", np.asarray([0, 0, -1], dtype=np.int64))
    codes = ir.node("Gather", [packed.codes, ids], name=f"{name}.gather")
    wide = ir.node("Cast", [codes.outputs[0]], {"to": int(dtype)}, name=f"{name}.cast")
    centered = ir.node("Sub", [wide.outputs[0], zero], name=f"{name}.center")
    scales = ir.node("Gather", [packed.scales, ids], name=f"{name}.gather_scales")
    columns = ir.node("Unsqueeze", [scales.outputs[0], last], name=f"{name}.unsqueeze")
    scaled = ir.node("Mul", [centered.outputs[0], columns.outputs[0]], name=f"{name}.scale")
    rows = ir.node("Reshape", [scaled.outputs[0], flat], name=f"{name}.rows")
    nodes = [codes, wide, centered, scales, columns, scaled, rows]
    if packed.columns % packed.block:
        start, end = (
            _constant(graph, f"{name}.{key}", np.asarray([at])) for key, at in (("start", 0), ("end", packed.columns))
        )
        nodes.append(ir.node("Slice", [rows.outputs[0], start, end, last], name=f"{name}.cut"))
    return nodes


def _constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    value = ir.Value(
        name=name,
        const_value=ir.Tensor(array, name=name),
        shape=ir.Shape(array.shape),
        type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
    )
    graph.register_initializer(value)
    return value
