"""What compression cost in quality, token by token: perplexity, next-token accuracy, agreement and KL divergence.

Reported are averages over the scored tokens (`scoring.py`), with intervals over documents (`statistics.py`).

Not covered: strided windows (more context per token, many times the work), and word perplexity.
"""

import numpy as np

from evaluation.measurement import METRICS, Change, Measurement, Ratio
from evaluation.quality.scoring import TokenScores
from evaluation.statistics import Bootstrap, Scale, Statistic, Units, units_of

TOKENS, NLL, CORRECT, AGREE, KL, BASELINE_NLL, BASELINE_CORRECT = range(7)
"""Columns of the sums that the statistics below are computed from."""

STATISTICS: dict[str, Statistic] = {
    "perplexity": lambda sums: np.exp(sums[..., NLL] / sums[..., TOKENS]),
    "next_token_accuracy": lambda sums: sums[..., CORRECT] / sums[..., TOKENS],
    "agreement": lambda sums: sums[..., AGREE] / sums[..., TOKENS],
    "kl_divergence": lambda sums: sums[..., KL] / sums[..., TOKENS],
}
RATIOS: dict[str, Statistic] = {
    "perplexity": lambda sums: np.exp((sums[..., NLL] - sums[..., BASELINE_NLL]) / sums[..., TOKENS]),
    "next_token_accuracy": lambda sums: sums[..., CORRECT] / sums[..., BASELINE_CORRECT],
}
CHANGES: dict[str, Statistic] = {
    "perplexity": lambda sums: (
        np.exp(sums[..., NLL] / sums[..., TOKENS]) - np.exp(sums[..., BASELINE_NLL] / sums[..., TOKENS])
    ),
    "next_token_accuracy": lambda sums: (sums[..., CORRECT] - sums[..., BASELINE_CORRECT]) / sums[..., TOKENS],
}
"""Agreement and KL divergence compare with the baseline by themselves: a ratio would divide by 1 and by 0."""


def quality_measurements(
    scores: TokenScores, baseline: TokenScores | None = None, *, method: str, seed: int = 0
) -> list[Measurement]:
    """Perplexity and accuracy, and against a baseline also their paired ratios, agreement and KL divergence.

    Args:
        scores: of the model; `score` was given the baseline as well if `baseline` is given here.
        baseline: the baseline's own scores on the same windows; None if `scores` are the baseline's.
        method: the protocol: which text, how it was cut, through which runtime.
    """
    metrics = [metric for metric in STATISTICS if baseline is not None or metric in RATIOS]
    problem = _problem(scores, baseline)
    if problem:
        return [_invalid(metric, scores, method, problem) for metric in metrics]
    units = units_of(scores.document, scores.window)
    columns = [np.ones(len(scores.nll)), scores.nll, scores.correct, scores.agree, scores.kl]
    columns += [] if baseline is None else [baseline.nll, baseline.correct]
    bootstrap = Bootstrap.draw(units.sums(*columns), seed=seed)
    full_method = f"{method}; {len(scores.nll)} tokens; 95 % interval by {units.describe()}"
    return [_measure(metric, bootstrap, units, full_method, paired=baseline is not None) for metric in metrics]


def _measure(metric: str, bootstrap: Bootstrap, units: Units, method: str, *, paired: bool) -> Measurement:
    with np.errstate(all="ignore"):  # what is not finite comes back as "no interval"
        own = bootstrap.compare(STATISTICS[metric], _scale(metric))
        against = paired and not METRICS[metric].relative
        ratio = bootstrap.compare(RATIOS[metric], "log") if against else None
        change = bootstrap.compare(CHANGES[metric]) if against else None
    return Measurement(
        metric=metric,
        value=own.value,
        samples=units.count,
        method=method,
        interval=own.interval,
        bounds=own.bounds,
        ratio=None if ratio is None or ratio.interval is None else Ratio(**dict(ratio)),
        change=None if change is None or change.interval is None else Change(**dict(change)),
        invalid="" if own.interval is not None else _no_interval(own.value, units),
    )


def _scale(metric: str) -> Scale:
    return "share" if METRICS[metric].unit == "share" else "log"


def _no_interval(value: float, units: Units) -> str:
    if units.count < 2:
        return "a single window has no interval; measure more windows or give more test text"
    return f"the value or one of its resamples is not finite (value: {value:g})"


def _problem(scores: TokenScores, baseline: TokenScores | None) -> str:
    """Why these scores cannot be measured, or empty."""
    if baseline is not None and baseline.digest != scores.digest:
        return "unpaired: model and baseline were scored on different windows"
    for owner, nll_N in (("the model", scores.nll), ("the baseline", None if baseline is None else baseline.nll)):
        if nll_N is not None and not np.isfinite(nll_N).all():
            broken = np.flatnonzero(~np.isfinite(nll_N))
            place = f"first in window {scores.window[broken[0]]} of document {scores.document[broken[0]]}"
            return f"{owner} scored {len(broken)} of {len(nll_N)} tokens NaN or infinite, {place}"
    return ""


def _invalid(metric: str, scores: TokenScores, method: str, reason: str) -> Measurement:
    samples = len(np.unique(scores.document))
    return Measurement(metric=metric, value=float("nan"), samples=samples, method=method, invalid=reason)
