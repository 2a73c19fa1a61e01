"""Latency by clocks and counters that the test controls, so that the truth is known."""

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from benchmarks.overhead import MOST, overhead
from evaluation.latency import (
    Counters,
    Protocol,
    Reading,
    Session,
    Trial,
    Variant,
    Workload,
    WorkloadTimer,
    WorkloadTimes,
    disturbed,
    latency_measurements,
    pieces_of,
    process_measurements,
    steady_step,
    warm_up,
    workload_measurements,
)
from evaluation.latency.timing import AGREEING, FEWEST_PREFILLS, MOST_RUNS, SLICE, WARM_STEPS
from evaluation.measurement import Measurement

WORKLOAD = Workload(prompt=8, tokens=4)
QUIET = Reading(seconds=1.0, cpus=2, own=2.0, busy=2.0, stolen=0.0, held_back=0.0, heat=0, megahertz=3000.0)
STOLEN = QUIET.model_copy(update={"stolen": 0.1})


class Machine:
    """A variant with a clock of its own; `slow` prolongs single calls, by their number."""

    def __init__(
        self, prefill: int = 40_000_000, decode: int = 10_000_000, slow: dict[int, float] | None = None
    ) -> None:
        self.now, self.log, self.slow = 0, list[str](), slow or {}
        self.variant = Variant(
            prefill=lambda: self.spend("prefill", prefill),
            decode=lambda: self.spend("decode", decode),
        )

    def spend(self, name: str, nanoseconds: int) -> None:
        self.now += round(nanoseconds * self.slow.get(len(self.log), 1.0))
        self.log.append(name)

    def clock(self) -> int:
        return self.now


def session(
    variants: Mapping[str, Sequence[float]], *, timed: dict[tuple[str, int], Reading] | None = None, steps: int = 3
) -> Session:
    """Blocks whose decode time is given; the prefill takes four times as long."""
    trials = tuple(
        Trial(
            variant=variant,
            block=block,
            place=place,
            started=datetime(2026, 1, 1, tzinfo=UTC),
            process=7,
            runtime=f"runtime of {variant}",
            open_seconds=100 * seconds,
            first_run=10 * seconds,
            workloads=(
                WorkloadTimes(
                    workload=WORKLOAD, prefill=(4 * seconds,) * 3, steps=(seconds,) * steps, warmups=3, settled=True
                ),
            ),
            opening=QUIET,
            timed=(timed or {}).get((variant, block), QUIET),
            peak_memory=1000,
        )
        for place, (variant, times) in enumerate(variants.items())
        for block, seconds in enumerate(times)
    )
    return Session(
        protocol=Protocol(workloads=(WORKLOAD,), threads=2, cpus=(0, 1)), variants=tuple(variants), trials=trials
    )


def figure(measured: dict[str, list[Measurement]], variant: str, metric: str) -> Measurement:
    return next(one for one in measured[variant] if one.metric == metric)


# ---- the clock


def test_a_steady_variant_is_warm_after_as_many_runs_as_must_agree() -> None:
    machine = Machine()
    assert warm_up(machine.variant, 3, machine.clock) == (AGREEING, True)
    assert machine.log == ["prefill", "decode", "decode", "decode"] * AGREEING
    machine = Machine()
    warm_up(machine.variant, 100, machine.clock)
    assert machine.log.count("decode") == WARM_STEPS * AGREEING


def test_warming_up_goes_on_while_it_gets_faster_and_gives_up_at_last() -> None:
    assert warm_up((machine := Machine(slow={0: 3.0, 1: 2.0})).variant, 0, machine.clock) == (2 + AGREEING, True)
    restless = Machine(slow={run: 1.0 + run % 2 for run in range(100)})
    assert warm_up(restless.variant, 0, restless.clock) == (MOST_RUNS, False)


def time_workload(machine: Machine, workload: Workload, prefills: int) -> WorkloadTimes:
    """Every piece, one right after the other."""
    timer = WorkloadTimer(variant=machine.variant, workload=workload, prefills=prefills, clock=machine.clock)
    for _ in range(pieces_of(workload, prefills)):
        timer.go_on()
    return timer.times()


def test_a_workload_is_timed_call_by_call() -> None:
    warm = AGREEING * 4
    machine = Machine(slow={warm: 9.0, warm + 3: 2.0, warm + 6: 9.0, warm + 7: 5.0})  # by 9: what is not timed
    times = time_workload(machine, WORKLOAD, prefills=3)
    assert times.prefill == pytest.approx((0.04, 0.08, 0.04))
    assert times.steps == pytest.approx((0.05, 0.01))  # of three further tokens after the prompt's own
    assert times.end_to_end == pytest.approx(0.04 + 3 * 0.03)
    assert (times.warmups, times.settled) == (AGREEING, True)


def test_long_prompts_are_timed_less_often() -> None:
    machine = Machine(prefill=1_000_000_000)
    times = time_workload(machine, WORKLOAD, prefills=12)
    assert times.prefill == pytest.approx([1.0] * FEWEST_PREFILLS)
    assert machine.log.count("prefill") == AGREEING + 1 + FEWEST_PREFILLS  # one more, before the first that is timed


def test_every_further_token_is_taken_once() -> None:
    machine = Machine()
    workload = Workload(prompt=8, tokens=2 * SLICE + 3)
    times = time_workload(machine, workload, prefills=1)
    assert machine.log[-workload.tokens :].count("decode") == workload.tokens - 1
    assert len(times.steps) == workload.tokens - 1 - 3  # three slices
    machine = Machine()
    assert len(time_workload(machine, Workload(prompt=8, tokens=2), prefills=1).steps) == 1


def test_a_single_new_token_needs_no_step() -> None:
    machine = Machine()
    times = time_workload(machine, Workload(prompt=8, tokens=1), prefills=2)
    assert times.steps == ()
    assert times.end_to_end == times.prefill[-1]
    assert "decode" not in machine.log


def test_a_variant_by_itself_is_timed_by_the_real_clock() -> None:
    calls: list[str] = []
    variant = Variant(prefill=lambda: calls.append("prefill"), decode=lambda: calls.append("decode"))
    assert 0 < steady_step(variant, blocks=2, steps=5, settle=0.001) < 0.01
    assert calls[-6:] == ["prefill", *["decode"] * 5]


def test_the_harness_costs_less_than_one_percent_of_a_step_of_two_milliseconds() -> None:
    assert 0 <= overhead(0.002, count=60) < MOST * 0.002


# ---- the machine


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"stolen": 0.1}, "stolen 5%"),
        ({"stolen": 0.035}, ""),  # under 2 % of two processors' second
        ({"seconds": 0.1, "own": 0.2, "busy": 0.2, "stolen": 0.02}, ""),  # two ticks: too few to tell
        ({"busy": 2.5}, "other load 25%"),
        ({"busy": 2.1}, ""),
        ({"held_back": 0.05}, "held back by a quota 5%"),
        ({"heat": 2}, "throttled by heat 2 times"),
        ({"megahertz": 2000.0}, "clock at 2000 MHz of the usual 3000"),
        ({"busy": None, "stolen": None, "held_back": None, "heat": None, "megahertz": None}, ""),
    ],
)
def test_a_trial_is_disturbed_by_what_the_kernel_counted(changes: dict[str, float | None], reason: str) -> None:
    assert ", ".join(disturbed(QUIET.model_copy(update=changes), 3000.0)) == reason


def kernel(root: Path, *, steal: int, busy: int, throttled: int, heat: int) -> Path:
    """A made-up proc and sys of one processor, cpu0, beside a busy cpu1 that is not ours."""
    files = {
        "proc/stat": f"cpu 9 9 9 9\ncpu0 {busy} 0 0 700 5 0 0 {steal} 0 0\ncpu1 99999 0 0 0 0 0 0 99 0 0\n",
        "sys/fs/cgroup/cpu.stat": f"nr_throttled 3\nthrottled_usec {throttled}\n",
        "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": f"{heat}\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "2600000\n",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_the_kernels_counters_are_read_for_our_processors_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0}, raising=False)
    before = Counters.now(kernel(tmp_path, steal=10, busy=100, throttled=1_000_000, heat=1))
    reading = Counters.now(kernel(tmp_path, steal=30, busy=400, throttled=1_500_000, heat=4)).since(before)
    assert (reading.busy, reading.stolen, reading.held_back) == pytest.approx((3.0, 0.2, 0.5))
    assert (reading.heat, reading.megahertz, reading.cpus) == (3, 2600.0, 1)
    assert reading.others == pytest.approx(3.0, abs=0.5)
    assert reading.untold == ()


def test_a_system_that_tells_nothing_disturbs_nothing_and_is_told_of(tmp_path: Path) -> None:
    reading = Counters.now(tmp_path).since(Counters.now(tmp_path))
    assert reading.untold == ("stolen", "other load", "quota", "heat", "clock")
    assert disturbed(reading) == ()


# ---- the figures


def test_a_steady_machine_is_measured_exactly() -> None:
    measured = latency_measurements(session({"baseline": [0.01] * 5, "final": [0.0025] * 5}))
    expected = {
        "prefill_latency": (0.01, 0.25),
        "decode_latency": (0.0025, 0.25),
        "end_to_end_latency": (0.0175, 0.25),
        "throughput": (4 / 0.0175, 4.0),
        "open_latency": (0.25, 0.25),
        "first_run_latency": (0.025, 0.25),
        "peak_memory": (1000, 1.0),
    }
    assert [one.metric for one in measured["final"]] == list(expected)
    for metric, (value, ratio) in expected.items():
        found = figure(measured, "final", metric)
        assert found.ratio is not None
        assert found.ratio.interval is not None
        assert (found.value, found.ratio.value) == pytest.approx((value, ratio))
        assert found.ratio.interval.low == pytest.approx(ratio)
        assert found.change is not None
        assert found.change.value == pytest.approx(value - value / ratio)
        assert (found.samples, found.invalid) == (5, "")
        assert all(
            part in found.method for part in ("runtime of final", "2 threads", "pinned", "5 randomly interleaved")
        )
    assert all(one.ratio is None for one in measured["baseline"])


def test_a_disturbed_block_is_left_out_for_both_and_said() -> None:
    times = {"baseline": [0.01, 0.01, 0.01, 0.01, 0.01], "final": [0.01, 0.5, 0.01, 0.01, 0.01]}
    of = session(times, timed={("final", 1): STOLEN})
    found = figure(latency_measurements(of), "final", "decode_latency")
    assert found.samples == 4
    assert found.ratio is not None
    assert found.ratio.value == pytest.approx(1.0)
    assert "4 of 5 randomly interleaved blocks" in found.method
    assert "final in block 2: stolen 5%" in found.method
    assert figure(latency_measurements(of), "baseline", "decode_latency").samples == 5
    assert figure(latency_measurements(of), "final", "open_latency").samples == 5  # the opening was not disturbed
    other = session(times, timed={("baseline", 1): STOLEN})
    assert figure(latency_measurements(other), "final", "decode_latency").samples == 4


def test_how_slow_a_block_was_is_no_reason_to_leave_it_out() -> None:
    found = figure(latency_measurements(session({"a": [0.01] * 5, "b": [0.01] * 4 + [0.1]})), "b", "decode_latency")
    assert found.samples == 5
    assert found.ratio is not None
    assert found.ratio.value > 1.5


@pytest.mark.parametrize(
    ("disturbances", "blocks", "reason"),
    [
        (
            3,
            5,
            "the machine was too busy: 3 of 5 blocks were disturbed (such as final in block 1: stolen 5%); "
            "stop what else runs, and time it again",
        ),
        (2, 4, "expected at least 3 undisturbed blocks, got 2 of 4"),
    ],
)
def test_a_machine_too_busy_to_say_anything_is_invalid(disturbances: int, blocks: int, reason: str) -> None:
    timed = {("final", block): STOLEN for block in range(disturbances)}
    measured = latency_measurements(session({"baseline": [0.01] * blocks, "final": [0.01] * blocks}, timed=timed))
    assert figure(measured, "final", "decode_latency").invalid == reason
    assert math.isnan(figure(measured, "final", "decode_latency").value)
    assert figure(measured, "baseline", "decode_latency").invalid == ""


def test_a_variant_that_died_is_invalid_with_its_last_words_and_the_others_go_on() -> None:
    whole = session({"baseline": [0.01] * 4, "dead": [0.01] * 4, "final": [0.02] * 4})
    trials = tuple(
        trial.model_copy(update={"error": "killed by a cat"}) if (trial.variant, trial.block) == ("dead", 2) else trial
        for trial in whole.trials
    )
    measured = latency_measurements(whole.model_copy(update={"trials": trials}))
    assert figure(measured, "dead", "decode_latency").invalid == "the variant 'dead' did not run: killed by a cat"
    final = figure(measured, "final", "decode_latency")
    assert final.ratio is not None
    assert final.ratio.value == pytest.approx(2.0)


def test_without_a_baseline_there_is_no_ratio_but_a_figure() -> None:
    whole = session({"baseline": [0.01] * 4, "final": [0.02] * 4})
    trials = tuple(
        trial.model_copy(update={"error": "gone"}) if trial.variant == "baseline" else trial for trial in whole.trials
    )
    found = figure(latency_measurements(whole.model_copy(update={"trials": trials})), "final", "decode_latency")
    assert (found.value, found.ratio, found.invalid) == (0.02, None, "")
    assert "no ratio: the baseline: the variant 'baseline' did not run: gone" in found.method


@pytest.mark.parametrize("wrong", [math.nan, 0.0, -1.0, math.inf])
def test_times_that_are_none_are_invalid(wrong: float) -> None:
    measured = latency_measurements(session({"baseline": [0.01] * 4, "final": [0.01, 0.01, wrong, 0.01]}))
    assert "zero, negative or not a number" in figure(measured, "final", "decode_latency").invalid


def test_a_variant_that_never_ran_is_invalid() -> None:
    nothing = session({"baseline": [0.01] * 4}).model_copy(update={"variants": ("baseline", "final")})
    assert figure(latency_measurements(nothing), "final", "decode_latency").invalid == "the variant 'final' did not run"


def test_tails_are_told_of_enough_steps_and_refused_of_fewer() -> None:
    few, many = (
        figure(latency_measurements(session({"only": [0.01] * 4}, steps=steps)), "only", "decode_latency").method
        for steps in (15, 40)
    )
    assert "single steps: p50 10 ms, p90 n/a (needs 64)" in few
    assert "p90 10 ms, p95 10 ms, p99 n/a (needs 662), p99.9 n/a (needs 6,636)" in many


def test_a_warm_up_that_never_became_steady_is_told() -> None:
    whole = session({"only": [0.01] * 4})
    restless = whole.trials[1].workloads[0].model_copy(update={"settled": False})
    trials = (whole.trials[0], whole.trials[1].model_copy(update={"workloads": (restless,)}), *whole.trials[2:])
    found = figure(latency_measurements(whole.model_copy(update={"trials": trials})), "only", "decode_latency")
    assert "warm-up did not become steady in 1 of 4 blocks" in found.method


def test_memory_is_told_however_busy_the_machine_was_and_of_a_gpu_only_where_there_is_one() -> None:
    busy = session({"only": [0.01] * 4}, timed={("only", block): STOLEN for block in range(4)})
    measured = process_measurements(busy)
    assert figure(measured, "only", "peak_memory").value == 1000
    assert "gpu_memory" not in [one.metric for one in measured["only"]]
    trials = tuple(trial.model_copy(update={"gpu_memory": 5}) for trial in busy.trials)
    on_gpu = process_measurements(busy.model_copy(update={"trials": trials}))
    assert figure(on_gpu, "only", "gpu_memory").value == 5


def test_several_workloads_are_asked_for_one_by_one() -> None:
    one = session({"only": [0.01] * 4})
    two = one.model_copy(update={"protocol": Protocol(workloads=(WORKLOAD, Workload(prompt=8, tokens=1)), threads=2)})
    with pytest.raises(ValueError, match="expected a session of one workload, got 2"):
        latency_measurements(two)
    assert "decode_latency" not in [
        found.metric for found in workload_measurements(one, Workload(prompt=8, tokens=1))["only"]
    ]


def test_a_session_reads_back_as_it_was_and_gives_the_same_figures() -> None:
    whole = session({"baseline": [0.01, 0.011, 0.012], "final": [0.02, 0.021, 0.022]}, timed={("final", 1): STOLEN})
    again = Session.model_validate_json(whole.model_dump_json())
    assert again == whole
    assert str(process_measurements(again)) == str(process_measurements(whole))
