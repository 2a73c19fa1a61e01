"""Latency by a clock that the test controls, so that the truth is known."""

import math
from collections import Counter

import numpy as np
import pytest

from evaluation.latency import SAMPLES_FOR_PERCENTILE, Arm, Samples, latency_measurements, percentiles, time_arms
from evaluation.measurement import Measurement

RUNTIMES = {"baseline": "runtime A", "final": "runtime B"}


class Machine:
    """A machine with a clock of its own: it gets slower with time and jitters."""

    def __init__(self, *, drift: float = 0.0, jitter: float = 0.0, seed: int = 0) -> None:
        self.now = 0.0
        self.drift = drift
        self.generator = np.random.default_rng(seed)
        self.jitter = jitter
        self.log: list[str] = []

    def spend(self, name: str, seconds: float) -> None:
        self.log.append(name)
        self.now += seconds * (1 + self.drift * self.now) * math.exp(self.jitter * self.generator.normal())

    def arm(self, name: str, prefill: float, decode: float) -> Arm:
        return Arm(
            prefill=lambda: self.spend(f"{name} prefill", prefill), decode=lambda: self.spend(f"{name} decode", decode)
        )

    def sleep(self, seconds: float) -> None:
        self.log.append("settle")
        self.now += seconds

    def time(self, arms: dict[str, Arm], blocks: int, tokens: int = 4, seed: int = 0) -> dict[str, Samples]:
        return time_arms(
            arms, blocks=blocks, tokens=tokens, seed=seed, clock=lambda: round(self.now * 1e9), sleep=self.sleep
        )


def run(machine: Machine, blocks: int, seed: int = 0) -> dict[str, list[Measurement]]:
    arms = {"baseline": machine.arm("baseline", 0.04, 0.01), "final": machine.arm("final", 0.02, 0.0025)}
    return measure(machine.time(arms, blocks, seed=seed))


def measure(samples: dict[str, Samples]) -> dict[str, list[Measurement]]:
    return latency_measurements(samples, baseline="baseline", runtimes=RUNTIMES, protocol="a test")


def constant(prefill: float, decode: float, blocks: int = 5) -> Samples:
    return Samples(prefill=(prefill,) * blocks, decode=((decode,) * 3,) * blocks)


def test_a_steady_machine_is_measured_exactly() -> None:
    prefill, decode = run(Machine(), blocks=5)["final"]
    assert prefill.value == pytest.approx(0.02)
    assert decode.value == pytest.approx(0.0025)
    assert prefill.ratio is not None
    assert decode.ratio is not None
    assert prefill.ratio.value == pytest.approx(0.5)
    assert decode.ratio.value == pytest.approx(0.25)
    assert decode.ratio.interval is not None
    assert decode.ratio.interval.low == pytest.approx(0.25)
    assert decode.samples == 5


def test_each_turn_settles_and_warms_up_before_the_clock_runs() -> None:
    machine = Machine()
    machine.time({"only": machine.arm("only", 1.0, 0.1)}, blocks=1, tokens=2)
    turn = ["settle", "only prefill", "only prefill", "only decode", "only decode"]
    assert machine.log == turn * 3  # two warm-up turns and one that counts


def test_arms_take_turns_in_random_order() -> None:
    machine = Machine()
    arms = {name: machine.arm(name, 1.0, 0.1) for name in ("a", "b")}
    samples = machine.time(arms, blocks=40, tokens=1)
    turns = [name.split()[0] for before, name in zip(machine.log, machine.log[1:], strict=False) if before == "settle"]
    pairs = Counter(zip(turns[::2], turns[1::2], strict=True))
    assert set(pairs) == {("a", "b"), ("b", "a")}
    assert min(pairs.values()) >= 10
    assert {len(arm.prefill) for arm in samples.values()} == {40}


def test_intervals_cover_the_truth_on_a_machine_that_drifts() -> None:
    covered = 0
    for trial in range(60):
        machine = Machine(drift=0.02, jitter=0.02, seed=trial)
        ratio = run(machine, blocks=15, seed=trial)["final"][1].ratio
        assert ratio is not None
        assert ratio.interval is not None
        covered += ratio.interval.low <= 0.25 <= ratio.interval.high
    assert covered / 60 >= 0.9


def test_an_outlier_block_does_not_move_the_figure() -> None:
    steady = constant(0.02, 0.01, blocks=9)
    disturbed = Samples(prefill=(5.0, *steady.prefill[1:]), decode=((5.0,) * 3, *steady.decode[1:]))
    prefill, decode = measure({"baseline": steady, "final": disturbed})["final"]
    assert prefill.value == 0.02
    assert decode.ratio is not None
    assert decode.ratio.value == 1.0


def test_the_baseline_has_no_ratio_and_every_method_says_how() -> None:
    found = run(Machine(), blocks=5)
    assert all(measurement.ratio is None for measurement in found["baseline"])
    for name, measurements in found.items():
        for measurement in measurements:
            assert RUNTIMES[name] in measurement.method
            assert "a test" in measurement.method
            assert "5 randomly interleaved blocks" in measurement.method


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        ({"baseline": constant(0.1, 0.1)}, "did not run"),
        ({"final": constant(0.1, 0.1)}, "'baseline' did not run"),
        ({"baseline": constant(0.1, 0.1), "final": constant(0.1, 0.1, blocks=4)}, "unpaired"),
        ({"baseline": constant(0.1, 0.1), "final": constant(math.nan, math.nan)}, "not a number"),
        ({"baseline": constant(0.1, 0.1), "final": constant(0.0, 0.0)}, "zero"),
        ({"baseline": constant(0.1, 0.1, 1), "final": constant(0.1, 0.1, 1)}, "at least two"),
        ({"baseline": constant(0.1, 0.1, 0), "final": constant(0.1, 0.1, 0)}, "did not run"),
    ],
)
def test_what_was_not_measured_as_asked_is_invalid(samples: dict[str, Samples], reason: str) -> None:
    for measurement in measure(samples)["final"]:
        assert reason in measurement.invalid
        assert math.isnan(measurement.value)


@pytest.mark.parametrize("count", [1, 63, 64, 130, 662, 6_636])
def test_percentiles_need_samples(count: int) -> None:
    times = np.arange(count, dtype=float)
    found = percentiles(times.tolist())
    assert set(found) == {50.0} | {percent for percent, needed in SAMPLES_FOR_PERCENTILE.items() if count >= needed}
    assert all(value == np.percentile(times, percent) for percent, value in found.items())
    assert percentiles([]) == {}


def test_tails_are_told_only_of_enough_steps() -> None:
    machine = Machine()
    arms = {name: machine.arm(name, 0.04, 0.01) for name in RUNTIMES}
    few, many = measure(machine.time(arms, 5, tokens=4)), measure(machine.time(arms, 16, tokens=4))
    assert "p90" not in few["final"][1].method
    assert "p90 10 ms" in many["final"][1].method
    assert "p95" not in many["final"][1].method


def test_the_real_clock_and_real_sleep_work() -> None:
    seen: list[int] = []
    arm = Arm(prefill=lambda: None, decode=lambda: None)
    samples = time_arms({"only": arm}, blocks=2, tokens=3, warmup=0, settle=0.001, on_block=seen.append)
    assert seen == [1, 1]
    assert [len(steps) for steps in samples["only"].decode] == [3, 3]
    assert Samples.model_validate_json(samples["only"].model_dump_json()) == samples["only"]


@pytest.mark.parametrize(("blocks", "tokens"), [(0, 1), (1, 0)])
def test_nothing_to_time_is_refused(blocks: int, tokens: int) -> None:
    with pytest.raises(ValueError, match="at least one block"):
        time_arms({}, blocks=blocks, tokens=tokens)
