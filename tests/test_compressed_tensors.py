"""compressed-tensors' 4- and 8-bit weights, written here by plain loops: read, multiplied out, exported, or refused."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from carried import Format, Made, assert_carried, rounded
from exported import exported, sharpened
from safetensors.torch import load_file, save_file

from compress import Checkpoint, CheckpointError, StageError, StageInput, inspect_checkpoint
from compress.checkpoints.compressed_tensors import WEIGHTS, packed_faults
from compress.checkpoints.loading import load_float_model, load_model
from compress.checkpoints.quantized_files import read_quantized_matrices
from compress.quantization.config import QuantizeConfig
from compress.quantization.stage import run
from export import verify_bundle

Make = Callable[..., Path]


FORMATS = {
    "groups as wide as a block": Format(64),
    "groups of blocks": Format(128),
    "groups narrower than a block": Format(32),
    "rows": Format(),
    "4 bits": Format(64, 4),
    "4 bits in groups narrower than a block": Format(32, 4),
    "4 bits with zero points": Format(32, 4, symmetric=False),
    "4 bits with zero points in groups of blocks": Format(128, 4, symmetric=False),
    "8 bits with zero points": Format(64, 8, symmetric=False),
}


def settings(format: Format) -> dict[str, Any]:
    """`quantization_config` as llm-compressor writes it."""
    strategy = {"strategy": "channel"} if format.group is None else {"strategy": "group", "group_size": format.group}
    weights = {"num_bits": format.bits, "type": "int", "symmetric": format.symmetric, "dynamic": False} | strategy
    plain = {"input_activations": None, "output_activations": None}
    groups = {"targets": ["Linear"], "weights": weights | {"actorder": None}} | plain
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": groups},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
    }


def packed(codes: list[list[int]], bits: int) -> torch.Tensor:
    """Codes in an int32, the first in the lowest bits."""
    words, each = [], 32 // bits
    for row in codes:
        parts = [row[start : start + each] for start in range(0, len(row), each)]
        words.append([sum((code + (1 << bits - 1)) << (bits * at) for at, code in enumerate(part)) for part in parts])
    return torch.tensor([[word - (1 << 32) if word >= 1 << 31 else word for word in row] for row in words]).int()


def write_packed(source: Path, out: Path, format: Format, which: str = "_proj.weight") -> dict[str, Made]:
    """A dense checkpoint with its block linears packed; what they are by module."""
    shutil.copytree(source, out)
    held, made = load_file(source / "model.safetensors"), {}
    for name in [name for name in held if name.endswith(which)]:
        weight_OI, module = held.pop(name), name.removesuffix(".weight")
        made[module] = matrix = rounded(weight_OI, format)
        held[f"{module}.weight_packed"] = packed(matrix.codes.tolist(), format.bits)
        held[f"{module}.weight_scale"] = torch.tensor(matrix.scales).to(torch.bfloat16)
        held[f"{module}.weight_shape"] = torch.tensor(weight_OI.shape)
        if not format.symmetric:
            held[f"{module}.weight_zero_point"] = packed(matrix.zeros.T.tolist(), format.bits).T.contiguous()
    save_file(held, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    (out / "config.json").write_text(json.dumps(config | {"quantization_config": settings(format)}), encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def dense(make_checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1, "tie_word_embeddings": False}
    return sharpened(make_checkpoint("llama", **shape), tmp_path_factory.mktemp("dense") / "dense")


@dataclass(frozen=True)
class Packed:
    """A checkpoint in one of the formats."""

    folder: Path
    format: Format
    made: dict[str, Made]


@pytest.fixture(scope="module", params=FORMATS.values(), ids=FORMATS.keys())
def checkpoint(request: pytest.FixtureRequest, dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Packed:
    folder = tmp_path_factory.mktemp("packed") / "packed"
    return Packed(folder, request.param, write_packed(dense, folder, request.param))


def test_every_matrix_is_read_and_multiplied_out(checkpoint: Packed, dense: Path) -> None:
    matrices = read_quantized_matrices(checkpoint.folder)
    assert set(matrices) == set(checkpoint.made)
    assert len(matrices) == 7
    model = load_float_model(Checkpoint(checkpoint.folder))
    weights = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
    original = load_file(dense / "model.safetensors")
    assert set(weights) == set(original)
    for name, made in checkpoint.made.items():
        assert matrices[name].bits == checkpoint.format.bits
        assert np.array_equal(matrices[name].codes_OI, made.codes)
        assert np.array_equal(matrices[name].scale_OG, made.scales)
        assert (matrices[name].zero_OG is None) == checkpoint.format.symmetric
        assert checkpoint.format.symmetric or np.array_equal(matrices[name].zero_OG, made.zeros)
        assert np.array_equal(weights[f"{name}.weight"], made.weight())
        assert np.abs(weights[f"{name}.weight"] - original[f"{name}.weight"].numpy()).max() <= made.scales.max() * 1.1
    assert np.array_equal(weights["lm_head.weight"], original["lm_head.weight"].numpy())


def test_export_carries_codes_scales_and_zero_points_bit_for_bit(
    checkpoint: Packed, text_file: Path, tmp_path: Path
) -> None:
    bundle = exported(checkpoint.folder, tmp_path / "bundle", text_file)
    assert_carried(bundle, checkpoint.made, checkpoint.format.bits)
    summary = verify_bundle(bundle)
    assert summary.parity["float32"]["prefill"]["log_probability"] <= 2e-3
    assert summary.coverage[f"int{checkpoint.format.bits}"] == sorted(checkpoint.made)


def test_what_it_holds_is_counted(checkpoint: Packed, dense: Path) -> None:
    held, float_one = inspect_checkpoint(checkpoint.folder), inspect_checkpoint(dense)
    made = checkpoint.made.values()
    codes = sum(matrix.codes.size for matrix in made)
    scales = 4 * sum(matrix.scales.size for matrix in made)
    if not checkpoint.format.symmetric:
        scales += sum(matrix.zeros.size for matrix in made) * checkpoint.format.bits // 8
    assert (held.format, held.parameters) == ("quantized", float_one.parameters)
    assert held.weight_bytes == codes * checkpoint.format.bits // 8 + scales + 4 * (float_one.parameters - codes)
    zeros = sum(int((matrix.weight() == 0).sum()) for matrix in made)
    assert held.layout.count_nonzero() == float_one.parameters - zeros
    assert zeros


def test_it_loads_without_the_library(checkpoint: Packed) -> None:
    model = load_model(checkpoint.folder, dtype="bfloat16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_tensors_of_one_matrix_may_lie_in_several_files(dense: Path, tmp_path: Path) -> None:
    made = write_packed(dense, tmp_path / "packed", Format(64))
    file = tmp_path / "packed" / "model.safetensors"
    tensors = load_file(file)
    file.unlink()
    places = {name: f"model-{index % 2}.safetensors" for index, name in enumerate(sorted(tensors))}
    for place in set(places.values()):
        part = {name: tensors[name].contiguous() for name in places if places[name] == place}
        save_file(part, file.with_name(place), metadata={"format": "pt"})
    file.with_name("model.safetensors.index.json").write_text(json.dumps({"weight_map": places}), encoding="utf-8")
    matrices = read_quantized_matrices(tmp_path / "packed")
    assert all(np.array_equal(matrices[name].codes_OI, matrix.codes) for name, matrix in made.items())


def test_the_library_reads_the_same_values(checkpoint: Packed) -> None:
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    tensors, bits = load_file(checkpoint.folder / "model.safetensors"), checkpoint.format.bits
    for name, matrix in read_quantized_matrices(checkpoint.folder).items():
        shape = torch.Size(tensors[f"{name}.weight_shape"].tolist())
        codes = helpers.unpack_from_int32(tensors[f"{name}.weight_packed"], bits, shape)
        assert np.array_equal(codes.numpy(), matrix.codes_OI)
        if matrix.zero_OG is not None:
            stored = tensors[f"{name}.weight_zero_point"]
            zeros = helpers.unpack_from_int32(stored, bits, torch.Size(matrix.zero_OG.shape), packed_dim=0)
            assert np.array_equal(zeros.numpy(), matrix.zero_OG)


CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "another format": ({"format": "float-quantized"}, {}, "`format`: expected 'pack-quantized'"),
    "cache": ({"kv_cache_scheme": {"num_bits": 8}}, {}, "`kv_cache_scheme`: expected none"),
    "sparse": ({"sparsity_config": {"format": "sparse-bitmask"}}, {}, "`sparsity_config`: expected none"),
    "rotated": ({"transform_config": {"config_groups": {"u": {}}}}, {}, "`transform_config`: expected none"),
    "3 bits": ({}, {"num_bits": 3}, "`group_0.weights.num_bits`: expected 4 or 8, got 3"),
    "floats": ({}, {"type": "float"}, "`group_0.weights.type`: expected 'int', got 'float'"),
    "perhaps zero points": ({}, {"symmetric": None}, "`group_0.weights.symmetric`: expected True or False, got None"),
    "one scale": ({}, {"strategy": "tensor"}, "`group_0.weights.strategy`: expected 'group' or 'channel'"),
    "dynamic": ({}, {"dynamic": True}, "`group_0.weights.dynamic`"),
    "columns reordered": ({}, {"actorder": "group"}, "`group_0.weights.actorder`: .*got 'group'"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_what_is_not_covered_is_refused_by_name(change: Any, dense: Path, tmp_path: Path) -> None:
    top, weights, message = change
    folder = tmp_path / "packed"
    shutil.copytree(dense, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    changed = settings(Format(64)) | top
    changed["config_groups"]["group_0"]["weights"] |= weights
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": changed}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=message):
        inspect_checkpoint(folder)


def test_every_entry_of_weights_has_its_refusal() -> None:
    refused = {key for _, weights, _ in CHANGES.values() for key in weights}
    assert refused == set(WEIGHTS)
    assert packed_faults(settings(Format(64))) == packed_faults(settings(Format())) == []


def test_quantized_activations_are_refused() -> None:
    changed = settings(Format(64))
    changed["config_groups"]["group_0"]["input_activations"] = {"num_bits": 8}
    assert packed_faults(changed) == ["`group_0.input_activations`: expected None, got {'num_bits': 8}"]


@pytest.mark.parametrize("method", ["hqq", None])
def test_other_methods_are_refused(method: str | None, dense: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(dense, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": method}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"`quant_method`: expected .* start from the float checkpoint"):
        inspect_checkpoint(folder)


@pytest.mark.parametrize("what", ["weight_scale", "weight_packed", "weight_shape"])
@pytest.mark.parametrize("missing", [True, False], ids=["missing", "misshapen"])
def test_tensors_that_do_not_fit_are_refused(what: str, missing: bool, dense: Path, tmp_path: Path) -> None:
    folder = tmp_path / "packed"
    write_packed(dense, folder, Format(64))
    tensors = load_file(folder / "model.safetensors")
    name = f"model.layers.0.mlp.up_proj.{what}"
    tensors[name] = tensors[name][:-1].clone()
    if missing:
        del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"a quantized matrix cannot be read|left over|missing|of another shape"):
        load_float_model(Checkpoint(folder))


def test_an_embedding_in_groups_is_carried(dense: Path, text_file: Path, tmp_path: Path) -> None:
    write_packed(dense, tmp_path / "packed", Format(64), "embed_tokens.weight")
    bundle = exported(tmp_path / "packed", tmp_path / "bundle", text_file)
    assert verify_bundle(bundle).coverage["int8"] == ["model.embed_tokens"]


def test_an_embedding_of_four_bits_is_refused(dense: Path, text_file: Path, tmp_path: Path) -> None:
    write_packed(dense, tmp_path / "packed", Format(64, 4), "embed_tokens.weight")
    message = "model.embed_tokens: expected an embedding of symmetric 8 bits, got 4 bits; leave the embedding in float"
    with pytest.raises(StageError, match=re.escape(message)):
        exported(tmp_path / "packed", tmp_path / "bundle", text_file)


def test_groups_without_a_block_are_refused(dense: Path, text_file: Path, tmp_path: Path) -> None:
    write_packed(dense, tmp_path / "packed", Format(8))
    with pytest.raises(StageError, match=r"groups of a multiple of 16 columns, .* got 8"):
        exported(tmp_path / "packed", tmp_path / "bundle", text_file)


def test_quantizing_again_is_refused(checkpoint: Packed, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="quantized already"):
        run(QuantizeConfig(), StageInput(source=checkpoint.folder, out=tmp_path, scratch=tmp_path))
