"""Verdicts: by intervals, never by a missing figure, and the worst one counts."""

import itertools
import math
from typing import get_args

import pytest
from pydantic import ValidationError

from evaluation.gate import (
    EXIT_CODES,
    SAMPLED,
    SEVERITY,
    WITHOUT_RATIO,
    GateResult,
    Limit,
    Verdict,
    exit_code,
    judge,
    limit_problem,
    overall,
)
from evaluation.measurement import METRICS, Interval, Measurement, Ratio


def ratio_of(value: float, low: float, high: float, metric: str = "perplexity") -> Measurement:
    ratio = Ratio(value=value, interval=Interval(low=low, high=high))
    interval = Interval(low=30 * low, high=30 * high)
    return Measurement(metric=metric, value=30 * value, samples=12, method="a test", interval=interval, ratio=ratio)


def exact(metric: str, value: float, ratio: float | None = None) -> Measurement:
    relative = None if ratio is None else Ratio(value=ratio)
    return Measurement(metric=metric, value=value, samples=1, method="counted", ratio=relative)


def judge_one(limit: Limit, measurement: Measurement) -> GateResult:
    (result,) = judge({measurement.metric: limit}, {measurement.metric: measurement})
    return result


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (1.0, 1.05, "PASS"),
        (1.0, 1.1, "PASS"),
        (1.06, 1.12, "INCONCLUSIVE"),
        (1.1, 1.2, "INCONCLUSIVE"),
        (1.11, 1.2, "FAIL"),
    ],
)
def test_a_ratio_of_a_lower_is_better_metric_is_an_upper_limit(low: float, high: float, verdict: Verdict) -> None:
    result = judge_one(Limit(ratio=1.1), ratio_of((low + high) / 2, low, high))
    assert result.verdict == verdict
    assert result.value == (low + high) / 2
    assert result.interval == Interval(low=low, high=high)


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(0.96, 0.99, "PASS"), (0.9, 0.99, "INCONCLUSIVE"), (0.8, 0.9, "FAIL")]
)
def test_a_ratio_of_a_higher_is_better_metric_is_a_lower_limit(low: float, high: float, verdict: Verdict) -> None:
    measurement = ratio_of((low + high) / 2, low, high, metric="next_token_accuracy")
    assert judge_one(Limit(ratio=0.95), measurement).verdict == verdict


def test_absolute_limits_judge_the_value() -> None:
    measurement = ratio_of(1.0, 0.9, 1.1)
    assert judge_one(Limit(max=34), measurement).verdict == "PASS"
    assert judge_one(Limit(max=30), measurement).verdict == "INCONCLUSIVE"
    assert judge_one(Limit(max=26), measurement).verdict == "FAIL"
    agreement = Measurement(
        metric="agreement", value=0.9, samples=12, method="a test", interval=Interval(low=0.88, high=0.92)
    )
    assert judge_one(Limit(min=0.87), agreement).verdict == "PASS"
    assert judge_one(Limit(min=0.93), agreement).verdict == "FAIL"


def test_counted_figures_are_compared_as_they_are() -> None:
    assert judge_one(Limit(ratio=0.25), exact("weight_bytes", 100, 0.25)).verdict == "PASS"
    assert judge_one(Limit(ratio=0.25), exact("weight_bytes", 100, 0.2501)).verdict == "FAIL"
    assert judge_one(Limit(max=99), exact("weight_bytes", 100)).verdict == "FAIL"


def test_an_undecided_gate_says_how_many_more_samples_would_decide() -> None:
    detail = judge_one(Limit(ratio=1.1), ratio_of(1.09, 1.06, 1.12)).detail
    assert "about 209 more samples (18.4 times the test text)" in detail
    blocks = judge_one(Limit(ratio=1.1), ratio_of(1.09, 1.06, 1.12, metric="decode_latency")).detail
    assert "times the timed blocks" in blocks
    assert "no practical number" in judge_one(Limit(ratio=1.1), ratio_of(1.1, 1.06, 1.12)).detail


@pytest.mark.parametrize(
    ("measurement", "reason"),
    [
        (ratio_of(math.nan, 1.0, 1.1), "finite"),
        (ratio_of(math.inf, 1.0, 1.1), "finite"),
        (ratio_of(1.0, math.nan, 1.1), "expected an interval"),
        (ratio_of(1.0, 1.0, math.nan), "expected an interval"),
        (ratio_of(1.0, 0.9, 1.0).model_copy(update={"invalid": "it ran on the CPU"}), "it ran on the CPU"),
        (ratio_of(1.0, 0.9, 1.0).model_copy(update={"ratio": None}), "no ratio"),
        (ratio_of(1.0, 0.9, 1.0).model_copy(update={"ratio": Ratio(value=1.0)}), "without an interval"),
    ],
)
def test_what_was_not_measured_as_asked_is_invalid(measurement: Measurement, reason: str) -> None:
    result = judge_one(Limit(ratio=1.1), measurement)
    assert result.verdict == "INVALID"
    assert reason in result.detail
    assert result.value is None


@pytest.mark.parametrize("metric", METRICS)
def test_a_gate_that_was_not_run_is_invalid(metric: str) -> None:
    limit = Limit(max=1) if METRICS[metric].better == "lower" else Limit(min=0)
    (result,) = judge({metric: limit}, {})
    assert result.verdict == "INVALID"
    assert "not measured" in result.detail


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_takes_the_limit_of_its_direction_only(metric: str) -> None:
    right, wrong = ("max", "min") if METRICS[metric].better == "lower" else ("min", "max")
    assert limit_problem(metric, Limit.model_validate({right: 1.0})) == ""
    assert f"`{wrong}`" in limit_problem(metric, Limit.model_validate({wrong: 1.0}))
    assert bool(limit_problem(metric, Limit(ratio=1.0))) == (metric in WITHOUT_RATIO)


def test_an_unknown_metric_gets_a_suggestion() -> None:
    assert "did you mean 'perplexity'?" in limit_problem("perplexty", Limit(max=1))
    (result,) = judge({"perplexty": Limit(max=1)}, {})
    assert result.verdict == "INVALID"


def test_tables_name_metrics_that_exist() -> None:
    assert set(SAMPLED) <= set(METRICS)
    assert set(METRICS) >= WITHOUT_RATIO
    assert set(SEVERITY) == set(EXIT_CODES) == set(get_args(Verdict))


@pytest.mark.parametrize(
    "fields", [{}, {"max": 1, "min": 0}, {"ratio": 1, "max": 1}, {"ratio": 0}, {"max": math.nan}, {"most": 1}]
)
def test_a_limit_is_exactly_one_finite_number(fields: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Limit.model_validate(fields)


def test_the_overall_verdict_is_the_worst() -> None:
    order: list[Verdict] = ["PASS", "INCONCLUSIVE", "FAIL", "INVALID"]
    for one, other in itertools.product(order, order):
        results = [
            GateResult(metric="perplexity", limit=Limit(max=1), verdict=verdict, detail="") for verdict in (one, other)
        ]
        assert overall(results) == order[max(order.index(one), order.index(other))]


def test_nothing_gated_is_no_verdict() -> None:
    assert overall([]) is None
    assert exit_code(None) == 0


def test_exit_codes_tell_a_regression_from_a_bad_measurement() -> None:
    assert {verdict: exit_code(verdict) for verdict in EXIT_CODES} == {
        "PASS": 0,
        "FAIL": 1,
        "INCONCLUSIVE": 3,
        "INVALID": 4,
    }
