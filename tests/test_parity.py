"""Parity: a right bundle passes, a wrong one is refused, with the layer where it parts."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import CONTEXT
from exported import exported, quantized, sharpened

from compress.checkpoints.folder import Checkpoint
from compress.checkpoints.loading import load_float_model
from export.external_data import read_graph
from export.float_reference import rounds_activations, write_float_reference
from export.parity import CHECKS, TOLERANCES, ParityError, Runs, check_independence, check_parity, compare, run_forced
from export.runtime.model import OnnxCausalLM, log_softmax
from export.torch_reference import Reference, take_reference


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("parity")
    return quantized(sharpened(make_checkpoint("gpt2"), root / "dense"), root / "int8", embeddings=True)


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(checkpoint, tmp_path_factory.mktemp("parity") / "bundle", text_file)


@pytest.fixture(scope="module")
def ids_BT() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 300, (3, 32))


@pytest.fixture(scope="module")
def reference(checkpoint: Path, ids_BT: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    long_C = np.random.default_rng(2).integers(0, 300, CONTEXT)
    return take_reference(
        lambda: load_float_model(Checkpoint(checkpoint)), ids_BT, long_C, tmp_path_factory.mktemp("reference")
    )


@pytest.fixture(scope="module")
def exact(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> OnnxCausalLM:
    folder = tmp_path_factory.mktemp("exact")
    write_float_reference(bundle, read_graph(bundle), folder)
    return OnnxCausalLM.open(folder, provider="cpu", threads=2)


def test_a_right_bundle_passes_every_check(bundle: Path, reference: Reference) -> None:
    figures = check_parity(bundle, read_graph(bundle), reference)
    assert set(figures) == {"rows", "tokens", "context", "float32", "int8 activations"}
    assert figures["context"] == OnnxCausalLM.open(bundle).config.context == CONTEXT
    for arithmetic in ("float32", "int8 activations"):
        assert set(figures[arithmetic]) == {"tolerance", *CHECKS}
        for name in CHECKS:
            assert figures[arithmetic][name]["kl"] <= TOLERANCES[arithmetic].kl


def changed(bundle: Path, out: Path, weight: str) -> Path:
    """A copy whose initializer `weight` holds other values."""
    shutil.copytree(bundle, out)
    model = onnx.load(out / "model.onnx", load_external_data=False)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == weight)
    entries = {entry.key: entry.value for entry in tensor.external_data}
    start, length = int(entries["offset"]), int(entries["length"])
    data = bytearray((out / "model.onnx.data").read_bytes())
    data[start : start + length] = bytes(reversed(data[start : start + length]))
    (out / "model.onnx.data").write_bytes(data)
    return out


@pytest.mark.parametrize(
    ("weight", "place"),
    [
        ("transformer.h.0.attn.c_attn.codes", "part first in layer 0, at its attention's keys"),
        ("transformer.h.0.mlp.c_proj.codes", "part first in layer 1"),
        ("transformer.h.2.mlp.c_proj.codes", "last layer's output, the final norm or the head"),
    ],
)
def test_a_wrong_weight_is_refused_and_its_layer_named(
    weight: str, place: str, bundle: Path, reference: Reference, tmp_path: Path
) -> None:
    wrong = changed(bundle, tmp_path / "wrong", weight)
    with pytest.raises(ParityError, match=place):
        check_parity(wrong, read_graph(wrong), reference)


def test_rows_alone_equal_rows_among_batch_mates(bundle: Path, exact: OnnxCausalLM, reference: Reference) -> None:
    for model in (OnnxCausalLM.open(bundle, threads=2), exact):
        assert check_independence(Runs(model, reference)).log_probability < 1e-5


def test_exact_graph_holds_the_same_weights_without_rounding(
    bundle: Path, exact: OnnxCausalLM, checkpoint: Path, ids_BT: np.ndarray
) -> None:
    import torch

    assert rounds_activations(read_graph(bundle))
    with torch.no_grad():
        expected = torch.log_softmax(
            load_float_model(Checkpoint(checkpoint))(torch.from_numpy(ids_BT)).logits, dim=-1
        ).numpy()
    assert np.abs(exact.score(ids_BT) - expected).max() < 1e-4
    assert np.abs(OnnxCausalLM.open(bundle, threads=2).score(ids_BT) - expected).max() > 1e-3


def test_lengths_of_the_batch_differ_and_leave_room_for_the_steps(exact: OnnxCausalLM, reference: Reference) -> None:
    runs = Runs(exact, reference)
    assert len(set(runs.count_B.tolist())) == len(reference.ids_BT)
    assert runs.steps == reference.ids_BT.shape[1] // 2
    assert runs.count_B.max() + runs.steps == reference.ids_BT.shape[1]


def test_forced_decoding_equals_scoring(exact: OnnxCausalLM, ids_BT: np.ndarray) -> None:
    scores_BTV = exact.score(ids_BT)
    counts = np.asarray([10, 16, 5])
    steps_BSV = run_forced(exact, ids_BT, counts, 14)
    for row, count in enumerate(counts):
        assert np.abs(steps_BSV[row] - scores_BTV[row, count - 1 : count + 14]).max() < 1e-4


def test_figures_are_zero_for_equals_and_nan_for_nan() -> None:
    scores = np.random.default_rng(0).normal(size=(4, 9)).astype(np.float32)
    log_softmax(scores)
    assert np.allclose(np.exp(scores).sum(-1), 1, atol=1e-6)
    assert compare([(scores, scores)]).kl == compare([(scores, scores)]).log_probability == 0
    other = np.roll(scores, 1, axis=1)
    expected = (np.exp(scores) * (scores - other)).sum(-1).mean()
    assert compare([(scores, other)]).kl == pytest.approx(expected, rel=1e-5)
    broken = scores.copy()
    broken[0, 0] = np.nan
    assert not compare([(scores, broken)]).kl <= 1
