"""Evaluations of items: questions with answers, texts with labels, prompts with references; each item is one sample.

    model --asks every item--> PerExample: columns of raw figures, [I] each --statistics--> Measurements "NAME/METRIC"

A kind of items says which metrics its columns give. The model's and the baseline's figures of an item stay together:
paired. Two sets of items are paired if and only if the same items were asked, which the digest tells.

    accuracy, and macro F1, which follow from right and wrong answers
        Wald's interval, once z^2 / 2 items are added that are wholly right and as many that are wholly wrong (Agresti
        and Coull 1998); of a pair, as many that only the model and that only the baseline has right (as Agresti and Min
        2005, who add half an item of each kind). A compressed model differs from its baseline on a few items only: with
        3 % of 100, a "one-sided 95 %" bootstrap bound of the ratio is wrong in 15 % of 600 simulated experiments; of
        this one at most 6 % in nine settings of 40 to 1,000 items, Agresti and Min's own 10 %
    any other: ROC AUC, ROUGE, BLEU, ...
        bootstrap of the items, from the columns' sums (`statistics.py`). It knows only what the items showed: where all
        texts are the same, it says that nothing changed

Macro F1 and ROC AUC are no means, so each item is given a pseudo-value (`classification_metrics.py`): the metric plus I
times the item's influence on it. Their mean is the metric and their spread its variance.

Not covered: items that depend on one another, such as several questions about one text: their intervals are too narrow.

Legend: I items, K columns, L labels.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.measurement import (
    JUDGED,
    SEPARATOR,
    SHOWN,
    Change,
    Comparison,
    Interval,
    Measurement,
    Ratio,
    metric_of,
)
from evaluation.quality.classification_metrics import Columns, auc_parts, f1_parts, is_right
from evaluation.quality.text_metrics import BLEU_COUNTS, bleu
from evaluation.statistics import Bootstrap, Floats, Scale, Statistic

COLUMN = "column:"
LOG_LIKELIHOOD = "log_likelihood"
"""The column of how likely the right answers are, in nats."""


@dataclass(frozen=True, eq=False)
class PerExample:
    """What a model made of every item, in the order in which they were asked."""

    kind: str
    """Which of `ITEM_KINDS`."""
    columns: dict[str, Floats]
    """Figures of every item: [I] each."""
    digest: str
    """sha256 of the items that were asked."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """JSON for people: `protocol` in words, names of labels, texts."""

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def save(self, file: Path) -> None:
        """Write a compressed .npz without pickled objects."""
        about = json.dumps({"kind": self.kind, "digest": self.digest, "metadata": self.metadata})
        arrays: dict[str, Any] = {COLUMN + name: column for name, column in self.columns.items()}
        with file.open("wb") as stream:
            np.savez_compressed(stream, about=np.asarray(about), **arrays)

    @classmethod
    def load(cls, file: Path) -> "PerExample":
        """Read what `save` wrote; a file with pickled objects in it is refused (ValueError)."""
        with np.load(file, allow_pickle=False) as arrays:
            about = json.loads(str(arrays["about"]))
            columns = {name.removeprefix(COLUMN): arrays[name] for name in arrays.files if name.startswith(COLUMN)}
        return cls(columns=columns, **about)


@dataclass(frozen=True)
class Share:
    """A metric that is the share of items that are right: 1 or 0 for each, or a pseudo-value of that, [I]."""

    of: Callable[[Columns], Floats]
    needs: str = ""
    """The column without which items do not have it; empty: all of the kind do."""


@dataclass(frozen=True)
class Sums:
    """A metric that is a statistic of the columns' sums: what of each item is summed, [I, K], and the statistic."""

    of: Callable[[Columns], Floats]
    statistic: Statistic
    needs: str = ""


def share_of(name: str) -> Share:
    """The share of a column of ones and zeros."""
    return Share(lambda columns: columns[name], needs=name)


def mean_of(values: Callable[[Columns], Floats], needs: str = "") -> Sums:
    """The mean of a value of each item."""
    return Sums(lambda columns: _counted(values(columns)), lambda sums: sums[..., 1] / sums[..., 0], needs)


def mean_column(name: str) -> Sums:
    """The mean of a column."""
    return mean_of(lambda columns: columns[name], needs=name)


ITEM_KINDS: dict[str, dict[str, Share | Sums]] = {
    "task": {
        "accuracy": share_of("accuracy"),
        "accuracy_norm": share_of("accuracy_norm"),
        "exact_match": share_of("exact_match"),
        "answer_perplexity": Sums(
            lambda columns: _counted(columns[LOG_LIKELIHOOD]),
            lambda sums: np.exp(-sums[..., 1] / sums[..., 0]),
            needs=LOG_LIKELIHOOD,
        ),
        "score": mean_column("score"),
    },
    "labeled": {
        "accuracy": Share(is_right),
        "macro_f1": Share(f1_parts),
        "roc_auc": mean_of(auc_parts),
    },
    "generation": {
        "bleu": Sums(lambda columns: np.stack([columns[name] for name in BLEU_COUNTS], axis=1), bleu),
        "rouge_1": mean_column("rouge_1"),
        "rouge_2": mean_column("rouge_2"),
        "rouge_l": mean_column("rouge_l"),
        "repetition": mean_column("repetition"),
        "distinct_1": mean_column("distinct_1"),
        "distinct_2": mean_column("distinct_2"),
    },
}
"""Kind of items -> the metrics that its columns give."""


def item_measurements(
    name: str, items: PerExample, baseline: PerExample | None = None, *, method: str, seed: int = 0
) -> list[Measurement]:
    """The figures of a named evaluation, and against a baseline their paired ratios and changes.

    Args:
        name: of the evaluation; its figures are called "name/metric".
        baseline: the baseline's own answers to the same items; None if `items` are the baseline's.
        method: through which runtime the items were asked.
    """
    figures = {metric: figure for metric, figure in ITEM_KINDS[items.kind].items() if _has(items, figure)}
    protocol = f"{method}; {items.metadata['protocol']}" if "protocol" in items.metadata else method
    problem = _problem(items, baseline)
    if problem:
        return [_invalid(f"{name}{SEPARATOR}{metric}", items, protocol, problem) for metric in figures]
    return [
        _measure(f"{name}{SEPARATOR}{metric}", figure, items, baseline, method=protocol, seed=seed)
        for metric, figure in figures.items()
    ]


def _has(items: PerExample, figure: Share | Sums) -> bool:
    return not figure.needs or figure.needs in items.columns


def _problem(items: PerExample, baseline: PerExample | None) -> str:
    """Why these items cannot be measured, or empty."""
    if baseline is not None and (baseline.kind, baseline.digest) != (items.kind, items.digest):
        return "unpaired: model and baseline were not asked the same items"
    if len(items) < 2:
        return f"{len(items)} items have no interval; ask more"
    for owner, columns in (
        ("the model", items.columns),
        ("the baseline", {} if baseline is None else baseline.columns),
    ):
        for name, column in columns.items():
            if not np.isfinite(column).all():
                broken = np.flatnonzero(~np.isfinite(column))
                return f"{owner}'s {name} is NaN or infinite on {len(broken)} of {len(column)} items, first {broken[0]}"
    return ""


def _invalid(metric: str, items: PerExample, method: str, reason: str) -> Measurement:
    return Measurement(metric=metric, value=float("nan"), samples=len(items), method=method, invalid=reason)


def _measure(
    metric: str, figure: Share | Sums, items: PerExample, baseline: PerExample | None, *, method: str, seed: int
) -> Measurement:
    model_IK = figure.of(items.columns)
    baseline_IK = None if baseline is None else figure.of(baseline.columns)
    if not np.isfinite(model_IK).all() or (baseline_IK is not None and not np.isfinite(baseline_IK).all()):
        return _invalid(metric, items, method, "not defined on these items: it needs items of at least two labels")
    if isinstance(figure, Share):
        own, ratio, change = _share(model_IK, baseline_IK)
        how = f"{len(items)} items; 95 % interval by item, paired, z^2 / 2 items of each extreme added"
    else:
        scale: Scale = "share" if metric_of(metric).unit == "share" else "plain"
        own, ratio, change = _sums(figure, model_IK, baseline_IK, scale, seed)
        how = f"{len(items)} items; 95 % interval by paired bootstrap of items"
    return Measurement(
        metric=metric,
        value=own.value,
        samples=len(items),
        method=f"{method}; {how}",
        interval=own.interval,
        bounds=own.bounds,
        ratio=None if ratio is None or ratio.interval is None else Ratio(**dict(ratio)),
        change=None if change is None or change.interval is None else Change(**dict(change)),
        invalid="" if own.interval is not None else f"the value or one of its resamples is not finite ({own.value:g})",
    )


Compared = tuple[Comparison, Comparison | None, Comparison | None]
"""A figure of its own, its ratio to the baseline's and its change against it."""


def _share(model_I: Floats, baseline_I: Floats | None) -> Compared:
    """The mean of a share; see the head of this file."""
    own = _adjusted(MEAN, model_I[:, None], np.array([[1.0], [0.0]]), within=(0.0, 1.0))
    if baseline_I is None:
        return own, None, None
    both_I2, apart_E2 = np.stack([model_I, baseline_I], axis=1), np.array([[1.0, 0.0], [0.0, 1.0]])
    change = _adjusted(DIFFERENCE, both_I2, apart_E2, within=(-1.0, 1.0))
    ratio = _adjusted(QUOTIENT, both_I2, apart_E2, within=(0.0, math.inf)) if baseline_I.mean() > 0 else None
    return own, ratio, change


Shape = tuple[Callable[[Floats], float], Callable[[Floats], Floats], Callable[[float], float]]
"""Of the means [K]: the value on the scale where it is symmetric, its slopes [K], and the way back from that scale."""
MEAN: Shape = (lambda mean_K: float(mean_K[0]), np.ones_like, float)
DIFFERENCE: Shape = (lambda mean_K: float(mean_K[0] - mean_K[1]), lambda mean_K: np.array([1.0, -1.0]), float)
QUOTIENT: Shape = (lambda mean_K: math.log(mean_K[0] / mean_K[1]), lambda mean_K: [1, -1] / mean_K, math.exp)


def _adjusted(shape: Shape, values_IK: Floats, extremes_EK: Floats, *, within: tuple[float, float]) -> Comparison:
    """A figure of the items' means, with the interval of the items and z^2 / 2 of each extreme."""
    place, slopes, back = shape
    own_K = values_IK.mean(axis=0)
    value = back(place(own_K)) if own_K[0] > 0 or shape is not QUOTIENT else 0.0

    def interval(confidence: float) -> Interval:
        z = _ndtri(0.5 + confidence / 2)
        weight_J = np.concatenate([np.ones(len(values_IK)), np.full(len(extremes_EK), z**2 / 2)])
        every_JK, count = np.concatenate([values_IK, extremes_EK]), weight_J.sum()
        mean_K = weight_J @ every_JK / count
        spread_KK = (weight_J[:, None] * (every_JK - mean_K)).T @ (every_JK - mean_K) / count
        half = z * math.sqrt(slopes(mean_K) @ spread_KK @ slopes(mean_K) / count)
        low, high = back(place(mean_K) - half), back(place(mean_K) + half)
        return Interval(
            low=max(within[0], min(low, value)), high=min(within[1], max(high, value)), confidence=confidence
        )

    return Comparison(value=value, interval=interval(SHOWN), bounds=interval(JUDGED))


def _ndtri(probability: float) -> float:
    from scipy.special import ndtri

    return float(ndtri(probability))


def _sums(figure: Sums, model_IK: Floats, baseline_IK: Floats | None, scale: Scale, seed: int) -> Compared:
    """A statistic of sums, by bootstrap."""
    columns, statistic = model_IK.shape[1], figure.statistic
    both = model_IK if baseline_IK is None else np.concatenate([model_IK, baseline_IK], axis=1)
    bootstrap = Bootstrap.draw(both, seed=seed)
    with np.errstate(all="ignore"):  # what is not finite comes back as "no interval"
        own = bootstrap.compare(lambda sums: statistic(sums[..., :columns]), scale)
        if baseline_IK is None:
            return own, None, None
        ratio = bootstrap.compare(lambda sums: statistic(sums[..., :columns]) / statistic(sums[..., columns:]), "log")
        change = bootstrap.compare(lambda sums: statistic(sums[..., :columns]) - statistic(sums[..., columns:]))
    return own, ratio, change


def _counted(values_I: Floats) -> Floats:
    return np.stack([np.ones_like(values_I), values_I], axis=1)
