"""Which linears keep 8 bits: costs that are the divergences they stand for, and a budget that holds."""

from pathlib import Path

import numpy as np
import pytest
import torch
from exported import quantized, sharpened

from compress.checkpoints.loading import load_model
from compress.checkpoints.quantized_files import read_quantized_matrices
from compress.models.block_linears import block_linears
from compress.quantization.allocation import bits_within, costs
from compress.quantization.rounding import rtn
from compress.stage import Silent

ROWS, TOKENS = 64, 48


@pytest.fixture(scope="module")
def dense(make_checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    return sharpened(make_checkpoint("llama", **shape), tmp_path_factory.mktemp("dense") / "dense")


def test_a_cost_is_the_divergence_that_rounding_the_linear_alone_leaves(dense: Path) -> None:
    """Half the expected square of a gradient with labels drawn from the model, against KL itself."""
    model = load_model(dense)
    ids_NT = torch.from_numpy(_ids(model.config.vocab_size))
    found = costs(dense, ids_NT.numpy(), 32, 0, Silent())
    before = _log_softmax(model, ids_NT)
    measured = {}
    for linear in block_linears(model):
        kept = linear.parameter.data.clone()
        rounded_OI = torch.from_numpy(rtn(linear.weight_OI(), None, 32, 4).dequantize())
        linear.parameter.data.copy_(rounded_OI)
        after = _log_softmax(model, ids_NT)
        measured[linear.name] = float((before.exp() * (before - after)).sum(dim=-1).mean())
        linear.parameter.data.copy_(kept)
    assert found.keys() == measured.keys()
    ratios = np.array([found[name] / measured[name] for name in measured])
    assert 0.7 < np.exp(np.log(ratios).mean()) < 1.4
    assert (ratios > 0.4).all()
    assert (ratios < 2.5).all()
    assert np.corrcoef(np.log([*found.values()]), np.log([*measured.values()]))[0, 1] > 0.9


def _ids(vocabulary: int) -> np.ndarray:
    return np.random.default_rng(5).integers(0, vocabulary, (ROWS, TOKENS))


@torch.no_grad()
def _log_softmax(model: torch.nn.Module, ids_NT: torch.Tensor) -> torch.Tensor:
    return model(input_ids=ids_NT).logits.double().log_softmax(dim=-1)


def test_those_that_cost_most_for_each_weight_keep_8_bits() -> None:
    cost, sizes = {"a": 1.0, "b": 3.0, "c": 2.0, "d": 0.1}, {"a": 10, "b": 60, "c": 20, "d": 10}
    assert bits_within(4, cost, sizes) == dict.fromkeys(sizes, 4)
    assert bits_within(8, cost, sizes) == dict.fromkeys(sizes, 8)
    within = bits_within(5.3, cost, sizes)  # 32 weights more: c and a, of which b and d are too many
    assert within == {"a": 8, "b": 4, "c": 8, "d": 4}
    assert bits_within(7.6, cost, sizes) == {"a": 8, "b": 8, "c": 8, "d": 4}


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_the_budget_holds_in_the_checkpoint(dense: Path, text_file: Path, method: str, tmp_path: Path) -> None:
    knobs = {"method": method, "average_bits": 5.5, "rows": 4, "length": 32, "group": 32}
    matrices = read_quantized_matrices(quantized(dense, tmp_path / "out", text=text_file, scheme="int4", **knobs))
    weights = {name: matrix.codes_OI.size for name, matrix in matrices.items()}
    average = sum(matrix.bits * weights[name] for name, matrix in matrices.items()) / sum(weights.values())
    assert 5.5 - 4 * max(weights.values()) / sum(weights.values()) < average <= 5.5
    assert {matrix.bits for matrix in matrices.values()} == {4, 8}
