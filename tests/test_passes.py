"""Every pass over the graph: what it changes, that the numbers stay, and what it leaves alone.

`pass_examples.py` has the graphs; one battery runs over them all. A pass that is meant to change the numbers has tests
of its own, `test_<pass>_...`, in whichever file.
"""

import ast
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphs import Example, applied, difference, graph, inputs_for, operators, run, session, written
from pass_examples import ALONE, EXAMPLES, int8, normal

from compress.checkpoints.quantized_matrix import QuantizedMatrix
from export.passes import PASSES
from export.row_tracking import WeightError
from export.runtime.batch import LOGITS_FROM
from export.runtime.session import declare_logits_from

TESTS = Path(__file__).resolve().parent
TESTED = [(name, example) for name, examples in EXAMPLES.items() for example in examples]
LEFT = [(name, example) for name, examples in ALONE.items() for example in examples]
ANY_GRAPH = {"canonicalize"}
"""Passes that any graph is for; what they leave alone is what they made (`test_done_is_done`)."""
ONCE = {"load_floats"}
"""Passes that use up what they are given."""


# --- every pass


def named_after(name: str) -> list[str]:
    """Test functions of any file whose names begin with a pass's."""
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in sorted(TESTS.glob("test_*.py"))]
    functions = [node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return [function for function in functions if function.startswith(f"test_{name}_")]


@pytest.mark.parametrize("name", PASSES)
def test_every_pass_has_its_tests(name: str) -> None:
    if name in EXAMPLES:
        assert EXAMPLES[name]
        assert ALONE.get(name) or name in ANY_GRAPH, f"{name}: expected a graph that it leaves alone in ALONE"
        return
    assert len(named_after(name)) >= 2, (
        f"{name}: expected graphs in pass_examples.py, or tests of its own called test_{name}_...: "
        "one of what it changes and the numbers that come out, one of what it leaves alone"
    )


def test_examples_and_passes_agree() -> None:
    assert set(EXAMPLES) <= set(PASSES)
    assert set(ALONE) | ANY_GRAPH == set(EXAMPLES)
    assert len(EXAMPLES) >= 8
    assert not named_after("no_such_pass")


@pytest.mark.parametrize(("name", "example"), TESTED)
def test_operators_before_and_after(name: str, example: str) -> None:
    given = EXAMPLES[name][example]
    assert operators(given.model()) == given.before
    model, modified = applied(name, given)
    assert operators(model) == given.after
    assert modified
    assert not any(value.const_value is None for value in model.graph.initializers.values() if value.uses())


@pytest.mark.parametrize(("name", "example"), TESTED)
def test_numbers_stay(name: str, example: str) -> None:
    given = EXAMPLES[name][example]
    feeds = inputs_for(given.full())
    model, _ = applied(name, given)
    for found, expected in zip(run(model, feeds), run(given.full(), feeds), strict=True):
        assert difference(found, expected) <= given.tolerance


@pytest.mark.parametrize(("name", "example"), LEFT)
def test_another_graph_is_left_alone(name: str, example: str) -> None:
    given = ALONE[name][example]
    session(given.full())  # it is a graph that could be meant
    model, modified = applied(name, given)
    assert not modified
    assert written(model) == written(given.model())


@pytest.mark.parametrize(("name", "example"), [pair for pair in TESTED if pair[0] not in ONCE])
def test_done_is_done(name: str, example: str) -> None:
    given = EXAMPLES[name][example]
    model, context = given.model(), given.context()
    assert PASSES[name](context)(model).modified
    once = written(model)
    assert not PASSES[name](context)(model).modified
    assert written(model) == once


# --- int8 weights


def inputs_of(model: ir.Model, operator: str) -> list[list[str | None]]:
    return [[value and value.name for value in node.inputs] for node in model.graph if node.op_type == operator]


def test_product_equals_numpys_with_the_checkpoints_numbers() -> None:
    given = EXAMPLES["quantized_linears"]["packed, of several matrices, the last block padded"]
    weight_NK = np.concatenate([part.dequantize() for parts in given.int8.values() for part in parts])
    model, _ = applied("quantized_linears", given)
    feeds = inputs_for(model)
    [found] = run(model, feeds)
    assert difference(found.astype(np.float64), feeds["x"].astype(np.float64) @ weight_NK.T) <= 1e-6


@pytest.mark.parametrize("example", EXAMPLES["quantized_embedding"])
def test_embedding_rows_are_the_checkpoints_bit_for_bit(example: str) -> None:
    given = EXAMPLES["quantized_embedding"][example]
    model, _ = applied("quantized_embedding", given)
    ids = np.arange(24).reshape(2, 12)
    [found] = run(model, {"ids": ids})
    [matrix] = given.int8["table"]
    assert np.array_equal(found, matrix.dequantize()[ids])


def test_embedding_and_tied_head_read_one_table() -> None:
    text = """(int64[B,T] ids) => (float[B,T,24] y) {
        x = Gather(table, ids)  table_t = Transpose(table)  y = MatMul(x, table_t) }"""
    given = Example(text=text, int8={"table": [int8(24, 32)]})
    model, context = given.model(), given.context()
    for name in ("quantized_linears", "quantized_embedding", "load_floats"):
        assert PASSES[name](context)(model).modified
    assert "table" not in model.graph.initializers
    [[_, codes, _]], [[looked_up, _], [scales, _]] = inputs_of(model, "MatMulNBits"), inputs_of(model, "Gather")
    assert codes == looked_up
    assert inputs_of(model, "Expand")[0][0] == scales
    feeds = inputs_for(model)
    assert difference(run(model, feeds)[0], run(given.full(), feeds)[0]) <= 1e-5


def test_embedding_of_four_bits_is_refused() -> None:
    given = EXAMPLES["quantized_embedding"]["whole blocks"]
    four = QuantizedMatrix(np.zeros((24, 32), dtype=np.int8), np.ones((24, 1), dtype=np.float32), bits=4)
    with pytest.raises(WeightError, match="symmetric 8 bits, got 4 bits; leave the embedding in float"):
        applied("quantized_embedding", Example(text=given.text, int8={"table": [four]}))


# --- float weights


def test_weights_without_a_place_and_places_without_a_weight_are_refused() -> None:
    given = EXAMPLES["load_floats"]["what is computed from weights is folded"]
    model, context = given.model(), given.context()
    del context.weights.floats["bias"]
    with pytest.raises(WeightError, match="the checkpoint does not have: bias"):
        PASSES["load_floats"](context)(model)
    context = given.context()
    context.weights.floats["other"] = context.weights.floats["bias"].clone()
    with pytest.raises(WeightError, match="the graph has no place for: other"):
        PASSES["load_floats"](context)(given.model())


# --- logits from a position on


@pytest.mark.parametrize("example", EXAMPLES["slice_logits"])
@pytest.mark.parametrize("start", [0, 2, 4])
def test_logits_from_a_position_on(example: str, start: int, capfd: pytest.CaptureFixture[str]) -> None:
    given = EXAMPLES["slice_logits"][example]
    model, _ = applied("slice_logits", given)
    feeds = inputs_for(model)
    [whole] = run(given.full(), feeds)
    proto = ir.to_proto(model)
    declare_logits_from(proto)
    [part] = run(ir.from_proto(proto), {**feeds, LOGITS_FROM: np.asarray([start])})
    assert part.shape == (2, 5 - start, 24)
    assert difference(part, whole[:, start:]) <= 1e-5
    assert "Shape mismatch" not in capfd.readouterr().err


def test_logits_from_is_declared_with_a_default_and_renames_the_dimension_it_cuts() -> None:
    model, _ = applied("slice_logits", EXAMPLES["slice_logits"]["soft cap"])
    assert not session(model).get_overridable_initializers()
    proto = ir.to_proto(model)
    for _ in range(2):
        declare_logits_from(proto)
    opened = session(ir.from_proto(proto))
    assert [value.name for value in opened.get_inputs()] == ["before"]
    [default] = opened.get_overridable_initializers()
    assert (default.name, default.shape, default.type) == (LOGITS_FROM, [1], "tensor(int64)")
    head = next(node for node in model.graph if node.op_type == "FusedMatMul")
    cut = [head, *list(model.graph)[-3:]]
    assert all(str(node.outputs[0].shape) == "[B,sequence_length + 0,24]" for node in cut)
    assert head.inputs[0] is not None
    assert head.inputs[0].producer().op_type == "Slice"  # type: ignore[union-attr]


# --- the graph as it is written


def messy(names: str) -> ir.Model:
    """One graph under several names, with what only its maker knows."""
    a, b, c = names
    text = f"(float[B,T,32] x) => (float[B,T,32] y) {{ {a} = Exp(x)  {b} = Add({a}, scale)  y, {c} = Dropout({b}) }}"
    model = graph(text, {"scale": normal(32) * 0 + 2})
    for node in model.graph:
        node.name, node.doc_string = f"{names}.{node.op_type}", f"made for {names}"
        node.metadata_props["maker"] = names
    first = model.graph[0]
    model.graph.remove(first)
    model.graph.append(first)  # behind those that read it
    model.graph.name, model.producer_name, model.producer_version = names, names, "1"
    model.functions[("made", names, "")] = ir.Function("made", names, graph=ir.Graph([], [], nodes=[]), attributes=[])
    return model


def test_tidy_graph_has_nothing_of_its_maker() -> None:
    models = [messy(names) for names in ("abc", "pqr")]
    for model in models:
        assert PASSES["canonicalize"](EXAMPLES["canonicalize"]["out of use, and named by chance"].context())(
            model
        ).modified
    one, other = map(written, models)
    assert one == other
    proto = onnx.ModelProto.FromString(one)
    assert [node.name for node in proto.graph.node] == ["0000_Exp", "0001_Add", "0002_Dropout"]
    assert [list(node.output) for node in proto.graph.node][:2] == [["0000_Exp:0"], ["0001_Add:0"]]
    assert list(proto.graph.node[2].output) in (["y"], ["y", ""])
    assert not proto.functions
    assert [opset.domain for opset in proto.opset_import] == [""]
    assert not any(node.doc_string or node.metadata_props for node in proto.graph.node)
    assert (proto.producer_name, proto.producer_version, proto.graph.name) == ("demitasse", "", "decoder")


def test_outputs_that_nobody_reads_lose_their_names_but_a_splits_parts_keep_theirs() -> None:
    norm, _ = applied("canonicalize", EXAMPLES["canonicalize"]["optional outputs that nobody reads"])
    assert [value.name for value in norm.graph[0].outputs] == [
        "0000_SkipSimplifiedLayerNormalization:0",
        "",
        "",
        "0000_SkipSimplifiedLayerNormalization:3",
    ]
    split, _ = applied("canonicalize", EXAMPLES["canonicalize"]["out of use, and named by chance"])
    assert [value.name for value in split.graph[0].outputs] == ["0000_Split:0", "0000_Split:1"]
    assert not split.graph[0].outputs[1].uses()
