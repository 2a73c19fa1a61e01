"""The verdict: may this model be released, judged by bounds and not by point values.

A gate is a limit on one metric: `max_ratio`, `min_ratio` and `max_increase` against the baseline, `at_most` and
`at_least` in the metric's own unit. What was measured has two one-sided 95 % bounds (`measurement.py`):

    PASS           the bound that faces the limit keeps it: the upper one of what must be small
    FAIL           the opposite bound breaks it, too
    INCONCLUSIVE   the limit lies between the two: says how many more samples would decide with a chance of 90 %
    INVALID        not measured as asked: NaN, unpaired, no bounds, or not measured at all. Never a pass

What is counted exactly (bytes, parameters) has no bounds and is compared as it is. The overall verdict is the worst
one. A wrong PASS of one gate has a chance of at most 5 %, and because all gates must pass, several of them need no
correction for multiplicity (an intersection-union test; Berger 1982). Whoever looks again after measuring more gets one
more chance to be wrong: `looks` widens the bounds for that (Bonferroni), for each kind of sample that there may be more
of; see `stopping_rule.py`.

Not covered: a trade of one metric for another.
"""

import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from types import MappingProxyType
from typing import Literal

from pydantic import Field, model_validator

from evaluation.latency.paired import blocks_to_decide
from evaluation.measurement import METRICS, Comparison, Interval, Measurement, Value, is_metric, metric_of
from evaluation.plausibility import sanity_warning
from evaluation.statistics import POWER, samples_to_decide, widened
from evaluation.units import format_change, format_ratio, format_value

Verdict = Literal["PASS", "INCONCLUSIVE", "FAIL", "INVALID"]

SEVERITY: dict[Verdict, int] = {"PASS": 0, "INCONCLUSIVE": 1, "FAIL": 2, "INVALID": 3}
EXIT_CODES: dict[Verdict, int] = {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 3, "INVALID": 4}

LIMITS: dict[str, str] = {
    "max_ratio": "at most",
    "min_ratio": "at least",
    "max_increase": "at most",
    "at_most": "at most",
    "at_least": "at least",
}
"""Every kind of limit, and the side that it allows."""
AGAINST_BASELINE = ("max_ratio", "min_ratio", "max_increase")
HOPELESS = 1000
"""Times the samples there are: more than so many will not be measured by anyone."""


class Limit(Value):
    """What a metric must keep: exactly one of the five."""

    max_ratio: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """At most so many times the baseline's figure."""
    min_ratio: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """At least so many times the baseline's figure, for a metric that is better when higher."""
    max_increase: float | None = Field(default=None, allow_inf_nan=False)
    """At most so much more than the baseline's figure, in the metric's own unit."""
    at_most: float | None = Field(default=None, allow_inf_nan=False)
    """At most this, in the metric's own unit."""
    at_least: float | None = Field(default=None, allow_inf_nan=False)
    """At least this, in the metric's own unit."""

    @model_validator(mode="after")
    def _one(self) -> "Limit":
        given = [name for name in LIMITS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"expected exactly one of {', '.join(LIMITS)}, got {' and '.join(given) or 'none'}")
        return self

    @property
    def kind(self) -> str:
        """Which of `LIMITS` it is."""
        return next(name for name in LIMITS if getattr(self, name) is not None)

    @property
    def bound(self) -> float:
        """The number itself, whichever of them it is."""
        return float(getattr(self, self.kind))

    @property
    def upper(self) -> bool:
        """Whether what lies below the bound keeps it."""
        return LIMITS[self.kind] == "at most"


class GateResult(Value):
    """One gate, judged."""

    metric: str
    limit: Limit
    verdict: Verdict
    value: float | None = None
    """What was compared with the limit: the ratio or the increase if the limit is one; None if it was not measured."""
    interval: Interval | None = None
    """The 95 % interval of `value`, two-sided, for people."""
    bounds: Interval | None = None
    """The two one-sided bounds that were judged."""
    detail: str
    """The reason in one sentence."""
    more: int | None = None
    """INCONCLUSIVE: how many more samples would decide; None: no practical number would, or it is decided."""
    sanity_warning: str = ""
    """Why the figure is too good to be believed without a look; empty where it is not."""


def limit_problem(metric: str, limit: Limit) -> str:
    """Why this gate makes no sense, known before anything runs; empty where it does."""
    if not is_metric(metric):
        close = get_close_matches(metric, METRICS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return f"expected one of {', '.join(METRICS)}, got {metric!r}{hint}"
    better, relative = metric_of(metric).better, metric_of(metric).relative
    right = [name for name, side in LIMITS.items() if (side == "at most") == (better == "lower")]
    right = [name for name in right if not (relative and name in AGAINST_BASELINE)]
    if limit.kind in right:
        return ""
    ways = " or ".join(f"`{name}`" for name in right)
    if relative and limit.kind in AGAINST_BASELINE:
        return f"{metric} compares with the baseline by itself and has no `{limit.kind}`; expected {ways}"
    return f"{metric} is better when {better}; expected {ways}, got `{limit.kind}`"


def judge(
    gates: Mapping[str, Limit],
    measurements: Mapping[str, Measurement],
    *,
    looks: Mapping[str, int] = MappingProxyType({}),
    bandwidth: float | None = None,
) -> list[GateResult]:
    """Judge the final artifact's measurements (by metric) against every gate, in the order of the gates.

    Args:
        looks: how often at most this is judged while samples of a kind ("documents", "blocks") are added; the bounds
            of what they decide are widened for it. Once, where nothing is said.
        bandwidth: bytes per second that the memory gives; a latency that would need more is suspicious.
    """
    results = [_judge(metric, limit, measurements.get(metric), looks) for metric, limit in gates.items()]
    return [
        result.model_copy(update={"sanity_warning": sanity_warning(result.metric, measurements, bandwidth)})
        for result in results
    ]


def overall(results: Sequence[GateResult]) -> Verdict | None:
    """The worst of the verdicts; None where nothing was gated."""
    return max((result.verdict for result in results), key=SEVERITY.__getitem__, default=None)


def exit_code(verdict: Verdict | None) -> int:
    """The process's exit code; a recipe without gates has nothing to fail."""
    return 0 if verdict is None else EXIT_CODES[verdict]


def describe_limit(metric: str, limit: Limit) -> str:
    """Such as "at most 1.100x the baseline", "at most 30.0 MB", "at most 0.500 more than the baseline"."""
    against = {"max_ratio": " the baseline", "min_ratio": " the baseline", "max_increase": " more than the baseline"}
    return (
        f"{LIMITS[limit.kind]} {format_compared(metric, limit, limit.bound, plain=True)}{against.get(limit.kind, '')}"
    )


def format_compared(metric: str, limit: Limit, value: float, *, plain: bool = False) -> str:
    """A number that is compared with the limit, as text: a ratio, an increase (signed unless `plain`), or a figure."""
    if not is_metric(metric):
        return f"{value:g}"
    if limit.kind in {"max_ratio", "min_ratio"}:
        return format_ratio(value)
    if limit.kind == "max_increase" and not plain:
        return format_change(metric, value)
    return format_value(metric, value)


def _judge(metric: str, limit: Limit, measurement: Measurement | None, looks_of: Mapping[str, int]) -> GateResult:
    problem = limit_problem(metric, limit) or _invalid(metric, limit, measurement)
    compared = None if problem or measurement is None else _compared(limit, measurement)
    if compared is None or measurement is None:
        return GateResult(metric=metric, limit=limit, verdict="INVALID", detail=problem)
    looks = looks_of.get(metric_of(metric).more, 1)
    bounds = compared.bounds or compared.interval
    bounds = None if bounds is None else widened(bounds, compared.value, looks, measurement.samples)
    verdict = _decide(limit, compared.value, bounds)
    more = _more(metric, limit, measurement, bounds, looks) if verdict == "INCONCLUSIVE" else None
    return GateResult(
        metric=metric,
        limit=limit,
        verdict=verdict,
        value=compared.value,
        interval=compared.interval,
        bounds=bounds,
        detail=_explain(metric, limit, compared.value, bounds, verdict) + _how_many(metric, measurement, verdict, more),
        more=more,
    )


def _invalid(metric: str, limit: Limit, measurement: Measurement | None) -> str:
    """Why the measurement cannot be judged, or empty."""
    if measurement is None:
        return "not measured on the final artifact"
    if measurement.invalid:
        return measurement.invalid
    compared = _compared(limit, measurement)
    if compared is None:
        return (
            f"there is nothing for `{limit.kind}`: the baseline was not measured, or not alike, or its figure is zero"
        )
    if not math.isfinite(compared.value):
        return f"expected a finite number, got {compared.value}"
    bounds = compared.bounds or compared.interval
    if bounds is None:
        return "an estimate without an interval cannot be judged" if metric_of(metric).more else ""
    if not bounds.low <= bounds.high:  # NaN too
        return f"expected an interval, got [{bounds.low}, {bounds.high}]"
    return ""


def _compared(limit: Limit, measurement: Measurement) -> Comparison | None:
    """What of the measurement the limit is about; None where there is no such thing."""
    if limit.kind in {"max_ratio", "min_ratio"}:
        return measurement.ratio
    if limit.kind != "max_increase":
        return Comparison(value=measurement.value, interval=measurement.interval, bounds=measurement.bounds)
    ratio = measurement.ratio
    if measurement.change is None and measurement.interval is None and ratio is not None and ratio.interval is None:
        return Comparison(value=measurement.value - measurement.value / ratio.value)  # both are counted: exact
    return measurement.change


def _decide(limit: Limit, value: float, bounds: Interval | None) -> Verdict:
    low, high = (value, value) if bounds is None else (bounds.low, bounds.high)
    if high <= limit.bound if limit.upper else low >= limit.bound:
        return "PASS"
    if low > limit.bound if limit.upper else high < limit.bound:
        return "FAIL"
    return "INCONCLUSIVE"


def _more(metric: str, limit: Limit, measurement: Measurement, bounds: Interval | None, looks: int) -> int | None:
    """How many more samples would decide; for blocks that are looked at once by the exact rule, which is Student's."""
    samples, ratio = measurement.samples, measurement.ratio
    compared = _compared(limit, measurement)
    if bounds is None or compared is None:
        return None
    exact = metric_of(metric).more == "blocks" and looks == 1 and limit.kind in {"max_ratio", "min_ratio"}
    if exact and ratio is not None:
        needed = blocks_to_decide(ratio, samples, limit.bound)
    else:
        needed = samples_to_decide(compared.value, bounds, limit.bound, samples)
    return None if needed is None or needed > HOPELESS * samples else max(1, needed - samples)


def _explain(metric: str, limit: Limit, value: float, bounds: Interval | None, verdict: Verdict) -> str:
    """What was compared with what, in words."""

    def text(number: float) -> str:
        return format_compared(metric, limit, number)

    asked = f"the limit of {format_compared(metric, limit, limit.bound, plain=True)}"
    if bounds is None:
        return f"counted: {text(value)} {'keeps' if verdict == 'PASS' else 'breaks'} {asked}"
    level = f"{(1 + bounds.confidence) * 50:.3g} %"
    facing, other = ("upper", "lower") if limit.upper else ("lower", "upper")
    ends = {"upper": text(bounds.high), "lower": text(bounds.low)}
    if verdict == "PASS":
        return f"the {facing} {level} bound of {ends[facing]} keeps {asked}"
    if verdict == "FAIL":
        return f"even the {other} {level} bound of {ends[other]} breaks {asked}"
    return f"{asked} lies between the lower and upper {level} bounds of {ends['lower']} and {ends['upper']}"


def _how_many(metric: str, measurement: Measurement, verdict: Verdict, more: int | None) -> str:
    if verdict != "INCONCLUSIVE":
        return ""
    if more is None:
        return ", and so near the value that no practical number of samples decides"
    what = metric_of(metric).more or "samples"
    times = (measurement.samples + more) / measurement.samples
    return (
        f"; about {more:,} more {what} ({times:.1f} times the {measurement.samples:,} there are) "
        f"would decide with a chance of {POWER * 100:g} %"
    )
