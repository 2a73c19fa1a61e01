"""What compression cost in quality, token by token: perplexity, accuracy, agreement and KL divergence.

Reported are sums over the scored tokens (`scoring.py`), divided, with intervals over documents (`statistics.py`):

    perplexity = exp(nll / tokens)      word perplexity = exp(nll / words)      bits per byte = nll / (bytes log 2)
    accuracy = correct / tokens         top-5 accuracy = (rank < 5) / tokens
    agreement = agree / tokens          KL divergence = kl / tokens

A ratio to the baseline is paired: exp((nll - baseline nll) / tokens) of the same tokens. Words and bytes are those of
the scored tokens (`text_amounts.py`). Where they are not known, what needs them is left out.

Not covered: other averages than over tokens, such as the mean of the documents' perplexities.
"""

import math

import numpy as np

from evaluation.measurement import SEPARATOR, Change, Measurement, Ratio, metric_of
from evaluation.quality import custom_metrics
from evaluation.quality.custom_metrics import TOKEN_METRICS
from evaluation.quality.scoring import TokenScores
from evaluation.statistics import Bootstrap, Floats, Scale, Statistic, Units, units_of

(TOKENS, NLL, BASELINE_NLL, CORRECT, BASELINE_CORRECT, TOP5, BASELINE_TOP5, AGREE, KL, BYTES, WORDS) = range(11)
"""Columns of the sums that the statistics below are computed from."""
LOG_2 = math.log(2)
FIRST = 5
"""How many ranks count for top-5 accuracy."""

STATISTICS: dict[str, Statistic] = {
    "perplexity": lambda sums: np.exp(sums[..., NLL] / sums[..., TOKENS]),
    "word_perplexity": lambda sums: np.exp(sums[..., NLL] / sums[..., WORDS]),
    "bits_per_byte": lambda sums: sums[..., NLL] / sums[..., BYTES] / LOG_2,
    "next_token_accuracy": lambda sums: sums[..., CORRECT] / sums[..., TOKENS],
    "top5_accuracy": lambda sums: sums[..., TOP5] / sums[..., TOKENS],
    "agreement": lambda sums: sums[..., AGREE] / sums[..., TOKENS],
    "kl_divergence": lambda sums: sums[..., KL] / sums[..., TOKENS],
}
RATIOS: dict[str, Statistic] = {
    "perplexity": lambda sums: np.exp((sums[..., NLL] - sums[..., BASELINE_NLL]) / sums[..., TOKENS]),
    "word_perplexity": lambda sums: np.exp((sums[..., NLL] - sums[..., BASELINE_NLL]) / sums[..., WORDS]),
    "bits_per_byte": lambda sums: sums[..., NLL] / sums[..., BASELINE_NLL],
    "next_token_accuracy": lambda sums: sums[..., CORRECT] / sums[..., BASELINE_CORRECT],
    "top5_accuracy": lambda sums: sums[..., TOP5] / sums[..., BASELINE_TOP5],
}
CHANGES: dict[str, Statistic] = {
    "perplexity": lambda sums: (
        np.exp(sums[..., NLL] / sums[..., TOKENS]) - np.exp(sums[..., BASELINE_NLL] / sums[..., TOKENS])
    ),
    "word_perplexity": lambda sums: (
        np.exp(sums[..., NLL] / sums[..., WORDS]) - np.exp(sums[..., BASELINE_NLL] / sums[..., WORDS])
    ),
    "bits_per_byte": lambda sums: (sums[..., NLL] - sums[..., BASELINE_NLL]) / sums[..., BYTES] / LOG_2,
    "next_token_accuracy": lambda sums: (sums[..., CORRECT] - sums[..., BASELINE_CORRECT]) / sums[..., TOKENS],
    "top5_accuracy": lambda sums: (sums[..., TOP5] - sums[..., BASELINE_TOP5]) / sums[..., TOKENS],
}
"""Agreement and KL divergence compare with the baseline by themselves: a ratio would divide by 1 and by 0."""
OF_TEXT = frozenset({"word_perplexity", "bits_per_byte"})
"""What needs to know how much text a token stands for."""


def quality_measurements(
    scores: TokenScores, baseline: TokenScores | None = None, *, method: str, seed: int = 0, name: str = ""
) -> list[Measurement]:
    """Perplexity and accuracy, and against a baseline also their paired ratios, agreement and KL divergence.

    Args:
        scores: of the model; `score` was given the baseline as well if `baseline` is given here.
        baseline: the baseline's own scores on the same windows; None if `scores` are the baseline's.
        method: the protocol: which text, how it was cut, through which runtime.
        name: put before every metric's: "typos" gives "typos/perplexity".
    """
    metrics = [metric for metric in STATISTICS if _applies(metric, scores, paired=baseline is not None)]
    problem = problem_of(scores, baseline)
    if problem:
        return [invalid(_named(name, metric), scores, method, problem) for metric in metrics]
    units = units_of(scores.document, scores.window)
    bootstrap = Bootstrap.draw(_sums(units, scores, baseline), seed=seed)
    full_method = f"{method}; {len(scores.nll)} tokens; 95 % interval by {units.describe()}"
    paired = baseline is not None
    ours = [_measure(metric, name, bootstrap, units, full_method, paired=paired) for metric in metrics]
    return ours + [_measure_custom(metric, name, scores, baseline, full_method, seed) for metric in TOKEN_METRICS]


def _applies(metric: str, scores: TokenScores, *, paired: bool) -> bool:
    known = bool(scores.bytes.any()) and bool(scores.words.any())
    return (paired or metric in RATIOS) and (known or metric not in OF_TEXT)


def _named(name: str, metric: str) -> str:
    return f"{name}{SEPARATOR}{metric}" if name else metric


def _sums(units: Units, scores: TokenScores, baseline: TokenScores | None) -> Floats:
    """Columns in the order of their names; without a baseline, those of the model stand in its place and are unused."""
    against = scores if baseline is None else baseline
    return units.sums(
        np.ones(len(scores.nll)),
        *(scores.nll, against.nll),
        *(scores.rank == 0, against.rank == 0),
        *(scores.rank < FIRST, against.rank < FIRST),
        *(scores.agree, scores.kl),
        *(scores.bytes, scores.words),
    )


def _measure(metric: str, name: str, bootstrap: Bootstrap, units: Units, method: str, *, paired: bool) -> Measurement:
    against = paired and not metric_of(metric).relative
    how = (RATIOS[metric], CHANGES[metric]) if against else None
    return _measurement(_named(name, metric), bootstrap, units, method, STATISTICS[metric], _scale(metric), how)


def _measure_custom(
    metric: str, name: str, scores: TokenScores, baseline: TokenScores | None, method: str, seed: int
) -> Measurement:
    """A metric that another package brings."""
    units = units_of(scores.document, scores.window)
    try:
        sums = units.sums(*custom_metrics.columns(metric, scores, baseline))
    except ValueError as error:
        return invalid(_named(name, metric), scores, method, str(error))
    how = None if baseline is None else (custom_metrics.RATIO, custom_metrics.CHANGE)
    scale: Scale = "share" if metric_of(metric).unit == "share" else "plain"
    bootstrap = Bootstrap.draw(sums, seed=seed)
    return _measurement(_named(name, metric), bootstrap, units, method, custom_metrics.VALUE, scale, how)


def _measurement(
    name: str,
    bootstrap: Bootstrap,
    units: Units,
    method: str,
    statistic: Statistic,
    scale: Scale,
    against: tuple[Statistic, Statistic] | None,
) -> Measurement:
    """A statistic with its interval, and where it is held against the baseline its ratio and its change."""
    with np.errstate(all="ignore"):  # what is not finite comes back as "no interval"
        own = bootstrap.compare(statistic, scale)
        ratio = None if against is None else bootstrap.compare(against[0], "log")
        change = None if against is None else bootstrap.compare(against[1])
    return Measurement(
        metric=name,
        value=own.value,
        samples=units.count,
        method=method,
        interval=own.interval,
        bounds=own.bounds,
        ratio=None if ratio is None or ratio.interval is None else Ratio(**dict(ratio)),
        change=None if change is None or change.interval is None else Change(**dict(change)),
        invalid="" if own.interval is not None else no_interval(own.value, units),
    )


def _scale(metric: str) -> Scale:
    return "share" if metric_of(metric).unit == "share" else "log"


def no_interval(value: float, units: Units) -> str:
    """Why there is none."""
    if units.count < 2:
        return "a single window has no interval; measure more windows or give more test text"
    return f"the value or one of its resamples is not finite (value: {value:g})"


def problem_of(scores: TokenScores, baseline: TokenScores | None) -> str:
    """Why these scores cannot be measured, or empty."""
    if baseline is not None and baseline.digest != scores.digest:
        return "unpaired: model and baseline were scored on different windows"
    for owner, nll_N in (("the model", scores.nll), ("the baseline", None if baseline is None else baseline.nll)):
        if nll_N is not None and not np.isfinite(nll_N).all():
            broken = np.flatnonzero(~np.isfinite(nll_N))
            place = f"first in window {scores.window[broken[0]]} of document {scores.document[broken[0]]}"
            return f"{owner} scored {len(broken)} of {len(nll_N)} tokens NaN or infinite, {place}"
    return ""


def invalid(metric: str, scores: TokenScores, method: str, reason: str) -> Measurement:
    """A measurement that is none."""
    samples = len(np.unique(scores.document))
    return Measurement(metric=metric, value=float("nan"), samples=samples, method=method, invalid=reason)
