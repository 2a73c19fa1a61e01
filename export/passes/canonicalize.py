"""The graph as it is written: only what is computed, under stable names, with nothing of the machine that made it.

Removed: nodes and initializers that nothing uses, function bodies (ONNX Runtime has kernels for them), metadata, and
the names of outputs that nobody reads (a named one is computed), but not where an operator counts its outputs: a
Split of two parts that names one does not split.
"""

import onnx_ir as ir

from export.passes.context import GraphPass


class Canonicalize(GraphPass):
    """Strip and name the graph; the same input always gives the same bytes."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        from onnx_ir.passes import common

        changed = [common.RemoveUnusedNodesPass()(model).modified, bool(model.functions)]
        model.functions.clear()
        changed.append(common.ClearMetadataAndDocStringPass()(model).modified)
        changed.append(common.RemoveUnusedOpsetsPass()(model).modified)
        changed += [_sort(model.graph), _number(model.graph), _sign(model)]
        return ir.passes.PassResult(model, modified=any(changed))


def _sort(graph: ir.Graph) -> bool:
    before = list(graph)
    graph.sort()
    return before != list(graph)


def _number(graph: ir.Graph) -> bool:
    """Name nodes by their operator and place, and values by their node.

    ONNX's own operators have lost their optional outputs by now; what they still name must be there.
    """
    before = _names(graph)
    for index, node in enumerate(graph):
        node.name = f"{index:04d}_{node.op_type}"
        for place, value in enumerate(node.outputs):
            if value.is_graph_output():
                continue
            needed = value.uses() or place == 0 or (node.domain == "" and value.name)
            value.name = f"{node.name}:{place}" if needed else ""
    return before != _names(graph)


def _names(graph: ir.Graph) -> list[str | None]:
    return [name for node in graph for name in (node.name, *(value.name for value in node.outputs))]


def _sign(model: ir.Model) -> bool:
    before = (model.graph.name, model.producer_name, model.producer_version)
    model.graph.name, model.producer_name, model.producer_version = "decoder", "demitasse", None
    return before != ("decoder", "demitasse", None)
