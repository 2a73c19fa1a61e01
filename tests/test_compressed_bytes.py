"""Compressed size: what the files take by an independent decompression's account, and what zeros save."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import zstandard
from exported import Exported
from safetensors.torch import load_file, save_file

from recipes.formats.compressed_bytes import compressed_bytes
from recipes.measure.footprint import measure_footprint


def figures(folder: Path, format: str) -> dict[str, float]:
    return {found.metric: found.value for found in measure_footprint(folder, format, prompt=4)}  # type: ignore[arg-type]


def test_it_is_what_zstd_writes_file_by_file(tmp_path: Path) -> None:
    contents = [np.random.default_rng(0).bytes(300_000), bytes(500_000), b""]
    files = [tmp_path / f"{index}.bin" for index in range(len(contents))]
    for file, content in zip(files, contents, strict=True):
        file.write_bytes(content)
    found = [compressed_bytes([file]) for file in files]
    assert found[:2] == [len(zstandard.compress(content, level=3)) for content in contents[:2]]
    assert found[0] > 300_000 > 500 > found[1]
    assert compressed_bytes(files) == sum(found)


def test_zeros_save_compressed_bytes_and_no_others(gpt2: Path, tmp_path: Path) -> None:
    shutil.copytree(gpt2, tmp_path / "half")
    tensors = load_file(gpt2 / "model.safetensors")
    for tensor in tensors.values():
        tensor.view(-1)[::2] = 0
    save_file(tensors, tmp_path / "half" / "model.safetensors", metadata={"format": "pt"})
    dense, half = figures(gpt2, "dense"), figures(tmp_path / "half", "dense")
    assert half["disk_bytes"] == dense["disk_bytes"]
    assert half["compressed_bytes"] < 0.75 * dense["compressed_bytes"]
    assert 0 < dense["compressed_bytes"] <= dense["disk_bytes"]


def test_int8_checkpoints_and_bundles_have_one_too(int8_exports: Callable[[str], Exported]) -> None:
    made = int8_exports("gpt2")
    for folder, format in ((made.int8, "quantized"), (made.bundle, "onnx")):
        found = figures(folder, format)
        assert 0 < found["compressed_bytes"] < found["disk_bytes"]
