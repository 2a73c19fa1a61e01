"""Verdicts: by one-sided bounds, never by a missing figure, and the worst one counts."""

import itertools
import math
from typing import get_args

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import stats

from evaluation.gate import (
    AGAINST_BASELINE,
    EXIT_CODES,
    LIMITS,
    SEVERITY,
    GateResult,
    Limit,
    Verdict,
    describe_limit,
    exit_code,
    judge,
    limit_problem,
    overall,
)
from evaluation.measurement import JUDGED, METRICS, Change, Interval, Measurement, Ratio
from evaluation.plausibility import sanity_warning, sanity_warnings


def judged(low: float, high: float) -> Interval:
    return Interval(low=low, high=high, confidence=JUDGED)


def ratio_of(value: float, low: float, high: float, metric: str = "perplexity") -> Measurement:
    """A measurement with these bounds of its ratio; its own are 30 times, its change 30 times less 30."""
    shown = Interval(low=low - 0.01, high=high + 0.01)
    return Measurement(
        metric=metric,
        value=30 * value,
        samples=12,
        method="a test",
        interval=Interval(low=30 * shown.low, high=30 * shown.high),
        bounds=judged(30 * low, 30 * high),
        ratio=Ratio(value=value, interval=shown, bounds=judged(low, high)),
        change=Change(
            value=30 * value - 30,
            interval=Interval(low=30 * shown.low - 30, high=30 * shown.high - 30),
            bounds=judged(30 * low - 30, 30 * high - 30),
        ),
    )


def exact(metric: str, value: float, ratio: float | None = None) -> Measurement:
    relative = None if ratio is None else Ratio(value=ratio)
    return Measurement(metric=metric, value=value, samples=1, method="counted", ratio=relative)


def judge_one(limit: Limit, measurement: Measurement, looks: int = 1) -> GateResult:
    (result,) = judge(
        {measurement.metric: limit}, {measurement.metric: measurement}, looks={"documents": looks, "blocks": looks}
    )
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
def test_a_largest_ratio_is_judged_by_the_one_sided_bounds(low: float, high: float, verdict: Verdict) -> None:
    result = judge_one(Limit(max_ratio=1.1), ratio_of((low + high) / 2, low, high))
    assert result.verdict == verdict
    assert result.value == (low + high) / 2
    assert result.bounds == judged(low, high)
    assert result.interval == Interval(low=low - 0.01, high=high + 0.01)


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(0.96, 0.99, "PASS"), (0.9, 0.99, "INCONCLUSIVE"), (0.8, 0.9, "FAIL")]
)
def test_a_smallest_ratio_is_for_what_is_better_when_higher(low: float, high: float, verdict: Verdict) -> None:
    measurement = ratio_of((low + high) / 2, low, high, metric="next_token_accuracy")
    assert judge_one(Limit(min_ratio=0.95), measurement).verdict == verdict


@pytest.mark.parametrize(("limit", "verdict"), [(1.6, "PASS"), (0.5, "INCONCLUSIVE"), (-0.1, "FAIL")])
def test_an_increase_is_judged_in_the_metrics_own_unit(limit: float, verdict: Verdict) -> None:
    result = judge_one(Limit(max_increase=limit), ratio_of(1.02, 1.0, 1.05))
    assert (result.verdict, result.value) == (verdict, pytest.approx(0.6))
    assert (
        judge_one(Limit(max_increase=limit), ratio_of(1, 1, 1).model_copy(update={"change": None})).verdict == "INVALID"
    )


def test_the_increase_of_what_is_counted_follows_from_its_ratio() -> None:
    assert judge_one(Limit(max_increase=21), exact("weight_bytes", 120, 1.2)).value == pytest.approx(20)
    assert judge_one(Limit(max_increase=21), exact("weight_bytes", 120, 1.2)).verdict == "PASS"
    assert judge_one(Limit(max_increase=19), exact("weight_bytes", 120, 1.2)).verdict == "FAIL"


def test_absolute_limits_judge_the_value() -> None:
    measurement = ratio_of(1.0, 0.9, 1.1)
    assert judge_one(Limit(at_most=34), measurement).verdict == "PASS"
    assert judge_one(Limit(at_most=30), measurement).verdict == "INCONCLUSIVE"
    assert judge_one(Limit(at_most=26), measurement).verdict == "FAIL"
    bounds = judged(0.88, 0.92)
    agreement = Measurement(metric="agreement", value=0.9, samples=12, method="a test", bounds=bounds)
    assert judge_one(Limit(at_least=0.87), agreement).verdict == "PASS"
    assert judge_one(Limit(at_least=0.93), agreement).verdict == "FAIL"


def test_counted_figures_are_compared_as_they_are() -> None:
    assert judge_one(Limit(max_ratio=0.25), exact("weight_bytes", 100, 0.25)).verdict == "PASS"
    assert judge_one(Limit(max_ratio=0.25), exact("weight_bytes", 100, 0.2501)).verdict == "FAIL"
    assert judge_one(Limit(at_most=99), exact("weight_bytes", 100)).verdict == "FAIL"


def test_the_detail_says_what_was_compared() -> None:
    details = {
        (1.0, 1.05): "the upper 95 % bound of 1.050x keeps the limit of 1.100x",
        (1.11, 1.2): "even the lower 95 % bound of 1.110x breaks the limit of 1.100x",
        (1.06, 1.12): "the limit of 1.100x lies between the lower and upper 95 % bounds of 1.060x and 1.120x; about",
    }
    for (low, high), words in details.items():
        detail = judge_one(Limit(max_ratio=1.1), ratio_of((low + high) / 2, low, high)).detail
        assert detail.replace("\N{MULTIPLICATION SIGN}", "x").startswith(words)
    assert judge_one(Limit(at_most=7e6), exact("weight_bytes", 6e6)).detail == (
        "counted: 6.00 MB keeps the limit of 7.00 MB"
    )
    increase = judge_one(Limit(max_increase=1.6), ratio_of(1.02, 1.0, 1.05)).detail
    assert increase == "the upper 95 % bound of +1.50 keeps the limit of 1.60"


def test_bounds_that_were_not_taken_are_replaced_by_the_wider_interval_and_named_so() -> None:
    """Older figures carry only the two-sided 95 % interval, whose ends are one-sided 97.5 % bounds."""
    measurement = ratio_of(1.0, 0.9, 1.05).model_copy(
        update={"ratio": Ratio(value=1.0, interval=Interval(low=0.9, high=1.05))}
    )
    assert "upper 97.5 % bound of 1.05" in judge_one(Limit(max_ratio=1.1), measurement).detail


def test_an_undecided_gate_says_how_many_more_samples_would_decide() -> None:
    reach = (stats.norm.ppf(0.95) + stats.norm.ppf(0.9)) / stats.norm.ppf(0.95) * 0.03 / 0.01
    result = judge_one(Limit(max_ratio=1.1), ratio_of(1.09, 1.06, 1.12))
    assert result.more == math.ceil(12 * reach**2) - 12
    assert f"about {result.more} more documents" in result.detail
    assert "with a chance of 90 %" in result.detail
    timed = judge_one(Limit(max_ratio=1.1), ratio_of(1.09, 1.06, 1.12, metric="decode_latency"))
    assert "more blocks" in timed.detail
    hopeless = judge_one(Limit(max_ratio=1.1), ratio_of(1.1, 1.06, 1.12))
    assert hopeless.more is None
    assert "no practical number" in hopeless.detail
    assert judge_one(Limit(max_ratio=1.2), ratio_of(1.1, 1.06, 1.12)).more is None


@pytest.mark.parametrize(
    ("measurement", "reason"),
    [
        (ratio_of(math.nan, 1.0, 1.1), "finite"),
        (ratio_of(math.inf, 1.0, 1.1), "finite"),
        (ratio_of(1.0, math.nan, 1.1), "expected an interval"),
        (ratio_of(1.0, 1.0, math.nan), "expected an interval"),
        (ratio_of(1.0, 0.9, 1.0).model_copy(update={"invalid": "it ran on the CPU"}), "it ran on the CPU"),
        (ratio_of(1.0, 0.9, 1.0).model_copy(update={"ratio": None}), "nothing for `max_ratio`"),
        (ratio_of(1.0, 0.9, 1.0).model_copy(update={"ratio": Ratio(value=1.0)}), "without an interval"),
    ],
)
def test_what_was_not_measured_as_asked_is_invalid(measurement: Measurement, reason: str) -> None:
    result = judge_one(Limit(max_ratio=1.1), measurement)
    assert result.verdict == "INVALID"
    assert reason in result.detail
    assert result.value is None


@pytest.mark.parametrize("metric", METRICS)
def test_a_gate_that_was_not_run_is_invalid(metric: str) -> None:
    limit = Limit(at_most=1) if METRICS[metric].better == "lower" else Limit(at_least=0)
    (result,) = judge({metric: limit}, {})
    assert result.verdict == "INVALID"
    assert "not measured" in result.detail


@pytest.mark.parametrize(("metric", "kind"), list(itertools.product(METRICS, LIMITS)))
def test_every_metric_takes_the_limits_of_its_direction_only(metric: str, kind: str) -> None:
    fits = (LIMITS[kind] == "at most") == (METRICS[metric].better == "lower")
    fits = fits and not (METRICS[metric].relative and kind in AGAINST_BASELINE)
    problem = limit_problem(metric, Limit.model_validate({kind: 1.0}))
    assert (problem == "") == fits
    assert fits or f"`{kind}`" in problem


def test_an_unknown_metric_gets_a_suggestion() -> None:
    assert "did you mean 'perplexity'?" in limit_problem("perplexty", Limit(at_most=1))
    (result,) = judge({"perplexty": Limit(at_most=1)}, {})
    assert result.verdict == "INVALID"


def test_tables_name_what_exists() -> None:
    assert set(SEVERITY) == set(EXIT_CODES) == set(get_args(Verdict))
    assert set(LIMITS) == set(Limit.model_fields)
    assert set(AGAINST_BASELINE) < set(LIMITS)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"at_most": 1, "at_least": 0},
        {"max_ratio": 1, "at_most": 1},
        {"max_ratio": 0},
        {"at_most": math.nan},
        {"most": 1},
    ],
)
def test_a_limit_is_exactly_one_finite_number(fields: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Limit.model_validate(fields)


def test_limits_read_as_sentences() -> None:
    assert describe_limit("weight_bytes", Limit(at_most=7e6)) == "at most 7.00 MB"
    assert describe_limit("agreement", Limit(at_least=0.9)) == "at least 90.0 %"
    assert describe_limit("next_token_accuracy", Limit(min_ratio=0.95)).startswith("at least 0.950")
    assert describe_limit("perplexity", Limit(max_increase=0.5)) == "at most 0.500 more than the baseline"


def test_the_overall_verdict_is_the_worst() -> None:
    order: list[Verdict] = ["PASS", "INCONCLUSIVE", "FAIL", "INVALID"]
    for one, other in itertools.product(order, order):
        results = [
            GateResult(metric="perplexity", limit=Limit(at_most=1), verdict=verdict, detail="")
            for verdict in (one, other)
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


def test_looks_widen_the_bounds() -> None:
    measurement = ratio_of(1.05, 1.01, 1.09)
    assert judge_one(Limit(max_ratio=1.1), measurement).verdict == "PASS"
    result = judge_one(Limit(max_ratio=1.1), measurement, looks=4)
    assert result.verdict == "INCONCLUSIVE"
    assert result.bounds is not None
    stretch = stats.t.ppf(1 - 0.05 / 4, 11) / stats.t.ppf(0.95, 11)
    assert result.bounds.high == pytest.approx(1.05 + 0.04 * stretch)
    assert "98.8 % bounds" in result.detail


def rates(mean: float, limit: float, count: int = 10, trials: int = 2000) -> dict[Verdict, float]:
    """Shares of verdicts on ratios of normal log ratios, standard deviation 0.02, with Student's intervals."""
    logs_NU = np.random.default_rng(17).normal(math.log(mean), 0.02, (trials, count))
    center_N, error_N = logs_NU.mean(axis=1), stats.sem(logs_NU, axis=1)
    reach = {level: float(stats.t.ppf(0.5 + level / 2, count - 1)) for level in (0.95, JUDGED)}
    told: dict[Verdict, int] = dict.fromkeys(EXIT_CODES, 0)
    for center, error in zip(center_N, error_N, strict=True):
        shown, bounds = (
            Interval(low=math.exp(center - t * error), high=math.exp(center + t * error), confidence=level)
            for level, t in reach.items()
        )
        ratio = Ratio(value=math.exp(center), interval=shown, bounds=bounds)
        measured = Measurement(metric="perplexity", value=1, samples=count, method="simulated", ratio=ratio)
        told[judge_one(Limit(max_ratio=limit), measured).verdict] += 1
    return {verdict: number / trials for verdict, number in told.items()}


def test_on_the_limit_a_wrong_pass_has_the_promised_chance() -> None:
    found = rates(mean=1.02, limit=1.02)
    assert 0.04 <= found["PASS"] <= 0.06
    assert 0.04 <= found["FAIL"] <= 0.06


def test_clearly_inside_it_passes_and_clearly_outside_it_fails() -> None:
    inside, outside = (rates(mean=mean, limit=1.05, trials=400) for mean in (1.0, 1.1))
    assert inside["PASS"] >= 0.99
    assert outside["FAIL"] >= 0.99
    assert inside["FAIL"] == outside["PASS"] == 0


def test_quality_better_than_the_baseline_is_flagged_and_judged_as_before() -> None:
    result = judge_one(Limit(max_ratio=1.1), ratio_of(0.95, 0.93, 0.97))
    assert result.verdict == "PASS"
    assert "beyond noise" in result.sanity_warning
    assert judge_one(Limit(max_ratio=1.1), ratio_of(0.99, 0.97, 1.01)).sanity_warning == ""
    accuracy = ratio_of(1.05, 1.02, 1.08, metric="next_token_accuracy")
    assert "beyond noise" in sanity_warning("next_token_accuracy", {"next_token_accuracy": accuracy})


def test_a_model_that_did_not_change_is_flagged() -> None:
    same = exact("kl_divergence", 0.0)
    assert "compressed at all" in sanity_warning("kl_divergence", {"kl_divergence": same})
    assert sanity_warning("kl_divergence", {"kl_divergence": exact("kl_divergence", 1e-9)}) == ""


def test_a_latency_below_the_memory_floor_is_flagged_where_the_bandwidth_is_known() -> None:
    """100 MB at 10 GB/s take 10 ms."""
    weights = exact("weight_bytes", 100e6)
    for high, flagged in ((0.009, True), (0.011, False)):
        decode = Measurement(
            metric="decode_latency", value=0.008, samples=9, method="a test", bounds=judged(0.007, high)
        )
        found = {"decode_latency": decode, "weight_bytes": weights}
        assert ("10.0 ms" in sanity_warning("decode_latency", found, 10e9)) == flagged
        assert list(sanity_warnings(found, 10e9)) == (["decode_latency"] if flagged else [])
        assert sanity_warnings(found) == {}
