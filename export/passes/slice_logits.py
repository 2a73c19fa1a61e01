"""Logits from a chosen position on: a prefill that generates needs its last position's only.

    head(x_BTK)  ->  head(Slice(x_BTK, start = logits_from, axis = 1))

`logits_from`, int64 [1], is a constant of the graph, 0: every position's logits, as onnxruntime-genai, optimum and
transformers.js expect them, and ONNX Runtime drops the Slice. Whoever names it among the graph's inputs too may give
another number in each run, and one session serves both: `export.runtime` does so as it opens a bundle. It is no input
of the stored graph, because ONNX Runtime warns of an input that has a default. For a prompt of 128 tokens and a
vocabulary of 50 thousand the head is a fifth of a small model's work, and its logits are 25 MB.

The head is the product by a weight from which the logits come, past what works on each logit alone (a bias, a scale, a
soft cap). Where anything else stands there, or something else reads the logits on their way, the graph stays as it is:
slower, and right.
"""

import numpy as np
import onnx_ir as ir

from export.passes.context import GraphPass
from export.passes.quantized_linears import constant
from export.runtime.batch import LOGITS_FROM

LAST = np.iinfo(np.int64).max
LOGITS = "logits"
RANK = 3
POSITIONS = "sequence_length + 0"
"""The logits' second dimension, less `logits_from`. ONNX Runtime reuses memory between values whose dimensions have the
same names, so this one needs its own; optimum computes the name.
"""
PRODUCTS = {"MatMul", "FusedMatMul", "MatMulNBits"}
ELEMENTWISE = {"Add", "Cast", "Div", "Mul", "Tanh"}


class SliceLogits(GraphPass):
    """The head's input is cut before its product."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        path = [] if LOGITS_FROM in graph.initializers else head_path(graph)
        if not path:
            return ir.passes.PassResult(model, modified=False)
        _cut(graph, path[-1])
        for node in path:
            _rename_positions(node.outputs[0])
        return ir.passes.PassResult(model, modified=True)


def head_path(graph: ir.Graph) -> list[ir.Node]:
    """The nodes from the logits back to the head's product, both included; none where there is no head."""
    value: ir.Value | None = next((output for output in graph.outputs if output.name == LOGITS), None)
    if value is None or value.shape is None or len(value.shape) != RANK or value.uses():
        return []
    path: list[ir.Node] = []
    while value is not None and (node := value.producer()) is not None:
        path.append(node)
        if node.op_type in PRODUCTS:
            return path if _is_weight(node.inputs[1]) else []
        value = _worked_on(node) if node.op_type in ELEMENTWISE else None
    return []


def _worked_on(node: ir.Node) -> ir.Value | None:
    """The input that has positions, if it is one, and nothing else reads it."""
    wide = [value for value in node.inputs if value is not None and (value.shape is None or len(value.shape) > 1)]
    alone = len(wide) == 1 and len(wide[0].uses()) == 1 and not wide[0].is_graph_output()
    return wide[0] if alone else None


def _is_weight(value: ir.Value | None) -> bool:
    transpose = value.producer() if value is not None else None
    if transpose is not None and transpose.op_type == "Transpose":
        value = transpose.inputs[0]
    return value is not None and value.is_initializer()


def _cut(graph: ir.Graph, head: ir.Node) -> None:
    hidden = head.inputs[0]
    assert hidden is not None
    start, end, axis = (
        constant(graph, name, np.asarray([number], dtype=np.int64))
        for name, number in ((LOGITS_FROM, 0), ("logits_to", LAST), ("logits_axis", 1))
    )
    cut = ir.node("Slice", [hidden, start, end, axis])
    cut.outputs[0].type = hidden.type
    graph.insert_before(head, cut)
    head.replace_input_with(0, cut.outputs[0])


def _rename_positions(value: ir.Value) -> None:
    if value.shape is not None:
        batch, _, vocabulary = value.shape
        value.shape = ir.Shape([batch, POSITIONS, vocabulary])
