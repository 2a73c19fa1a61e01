"""Int8 linears become MatMulNBits, with the checkpoint's own codes.

    x_BTK @ Transpose(W_NK)   ->   MatMulNBits(x_BTK, codes, Expand(scales)), bits = 8   (W may be a Concat: packed QKV)

MatMulNBits reads B as uint8 [N, blocks, block] with an implied zero point of 128 and one scale per block: W = (B -
128) * scale. A code c of the checkpoint stands there as c + 128, so the weights are the checkpoint's, bit for bit.
Columns that pad the last block hold 128, which is zero. The block is also the grain at which accuracy_level 4 rounds
activations.

A row, or a group of its columns, has one scale, and the file holds it once: [N, groups]. Repeated over the blocks, the
scales would be a sixteenth of the codes. The graph spreads them out, and ONNX Runtime computes that once, as it opens
a session (constant folding, which every optimization level but "none" does, on the CPU, for every provider), so that
MatMulNBits sees a constant all the same. A session without optimization repeats it at every run: right, but slower.
"""

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from export.passes.context import GraphPass, Packed, PassContext, block_for, block_in
from export.row_tracking import Rows

ZERO = 128


class QuantizedLinears(GraphPass):
    """MatMul by an int8 matrix -> MatMulNBits."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        products = [node for node in model.graph if node.op_type == "MatMul" and node.domain == ""]
        changed = [self._replace(model.graph, node) for node in products]
        return ir.passes.PassResult(model, modified=any(changed))

    def _replace(self, graph: ir.Graph, node: ir.Node) -> bool:
        rows = rows_of_transposed(node.inputs[1], self.context)
        if rows is None:
            return False
        packed = pack(graph, rows, self.context)
        spread = _spread(graph, packed)
        product = ir.node(
            "MatMulNBits",
            inputs=[node.inputs[0], packed.codes, spread[-1].outputs[0] if spread else packed.scales],
            attributes={
                "K": packed.columns,
                "N": len(rows),
                "bits": 8,
                "block_size": packed.block,
                "accuracy_level": self.context.accuracy_level,
            },
            domain="com.microsoft",
            name=node.name,
        )
        nodes = [*spread, product]
        ir.convenience.replace_nodes_and_values(graph, node, [node], nodes, node.outputs, product.outputs)
        return True


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
    """The int8 rows behind `Transpose(W)` or `Transpose(Concat(W, ...))`; None where anything else, or a float,
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
        return context.weights.int8.rows.get(weight.name or "")
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
    table = context.weights.int8
    modules = tuple(table.modules(rows))
    columns, groups = table.shape(rows)
    block = block_for(columns, context.block_size) if groups == 1 else block_in(columns // groups, context.block_size)
    name = "+".join(modules)
    scale_type = ir.DataType.FLOAT16 if context.provider == "cuda" else ir.DataType.FLOAT

    def codes(name: str = f"{name}.codes") -> ir.TensorProtocol:
        return ir.Tensor(pack_codes(table.matrix(rows).codes_OI, block), name=name)

    def scales(name: str = f"{name}.scales") -> ir.TensorProtocol:
        return ir.Tensor(table.matrix(rows).scale_OG.astype(scale_type.numpy()), name=name)

    stored = ir.Shape((len(rows), -(-columns // block), block))
    return Packed(
        codes=_initializer(graph, ir.LazyTensor(codes, ir.DataType.UINT8, stored, name=f"{name}.codes")),
        scales=_initializer(
            graph, ir.LazyTensor(scales, scale_type, ir.Shape((len(rows), groups)), name=f"{name}.scales")
        ),
        rows=rows,
        modules=modules,
        columns=columns,
        block=block,
        groups=groups,
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


def pack_codes(codes_NK: NDArray[np.int8], block: int) -> NDArray[np.uint8]:
    """int8 [N, K] -> uint8 [N, blocks, block] around 128."""
    rows, columns = codes_NK.shape
    blocks = -(-columns // block)
    packed = np.full((rows, blocks * block), ZERO, dtype=np.uint8)
    np.add(codes_NK.view(np.uint8), np.uint8(ZERO), out=packed[:, :columns])  # modulo 256, which is what c + 128 needs
    return packed.reshape(rows, blocks, block)
