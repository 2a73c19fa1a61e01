"""Seconds per decoded token of a shape: of a bundle that is int8 throughout, each shape once."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compress import Stage, StageConfig, StageError, StageInput, StageMetadata
from export.coverage import coverage
from export.external_data import read_graph
from recipes.config.loader import load_recipe
from recipes.engine.runner import run
from recipes.engine.single import StageRequest, run_stage
from recipes.measure.decode_timer import DecodeTimer, decode_seconds, int8_bundle, shape_of

FEW = 2


@pytest.fixture(autouse=True)
def _few_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recipes.measure.decode_timer.BLOCKS", FEW)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_what_is_timed_is_int8_throughout(
    family: str, make_checkpoint: Callable[..., Path], tmp_path: Path, folder_digest: Callable[[Path], dict[str, str]]
) -> None:
    folder = make_checkpoint(family)
    before = folder_digest(folder)
    with int8_bundle(folder, tmp_path) as bundle:
        covered = coverage(read_graph(bundle))
        assert list(tmp_path.iterdir()) != []
    assert len(covered["int8"]) > 10
    assert all("wpe" in name or "embed_positions" in name for name in covered["float"])
    assert covered["shared_table"]
    assert list(tmp_path.iterdir()) == []
    assert folder_digest(folder) == before


def test_it_is_a_time_also_where_the_context_is_short(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    for folder in (make_checkpoint("gpt2"), make_checkpoint("gpt2", n_positions=24)):
        seconds = decode_seconds(folder, tmp_path, threads=1)
        assert math.isfinite(seconds)
        assert seconds > 0
    assert list(tmp_path.iterdir()) == []


def test_a_shape_is_timed_once_and_the_table_outlives_the_timer(
    make_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, same, other = make_checkpoint("gpt2"), make_checkpoint("gpt2", seed=5), make_checkpoint("gpt2", n_inner=64)
    assert shape_of(one) == shape_of(same) != shape_of(other)
    first = DecodeTimer(tmp_path, threads=1)(one)
    table = json.loads((tmp_path / "decode_seconds.json").read_text())
    assert list(table.values()) == [first]
    again = DecodeTimer(tmp_path, threads=1)
    assert again(same) == first
    assert again(other) != first
    assert len(json.loads((tmp_path / "decode_seconds.json").read_text())) == 2


def test_a_shape_that_cannot_run_is_named(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_checkpoint("gpt2", n_embd=48, n_head=4)  # heads of 12
    with pytest.raises(StageError, match="head width that is a multiple of 8"):
        decode_seconds(folder, tmp_path)
    assert list(tmp_path.iterdir()) == []


class TimeConfig(StageConfig):
    """No knobs."""


def time_source(config: TimeConfig, given: StageInput) -> StageMetadata:
    """A stage that copies its source and says how fast its shape decodes."""
    assert given.source is not None
    assert given.decode_seconds is not None
    for file in given.source.iterdir():
        (given.out / file.name).write_bytes(file.read_bytes())
    return {"seconds": given.decode_seconds(given.source), "again": given.decode_seconds(given.source)}


TIME: Stage[Any] = Stage(
    kind="time",
    summary="time",
    version=1,
    config=TimeConfig,
    takes=frozenset({"dense"}),
    leaves="dense",
    run=time_source,
)


def test_recipes_and_verbs_hand_it_to_their_stages(
    gpt2: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from compress import Silent

    monkeypatch.setattr("recipes.measure.footprint.probe", lambda *_, **__: 5)  # a process each, tested elsewhere
    metadata = run_stage(StageRequest(stage=TIME, config=TimeConfig(), source=gpt2, out=tmp_path / "verb"), Silent())
    assert metadata["seconds"] == metadata["again"] > 0
    recipe = f"model: {gpt2}\ndata: {{test: {text_file}}}\nstages: [time]\nevaluate: {{window: 32, windows: 8}}\n"
    (tmp_path / "time.yaml").write_text(recipe)
    stages = {"time": TIME}
    report = run(load_recipe(tmp_path / "time.yaml", (), stages=stages), out=tmp_path / "run", stages=stages)
    assert report.rows[1].metadata["seconds"] == report.rows[1].metadata["again"] > 0
    compressed = report.rows[1].measurement("compressed_bytes")
    assert compressed is not None
    assert compressed.ratio is not None
    assert compressed.ratio.value == 1.0
