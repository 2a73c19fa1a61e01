"""Rotation tables are computed when a session opens, not stored.

    cos, sin [P, F]  <-  Cos, Sin(Range(P) * frequency_F) * scaling      [P positions, F frequencies]

A table is as long as the context: one of 32,768 positions and 128 frequencies takes 16 MiB. ONNX Runtime
computes what depends on constants alone once, when it opens a session, so that a step costs what it did. Its float32
cosines are within 1.2e-7 of the tables that `fix_rotation` made. A table of anything else stays as it is.
"""

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from export.attention_facts import LAYERS, Rotation
from export.passes.context import GraphPass
from export.passes.fix_rotation import COSINES, SINES, tables
from export.passes.quantized_linears import constant

PLACES = {"GroupQueryAttention": (COSINES, SINES), "RotaryEmbedding": (2, 3)}
"""Operator -> its inputs that are tables of cosines and of sines."""


class ComputeRotation(GraphPass):
    """Initializers of cosines and sines -> what computes them."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        rotations = list(
            {id(layer.rotation): layer.rotation for layer in model.meta[LAYERS] if layer.rotation}.values()
        )
        pairs = dict.fromkeys(_pairs(model.graph))
        found = [(pair, rotation) for pair in pairs for rotation in rotations if _holds(pair, rotation)]
        for number, (pair, rotation) in enumerate(found):
            _compute(model.graph, pair, rotation, f"rotation.{number}")
        return ir.passes.PassResult(model, modified=bool(found))


def _pairs(graph: ir.Graph) -> Iterator[tuple[ir.Value, ir.Value]]:
    """The stored tables that nodes rotate by: cosines and sines."""
    for node in graph:
        given = [value for value in (node.inputs[place : place + 1] for place in PLACES.get(node.op_type, ())) if value]
        values = [value for (value,) in given if value is not None and value.const_value is not None]
        if len(values) == 2:
            yield values[0], values[1]


def _holds(pair: tuple[ir.Value, ir.Value], rotation: Rotation) -> bool:
    stored = [value.const_value.numpy() for value in pair if value.const_value is not None]
    expected = tables(rotation, len(stored[0]), stored[0].dtype)
    return all(np.array_equal(was, made) for was, made in zip(stored, expected, strict=True))


def _compute(graph: ir.Graph, pair: tuple[ir.Value, ir.Value], rotation: Rotation, name: str) -> None:
    positions = pair[0].shape[0] if pair[0].shape is not None else None
    assert isinstance(positions, int)
    tape = ir.tape.Tape()
    numbers = [
        constant(graph, f"positions.{number}", np.asarray(number, dtype=np.float32)) for number in (0, positions, 1)
    ]
    axis = constant(graph, "positions.axis", np.asarray([1]))
    position_P1 = tape.op("Unsqueeze", [tape.op("Range", numbers), axis])
    frequency_F = constant(graph, f"{name}.frequencies", rotation.frequencies)
    angle_PF = tape.op("Mul", [position_P1, frequency_F])
    for operator, stored in zip(("Cos", "Sin"), pair, strict=True):
        table_PF = tape.op(operator, [angle_PF])
        if rotation.scaling != 1:
            scaling = constant(graph, f"{name}.scaling", np.asarray(rotation.scaling, dtype=np.float32))
            table_PF = tape.op("Mul", [table_PF, scaling])
        if stored.dtype != ir.DataType.FLOAT:
            table_PF = tape.op("Cast", [table_PF], {"to": stored.dtype})
        stored.replace_all_uses_with(table_PF)
    graph.insert_before(graph[0], tape.nodes)
