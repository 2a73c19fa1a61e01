"""Measuring on: what is asked for next, and when to stop."""

import math

import numpy as np
import pytest
from scipy import stats

from evaluation.deciding import LOOKS, next_round
from evaluation.gate import GateResult, Limit, Verdict, judge
from evaluation.measurement import JUDGED, Interval, Measurement, Ratio

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
        results = judge({"decode_latency": Limit(max_ratio=1.02)}, {"decode_latency": found}, looks=LOOKS)
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
