"""The names of a bundle's dimensions: those by which other programs tell what they are."""

from pathlib import Path

import onnxruntime
from graphs import Example, applied
from pass_examples import normal

TEXT = """(int64[b,t] input_ids, int64[b,s] attention_mask, float[b,2,p,16] past)
    => (float[b,t,8] logits, float[b,2,n,16] present) {
    x = Gather(table, input_ids)  y = MatMul(x, weight)  m = Cast<to=1>(attention_mask)  s = ReduceSum<keepdims=0>(m)
    logits = Mul(y, s)  present = Mul(past, s) }"""
ARRAYS = {"table": normal(24, 8), "weight": normal(8, 8)}
NAMES = {"past": "past_key_values.0.key", "present": "present.0.key"}


def test_name_dimensions_by_what_they_are() -> None:
    model, modified = applied("name_dimensions", Example(text=TEXT, arrays=ARRAYS, names=NAMES))
    assert modified
    assert [str(value.shape) for value in (*model.graph.inputs, *model.graph.outputs)] == [
        "[batch_size,sequence_length]",
        "[batch_size,past_sequence_length + sequence_length]",
        "[batch_size,2,past_sequence_length,16]",
        "[batch_size,sequence_length,8]",
        "[batch_size,2,past_sequence_length + sequence_length,16]",
    ]


def test_name_dimensions_leaves_other_inputs() -> None:
    given = Example(text="(float[B,T,32] x) => (float[B,T,32] y) { y = Exp(x) }")
    assert not applied("name_dimensions", given)[1]


def test_a_bundles_dimensions_as_others_read_them(int8_bundle: Path) -> None:
    opened = onnxruntime.InferenceSession(int8_bundle / "model.onnx", providers=["CPUExecutionProvider"])
    shapes = {value.name: value.shape for value in (*opened.get_inputs(), *opened.get_outputs())}
    assert shapes["input_ids"] == shapes["position_ids"] == ["batch_size", "sequence_length"]
    assert shapes["attention_mask"] == ["batch_size", "past_sequence_length + sequence_length"]
    assert shapes["past_key_values.2.value"] == ["batch_size", 2, "past_sequence_length", 32]
    assert shapes["present.2.value"] == ["batch_size", 2, "past_sequence_length + sequence_length", 32]
    assert shapes["logits"] == ["batch_size", "sequence_length + 0", 320]
    assert not opened.get_overridable_initializers(), "ONNX Runtime warns of each"
