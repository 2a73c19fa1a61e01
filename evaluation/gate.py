"""The verdict: may this model be released, judged by intervals and not by point values.

A gate is a limit on one metric, absolute (`max`, `min`) or as a ratio to the baseline. With the 95 % interval of what
was measured:

    PASS           the whole interval keeps the limit
    FAIL           the whole interval breaks it
    INCONCLUSIVE   the limit lies inside: the detail says how many samples would probably decide
    INVALID        not measured as asked: NaN, unpaired, no interval, or not measured at all. Never a pass

What is counted exactly (bytes, parameters) has no interval and is compared as it is. The overall verdict is the worst
one. A wrong PASS of one gate has a chance of at most 2.5 %, and because all gates must pass, several of them need no
correction for multiplicity (an intersection-union test; Berger 1982).
"""

import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Literal

from pydantic import Field, model_validator

from evaluation.measurement import METRICS, Interval, Measurement, Value
from evaluation.statistics import POWER, samples_to_decide

Verdict = Literal["PASS", "INCONCLUSIVE", "FAIL", "INVALID"]

SEVERITY: dict[Verdict, int] = {"PASS": 0, "INCONCLUSIVE": 1, "FAIL": 2, "INVALID": 3}
EXIT_CODES: dict[Verdict, int] = {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 3, "INVALID": 4}

SAMPLED: dict[str, str] = {
    "perplexity": "test text",
    "next_token_accuracy": "test text",
    "agreement": "test text",
    "kl_divergence": "test text",
    "prefill_latency": "timed blocks",
    "decode_latency": "timed blocks",
}
"""Metrics that are estimates and so need an interval, with what there must be more of to narrow it."""

WITHOUT_RATIO: frozenset[str] = frozenset({"agreement", "kl_divergence"})
"""Metrics that compare with the baseline by themselves."""

_HOPELESS = 1000


class Limit(Value):
    """What a metric must keep: exactly one of the three."""

    ratio: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """At most (or, for a metric that is better when higher, at least) so many times the baseline's figure."""
    max: float | None = Field(default=None, allow_inf_nan=False)
    """At most this, in the metric's own unit."""
    min: float | None = Field(default=None, allow_inf_nan=False)
    """At least this, in the metric's own unit."""

    @model_validator(mode="after")
    def _one_of_three(self) -> "Limit":
        given = [name for name in ("ratio", "max", "min") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"expected exactly one of ratio, max, min, got {' and '.join(given) or 'none'}")
        return self

    @property
    def bound(self) -> float:
        """The number itself, whichever of the three it is."""
        return next(value for value in (self.ratio, self.max, self.min) if value is not None)


class GateResult(Value):
    """One gate, judged."""

    metric: str
    limit: Limit
    verdict: Verdict
    value: float | None = None
    """What was compared with the limit: the ratio if the limit is one; None if it was not measured."""
    interval: Interval | None = None
    detail: str
    """The reason in one sentence."""


def limit_problem(metric: str, limit: Limit) -> str:
    """Why this gate makes no sense, known before anything runs; empty where it does."""
    if metric not in METRICS:
        close = get_close_matches(metric, METRICS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return f"expected one of {', '.join(METRICS)}, got {metric!r}{hint}"
    right = "max" if METRICS[metric].better == "lower" else "min"
    if limit.ratio is not None and metric in WITHOUT_RATIO:
        return f"{metric} compares with the baseline by itself and has no ratio; expected `{right}`"
    wrong = "min" if right == "max" else "max"
    if getattr(limit, wrong) is not None:
        return f"{metric} is better when {METRICS[metric].better}; expected `ratio` or `{right}`, got `{wrong}`"
    return ""


def judge(gates: Mapping[str, Limit], measurements: Mapping[str, Measurement]) -> list[GateResult]:
    """Judge the final artifact's measurements (by metric) against every gate, in the order of the gates."""
    return [_judge(metric, limit, measurements.get(metric)) for metric, limit in gates.items()]


def overall(results: Sequence[GateResult]) -> Verdict | None:
    """The worst of the verdicts; None where nothing was gated."""
    return max((result.verdict for result in results), key=SEVERITY.__getitem__, default=None)


def exit_code(verdict: Verdict | None) -> int:
    """The process's exit code; a recipe without gates has nothing to fail."""
    return 0 if verdict is None else EXIT_CODES[verdict]


def _judge(metric: str, limit: Limit, measurement: Measurement | None) -> GateResult:
    problem = limit_problem(metric, limit) or _invalid(metric, limit, measurement)
    if problem or measurement is None:
        return GateResult(metric=metric, limit=limit, verdict="INVALID", detail=problem)
    value, interval = _compared(limit, measurement)
    verdict, detail = _decide(metric, limit.bound, value, interval, measurement.samples)
    return GateResult(metric=metric, limit=limit, verdict=verdict, value=value, interval=interval, detail=detail)


def _invalid(metric: str, limit: Limit, measurement: Measurement | None) -> str:
    """Why the measurement cannot be judged, or empty."""
    if measurement is None:
        return "not measured on the final artifact"
    if measurement.invalid:
        return measurement.invalid
    if limit.ratio is not None and measurement.ratio is None:
        return "there is no ratio: the baseline was not measured, or its figure is zero"
    value, interval = _compared(limit, measurement)
    if not math.isfinite(value):
        return f"expected a finite number, got {value}"
    if interval is None:
        return "an estimate without an interval cannot be judged" if metric in SAMPLED else ""
    if not interval.low <= interval.high:  # NaN too
        return f"expected an interval, got [{interval.low}, {interval.high}]"
    return ""


def _compared(limit: Limit, measurement: Measurement) -> tuple[float, Interval | None]:
    if limit.ratio is not None and measurement.ratio is not None:
        return measurement.ratio.value, measurement.ratio.interval
    return measurement.value, measurement.interval


def _decide(metric: str, bound: float, value: float, interval: Interval | None, samples: int) -> tuple[Verdict, str]:
    low, high = (value, value) if interval is None else (interval.low, interval.high)
    at_most = METRICS[metric].better == "lower"
    keeps, breaks = (high <= bound, low > bound) if at_most else (low >= bound, high < bound)
    subject = "the value" if interval is None else f"the {interval.confidence * 100:g} % interval"
    if keeps:
        return "PASS", f"{subject} keeps the limit"
    if breaks:
        side = "above" if at_most else "below"
        return "FAIL", f"{subject} lies {side} the limit"
    return "INCONCLUSIVE", _how_many_more(metric, bound, value, interval, samples)


def _how_many_more(metric: str, bound: float, value: float, interval: Interval | None, samples: int) -> str:
    needed = None if interval is None else samples_to_decide(value, interval, bound, samples)
    if needed is None or needed > _HOPELESS * samples:
        return "the limit lies inside the interval, and so near the value that no practical number of samples decides"
    what = SAMPLED.get(metric, "samples")
    return (
        f"the limit lies inside the interval; about {needed - samples} more samples "
        f"({needed / samples:.1f} times the {what}) would decide with a chance of {POWER * 100:g} %"
    )
