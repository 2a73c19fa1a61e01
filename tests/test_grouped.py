"""Scheme int8_group: rounding by hand, a checkpoint that the ecosystem's library reads, carried into a bundle."""

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from exported import exported, quantized, sharpened
from safetensors.torch import load_file

from compress import StageError, inspect_checkpoint
from compress.checkpoints.compressed_tensors import pack, packed_faults, unpack
from compress.checkpoints.config import CheckpointError
from compress.checkpoints.loading import load_float_model
from compress.checkpoints.quantized_matrix import QuantizedMatrix, quantize_groups, read_quantized_matrices
from export import verify_bundle
from recipes.formats import FORMATS

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def dense(make_checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1}
    return sharpened(make_checkpoint("llama", **shape), tmp_path_factory.mktemp("dense") / "dense")


@pytest.fixture(scope="module", params=[32, 128])
def group(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def checkpoint(dense: Path, group: int, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("grouped") / "int8"
    return quantized(dense, out, scheme="int8_group", group=group, embeddings=True)


def test_groups_are_rounded_by_hand() -> None:
    """Two groups a row; scales 127 / 127 and 63.5 / 127; 0.4 rounds to nothing, 63.4 / 0.5 to 127."""
    matrix = quantize_groups(np.array([[127, 0.4, -63.5, 63.4], [0, 0, 0, 2.54]], dtype=np.float32), 2)
    assert matrix.codes_OI.tolist() == [[127, 0, -127, 127], [0, 0, 0, 127]]
    np.testing.assert_allclose(matrix.scale_OG, [[1, 0.5], [1, 0.02]], rtol=1e-6)
    assert (matrix.group, matrix.bits) == (2, 8)
    with pytest.raises(ValueError, match="expected a multiple of 3 columns, got 4"):
        quantize_groups(np.zeros((1, 4), dtype=np.float32), 3)


def test_a_group_that_is_not_finite_stays_so() -> None:
    weight = np.array([[0.02, np.nan, 1, 1]], dtype=np.float32)
    with np.errstate(invalid="ignore"):
        found = quantize_groups(weight, 2).dequantize()
    assert np.isnan(found[0, :2]).all()
    np.testing.assert_allclose(found[0, 2:], 1)


def test_products_are_those_of_the_dense_checkpoint(dense: Path, checkpoint: Path) -> None:
    for context in (0, 16):
        assert FORMATS["quantized"].macs(checkpoint, context=context) == FORMATS["dense"].macs(dense, context=context)


def test_groups_of_another_size_than_the_config_says_are_refused(checkpoint: Path, group: int, tmp_path: Path) -> None:
    """Such as a last group that is shorter: equal groups of some other size would be wrong numbers."""
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"]["config_groups"]["group_0"]["weights"]["group_size"] = group + 64
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"scales for \d+ columns do not fit config\.json"):
        read_quantized_matrices(folder)


def test_tokens_that_end_a_text_are_read_from_the_generation_config(checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 7, 9]}', encoding="utf-8")
    assert load_float_model(folder).generation_config.eos_token_id == [2, 7, 9]


@pytest.mark.parametrize("groups", [None, {}, ["Linear"], {"W8A16": ["Linear"]}])
def test_groups_without_their_weights_are_refused(groups: object) -> None:
    (fault,) = packed_faults({"format": "pack-quantized", "config_groups": groups})
    assert "`config_groups`: expected groups with their `weights`" in fault


def test_a_zero_point_is_taken_off_before_the_scale() -> None:
    codes = np.array([[5, 3, -1, 0]], dtype=np.int8)
    matrix = QuantizedMatrix(codes, np.array([[2.0, 0.5]], dtype=np.float32), np.array([[3, -1]], dtype=np.int8))
    assert matrix.dequantize().tolist() == [[4.0, 0.0, 0.0, 0.5]]


@pytest.mark.parametrize("columns", [1, 4, 7, 32])
def test_packing_is_undone_by_unpacking(columns: int) -> None:
    codes = np.random.default_rng(columns).integers(-128, 128, (3, columns)).astype(np.int8)
    scales = np.ones((3, 1), dtype=np.float32)
    assert np.array_equal(unpack(pack(codes), scales, (3, columns)), codes)


def test_the_checkpoint_holds_what_rounding_gives(checkpoint: Path, dense: Path, group: int) -> None:
    original = load_file(dense / "model.safetensors")
    matrices = read_quantized_matrices(checkpoint)
    assert len(matrices) == 7 + 1  # and the embedding
    weights = {name: parameter.detach().numpy() for name, parameter in load_float_model(checkpoint).named_parameters()}
    for name, matrix in matrices.items():
        if "embed" in name:
            continue
        weight_OI = original[f"{name}.weight"].numpy()
        expected = quantize_groups(weight_OI, group)
        assert np.array_equal(matrix.codes_OI, expected.codes_OI)
        assert np.array_equal(matrix.scale_OG, expected.scale_OG)
        assert np.array_equal(weights[f"{name}.weight"], expected.dequantize())
        half = np.repeat(expected.scale_OG, group, axis=1) / 2
        assert (np.abs(weights[f"{name}.weight"] - weight_OI) <= half * 1.0001).all()
    assert np.array_equal(weights["model.norm.weight"], original["model.norm.weight"].numpy())
    assert inspect_checkpoint(checkpoint).format == "quantized"
    assert packed_faults(json.loads((checkpoint / "config.json").read_text())["quantization_config"]) == []
    assert "compressed-tensors" in FORMATS["quantized"].runtime(checkpoint)


def test_smaller_groups_are_closer(dense: Path, tmp_path: Path) -> None:
    original = load_file(dense / "model.safetensors")
    errors = []
    for number, knobs in enumerate(
        ({"scheme": "int8"}, *({"scheme": "int8_group", "group": n} for n in (128, 64, 32)))
    ):
        matrices = read_quantized_matrices(quantized(dense, tmp_path / str(number), **knobs))
        squares = [np.square(m.dequantize() - original[f"{n}.weight"].numpy()).sum() for n, m in matrices.items()]
        errors.append(sum(squares))
    assert all(more > less for more, less in itertools.pairwise(errors))


def test_it_is_carried_into_a_bundle_with_parity(checkpoint: Path, text_file: Path, tmp_path: Path) -> None:
    bundle = exported(checkpoint, tmp_path / "bundle", text_file, block_size=32)
    assert len(verify_bundle(bundle).coverage["int8"]) == 7 + 1


def test_the_library_loads_it_in_plain_transformers(checkpoint: Path) -> None:
    pytest.importorskip("compressed_tensors")
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    ids_BT = torch.arange(24).reshape(2, 12)
    with torch.inference_mode():
        torch.testing.assert_close(
            theirs(input_ids=ids_BT).logits, load_float_model(checkpoint)(input_ids=ids_BT).logits, atol=1e-4, rtol=1e-4
        )


def test_what_the_format_cannot_hold_is_refused(gpt2: Path, make_checkpoint: Make, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"gpt2 holds transformer\.h\.0\.attn\.c_attn as Conv1D.* choose scheme int8"):
        quantized(gpt2, tmp_path / "a", scheme="int8_group")
    narrow = make_checkpoint("llama", hidden_size=96, intermediate_size=128, num_hidden_layers=1)
    with pytest.raises(StageError, match=r"the columns of model\..* \(96\) are no multiple of 64"):
        quantized(narrow, tmp_path / "b", scheme="int8_group", group=64)
