"""The passes that put the attention and the embedding of a family right, each on one tiny graph.

Their numbers are meant to change: they are held against attention written out in numpy.

    B rows    T tokens    H heads    W width of a head    F frequencies
"""

from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from graphs import SIZES, Array, Example, applied, difference, inputs_for, operators, run, written

from export.attention_facts import EMBEDDING_SCALE, LAYERS, Layer, Rotation

ROWS, TOKENS = SIZES["B"], SIZES["T"]
HEADS, KEYS, WIDTH = 4, 2, 16
SUMS = 1e-5
INPUTS = """(int64[B,T] input_ids, float[B,T,128] qkv, float[B,2,0,16] past_key, float[B,2,0,16] past_value)
    => (float[B,T,64] y, float[B,2,S,16] present_key, float[B,2,S,16] present_value)"""
ATTENTION = "com.microsoft.GroupQueryAttention<num_heads=4, kv_num_heads=2, scale=0.25, do_rotary={rotary}>"
GIVEN = "past_key, past_value, last, total"
PLAIN = Layer(scale=None, window=None, rotation=None, rotates=True)


def frequencies(count: int) -> Array:
    return (10_000.0 ** -(np.arange(count) / count)).astype(np.float32)


def tables(frequency_F: Array, scaling: float = 1.0) -> dict[str, Array]:
    angle_PF = np.arange(16, dtype=np.float64)[:, None] * frequency_F
    return {
        "cos": (np.cos(angle_PF) * scaling).astype(np.float32),
        "sin": (np.sin(angle_PF) * scaling).astype(np.float32),
    }


def layer(layer: Layer, *, columns: int = 8, rotary: int = 1, packed: bool = True) -> Example:
    """One attention, packed or not, that has been told to rotate by tables of `columns` columns."""
    node = f"y, present_key, present_value = {ATTENTION.format(rotary=rotary)}"
    end = ", cos, sin)" if rotary else ")"
    body = f'{node} (qkv, "", "", {GIVEN}{end}'
    if not packed:
        body = f"q, k, v = Split<axis=-1>(qkv, sizes)  {node} (q, k, v, {GIVEN}{end}"
    return Example(
        text=f"{INPUTS} {{ {body} }}",
        arrays={
            "last": np.full(ROWS, TOKENS - 1, dtype=np.int32),
            "total": np.asarray(TOKENS, dtype=np.int32),
            **(tables(frequencies(columns)) if rotary else {}),
            **({} if packed else {"sizes": np.asarray([HEADS * WIDTH, KEYS * WIDTH, KEYS * WIDTH])}),
        },
        names={"past_key": "past_key_values.0.key", "past_value": "past_key_values.0.value"},
        meta={LAYERS: [layer]},
    )


def rotated(x_BTHW: Array, table: dict[str, Array] | None) -> Array:
    """The first 2 F columns of every head, the first half of them paired with the second; the others as they are."""
    if table is None:
        return x_BTHW
    cos, sin = (table[name][:TOKENS, None, :] for name in ("cos", "sin"))
    count = cos.shape[-1]
    first, second, rest = np.split(x_BTHW, [count, 2 * count], axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)


def attention(qkv: Array, table: dict[str, Array] | None, *, scale: float = 0.25, window: int | None = None) -> Array:
    """Causal attention in float64: [B, T, H * W]."""
    cuts = [HEADS * WIDTH, (HEADS + KEYS) * WIDTH]
    q, k, v = (part.reshape(ROWS, TOKENS, -1, WIDTH).astype(np.float64) for part in np.split(qkv, cuts, axis=-1))
    q, k = rotated(q, table), rotated(k, table)
    k, v = (np.repeat(part, HEADS // KEYS, axis=2) for part in (k, v))
    scores = np.einsum("bqhw,bkhw->bhqk", q, k) * scale
    ago = np.arange(TOKENS)[:, None] - np.arange(TOKENS)
    scores[:, :, (ago < 0) | (ago >= (window or TOKENS))] = -np.inf
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("bhqk,bkhw->bqhw", weights, v).reshape(ROWS, TOKENS, -1)


def output(model: ir.Model) -> tuple[Array, Array]:
    """(qkv, y) of a run."""
    feeds = inputs_for(model)
    if "position_ids" in feeds:
        feeds["position_ids"] = np.tile(np.arange(TOKENS), (ROWS, 1))
    return feeds["qkv"], run(model, feeds)[0].astype(np.float64)


def told(model: ir.Model) -> dict[str, Any]:
    node = next(node for node in model.graph if node.op_type == "GroupQueryAttention")
    return {name: attribute.value for name, attribute in node.attributes.items()}


def test_graphs_without_a_pass_equal_attention_written_out() -> None:
    for example, table in (
        (layer(PLAIN, rotary=0), None),
        (layer(PLAIN), tables(frequencies(8))),
        (layer(PLAIN, packed=False), tables(frequencies(8))),
    ):
        qkv, found = output(example.full())
        assert difference(found, attention(qkv, table)) <= SUMS


# --- fix_attention


@pytest.mark.parametrize("window", [None, 1, 2, TOKENS])
def test_fix_attention_sets_scale_and_window(window: int | None) -> None:
    example = layer(replace(PLAIN, scale=0.5, window=window), rotary=0)
    assert "local_window_size" not in told(example.model())
    model, modified = applied("fix_attention", example)
    assert modified
    assert operators(model) == operators(example.model())
    assert (told(model)["scale"], told(model).get("local_window_size")) == (0.5, window)
    qkv, found = output(model)
    assert difference(found, attention(qkv, None, scale=0.5, window=window)) <= SUMS


@pytest.mark.parametrize("known", [PLAIN, replace(PLAIN, scale=0.25)])
def test_fix_attention_leaves_what_is_right(known: Layer) -> None:
    example = layer(known, rotary=0)
    model, modified = applied("fix_attention", example)
    assert not modified
    assert written(model) == written(example.model())


# --- fix_rotation


def test_fix_rotation_gives_the_layers_own_tables() -> None:
    own = Rotation(frequencies=frequencies(8) / 2, scaling=1.5)
    example = layer(replace(PLAIN, rotation=own))
    model, modified = applied("fix_rotation", example)
    assert modified
    assert operators(model) == operators(example.model()) == {"GroupQueryAttention": 1}
    expected = tables(own.frequencies, own.scaling)
    placed = [value.const_value.numpy() for value in model.graph[0].inputs[7:9]]  # type: ignore[union-attr]
    assert [table.shape for table in placed] == [(16, 8), (16, 8)]
    qkv, found = output(model)
    assert difference(found, attention(qkv, expected)) <= SUMS
    assert difference(found, attention(qkv, tables(frequencies(8)))) > 0.01


def test_fix_rotation_stops_a_layer_that_does_not_rotate() -> None:
    model, modified = applied("fix_rotation", layer(replace(PLAIN, rotates=False)))
    assert modified
    assert told(model)["do_rotary"] == 0
    assert not any(model.graph[0].inputs[7:])
    qkv, found = output(model)
    assert difference(found, attention(qkv, None)) <= SUMS


@pytest.mark.parametrize(
    "example", [layer(PLAIN), layer(replace(PLAIN, rotates=False), rotary=0)], ids=["not told", "does not rotate"]
)
def test_fix_rotation_leaves_what_it_is_not_told_of(example: Example) -> None:
    model, modified = applied("fix_rotation", example)
    assert not modified
    assert written(model) == written(example.model())


# --- fix_narrow_rotation


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("columns", [3, 5])
def test_fix_narrow_rotation_rotates_before_the_attention(packed: bool, columns: int) -> None:
    example = layer(PLAIN, columns=columns, packed=packed)
    before = operators(example.model())
    assert before == ({"GroupQueryAttention": 1} if packed else {"Split": 1, "GroupQueryAttention": 1})
    model, modified = applied("fix_narrow_rotation", example)
    assert modified
    assert operators(model) == {"Split": 1, "RotaryEmbedding": 2, "GroupQueryAttention": 1}
    assert told(model)["do_rotary"] == 0
    assert [value.name for value in model.graph.inputs][-1] == "position_ids"
    qkv, found = output(model)
    assert difference(found, attention(qkv, tables(frequencies(columns)))) <= SUMS


@pytest.mark.parametrize("example", [layer(PLAIN), layer(PLAIN, rotary=0)], ids=["eight columns", "does not rotate"])
def test_fix_narrow_rotation_leaves_tables_that_the_kernel_takes(example: Example) -> None:
    model, modified = applied("fix_narrow_rotation", example)
    assert not modified
    assert written(model) == written(example.model())


# --- fix_embedding_scale


def embedding(factor: float | None, text: str = "x = Gather(table, input_ids)  y = Mul(x, factor)") -> Example:
    """Rows of a table times 8.49, which is the root of 72 to two decimals; `factor` is what the model says."""
    table = np.random.default_rng(3).standard_normal((24, 72)).astype(np.float32)
    return Example(
        text=f"(int64[B,T] input_ids, int64[B,T] other) => (float[B,T,72] y) {{ {text} }}",
        arrays={"table": table, "factor": np.asarray(8.49, dtype=np.float32), "row": table[0]},
        meta={EMBEDDING_SCALE: factor},
    )


@pytest.mark.parametrize(
    "text", ["x = Gather(table, input_ids)  y = Mul(x, factor)", "x = Gather(table, input_ids)  y = Mul(factor, x)"]
)
def test_fix_embedding_scale_multiplies_by_the_exact_root(text: str) -> None:
    example = embedding(72**0.5, text)
    model, modified = applied("fix_embedding_scale", example)
    assert modified
    assert operators(model) == operators(example.model()) == {"Gather": 1, "Mul": 1}
    feeds = inputs_for(model)
    [found] = run(model, feeds)
    assert np.array_equal(found, example.arrays["table"][feeds["input_ids"]] * np.float32(72**0.5))
    assert not np.array_equal(found, run(example.full(), feeds)[0])


@pytest.mark.parametrize(
    "example",
    [
        embedding(None),
        embedding(8.49),
        embedding(72**0.5, "x = Gather(table, other)  y = Mul(x, factor)"),
        embedding(72**0.5, "x = Gather(table, input_ids)  y = Mul(x, row)"),
        embedding(72**0.5, "x = Gather(table, input_ids)  y = Div(x, factor)"),
    ],
    ids=["no factor", "the exact factor", "another lookup", "a row of numbers", "another operator"],
)
def test_fix_embedding_scale_leaves_the_rest(example: Example) -> None:
    model, modified = applied("fix_embedding_scale", example)
    assert not modified
    assert written(model) == written(example.model())
