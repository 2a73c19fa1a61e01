"""A tied float head multiplies by the embedding's own table.

    MatMul(x_BTK, Transpose(table_VK))  ->  FusedMatMul(x_BTK, table_VK, transB = 1)

The table then stands in the file once. A Transpose would be stored once too, but ONNX Runtime folds it into a second
copy in memory.
"""

import onnx_ir as ir

from export.passes.context import GraphPass


class ShareFloatHead(GraphPass):
    """MatMul by a transposed initializer -> FusedMatMul by the initializer."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        changed = [_replace(model.graph, node) for node in list(model.graph) if node.op_type == "MatMul"]
        return ir.passes.PassResult(model, modified=any(changed))


def _replace(graph: ir.Graph, node: ir.Node) -> bool:
    x, weight = node.inputs
    transpose = weight.producer() if weight is not None else None
    if transpose is None or transpose.op_type != "Transpose":
        return False
    table, perm = transpose.inputs[0], transpose.attributes.get("perm")
    if table is None or not table.is_initializer() or (perm is not None and list(perm.as_ints()) != [1, 0]):
        return False
    product = ir.node("FusedMatMul", [x, table], {"transB": 1}, domain="com.microsoft", name=node.name)
    ir.convenience.replace_nodes_and_values(graph, node, [node], [product], node.outputs, product.outputs)
    if not transpose.outputs[0].uses() and not transpose.outputs[0].is_graph_output():
        graph.remove(transpose, safe=True)
    return True
