"""What is left for others to read has the modes that the umask gives, whatever a library wrote it with."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from exported import exported, quantized
from finished_runs import finish

from compress.quantization.config import QUANTIZE
from compress.stage import Silent
from recipes.engine.single import StageRequest, run_stage
from recipes.runs.store import Store

MASKS = {0o022: (0o644, 0o755), 0o027: (0o640, 0o750)}
"""umask -> modes of files and of folders."""


@pytest.fixture(params=MASKS, ids=lambda mask: f"{mask:03o}")
def mask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def assert_modes(folder: Path, mask: int, *expected: str) -> None:
    """Every file and folder has the mode that the mask gives, and those of these names are among them."""
    file_mode, folder_mode = MASKS[mask]
    found = [folder, *folder.rglob("*")]
    wrong = {
        str(path.relative_to(folder)): oct(path.stat().st_mode & 0o777)
        for path in found
        if path.stat().st_mode & 0o777 != (folder_mode if path.is_dir() else file_mode)
    }
    assert not wrong
    assert {path.name for path in found} >= set(expected)


def test_stored_checkpoints_and_bundles_can_be_read_by_others(
    gpt2: Path, text_file: Path, tmp_path: Path, mask: int
) -> None:
    def make(files: Path, scratch: Path) -> dict[str, Any]:
        exported(quantized(gpt2, files / "int8", embeddings=True), files / "bundle", text_file)
        return {}

    store = Store(tmp_path / "artifacts")
    store.obtain("export", {}, make)
    weights = ("model.safetensors", "int8_embeddings.safetensors", "parity.safetensors", "model.onnx.data")
    assert_modes(store.root, mask, "artifact.json", "manifest.json", *weights)


def test_a_verb_leaves_what_others_can_read(gpt2: Path, tmp_path: Path, mask: int) -> None:
    out = tmp_path / "int8"
    run_stage(StageRequest(stage=QUANTIZE, config=QUANTIZE.config(), source=gpt2, out=out), Silent())
    assert_modes(out, mask, "model.safetensors", "config.json", "tokenizer.json")


@pytest.mark.parametrize("mask", [0o027], indirect=True)
def test_a_finished_run_can_be_read_by_others(tmp_path: Path, mask: int) -> None:
    finish(tmp_path / "run")
    assert_modes(tmp_path / "run", mask, "report.json", "report.html", "report.md", "artifact.json", "latency.json")
