"""The engine on a small recipe: order, reuse, resumption after a kill, reports; and once with the real stages."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from finished_runs import session_of

from compress import Stage, StageConfig, StageInput, StageMetadata
from compress.digests import digest_of
from evaluation.latency import latency_measurements
from evaluation.measurement import Interval, Measurement, Ratio
from evaluation.report import Row
from evaluation.stopping_rule import LOOKS, StoppingRule
from recipes.config.errors import RecipeError
from recipes.config.loader import load_recipe
from recipes.engine.runner import run
from recipes.formats.checkpoint import CheckpointFormat
from recipes.measure import footprint as footprints
from recipes.measure import latency as latencies
from recipes.measure import quality as qualities
from recipes.measure.interleaving import BenchmarkTarget
from recipes.measure.latency import LATENCY_FILE, read_session, write_session
from recipes.runs.records import RECORD, IntegrityError, StoreError
from recipes.runs.report_file import read_report

ROOT = Path(__file__).resolve().parent.parent
RECIPE = """\
model: {model}
data: {{calibration: calibration.txt, test: test.txt}}
stages:
  - halve: {{keep: 0.5}}
  - halve
evaluate: {{window: 16}}
benchmark: {{prompt: 4, tokens: 4, threads: 1}}
gate:
  weight_bytes: {{max_ratio: 0.6}}
  decode_latency: {{max_ratio: 0.7}}
"""


class HalveConfig(StageConfig):
    """Keep a share of the weight file's bytes: a real stage over real files, without a model behind it."""

    keep: float = 0.9


def halve(config: HalveConfig, given: StageInput) -> StageMetadata:
    assert given.source is not None
    for file in given.source.iterdir():
        content = file.read_bytes()
        (given.out / file.name).write_bytes(content[: int(len(content) * config.keep)])
    return {"kept": config.keep, "teacher": given.teacher is not None}


STAGES: dict[str, Stage[Any]] = {
    "halve": Stage(
        kind="halve",
        summary="keep a share",
        version=1,
        config=HalveConfig,
        takes=frozenset({"dense"}),
        leaves="dense",
        run=halve,
        inputs_read=lambda config: frozenset({"calibration_text"}),
    )
}


def bytes_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def quality(artifact: Path, format: str, *, baseline: Any, out: Path, **rest: Any) -> list[Measurement]:
    (out / "tokens.npz").touch()
    ratio = None if baseline is None else Ratio(value=1.0)
    return [Measurement(metric="perplexity", value=9.0, samples=2, method="test", ratio=ratio)]


def memory(artifact: Path, format: str, **rest: Any) -> Measurement:
    return Measurement(metric="peak_memory", value=5.0, samples=1, method="a process each, tested elsewhere")


def footprint(artifact: Path, format: str, **rest: Any) -> list[Measurement]:
    return [Measurement(metric="weight_bytes", value=bytes_of(artifact), samples=1, method="counted")]


def latency(targets: Sequence[BenchmarkTarget], **rest: Any) -> dict[str, list[Measurement]]:
    shared: dict[str, Any] = {"metric": "decode_latency", "samples": 3, "method": "test"}
    found = {}
    for target in targets:
        share = bytes_of(target.folder) / bytes_of(targets[0].folder)
        paired = None if target is targets[0] else Ratio(value=share, interval=Interval(low=share, high=share))
        found[target.name] = [Measurement(value=share, ratio=paired, interval=Interval(low=0.5, high=2), **shared)]
    return found


def measured_by(latency: Callable[..., Any] = latency) -> None:
    """Let these functions measure, until the process ends or `Monkeypatch` puts back what was there."""
    qualities.measure_quality = quality
    footprints.measure_footprint, footprints.measure_memory = footprint, memory
    latencies.measure_latency = latency
    CheckpointFormat.components = lambda self, folder: {}  # type: ignore[method-assign]


@pytest.fixture(autouse=True)
def _measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was there is put back after each test."""
    for module, name in (
        (qualities, "measure_quality"),
        (footprints, "measure_footprint"),
        (footprints, "measure_memory"),
        (latencies, "measure_latency"),
    ):
        monkeypatch.setattr(module, name, getattr(module, name))
    monkeypatch.setattr(CheckpointFormat, "components", CheckpointFormat.components)
    measured_by()


@pytest.fixture
def recipe_file(tmp_path: Path, gpt2: Path) -> Path:
    (tmp_path / "calibration.txt").write_text("some words to look at", encoding="utf-8")
    (tmp_path / "test.txt").write_text("other words to measure on", encoding="utf-8")
    (tmp_path / "small.yaml").write_text(RECIPE.format(model=gpt2), encoding="utf-8")
    return tmp_path / "small.yaml"


def carry_out(file: Path, out: Path, *overrides: str, **rest: Any) -> Any:
    return run(load_recipe(file, overrides, stages=STAGES), out=out, stages=STAGES, **rest)


def test_rows_gates_and_files(recipe_file: Path, tmp_path: Path) -> None:
    seen: list[Row] = []
    report = carry_out(recipe_file, tmp_path / "out", on_row=seen.append)
    assert [row.name for row in report.rows] == [row.name for row in seen] == ["baseline", "halve", "halve 2"]
    assert [row.format for row in report.rows] == ["dense"] * 3
    assert report.rows[1].knobs == {"keep": 0.5}
    assert report.rows[2].metadata == {"kept": 0.9, "teacher": True}
    assert report.measurement("halve", "weight_bytes").ratio.value == pytest.approx(0.5, abs=1e-3)
    assert report.measurement("halve", "decode_latency").ratio.value == pytest.approx(0.5, abs=1e-3)
    assert report.measurement("baseline", "decode_latency").value == 1.0
    assert [(gate.metric, gate.verdict) for gate in report.gates] == [
        ("weight_bytes", "PASS"),
        ("decode_latency", "PASS"),
    ]
    assert (report.verdict, report.exit_code) == ("PASS", 0)
    assert read_report(tmp_path / "out") == report
    final = tmp_path / "out" / "final"
    assert final.resolve() == next((tmp_path / "out" / "artifacts").glob(f"halve-{report.rows[2].key[:16]}")) / "files"
    assert "verdict PASS" in (tmp_path / "out" / "log.txt").read_text(encoding="utf-8")


def shrinking(value: float, spent: list[int]) -> Callable[..., Any]:
    """Latencies whose ratio is known the better the more blocks are timed."""

    def timed(targets: Sequence[BenchmarkTarget], *, config: Any, **rest: Any) -> dict[str, list[Measurement]]:
        spent.append(config.blocks)
        half = 0.4 / config.blocks**0.5
        paired = Ratio(
            value=value,
            interval=Interval(low=value - 1.2 * half, high=value + 1.2 * half),
            bounds=Interval(low=value - half, high=value + half, confidence=0.9),
        )
        shared: dict[str, Any] = {"metric": "decode_latency", "samples": config.blocks, "method": "test"}
        return {
            "baseline": [Measurement(value=1.0, **shared)],
            "halve 2": [Measurement(value=value, ratio=paired, **shared)],
        }

    return timed


@pytest.mark.parametrize(
    ("value", "minutes", "verdict"), [(0.6, 5.0, "PASS"), (0.6, 0.0, "INCONCLUSIVE"), (0.8, 5.0, "FAIL")]
)
def test_an_open_gate_is_measured_on_until_it_is_decided(
    value: float, minutes: float, verdict: str, recipe_file: Path, tmp_path: Path
) -> None:
    spent: list[int] = []
    recipe = load_recipe(recipe_file, ["benchmark.blocks=5"], stages=STAGES)
    measured_by(shrinking(value, spent))
    report = run(recipe, out=tmp_path / "out", stages=STAGES, until_decided=minutes)
    assert report.verdict == verdict
    assert spent[0] == 5
    assert all(more >= 2 * before for before, more in pairwise(spent))
    assert (len(spent) > 1) == (minutes > 0)
    assert report.looks == ({"documents": LOOKS, "blocks": 2 + LOOKS - 1} if minutes else {"blocks": 2})
    assert ("look 1 of at most 4" in (tmp_path / "out" / "log.txt").read_text(encoding="utf-8")) == (minutes > 0)


def clocked(speed: float, begun: list[int]) -> Callable[..., Any]:
    """Latencies that come of a session of known speed, block by block, as far as is asked for."""
    trials = session_of(speed, blocks=15).trials
    named = tuple(trial.model_copy(update={"variant": trial.variant.replace("export", "halve 2")}) for trial in trials)

    def timed(
        targets: Sequence[BenchmarkTarget], *, config: Any, enough: StoppingRule, out: Path, scratch: Path, **rest: Any
    ) -> dict[str, list[Measurement]]:
        left = scratch / LATENCY_FILE
        begun.append(read_session(left).taken if left.is_file() else 0)
        for blocks in enough.blocks:
            taken = tuple(trial for trial in named if trial.block < max(blocks, begun[-1]))
            session = session_of(speed).model_copy(update={"variants": ("baseline", "halve 2"), "trials": taken})
            reason = enough.reason(session)
            if reason:
                break
        write_session(session.model_copy(update={"planned": config.blocks, "stopped": reason}), out / LATENCY_FILE)
        return latency_measurements(session)

    return timed


def test_timing_ends_when_its_gates_are_decided_and_goes_on_for_others(recipe_file: Path, tmp_path: Path) -> None:
    begun: list[int] = []

    def timing_with(limit: float) -> str:
        recipe = load_recipe(recipe_file, [f"gate.decode_latency.max_ratio={limit}"], stages=STAGES)
        measured_by(clocked(0.25, begun))
        report = run(recipe, out=tmp_path / "out", stages=STAGES)
        assert report.looks == {"blocks": 4}
        assert read_report(tmp_path / "out").timing == report.timing
        return report.timing

    early = "4 of at most 15 blocks were timed: every gate on latency is decided"
    assert timing_with(0.7) == early
    assert timing_with(0.25) == "15 of at most 15 blocks were timed: all 15 blocks are taken"
    assert timing_with(0.7) == early
    assert begun == [0, 4]
    assert "does not suffice for these gates: gone on with" in (tmp_path / "out" / "log.txt").read_text("utf-8")


def test_an_unchanged_recipe_is_reused_and_a_changed_one_from_there_on(recipe_file: Path, tmp_path: Path) -> None:
    first = carry_out(recipe_file, tmp_path / "out")
    again = carry_out(recipe_file, tmp_path / "out")
    assert [row.reused for row in first.rows] == [False, False, False]
    assert [row.reused for row in again.rows] == [True, True, True]
    assert [row.measurements for row in again.rows] == [row.measurements for row in first.rows]
    assert (again.gates, again.verdict) == (first.gates, first.verdict)
    changed = carry_out(recipe_file, tmp_path / "out", "stages.2.keep=0.8")
    assert [row.reused for row in changed.rows] == [True, True, False]


def test_the_source_is_not_changed(
    recipe_file: Path, tmp_path: Path, gpt2: Path, folder_digest: Callable[[Path], dict[str, str]]
) -> None:
    before = folder_digest(gpt2)
    carry_out(recipe_file, tmp_path / "out")
    assert folder_digest(gpt2) == before


def test_a_changed_artifact_is_an_integrity_error(recipe_file: Path, tmp_path: Path) -> None:
    report = carry_out(recipe_file, tmp_path / "out")
    file = tmp_path / "out" / "artifacts" / f"halve-{report.rows[1].key[:16]}" / "files" / "config.json"
    file.write_text("{}", encoding="utf-8")
    with pytest.raises(IntegrityError, match="was changed"):
        carry_out(recipe_file, tmp_path / "out")


def test_everything_wrong_before_the_run_comes_at_once(recipe_file: Path, tmp_path: Path) -> None:
    (tmp_path / "test.txt").write_text("\n", encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        carry_out(recipe_file, tmp_path / "out", "evaluate.window=1000")
    window, text = caught.value.errors
    assert window.startswith("--set evaluate.window=1000: expected at most 128 tokens")
    assert text.endswith("expected text, got an empty file")
    assert not list((tmp_path / "out" / "artifacts").glob("*-*"))


def test_a_run_folder_that_cannot_be_written(recipe_file: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"Not a directory|File exists"):
        carry_out(recipe_file, tmp_path / "file" / "out")


REUSED = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from recipes import load_recipe, run
    from test_runner import measured_by

    measured_by()
    report = run(load_recipe(sys.argv[1]), out=Path(sys.argv[2]))
    heavy = {"torch", "transformers", "onnx", "onnxruntime", "mobius"} & set(sys.modules)
    print(report.verdict, all(row.reused for row in report.rows), sorted(heavy))
    """
)

REAL = """\
model: {model}
data: {{train: {text}, test: test.txt}}
stages:
  - prune: {{sparsity: 0.3}}
  - distill: {{tokens: 384, length: 32, batch: 4, checkpoints: 3}}
evaluate: {{window: 32, windows: 8}}
gate:
  weight_bytes: {{max_ratio: 1.1}}
"""


def _start(script: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "ignore", "-c", script, *map(str, arguments)]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, env=environment)


def _hashes(out: Path) -> dict[str, str]:
    """Every file of every stage's artifact, by place."""
    records = [json.loads((folder / RECORD).read_text(encoding="utf-8")) for folder in (out / "artifacts").glob("*-*")]
    return {record["key"]: digest_of(record["files"]) for record in records if record["kind"] in {"prune", "distill"}}


@pytest.mark.thorough
def test_real_stages_killed_in_the_middle_and_run_again(tmp_path: Path, gpt2: Path, text_file: Path) -> None:
    (tmp_path / "test.txt").write_text(" ".join(f"never seen word {number}" for number in range(200)), encoding="utf-8")
    (tmp_path / "real.yaml").write_text(REAL.format(model=gpt2, text=text_file), encoding="utf-8")
    process = _start(REUSED, tmp_path / "real.yaml", tmp_path / "killed")
    work = tmp_path / "killed" / "artifacts" / ".work"
    while process.poll() is None and not list(work.glob("distill-*/scratch/*")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors
    assert not list((tmp_path / "killed" / "artifacts").glob("distill-*"))

    finished = run(load_recipe(tmp_path / "real.yaml"), out=tmp_path / "killed")
    assert [row.reused for row in finished.rows] == [True, True, False]
    run(load_recipe(tmp_path / "real.yaml"), out=tmp_path / "whole")
    assert len(_hashes(tmp_path / "whole")) == 2
    assert _hashes(tmp_path / "killed") == _hashes(tmp_path / "whole")

    again = _start(REUSED, tmp_path / "real.yaml", tmp_path / "killed")
    out, errors = again.communicate()
    assert out.split(maxsplit=2) == ["PASS", "True", "[]\n"], errors
