"""Every layer rotates by the angles that transformers gives it.

    cos[p, f] = scaling * cos(p * frequency[f])        [P positions, F frequencies], sin alike

The angle is multiplied out in float32 as transformers does, its cosine taken in float64 and rounded, so that the
tables are the same on every machine. mobius-onnx makes one table for all layers (Gemma 3 has one for each kind of
layer), takes other frequencies for some rotary types, and names an attribute, `rotary_embedding_dim`, that the kernel
does not know: the table's width says how many columns are rotated.
"""

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from export.attention_facts import LAYERS, Rotation, layer_of
from export.passes.context import GraphPass

COSINES, SINES = 7, 8
"""Inputs of GroupQueryAttention."""
Table = NDArray[np.floating[Any]]


class FixRotation(GraphPass):
    """Give each GroupQueryAttention that rotates the tables of its own layer."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        layers, changed = model.meta[LAYERS], False
        made: dict[Rotation, tuple[ir.Value, ir.Value]] = {}
        for node in model.graph:
            layer = layer_of(node, layers)
            if layer is None or not node.attributes["do_rotary"].as_int():
                continue
            changed |= node.attributes.pop("rotary_embedding_dim", None) is not None
            if not layer.rotates:
                changed |= stop_rotating(node)
                continue
            if layer.rotation is None:
                continue
            if layer.rotation not in made:
                made[layer.rotation] = _make(model.graph, node, layer.rotation, f"rotation.{len(made)}")
            changed |= _give(node, made[layer.rotation])
        return ir.passes.PassResult(model, modified=changed)


def stop_rotating(node: ir.Node) -> bool:
    """Attention without rotation; says that it changed something."""
    node.attributes["do_rotary"] = ir.AttrInt64("do_rotary", 0)
    node.attributes.pop("rotary_interleaved", None)
    for index in (COSINES, SINES):
        node.replace_input_with(index, None)
    return True


def _make(graph: ir.Graph, node: ir.Node, rotation: Rotation, name: str) -> tuple[ir.Value, ir.Value]:
    """The tables of a rotation, as long and of the type of those that `node` has."""
    given = node.inputs[COSINES]
    assert given is not None
    assert given.const_value is not None
    has = given.const_value.numpy()
    cosines, sines = tables(rotation, len(has), has.dtype)
    return _initializer(graph, f"{name}.cos_cache", cosines), _initializer(graph, f"{name}.sin_cache", sines)


def _give(node: ir.Node, made: tuple[ir.Value, ir.Value]) -> bool:
    before = node.inputs[COSINES], node.inputs[SINES]
    for index, value in zip((COSINES, SINES), made, strict=True):
        node.replace_input_with(index, value)
    return any(not _equal(was, now) for was, now in zip(before, made, strict=True))


def _equal(was: ir.Value | None, now: ir.Value) -> bool:
    if was is None or was.const_value is None or now.const_value is None:
        return False
    return np.array_equal(was.const_value.numpy(), now.const_value.numpy())


def tables(rotation: Rotation, positions: int, dtype: "np.dtype[Any]") -> tuple[Table, Table]:
    """Cosines and sines [P, F] of the first `positions` positions."""
    angles_PF = np.arange(positions, dtype=np.float32)[:, None] * rotation.frequencies
    cos_PF, sin_PF = np.cos(angles_PF, dtype=np.float64), np.sin(angles_PF, dtype=np.float64)
    return (cos_PF * rotation.scaling).astype(dtype), (sin_PF * rotation.scaling).astype(dtype)


def _initializer(graph: ir.Graph, name: str, table: Table) -> ir.Value:
    tensor = ir.Tensor(table, name=name)
    value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value
