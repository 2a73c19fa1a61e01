"""Measuring on: what is asked for next, and when to stop."""

import math

import numpy as np
import pytest
from finished_runs import session_of
from scipy import stats

from evaluation.gate import GateResult, Limit, Verdict, judge
from evaluation.latency import Reading, Session, latency_measurements
from evaluation.measurement import JUDGED, Interval, Measurement, Ratio
from evaluation.stopping_rule import LOOKS, StoppingRule, blocks_at_looks, next_round

HAVE = {"documents": 20, "blocks": 10}
SECONDS = {"documents": 2.0, "blocks": 6.0}


def result(metric: str, verdict: Verdict, more: int | None = None) -> GateResult:
    return GateResult(metric=metric, limit=Limit(at_most=1), verdict=verdict, detail="", more=more)


def ask(*results: GateResult, seconds: float = 1e6, looks: int = 3, have: dict[str, int] = HAVE) -> dict[str, int]:
    return next_round(results, have=have, seconds_each=SECONDS, seconds_left=seconds, looks_left=looks).more


def test_it_asks_for_what_would_decide_and_at_least_doubles_what_there_is() -> None:
    assert ask(result("perplexity", "INCONCLUSIVE", 50)) == {"documents": 50}
    assert ask(result("decode_latency", "INCONCLUSIVE", 3)) == {"blocks": 10}
    both = ask(result("decode_latency", "INCONCLUSIVE", 30), result("perplexity", "INCONCLUSIVE", 90))
    assert both == {"blocks": 30, "documents": 90}
    assert ask(result("prefill_latency", "INCONCLUSIVE", 40), result("decode_latency", "INCONCLUSIVE", 60)) == {
        "blocks": 60
    }


def test_a_short_time_is_shared() -> None:
    results = [result("decode_latency", "INCONCLUSIVE", 30), result("perplexity", "INCONCLUSIVE", 90)]
    assert ask(*results, seconds=180) == {"blocks": 15, "documents": 45}
    assert ask(*results, seconds=5) == {}
    assert ask(*results, seconds=-900) == {}


@pytest.mark.parametrize(
    ("results", "reason"),
    [
        ([], "nothing is open"),
        ([result("perplexity", "PASS")], "nothing is open"),
        ([result("perplexity", "FAIL"), result("decode_latency", "INCONCLUSIVE", 5)], "FAIL whatever else"),
        ([result("perplexity", "INVALID"), result("decode_latency", "INCONCLUSIVE", 5)], "INVALID whatever else"),
        ([result("perplexity", "INCONCLUSIVE", None)], "no practical number"),
    ],
)
def test_it_stops_where_more_samples_change_nothing(results: list[GateResult], reason: str) -> None:
    found = next_round(results, have=HAVE, seconds_each=SECONDS, seconds_left=1e6, looks_left=3)
    assert found.more == {}
    assert reason in found.reason


def test_it_stops_after_all_looks_and_where_there_is_no_more_text() -> None:
    undecided = result("perplexity", "INCONCLUSIVE", 50)
    assert ask(undecided, looks=0) == {}
    assert ask(undecided, have={"blocks": 10}) == {}


def measured(logs: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> Measurement:
    center, half = logs.mean(), stats.t.ppf(0.95, len(logs) - 1) * stats.sem(logs)
    low, high = math.exp(center - half), math.exp(center + half)
    bounds = Interval(low=low, high=high, confidence=JUDGED)
    ratio = Ratio(value=math.exp(center), bounds=bounds)
    return Measurement(
        metric="decode_latency", value=1, samples=len(logs), method="simulated", bounds=bounds, ratio=ratio
    )


def decide(mean: float, generator: np.random.Generator) -> Verdict:
    """Measure on as `next_round` says, at most `LOOKS` times, on log ratios with a standard deviation of 0.02."""
    logs = generator.normal(math.log(mean), 0.02, 10)
    for look in range(1, LOOKS + 1):
        found = measured(logs)
        results = judge({"decode_latency": Limit(max_ratio=1.02)}, {"decode_latency": found}, looks={"blocks": LOOKS})
        more = next_round(
            results,
            have={"blocks": len(logs)},
            seconds_each={"blocks": 1.0},
            seconds_left=1000,
            looks_left=LOOKS - look,
        ).more
        if not more:
            return results[0].verdict
        logs = np.concatenate([logs, generator.normal(math.log(mean), 0.02, more["blocks"])])
    raise AssertionError("expected a stop after the last look")


def test_it_decides_what_can_be_decided_and_is_seldom_wrong_on_the_limit() -> None:
    generator = np.random.default_rng(5)
    assert np.mean([decide(1.01, generator) == "PASS" for _ in range(200)]) >= 0.9
    assert np.mean([decide(1.03, generator) == "FAIL" for _ in range(200)]) >= 0.9
    assert np.mean([decide(1.02, generator) == "PASS" for _ in range(400)]) <= 0.05


# ---- while latencies are taken


@pytest.mark.parametrize(
    ("most", "blocks"), [(3, (3,)), (4, (4,)), (5, (4, 5)), (15, (4, 6, 10, 15)), (60, (4, 10, 24, 60))]
)
def test_the_looks_are_at_even_factors_up_to_what_was_planned(most: int, blocks: tuple[int, ...]) -> None:
    assert blocks_at_looks(most) == blocks
    assert len(blocks) <= LOOKS


def rule(limit: float, most: int = 15, **gates: Limit) -> StoppingRule:
    blocks = blocks_at_looks(most)
    return StoppingRule(gates={"decode_latency": Limit(max_ratio=limit), **gates}, blocks=blocks, looks=len(blocks))


def first(session: Session, blocks: int, **changes: object) -> Session:
    trials = tuple(trial for trial in session.trials if trial.block < blocks)
    return session.model_copy(update={"trials": trials, **changes})


def stops_after(session: Session, enough: StoppingRule) -> tuple[int, str]:
    """After how many blocks it stops, and why."""
    for blocks in range(1, 100):
        reason = enough.reason(first(session, blocks))
        if reason:
            return blocks, reason
    raise AssertionError("expected a stop after the last look")


@pytest.mark.parametrize(
    ("speed", "limit", "blocks", "reason"),
    [
        (0.2, 1 / 3, 4, "every gate on latency is decided"),
        (0.5, 1 / 3, 4, "a gate on latency has failed"),
        (0.25, 0.25, 15, "all 15 blocks are taken"),
    ],
)
def test_what_lies_far_from_its_limit_needs_a_few_blocks_and_what_lies_on_it_all(
    speed: float, limit: float, blocks: int, reason: str
) -> None:
    assert stops_after(session_of(speed, blocks=15), rule(limit)) == (blocks, reason)


def test_gates_that_blocks_do_not_decide_stop_nothing() -> None:
    session = session_of(0.2, blocks=15)
    of_text = StoppingRule(gates={"perplexity": Limit(max_ratio=1.1)}, blocks=blocks_at_looks(15), looks=4)
    assert stops_after(session, of_text) == (15, "all 15 blocks are taken")
    assert stops_after(session, rule(1 / 3, perplexity=Limit(max_ratio=1.0)))[0] == 4


def test_a_variant_that_died_is_not_waited_for_and_a_busy_machine_is() -> None:
    session = session_of(0.2, blocks=15)
    four = first(session, 4)
    assert rule(1 / 3).reason(four) != ""
    dead = [trial.model_copy(update={"error": "killed"} if trial.variant == "export" else {}) for trial in four.trials]
    assert "export did not run" in rule(1 / 3).reason(four.model_copy(update={"trials": tuple(dead)}))
    loud = Reading(seconds=1, cpus=1, own=0.1, busy=0.9)
    busy = [trial.model_copy(update={"timed": loud} if trial.block > 0 else {}) for trial in four.trials]
    assert rule(1 / 3).reason(four.model_copy(update={"trials": tuple(busy)})) == ""


@pytest.mark.thorough
def test_stopping_early_is_seldom_wrong_on_the_limit() -> None:
    """Two equal variants against a limit of 1, over all looks: a wrong PASS in at most 5 % of the sessions."""
    passed = 0
    sessions = 40
    for seed in range(sessions):
        session = session_of(1.0, blocks=10, steps=4, seed=seed)
        blocks, reason = stops_after(session, rule(1.0, most=10))
        found = {one.metric: one for one in latency_measurements(first(session, blocks))["export"]}
        gates = judge({"decode_latency": Limit(max_ratio=1.0)}, found, looks={"blocks": LOOKS})
        passed += gates[0].verdict == "PASS"
        assert (reason.startswith("every gate")) <= (gates[0].verdict == "PASS")
    assert passed <= 0.05 * sessions + 3
