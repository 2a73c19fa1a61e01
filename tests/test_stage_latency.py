"""A recipe's latencies, of every stage: who takes part in which blocks, what is left out, and a real run whose variant
is killed and that is carried out again.
"""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import psutil
import pytest
from clocked_variants import OPENER, make_variant, not_numbers
from conftest import ROOT, Demitasse

from compress import Silent
from compress.text import TextSource
from evaluation.gate import EXIT_CODES, Limit, judge
from evaluation.latency import Protocol, Reading, Session, Trial, Workload, latency_measurements
from evaluation.report import Report
from evaluation.stopping_rule import StoppingRule
from export.runtime.session import is_here
from recipes.config.recipe import BenchmarkConfig
from recipes.engine.rejudge import Stored, judge_run
from recipes.measure.interleaving import BenchmarkTarget, new_session, pinned_cpus, resumed, run_trials
from recipes.measure.latency import (
    PENDING,
    _together,
    latency_identity,
    measure_latency,
    objection,
    seconds_of_a_block,
)
from recipes.measure.variant_process import memory_of
from recipes.runs.report_file import read_report

WORKLOAD = Workload(prompt=4, tokens=3)
RECIPE = """\
model: {model}
data: {{calibration: {text}, test: test.txt}}
stages:
  - export
evaluate: {{window: 32, windows: 8}}
benchmark: {{prompt: 8, tokens: 4, blocks: 3, stage_blocks: 3, threads: 1}}
gate:
  decode_latency: {{max_ratio: 1000}}
"""


def targets(root: Path, between: dict[str, object] | None = None) -> list[BenchmarkTarget]:
    """A baseline, a stage that takes part in two blocks, and the last artifact."""
    told: dict[str, dict[str, object]] = {"baseline": {}, "prune": between or {}, "export": {}}
    return [
        BenchmarkTarget(
            name=name,
            folder=make_variant(root / name, **knobs),
            format="dense",
            opener=OPENER,
            blocks=2 if name == "prune" else None,
        )
        for name, knobs in told.items()
    ]


def take(given: list[BenchmarkTarget], blocks: int, session: Session | None = None) -> Session:
    protocol = Protocol(workloads=(WORKLOAD,), threads=1, cpus=pinned_cpus(1), settle=0.0, seed=3)
    begun = resumed(session, given) if session else new_session(given, protocol)
    return run_trials(begun, given, (0,) * 8, blocks=blocks)


def blocks_of(session: Session) -> dict[str, list[int]]:
    return {variant: sorted(session.of(variant)) for variant in session.variants}


# ---- who takes part in which blocks


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which nothing else runs, whatever tests do."""
    monkeypatch.setattr("evaluation.latency.record.disturbed", lambda *_: ())


def test_a_stage_between_takes_part_until_it_has_enough_undisturbed_blocks() -> None:
    loud, still = (Reading(seconds=1, cpus=1, own=0.5, busy=busy) for busy in (0.9, 0.5))
    day = datetime(2026, 1, 5)
    trials = tuple(
        Trial(variant=variant, block=block, place=0, started=day, process=1, timed=loud if block == 1 else still)
        for block in range(5)
        for variant in ("baseline", "prune")
    )
    protocol = Protocol(workloads=(WORKLOAD,), threads=1)
    session = Session(protocol=protocol, variants=("baseline", "prune"), trials=trials)
    between = replace(target("prune"), blocks=3)
    assert [between.due(session, block) for block in range(5)] == [True, True, True, True, False]
    assert all(target("baseline").due(session, block) for block in range(5))


@pytest.mark.usefixtures("quiet")
def test_a_stage_between_takes_part_in_the_first_blocks_and_is_held_against_the_baseline_in_those(
    tmp_path: Path,
) -> None:
    given = targets(tmp_path)
    session = take(given, blocks=4)
    assert blocks_of(session) == {"baseline": [0, 1, 2, 3], "prune": [0, 1], "export": [0, 1, 2, 3]}
    quiet = [trial.model_copy(update={"timed": None, "opening": None}) for trial in session.trials]
    found = latency_measurements(session.model_copy(update={"trials": tuple(quiet)}))
    samples = {
        variant: next(one.samples for one in of if one.metric == "decode_latency") for variant, of in found.items()
    }
    assert samples == {"baseline": 4, "prune": 2, "export": 4}
    each = {variant: session.seconds_of_a_trial(variant) for variant in session.variants}
    assert min(each.values()) > 0.01  # a process does not start in less
    assert seconds_of_a_block(session) == pytest.approx(each["baseline"] + each["export"])


@pytest.mark.usefixtures("quiet")
@pytest.mark.thorough
def test_a_session_with_a_stage_between_goes_on_where_it_was_cut_off(tmp_path: Path) -> None:
    given = targets(tmp_path)
    whole = take(given, blocks=3)
    assert len(whole.trials) == 8
    for kept, left in {1: 0, 4: 3, 7: 6, 8: 8}.items():
        cut = whole.model_copy(update={"trials": whole.trials[:kept]})
        assert resumed(cut, given).trials == whole.trials[:left]
    more = take(given, blocks=5, session=whole)
    assert more.trials[:8] == whole.trials
    assert blocks_of(more) == {"baseline": [0, 1, 2, 3, 4], "prune": [0, 1], "export": [0, 1, 2, 3, 4]}


@pytest.mark.usefixtures("quiet")
@pytest.mark.thorough
def test_a_stage_between_that_died_does_not_cost_the_others_their_blocks(tmp_path: Path) -> None:
    given = targets(tmp_path, between={"fails": "killed"})
    session = take(given, blocks=3)
    assert "SIGKILL" in session.error("prune")
    more = take(given, blocks=4, session=session)
    assert more.trials[: len(session.trials)] == session.trials
    (tmp_path / "other").mkdir()
    last = targets(tmp_path / "other")
    (last[-1].folder / "variant.json").write_text('{"fails": "killed"}', encoding="utf-8")
    dead = take(last, blocks=2)
    assert resumed(dead, last).trials == ()  # what ships is tried again, from the block that it missed


def target(name: str, *, on_gpu: bool = False) -> BenchmarkTarget:
    return BenchmarkTarget(name=name, folder=Path(name), format="onnx" if on_gpu else "dense", on_gpu=on_gpu)


@pytest.mark.parametrize(
    ("stage_blocks", "expected"),
    [(5, {"baseline": None, "prune": 5, "quantize": 5, "export": None}), (0, {"baseline": None, "export": None})],
)
def test_the_knob_says_in_how_many_blocks_the_stages_between_are_timed(
    stage_blocks: int, expected: dict[str, int | None]
) -> None:
    given = [target(name) for name in ("baseline", "prune", "quantize", "export")]
    racing = _together(given, stage_blocks)
    assert {one.name: one.blocks for one in racing} == expected
    assert [one.name for one in _together(given[:1], 5)] == ["baseline"]
    assert {one.on_gpu for one in racing} == {False}
    assert {one.on_gpu for one in _together([*given, target("cuda", on_gpu=True)], 5)} == {True}


@pytest.mark.parametrize("blocks", [1, 2])
def test_too_few_blocks_for_an_interval_are_refused(blocks: int) -> None:
    with pytest.raises(ValueError, match=f"expected 0 or at least 3, got {blocks}"):
        BenchmarkConfig(stage_blocks=blocks)


def test_every_artifact_that_is_timed_is_named_in_the_results_identity(text_file: Path) -> None:
    timed = [("base", "dense"), ("pruned", "dense"), ("int8", "quantized"), ("bundle", "onnx")]
    test = TextSource(file=text_file)
    every = latency_identity(timed, config=BenchmarkConfig(), test=test, seed=0)  # type: ignore[arg-type] # literals
    ends = latency_identity(timed, config=BenchmarkConfig(stage_blocks=0), test=test, seed=0)  # type: ignore[arg-type]
    assert (every["baseline"], every["artifact"]) == (ends["baseline"], ends["artifact"]) == ("base", "bundle")
    assert [one["artifact"] for one in every["between"]] == ["pruned", "int8"]
    assert ends["between"] == []
    assert "bitsandbytes" in every["libraries"]
    assert "bitsandbytes" not in ends["libraries"]


@pytest.mark.skipif(is_here("cuda"), reason="this machine has a GPU, where nothing stays pending")
def test_what_runs_on_a_gpu_that_is_not_here_stays_pending(int8_bundle: Path, text_file: Path, tmp_path: Path) -> None:
    elsewhere = BenchmarkTarget(name="export", folder=tmp_path, format="onnx", on_gpu=True)
    found = measure_latency(
        [BenchmarkTarget(name="baseline", folder=int8_bundle, format="onnx"), elsewhere],
        config=BenchmarkConfig(prompt=4, tokens=2, blocks=3, threads=1),
        test=TextSource(file=text_file),
        seed=0,
        progress=Silent(),
        out=tmp_path,
    )
    assert [one.metric for one in found["export"]] == [one.metric for one in found["baseline"]]
    assert {one.invalid for row in found.values() for one in row} == {PENDING}
    kept = Session.model_validate_json((tmp_path / "latency.json").read_text())
    assert str(latency_measurements(kept)) == str(found)
    assert kept.trials == ()
    assert kept.pending is not None
    assert len(kept.pending.ids) == 4
    gate = judge({"decode_latency": Limit(max_ratio=1)}, {one.metric: one for one in found["export"]})[0]
    assert EXIT_CODES[gate.verdict] == 4
    assert objection(tmp_path, StoppingRule(gates={}, blocks=(3,), looks=1)) == ""


def test_a_process_has_the_gpu_memory_that_the_driver_tells_of_it() -> None:
    told = "4711, 512\n12, 300\n4711, 8\n13, [N/A]\n"
    assert memory_of(4711, told) == 520 << 20
    assert memory_of(13, told) is memory_of(99, told) is memory_of(1, "") is None


# ---- a real run


def start(recipe: Path, out: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", "from recipes.cli.app import main; main()", "run", str(recipe), "--out", str(out)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, env=os.environ | {"COLUMNS": "200"})


def kill_a_variant(run: "subprocess.Popen[str]", times: int) -> None:
    """Kill so many processes that time a variant, as soon as each is there."""
    killed: set[int] = set()
    while run.poll() is None and len(killed) < times:
        for child in psutil.Process(run.pid).children():
            if child.pid not in killed and "recipes.measure.variant_process" in child.cmdline():
                os.kill(child.pid, signal.SIGKILL)
                killed.add(child.pid)
        time.sleep(0.01)
    assert len(killed) == times


def busy(report: Report) -> bool:
    """Whether the only thing wrong is what else this machine does while tests run."""
    return all(
        "busy" in gate.detail or "undisturbed" in gate.detail for gate in report.gates if gate.verdict == "INVALID"
    )


def write_recipe(folder: Path, model: Path, text: Path) -> Path:
    (folder / "test.txt").write_text(" ".join(f"never seen word {number}" for number in range(300)), encoding="utf-8")
    (folder / "small.yaml").write_text(RECIPE.format(model=model, text=text), encoding="utf-8")
    return folder / "small.yaml"


@pytest.mark.thorough
def test_a_run_of_a_model_whose_logits_are_not_numbers_is_invalid(
    gpt2: Path, text_file: Path, tmp_path: Path, demitasse: Demitasse
) -> None:
    recipe = write_recipe(tmp_path, not_numbers(gpt2, tmp_path / "nan"), text_file)
    recipe.write_text(
        recipe.read_text(encoding="utf-8").replace("  - export\n", "  - prune: {sparsity: 0.3}\n"), encoding="utf-8"
    )
    code, _, errors = demitasse("run", recipe, "--out", tmp_path / "out")
    assert code == 4, errors
    report = read_report(tmp_path / "out")
    assert (report.verdict, report.gates[0].verdict) == ("INVALID", "INVALID")
    assert "its logits are not numbers" in report.gates[0].detail
    perplexity = report.measurement("prune", "perplexity")
    assert perplexity is not None
    assert perplexity.invalid


@pytest.mark.thorough
def test_a_run_whose_variants_were_killed_is_invalid_and_is_timed_again_by_the_next_run(
    gpt2: Path, text_file: Path, tmp_path: Path, demitasse: Demitasse
) -> None:
    recipe, out = write_recipe(tmp_path, gpt2, text_file), tmp_path / "out"
    run = start(recipe, out)
    kill_a_variant(run, times=2)
    said, errors = run.communicate()
    assert run.returncode == 4, errors
    assert "did not run: its process was ended by SIGKILL" in " ".join(said.split())
    assert "SIGKILL" in read_report(out).gates[0].detail

    code, said, errors = demitasse("run", recipe, "--out", out)
    report = read_report(out)
    assert "is invalid: taken again" in (out / "log.txt").read_text(encoding="utf-8")
    assert code == report.exit_code
    assert busy(report), said + errors
    session = Stored(report).session
    assert session is not None
    assert blocks_of(session) == {variant: [0, 1, 2] for variant in ("baseline", "export")}
    for row in report.rows:
        timed = row.measurement("decode_latency")
        assert timed is not None
        assert timed.invalid or (timed.ratio is None) == (row.name == "baseline")
    again = judge_run(out)
    assert again.differences == ()
    assert (again.report.verdict, again.report.exit_code) == (report.verdict, code)
