"""SiLU in one node.

Mul(x, Sigmoid(x))  ->  QuickGelu(x, alpha = 1), which is x * sigmoid(alpha * x)
"""

import onnx_ir as ir

from export.passes.context import GraphPass


class FuseSilu(GraphPass):
    """Sigmoid and Mul -> QuickGelu."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        changed = [_fuse(model.graph, node) for node in list(model.graph) if node.op_type == "Mul"]
        return ir.passes.PassResult(model, modified=any(changed))


def _fuse(graph: ir.Graph, mul: ir.Node) -> bool:
    for x, gate in (mul.inputs, reversed(mul.inputs)):
        sigmoid = gate.producer() if gate is not None else None
        if (
            gate is None
            or sigmoid is None
            or sigmoid.op_type != "Sigmoid"
            or sigmoid.inputs[0] is not x
            or len(gate.uses()) > 1
            or gate.is_graph_output()
        ):
            continue
        fused = ir.node("QuickGelu", [x], {"alpha": 1.0}, domain="com.microsoft", name=mul.name)
        ir.convenience.replace_nodes_and_values(graph, mul, [mul, sigmoid], [fused], mul.outputs, fused.outputs)
        return True
    return False
