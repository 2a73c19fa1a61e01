"""The graph as it is written: only what is computed, under stable names, with nothing of the machine that made it.

Removed: nodes and initializers that nothing uses, function bodies (ONNX Runtime has kernels for them), metadata, and
the names of optional outputs that nobody reads (a named one is computed).
"""

import onnx_ir as ir


class Tidy(ir.passes.InPlacePass):
    """Strip and name the graph; the same input always gives the same bytes."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        from onnx_ir.passes import common

        common.RemoveUnusedNodesPass()(model)
        model.functions.clear()
        common.ClearMetadataAndDocStringPass()(model)
        common.RemoveUnusedOpsetsPass()(model)
        model.graph.sort()
        _number(model.graph)
        model.graph.name = "decoder"
        model.producer_name, model.producer_version = "demitasse", None
        return ir.passes.PassResult(model, modified=True)


def _number(graph: ir.Graph) -> None:
    """Name nodes by their operator and place, and values by their node; an output that nobody reads loses its name."""
    for index, node in enumerate(graph):
        node.name = f"{index:04d}_{node.op_type}"
        for place, value in enumerate(node.outputs):
            if value.is_graph_output():
                continue
            value.name = f"{node.name}:{place}" if value.uses() or place == 0 else ""
