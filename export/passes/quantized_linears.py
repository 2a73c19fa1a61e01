"""Quantized linears become MatMulNBits, with the checkpoint's own codes.

    x_BTK @ Transpose(W_NK)   ->   MatMulNBits(x_BTK, codes, Expand(scales))             (W may be a Concat: packed QKV)

MatMulNBits reads B as uint8 [N, blocks, block * bits / 8], of 4 bits the first code in the lower half of a byte, with
one scale per block and an implied zero point Z of 128 or 8: W = (B - Z) * scale. A code c of the checkpoint stands
there as c + Z, so the weights are the checkpoint's, bit for bit. Columns that pad the last block hold Z, which is zero.
Zero points of the checkpoint are stored in the same way, one per block. The block is also the grain at which
accuracy_level 4 rounds activations.

Parts of a packed matrix that differ in bits or groups are multiplied by one after the other, and their results joined.

A row, or a group of its columns, has one scale, and the file holds it once: [N, groups]. Repeated over the blocks, the
scales would be a sixteenth of the codes. The graph spreads them out, and ONNX Runtime computes that once, as it opens
a session (constant folding, which every optimization level but "none" does, on the CPU, for every provider), so that
MatMulNBits sees a constant all the same. A session without optimization repeats it at every run: right, but slower.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from compress.checkpoints.codes import to_bytes
from export.passes.context import GraphPass, Packed, PassContext, block_for, block_in
from export.row_tracking import Rows


class QuantizedLinears(GraphPass):
    """MatMul by a quantized matrix -> MatMulNBits."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        products = [node for node in model.graph if node.op_type == "MatMul" and node.domain == ""]
        changed = [self._replace(model.graph, node) for node in products]
        return ir.passes.PassResult(model, modified=any(changed))

    def _replace(self, graph: ir.Graph, node: ir.Node) -> bool:
        rows = rows_of_transposed(node.inputs[1], self.context)
        if rows is None:
            return False
        parts = self.context.weights.quantized.alike(rows)
        names = [node.name, *(f"{node.name}.{number}" for number in range(1, len(parts)))]
        products = [self._product(graph, node.inputs[0], part, name) for part, name in zip(parts, names, strict=True)]
        nodes = [node for product in products for node in product]
        if len(parts) > 1:
            found = [product[-1].outputs[0] for product in products]
            nodes.append(ir.node("Concat", found, {"axis": -1}, name=f"{node.name}.parts"))
        ir.convenience.replace_nodes_and_values(graph, node, [node], nodes, node.outputs, nodes[-1].outputs)
        return True

    def _product(self, graph: ir.Graph, value: ir.Value | None, rows: Rows, name: str | None) -> list[ir.Node]:
        """What multiplies by rows that are alike; the product is the last node."""
        packed = pack(graph, rows, self.context)
        spread = _spread(graph, packed)
        product = ir.node(
            "MatMulNBits",
            inputs=[
                value,
                packed.codes,
                spread[-1].outputs[0] if spread else packed.scales,
                *([packed.zeros] if packed.zeros is not None else []),
            ],
            attributes={
                "K": packed.columns,
                "N": len(rows),
                "bits": packed.bits,
                "block_size": packed.block,
                "accuracy_level": self.context.accuracy_level,
            },
            domain="com.microsoft",
            name=name,
        )
        return [*spread, product]


def _spread(graph: ir.Graph, packed: Packed) -> list[ir.Node]:
    """Nodes from scales [N, groups] to one per block, [N, blocks]; none where each block is a group."""
    rows, groups, blocks = len(packed.rows), packed.groups, packed.blocks
    name = f"{packed.scales.name}.spread"
    if groups == blocks:
        return []
    if groups == 1:
        return [ir.node("Expand", [packed.scales, _shape(graph, rows, blocks)], name=name)]
    column = ir.node("Reshape", [packed.scales, _shape(graph, rows, groups, 1)], name=f"{name}.column")
    wide = ir.node("Expand", [column.outputs[0], _shape(graph, rows, groups, blocks // groups)], name=name)
    flat = ir.node("Reshape", [wide.outputs[0], _shape(graph, rows, blocks)], name=f"{name}.flat")
    return [column, wide, flat]


def _shape(graph: ir.Graph, *sizes: int) -> ir.Value:
    return constant(graph, f"shape.{'x'.join(map(str, sizes))}", np.asarray(sizes, dtype=np.int64))


def rows_of_transposed(weight: ir.Value | None, context: PassContext) -> Rows | None:
    """The quantized rows behind `Transpose(W)` or `Transpose(Concat(W, ...))`; None where anything else, or a float,
    stands there.
    """
    transpose = weight.producer() if weight is not None else None
    if transpose is None or transpose.op_type != "Transpose":
        return None
    return _rows_of(transpose.inputs[0], context)


def _rows_of(weight: ir.Value | None, context: PassContext) -> Rows | None:
    if weight is None:
        return None
    producer = weight.producer()
    if producer is None:
        return context.weights.quantized.rows.get(weight.name or "")
    if producer.op_type != "Concat" or producer.attributes["axis"].as_int() != 0:
        return None
    parts = [_rows_of(value, context) for value in producer.inputs]
    known = [part for part in parts if part is not None]
    return np.concatenate(known) if len(known) == len(parts) else None


def pack(graph: ir.Graph, rows: Rows, context: PassContext) -> Packed:
    """The initializers that hold `rows`, made on first use."""
    key = rows.tobytes()
    if key not in context.packed:
        context.packed[key] = _pack(graph, rows, context)
    return context.packed[key]


def _pack(graph: ir.Graph, rows: Rows, context: PassContext) -> Packed:
    table = context.weights.quantized
    modules = tuple(table.modules(rows))
    columns, groups, bits = table.shape(rows)
    block = block_for(columns, context.block_size) if groups == 1 else block_in(columns // groups, context.block_size)
    blocks = -(-columns // block)
    name = "+".join(modules)
    scale_type = ir.DataType.FLOAT16 if context.provider == "cuda" else ir.DataType.FLOAT
    byte = ir.DataType.UINT8

    def initializer(
        end: str, dtype: ir.DataType, shape: tuple[int, ...], array: Callable[[], NDArray[Any]]
    ) -> ir.Value:
        full = f"{name}.{end}"
        return _initializer(
            graph, ir.LazyTensor(lambda: ir.Tensor(array(), name=full), dtype, ir.Shape(shape), name=full)
        )

    def codes() -> NDArray[Any]:
        return pack_codes(table.matrix(rows).codes_OI, block, bits)

    def scales() -> NDArray[Any]:
        return table.matrix(rows).scale_OG.astype(scale_type.numpy())

    def zeros() -> NDArray[Any]:
        zero_OG = table.matrix(rows).zeros_OG()
        return to_bytes(np.repeat(zero_OG, blocks // groups, axis=1), bits, even, fill=0)

    symmetric, even = table.symmetric(rows), -(-blocks * bits // 8) * 8 // bits
    return Packed(
        codes=initializer("codes", byte, (len(rows), blocks, block * bits // 8), codes),
        scales=initializer("scales", scale_type, (len(rows), groups), scales),
        zeros=None if symmetric else initializer("zeros", byte, (len(rows), even * bits // 8), zeros),
        rows=rows,
        modules=modules,
        columns=columns,
        block=block,
        groups=groups,
        bits=bits,
    )


def _initializer(graph: ir.Graph, tensor: ir.LazyTensor | ir.Tensor[NDArray[Any]]) -> ir.Value:
    value = ir.Value(name=tensor.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def constant(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    """The initializer of that name, made on first use."""
    if name in graph.initializers:
        return graph.initializers[name]
    return _initializer(graph, ir.Tensor(array, name=name))


def pack_codes(codes_NK: NDArray[np.int8], block: int, bits: int) -> NDArray[np.uint8]:
    """int8 [N, K] -> uint8 [N, blocks, block * bits / 8], what fills up the last block being zero."""
    rows, columns = codes_NK.shape
    blocks = -(-columns // block)
    return to_bytes(codes_NK, bits, blocks * block, fill=1 << bits - 1).reshape(rows, blocks, -1)
