"""Rows that are padded on the left are read as they are meant.

GroupQueryAttention counts a row's tokens from the left, by the sum of its mask: a row padded on the left would be read
from its padding on, and give other text without an error. transformers and optimum pad prompts on the left, others on
the right. The graph takes either:

    ids 0 0 a b c      ->  a b c 0 0      GatherElements(ids, place - end), position_ids alike
    every layer            as if the row had been padded on the right
    hidden a b c 0 0   ->  0 0 a b c      Gather(rows, place + start), before the head: logits stand where the ids do

    end_B = min(T * first_B + count_B, T)      first_B: the mask's first number    count_B: its sum

A row that is not to be moved ends at T: its mask begins with 1, or it has tokens in the cache and so counts T or more.
Negative places count from the end, which turns the row around. In the cache every row lies from the left; the sum of a
later step's mask says how many tokens that are, whichever side the padding was on.

What is added works on B x T integers, taken from ids and mask and not from shapes: on CUDA it runs there, without a
copy. Not covered: padding on both sides of a row, or inside it.

    B rows    T tokens    S tokens in the mask, the cache's included
"""

import numpy as np
import onnx_ir as ir

from export.passes.context import GraphPass
from export.passes.fix_narrow_rotation import POSITIONS
from export.passes.quantized_linears import constant
from export.passes.slice_logits import LOGITS, head_path

IDS, MASK = "input_ids", "attention_mask"
CONSTANTS = "alignment"


class AcceptLeftPadding(GraphPass):
    """Move rows that are padded on the left to the left, and what comes out of them back."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        inputs = {value.name or "": value for value in graph.inputs}
        logits = next((value for value in graph.outputs if value.name == LOGITS), None)
        done = f"{CONSTANTS}.zero" in graph.initializers
        if done or logits is None or not inputs.keys() >= {IDS, MASK}:
            return ir.passes.PassResult(model, modified=False)
        readers = {name: _readers(inputs[name]) for name in (IDS, POSITIONS) if name in inputs}
        tape = ir.tape.Tape()
        to_left_BT, back_BT = _orders(tape, graph, inputs[IDS], inputs[MASK])
        for name, found in readers.items():
            moved_BT = tape.op("GatherElements", [inputs[name], to_left_BT], {"axis": 1})
            for node, index in found:
                node.replace_input_with(index, moved_BT)
        graph.insert_before(graph[0], tape.nodes)
        _move_back(graph, logits, back_BT)
        return ir.passes.PassResult(model, modified=True)


def _readers(value: ir.Value) -> list[tuple[ir.Node, int]]:
    return [(use.node, use.idx) for use in value.uses()]


def _orders(tape: ir.tape.Tape, graph: ir.Graph, ids_BT: ir.Value, mask_BS: ir.Value) -> tuple[ir.Value, ir.Value]:
    """For each place of a row the token that goes there, [B, T]; and back, as numbers of the B * T rows of a table."""
    zero, one = (
        constant(graph, f"{CONSTANTS}.{name}", np.asarray(number)) for number, name in enumerate(("zero", "one"))
    )
    axis_0, axis_1 = (constant(graph, f"{CONSTANTS}.axis_{axis}", np.asarray([axis])) for axis in (0, 1))
    ones_BT = tape.op("Pow", [ids_BT, zero])
    place_BT = tape.op("CumSum", [ones_BT, one], {"exclusive": 1})
    tokens_B1 = tape.op("ReduceSum", [ones_BT, axis_1], {"keepdims": 1})
    count_B1 = tape.op("ReduceSum", [mask_BS, axis_1], {"keepdims": 1})
    first_B1 = tape.op("Slice", [mask_BS, axis_0, axis_1, axis_1])
    reach_B1 = tape.op("Add", [tape.op("Mul", [tokens_B1, first_B1]), count_B1])
    end_B1 = tape.op("Min", [reach_B1, tokens_B1])
    above_B1 = tape.op("CumSum", [tokens_B1, zero], {"exclusive": 1})
    start_B1 = tape.op("Add", [tape.op("Sub", [above_B1, tokens_B1]), end_B1])
    return tape.op("Sub", [place_BT, end_B1]), tape.op("Add", [place_BT, start_B1])


def _move_back(graph: ir.Graph, logits: ir.Value, back_BT: ir.Value) -> None:
    """Before the head, or where there is none, behind the logits."""
    path = head_path(graph)
    head = path[-1] if path else None
    value = head.inputs[0] if head is not None else logits
    assert value is not None
    tape = ir.tape.Tape()
    moved = tape.op("Gather", [tape.op("Flatten", [value], {"axis": 2}), back_BT], {"axis": 0})
    moved.type, moved.shape = value.type, value.shape
    if head is not None:
        graph.insert_before(head, tape.nodes)
        head.replace_input_with(0, moved)
    else:
        graph.extend(tape.nodes)
        graph.outputs[graph.outputs.index(logits)] = moved
        logits.name, moved.name = f"{LOGITS}.moved", LOGITS
