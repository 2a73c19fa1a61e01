"""Rotation tables that are computed as a session opens: the stored ones' numbers, and none stored."""

from collections.abc import Callable
from dataclasses import replace

import onnx
import pytest
from exported import Exported
from graphs import applied, difference, operators
from test_passes_attention import PLAIN, attention, frequencies, layer, output, tables

from export.attention_facts import Rotation
from export.passes import PASSES


@pytest.mark.parametrize(("packed", "columns", "scaling"), [(True, 8, 1.0), (True, 8, 1.5), (False, 6, 1.0)])
def test_compute_rotation_gives_what_was_stored(packed: bool, columns: int, scaling: float) -> None:
    rotation = Rotation(frequencies=frequencies(columns), scaling=scaling)
    example = layer(replace(PLAIN, rotation=rotation), columns=columns, packed=packed)
    model, _ = applied("fix_rotation", example)
    PASSES["fix_narrow_rotation"](example.context())(model)
    assert any("cache" in name for name in model.graph.initializers)
    assert PASSES["compute_rotation"](example.context())(model).modified
    assert operators(model).keys() >= {"Range", "Cos", "Sin"}
    unread = {name for name, value in model.graph.initializers.items() if not value.uses()}
    assert unread >= {"rotation.0.cos_cache", "rotation.0.sin_cache"}
    qkv, found = output(model)
    assert difference(found, attention(qkv, tables(frequencies(columns), scaling))) <= 1e-5


def test_compute_rotation_leaves_tables_that_it_would_not_make() -> None:
    for rotation in (None, Rotation(frequencies=frequencies(8) * 2, scaling=1.0)):
        assert not applied("compute_rotation", layer(replace(PLAIN, rotation=rotation)))[1]


def test_a_bundle_stores_no_row_for_each_position(int8_exports: Callable[[str], Exported]) -> None:
    graph = onnx.load(int8_exports("llama").bundle / "model.onnx", load_external_data=False).graph
    assert sum(node.op_type in {"Cos", "Sin"} for node in graph.node) == 2
    assert not [tensor.name for tensor in graph.initializer if 128 in tensor.dims[:1] and tensor.dims[-1] == 8]
