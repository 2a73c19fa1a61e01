"""int8 checkpoints: bitsandbytes' own numbers, nothing skipped, codes that carry over bit for bit."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from compress import Checkpoint, CheckpointError, QuantizeConfig, StageInput, inspect_checkpoint
from compress.checkpoints.int8_rows import EMBEDDINGS_FILE
from compress.checkpoints.loading import load_float_model, load_model
from compress.checkpoints.quantized_files import read_quantized_matrices
from compress.checkpoints.quantized_matrix import QuantizedMatrix, quantize_rows
from compress.models.block_linears import block_linears
from compress.quantization.stage import run


def quantized(source: Path, tmp_path: Path, **knobs: object) -> Path:
    out = tmp_path / "int8"
    out.mkdir()
    run(QuantizeConfig(**knobs), StageInput(source=source, out=out, scratch=tmp_path))
    return out


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_every_block_linear_is_int8_by_the_formula(family: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    source = request.getfixturevalue(family)
    matrices = read_quantized_matrices(quantized(source, tmp_path))
    linears = list(block_linears(load_model(source)))
    assert set(matrices) == {linear.name for linear in linears}
    for linear in linears:
        half_OI = linear.weight_OI().half().float().numpy()
        scale_O = np.abs(half_OI).max(axis=1)
        codes_OI = np.rint(half_OI * 127 / scale_O[:, None])
        assert np.array_equal(matrices[linear.name].scale_OG, (scale_O / np.float32(127))[:, None])
        assert np.abs(matrices[linear.name].codes_OI - codes_OI).max() <= 1, "codes differ by more than a tie"
        assert (matrices[linear.name].codes_OI != codes_OI).mean() < 1e-3


def test_rounding_error_is_at_most_half_a_step() -> None:
    weight_OI = np.random.default_rng(0).normal(size=(9, 33)).astype(np.float32)
    weight_OI[4] = 0
    codes_OI, scale_O = quantize_rows(weight_OI)
    rounded_OI = QuantizedMatrix.from_rows(codes_OI, scale_O).dequantize()
    error_O = np.abs(rounded_OI - weight_OI).max(axis=1)
    assert (error_O <= scale_O / 254 * (1 + 1e-5)).all()
    assert not rounded_OI[4].any()
    assert np.array_equal(quantize_rows(rounded_OI)[0], codes_OI)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_multiplied_out_model_has_the_weights_of_the_codes(
    family: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = quantized(request.getfixturevalue(family), tmp_path, embeddings=True)
    model, matrices = load_float_model(Checkpoint(folder)), read_quantized_matrices(folder)
    for linear in block_linears(model):
        weight_OI = linear.weight_OI().numpy()  # as bitsandbytes itself multiplies it out, in another order
        assert np.allclose(weight_OI, matrices[linear.name].dequantize(), rtol=1e-6, atol=0), linear.name
    table = model.get_input_embeddings().weight
    name = next(name for name in matrices if name.endswith(("wte", "embed_tokens")))
    assert np.array_equal(table.detach().numpy(), matrices[name].dequantize())
    assert model.get_output_embeddings().weight is table


def test_runs_in_plain_transformers_close_to_its_multiplied_out_weights(gpt2: Path, tmp_path: Path) -> None:
    folder = quantized(gpt2, tmp_path)
    ids_BT = torch.arange(32)[None]
    with torch.inference_mode():
        logits, expected = (
            load_model(folder)(input_ids=ids_BT).logits,
            load_float_model(Checkpoint(folder))(input_ids=ids_BT).logits,
        )
    assert (logits - expected).abs().max() < 0.05 * expected.abs().max()


def test_embedding_codes_are_written_beside_and_counted(gpt2: Path, tmp_path: Path) -> None:
    folder = quantized(gpt2, tmp_path, embeddings=True)
    dense, int8 = inspect_checkpoint(gpt2), inspect_checkpoint(folder)
    assert load_file(folder / EMBEDDINGS_FILE)["transformer.wte.weight"].dtype == torch.int8
    assert int8.format == "quantized"
    assert int8.parameters == dense.parameters
    linears = list(block_linears(load_model(gpt2)))
    codes = sum(linear.parameter.numel() for linear in linears) + 320 * 64
    scales = sum(linear.weight_OI().shape[0] for linear in linears) + 320
    assert int8.weight_bytes == codes + 4 * scales + 4 * (dense.parameters - codes)
    assert dense.weight_bytes == 4 * dense.parameters


def test_a_zero_row_stays_zero(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    source = make_checkpoint("gpt2", seed=5)
    file = source / "model.safetensors"
    tensors = load_file(file)
    tensors["transformer.h.0.mlp.c_fc.weight"][:, 3] = 0
    save_file(tensors, file, metadata={"format": "pt"})
    matrix = read_quantized_matrices(quantized(source, tmp_path))["transformer.h.0.mlp.c_fc"]
    assert not matrix.dequantize()[3].any()
    assert np.isfinite(matrix.dequantize()).all()


def test_a_checkpoint_with_a_missing_tensor_is_refused(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """transformers would invent the tensor, and random numbers would be quantized."""
    source = make_checkpoint("gpt2", seed=6)
    file = source / "model.safetensors"
    tensors = load_file(file)
    del tensors["transformer.h.1.mlp.c_fc.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"missing: transformer\.h\.1\.mlp\.c_fc\.weight"):
        quantized(source, tmp_path)
