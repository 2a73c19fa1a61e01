"""compressed-tensors' 8-bit weights, written here by plain loops: read, multiplied out, exported, or refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from exported import exported, sharpened
from onnx import numpy_helper
from safetensors.torch import load_file, save_file

from compress import CheckpointError, StageError, StageInput, inspect_checkpoint
from compress.checkpoints.compressed_tensors import WEIGHTS, packed_faults
from compress.checkpoints.layout import count_nonzero
from compress.checkpoints.loading import load_float_model, load_model
from compress.checkpoints.quantized_matrix import read_quantized_matrices
from compress.quantization.config import QuantizeConfig
from compress.quantization.stage import run
from export import verify_bundle

Make = Callable[..., Path]
SCHEMES = {"groups as wide as a block": 64, "groups of blocks": 128, "groups narrower than a block": 32, "rows": None}


def settings(group: int | None) -> dict[str, Any]:
    """`quantization_config` as llm-compressor writes it for W8A16."""
    strategy = {"strategy": "channel"} if group is None else {"strategy": "group", "group_size": group}
    weights = {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": False, "actorder": None, **strategy}
    groups = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": groups},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
    }


def rounded(weight_OI: torch.Tensor, group: int) -> tuple[list[list[int]], list[list[float]]]:
    """Codes and scales (bfloat16), one number after the other."""
    codes, scales = [], []
    for row in weight_OI.tolist():
        steps = [max(abs(w) for w in row[start : start + group]) / 127 for start in range(0, len(row), group)]
        steps = torch.tensor(steps).to(torch.bfloat16).tolist()
        codes.append([max(-128, min(127, round(w / steps[place // group]))) for place, w in enumerate(row)])
        scales.append(steps)
    return codes, scales


def packed(codes: list[list[int]]) -> torch.Tensor:
    """Four codes in an int32, the first in the lowest byte."""
    words = []
    for row in codes:
        fours = [row[start : start + 4] for start in range(0, len(row), 4)]
        words.append([sum((code + 128) << (8 * place) for place, code in enumerate(four)) for four in fours])
    return torch.tensor([[word - (1 << 32) if word >= 1 << 31 else word for word in row] for row in words]).int()


def write_packed(
    source: Path, out: Path, group: int | None, which: str = "_proj.weight"
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A dense checkpoint with its block linears packed; (codes, scales) by module."""
    shutil.copytree(source, out)
    held, made = load_file(source / "model.safetensors"), {}
    for name in [name for name in held if name.endswith(which)]:
        weight_OI, module = held.pop(name), name.removesuffix(".weight")
        codes, scales = rounded(weight_OI, group or weight_OI.shape[1])
        held[f"{module}.weight_packed"] = packed(codes)
        held[f"{module}.weight_scale"] = torch.tensor(scales).to(torch.bfloat16)
        held[f"{module}.weight_shape"] = torch.tensor(weight_OI.shape)
        made[module] = np.asarray(codes, dtype=np.int8), np.asarray(scales, dtype=np.float32)
    save_file(held, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    (out / "config.json").write_text(json.dumps(config | {"quantization_config": settings(group)}), encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def dense(make_checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1, "tie_word_embeddings": False}
    return sharpened(make_checkpoint("llama", **shape), tmp_path_factory.mktemp("dense") / "dense")


@pytest.fixture(scope="module", params=SCHEMES.values(), ids=SCHEMES.keys())
def checkpoint(
    request: pytest.FixtureRequest, dense: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, tuple[np.ndarray, np.ndarray]]]:
    folder = tmp_path_factory.mktemp("packed") / "packed"
    return folder, write_packed(dense, folder, request.param)


def test_every_matrix_is_read_and_multiplied_out(checkpoint: Any, dense: Path) -> None:
    folder, made = checkpoint
    matrices = read_quantized_matrices(folder)
    assert set(matrices) == set(made)
    assert len(made) == 7
    weights = {name: parameter.detach().numpy() for name, parameter in load_float_model(folder).named_parameters()}
    original = load_file(dense / "model.safetensors")
    assert set(weights) == set(original)
    for name, (codes, scales) in made.items():
        assert np.array_equal(matrices[name].codes_OI, codes)
        assert np.array_equal(matrices[name].scale_OG, scales)
        columns = np.repeat(scales, codes.shape[1] // scales.shape[1], axis=1)
        assert np.array_equal(weights[f"{name}.weight"], codes * columns)
        assert np.abs(weights[f"{name}.weight"] - original[f"{name}.weight"].numpy()).max() <= columns.max() * 1.01
    assert np.array_equal(weights["lm_head.weight"], original["lm_head.weight"].numpy())


def test_export_carries_codes_and_scales_bit_for_bit(checkpoint: Any, text_file: Path, tmp_path: Path) -> None:
    folder, made = checkpoint
    bundle = exported(folder, tmp_path / "bundle", text_file)
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(bundle / "model.onnx").graph.initializer}
    found = []
    for name in (name for name in held if name.endswith(".codes")):
        modules = name.removesuffix(".codes").split("+")
        codes = np.concatenate([made[module][0] for module in modules])
        scales = np.concatenate([made[module][1] for module in modules])
        assert np.array_equal((held[name].astype(np.int16) - 128).reshape(codes.shape), codes)
        assert np.array_equal(held[name.removesuffix(".codes") + ".scales"], scales)
        assert codes.shape[1] // scales.shape[1] % held[name].shape[2] == 0, "a block lies in one group"
        found += modules
    assert sorted(found) == sorted(made)
    assert verify_bundle(bundle).parity["float32"]["prefill"]["log_probability"] <= 2e-3


def test_what_it_holds_is_counted(checkpoint: Any, dense: Path) -> None:
    folder, made = checkpoint
    held, float_one = inspect_checkpoint(folder), inspect_checkpoint(dense)
    codes = sum(codes.size for codes, _ in made.values())
    scales = sum(scales.size for _, scales in made.values())
    zeros = sum(int((codes == 0).sum()) for codes, _ in made.values())
    assert (held.format, held.parameters) == ("quantized", float_one.parameters)
    assert held.weight_bytes == codes + 4 * scales + 4 * (float_one.parameters - codes)
    assert count_nonzero(folder) == float_one.parameters - zeros
    assert zeros


def test_it_loads_without_the_library(checkpoint: Any) -> None:
    folder, _ = checkpoint
    model = load_model(folder, dtype="bfloat16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_tensors_of_one_matrix_may_lie_in_several_files(dense: Path, tmp_path: Path) -> None:
    made = write_packed(dense, tmp_path / "packed", 64)
    file = tmp_path / "packed" / "model.safetensors"
    tensors = load_file(file)
    file.unlink()
    places = {name: f"model-{index % 2}.safetensors" for index, name in enumerate(sorted(tensors))}
    for place in set(places.values()):
        part = {name: tensors[name].contiguous() for name in places if places[name] == place}
        save_file(part, file.with_name(place), metadata={"format": "pt"})
    file.with_name("model.safetensors.index.json").write_text(json.dumps({"weight_map": places}), encoding="utf-8")
    matrices = read_quantized_matrices(tmp_path / "packed")
    assert all(np.array_equal(matrices[name].codes_OI, codes) for name, (codes, _) in made.items())


def test_the_library_reads_the_same_values(checkpoint: Any) -> None:
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    folder, _ = checkpoint
    tensors = load_file(folder / "model.safetensors")
    for name, matrix in read_quantized_matrices(folder).items():
        shape = torch.Size(tensors[f"{name}.weight_shape"].tolist())
        codes = helpers.unpack_from_int32(tensors[f"{name}.weight_packed"], 8, shape)
        assert np.array_equal(codes.numpy(), matrix.codes_OI)


CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "another format": ({"format": "float-quantized"}, {}, "`format`: expected 'pack-quantized'"),
    "cache": ({"kv_cache_scheme": {"num_bits": 8}}, {}, "`kv_cache_scheme`: expected none"),
    "sparse": ({"sparsity_config": {"format": "sparse-bitmask"}}, {}, "`sparsity_config`: expected none"),
    "rotated": ({"transform_config": {"config_groups": {"u": {}}}}, {}, "`transform_config`: expected none"),
    "4 bits": ({}, {"num_bits": 4}, "`group_0.weights.num_bits`: expected 8, got 4"),
    "floats": ({}, {"type": "float"}, "`group_0.weights.type`: expected 'int', got 'float'"),
    "zero points": ({}, {"symmetric": False}, "`group_0.weights.symmetric`: expected True, got False"),
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
    changed = settings(64) | top
    changed["config_groups"]["group_0"]["weights"] |= weights
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": changed}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=message):
        inspect_checkpoint(folder)


def test_every_entry_of_weights_has_its_refusal() -> None:
    refused = {key for _, weights, _ in CHANGES.values() for key in weights}
    assert refused == set(WEIGHTS)
    assert packed_faults(settings(64)) == packed_faults(settings(None)) == []


def test_quantized_activations_are_refused() -> None:
    changed = settings(64)
    changed["config_groups"]["group_0"]["input_activations"] = {"num_bits": 8}
    assert packed_faults(changed) == ["`group_0.input_activations`: expected None, got {'num_bits': 8}"]


@pytest.mark.parametrize("method", ["gptq", None])
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
    write_packed(dense, folder, 64)
    tensors = load_file(folder / "model.safetensors")
    name = f"model.layers.0.mlp.up_proj.{what}"
    tensors[name] = tensors[name][:-1].clone()
    if missing:
        del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"an int8 matrix cannot be read|left over|missing"):
        load_float_model(folder)


def test_embedding_in_groups_is_refused(dense: Path, text_file: Path, tmp_path: Path) -> None:
    write_packed(dense, tmp_path / "packed", 64, "embed_tokens.weight")
    with pytest.raises(
        StageError, match=r"model\.embed_tokens: expected an int8 embedding with one scale per row, got 2"
    ):
        exported(tmp_path / "packed", tmp_path / "bundle", text_file)


def test_groups_without_a_block_are_refused(dense: Path, text_file: Path, tmp_path: Path) -> None:
    write_packed(dense, tmp_path / "packed", 8)
    with pytest.raises(StageError, match=r"groups of a multiple of 16 columns, .* got 8"):
        exported(tmp_path / "packed", tmp_path / "bundle", text_file)


def test_quantizing_again_is_refused(checkpoint: Any, tmp_path: Path) -> None:
    folder, _ = checkpoint
    with pytest.raises(CheckpointError, match="quantized already"):
        run(QuantizeConfig(), StageInput(source=folder, out=tmp_path, scratch=tmp_path))
