"""A bias is added inside MatMulNBits, which takes it as its sixth input.

    Add(MatMulNBits(x, codes, scales), bias_N)  ->  MatMulNBits(x, codes, scales, , , bias_N)

On the CPU only: the CUDA kernel's fast paths for one token do not take a bias.
"""

import onnx_ir as ir

from export.passes.context import GraphPass


class FoldBias(GraphPass):
    """Add after MatMulNBits -> its bias input."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        if self.context.provider != "cpu":
            return ir.passes.PassResult(model, modified=False)
        changed = [_fold(model.graph, node) for node in list(model.graph) if node.op_type == "Add"]
        return ir.passes.PassResult(model, modified=any(changed))


def _fold(graph: ir.Graph, add: ir.Node) -> bool:
    for value, bias in (add.inputs, reversed(add.inputs)):
        product = value.producer() if value is not None else None
        if value is None or product is None or product.op_type != "MatMulNBits" or len(value.uses()) > 1:
            continue
        if bias is None or not bias.is_initializer() or bias.shape != ir.Shape([product.attributes["N"].as_int()]):
            continue
        if len(product.inputs) > 3 or value.is_graph_output():
            continue
        folded = ir.node(
            "MatMulNBits",
            [*product.inputs, None, None, bias],
            product.attributes,
            domain="com.microsoft",
            name=product.name,
        )
        ir.convenience.replace_nodes_and_values(graph, add, [add, product], [folded], add.outputs, folded.outputs)
        return True
    return False
