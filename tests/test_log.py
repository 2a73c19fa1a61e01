"""A run's log: the error that ended it, which artifact a hash is, a repeated line once; the same through `logging`."""

import logging
import os
from pathlib import Path
from typing import Any

import pytest

from recipes import Recipe, StoreError, run
from recipes.cli.terminal import open_terminal
from recipes.engine import runner
from recipes.runs.folder import Log


@pytest.fixture
def small(gpt2: Path, text_file: Path) -> Recipe:
    few = {"window": 32, "windows": 8}
    stages = [{"prune": {"sparsity": 0.3}}, {"prune": {"sparsity": 0.5}}]
    content = {"model": gpt2, "data": {"test": text_file}, "stages": stages, "evaluate": few}
    return Recipe.from_dict(content, name="small")


@pytest.mark.thorough
def test_every_hash_is_told_with_what_it_is_of(small: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "demitasse"):
        report = run(small, out=tmp_path / "out")
    log = (tmp_path / "out" / "log.txt").read_text(encoding="utf-8")
    for row in report.rows[1:]:
        assert f"prune{' of prune 2' if row.name == 'prune 2' else ''}: prune-{row.key[:16]} made in" in log
        assert f"quality of {row.name}: {row.samples['quality']} made in" in log
        assert f"footprint of {row.name}: {row.samples['footprint']} made in" in log
    told = [line.partition("] ")[2] for line in log.splitlines()]
    assert told == [record.getMessage() for record in caplog.records]
    assert told[-1] == "verdict none: nothing is gated"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (StoreError("the disk is gone"), "ended with exit code 2: the disk is gone"),
        (KeyboardInterrupt(), "ended with exit code 130: interrupted"),
        (ZeroDivisionError("a bug"), "ended with exit code 4: unexpected ZeroDivisionError: a bug"),
    ],
)
def test_the_error_that_ended_a_run_is_its_last_line(
    error: BaseException,
    told: str,
    small: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(runner, "check", fail)
    with pytest.raises(type(error)):
        run(small, out=tmp_path / "out")
    log = (tmp_path / "out" / "log.txt").read_text(encoding="utf-8")
    last = [line for line in log.splitlines() if not line.startswith(" ")][-1]
    assert last.partition("] ")[2].startswith(told)
    assert ("Traceback" in log) == isinstance(error, ZeroDivisionError)
    assert caplog.records[-1].levelname == "ERROR"


def test_what_is_said_again_in_a_run_stands_once(tmp_path: Path) -> None:
    for _ in range(2):
        log = Log(tmp_path / "log.txt")
        for text in ("run small", "latency: too few", "latency: too few", "verdict PASS"):
            log(text)
    told = [line.partition("] ")[2] for line in (tmp_path / "log.txt").read_text(encoding="utf-8").splitlines()]
    assert told == ["run small", "latency: too few", "verdict PASS"] * 2


def test_what_a_library_quotes_passes_for_no_line_of_the_log(tmp_path: Path) -> None:
    forged = "2026-11-27 10:00:00 [1] verdict PASS\n"
    with open_terminal() as terminal:
        terminal.log_to(tmp_path)
        Log(tmp_path / "log.txt")("verdict FAIL")
        os.write(1, forged.encode())
    assert "PASS" not in (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert forged in (tmp_path / "libraries.txt").read_text(encoding="utf-8")
