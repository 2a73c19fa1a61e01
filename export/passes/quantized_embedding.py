"""An int8 embedding is looked up in the same table that the tied head multiplies by.

    Gather(W_VK, ids)  ->  (Cast(Gather(codes, ids)) - 128) * Gather(scales, ids), the blocks laid side by side

Where a row has several scales, its codes are taken group by group for the product. GatherBlockQuantized would be one
node, but takes 8 bits on some providers only. Two thousand numbers a token cost nothing measurable. Not covered: an
embedding of fewer bits, or with zero points.
"""

import numpy as np
import onnx_ir as ir

from export.passes.context import GraphPass, Packed
from export.passes.quantized_linears import constant, pack
from export.row_tracking import WeightError


class QuantizedEmbedding(GraphPass):
    """Gather from an int8 matrix -> Gather, Cast, Sub, Mul on the packed one."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        lookups = [node for node in model.graph if node.op_type == "Gather" and self._is_quantized(node)]
        for node in lookups:
            self._replace(model.graph, node)
        return ir.passes.PassResult(model, modified=bool(lookups))

    def _is_quantized(self, node: ir.Node) -> bool:
        table = node.inputs[0]
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
        return table is not None and axis == 0 and table.name in self.context.weights.quantized.rows

    def _replace(self, graph: ir.Graph, node: ir.Node) -> None:
        table, ids = node.inputs
        assert table is not None
        packed = pack(graph, self.context.weights.quantized.rows[table.name or ""], self.context)
        if (packed.bits, packed.zeros) != (8, None):
            raise WeightError(
                f"{'+'.join(packed.modules)}: expected an embedding of symmetric 8 bits, got {packed.bits} bits"
                f"{'' if packed.zeros is None else ' with zero points'}; leave the embedding in float"
            )
        nodes = _look_up(graph, packed, ids, f"{packed.codes.name}.embedding")
        ir.convenience.replace_nodes_and_values(graph, node, [node], nodes, node.outputs, nodes[-1].outputs)


def _look_up(graph: ir.Graph, packed: Packed, ids: ir.Value | None, name: str) -> list[ir.Node]:
    """ids [B, T] -> rows [B, T, K] in the scales' type."""
    dtype = packed.scales.dtype
    assert dtype is not None
    zero = constant(graph, f"{name}.zero", np.asarray(1 << packed.bits - 1, dtype=dtype.numpy()))
    flat = constant(graph, f"{name}.flat", np.asarray([0, 0, -1]))
    codes = ir.node("Gather", [packed.codes, ids], name=f"{name}.gather")
    wide = ir.node("Cast", [codes.outputs[0]], {"to": int(dtype)}, name=f"{name}.cast")
    centered = ir.node("Sub", [wide.outputs[0], zero], name=f"{name}.center")
    scales = ir.node("Gather", [packed.scales, ids], name=f"{name}.gather_scales")
    if packed.groups > 1:
        parts = constant(graph, f"{name}.parts", np.asarray([0, 0, packed.groups, -1]))
        groups = ir.node("Reshape", [centered.outputs[0], parts], name=f"{name}.groups")
        column = ir.node("Reshape", [scales.outputs[0], parts], name=f"{name}.scales")
        scaled = ir.node("Mul", [groups.outputs[0], column.outputs[0]], name=f"{name}.scale")
        rows = ir.node("Reshape", [scaled.outputs[0], flat], name=f"{name}.rows")
        return [codes, wide, centered, scales, groups, column, scaled, rows]
    rows = ir.node("Reshape", [centered.outputs[0], flat], name=f"{name}.rows")
    nodes = [codes, wide, centered, rows]
    if packed.columns % packed.block:
        ends = (constant(graph, f"{name}.{key}", np.asarray([at])) for key, at in _cut(packed.columns).items())
        nodes.append(ir.node("Slice", [rows.outputs[0], *ends], name=f"{name}.cut"))
    scaled = ir.node("Mul", [nodes[-1].outputs[0], scales.outputs[0]], name=f"{name}.scale")
    return [*nodes, scales, scaled]


def _cut(columns: int) -> dict[str, int]:
    """Slice's inputs: the first `columns` of the last axis."""
    return {"start": 0, "end": columns, "axis": -1}
