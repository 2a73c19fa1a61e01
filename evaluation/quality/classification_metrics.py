"""Labels ranked by their probability: what of each item makes accuracy, macro F1 and ROC AUC.

    accuracy   mean of [argmax_l p(l) = label]
    macro F1   mean over the labels of F_l = 2 hits / (true + predicted), labels left out that are neither
    ROC AUC    mean over the labels of A_l = P(p(l) of an item of l > p(l) of another item), ties one half; of two
               labels it is the second's

The last two are given as pseudo-values u_i, whose mean is the metric and whose spread is its variance:

    macro F1   u_i = F + I mean_l (2 hit_il - F_l (true_il + predicted_il)) / (true_l + predicted_l)
    ROC AUC    u_i = A + I mean_l (V_il - A_l) / n(i, l)         n: items that are l, or are not, whichever item i is
               V_il = share of the items on the other side that item i stands right to: DeLong's structural components

Not covered: weights of items or labels.

Legend: I items, L labels; the column `label` has the index of an item's label, `probability.l` that of label l.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from evaluation.statistics import Floats

Columns = Mapping[str, Floats]
LABEL, PROBABILITY = "label", "probability."


def is_right(columns: Columns) -> Floats:
    """1 where the likeliest label is the item's."""
    return np.asarray(_probabilities(columns).argmax(axis=1) == columns[LABEL], dtype=np.float64)


def f1_parts(columns: Columns) -> Floats:
    """Pseudo-values of macro F1, the mean of 2 hits / (true + predicted) over the labels that are either."""
    probability_IL = _probabilities(columns)
    labels = np.arange(probability_IL.shape[1])
    true_IL = (columns[LABEL][:, None] == labels).astype(np.float64)
    predicted_IL = (probability_IL.argmax(axis=1)[:, None] == labels).astype(np.float64)
    both_IL, either_IL = true_IL * predicted_IL, true_IL + predicted_IL
    total_L = either_IL.sum(axis=0)
    used = total_L > 0
    f1_L = 2 * both_IL.sum(axis=0)[used] / total_L[used]
    influence_IL = (2 * both_IL[:, used] - f1_L * either_IL[:, used]) / total_L[used]
    return np.asarray(f1_L.mean() + len(true_IL) * influence_IL.mean(axis=1))


def auc_parts(columns: Columns) -> Floats:
    """Pseudo-values of ROC AUC; NaN throughout where no label has items on both sides."""
    probability_IL = _probabilities(columns)
    labels = [1] if probability_IL.shape[1] == 2 else range(probability_IL.shape[1])
    sides = [(probability_IL[:, label], columns[LABEL] == label) for label in labels]
    parts = [_one_against_rest(score_I, is_I) for score_I, is_I in sides if 0 < is_I.sum() < len(is_I)]
    return np.asarray(np.mean(parts, axis=0)) if parts else np.full(len(probability_IL), np.nan)


def _one_against_rest(score_I: Floats, is_I: NDArray[np.bool_]) -> Floats:
    inside, outside = score_I[is_I], score_I[~is_I]
    right_I = np.empty(len(score_I))
    right_I[is_I] = _below(outside, inside)
    right_I[~is_I] = 1 - _below(inside, outside)
    auc = right_I[is_I].mean()
    size_I = np.where(is_I, len(inside), len(outside))
    return np.asarray(auc + len(score_I) * (right_I - auc) / size_I)


def _below(scores: Floats, of: Floats) -> Floats:
    """The share of `scores` below each of `of`, ties one half."""
    ordered = np.sort(scores)
    ends = np.searchsorted(ordered, of, side="left") + np.searchsorted(ordered, of, side="right")
    return np.asarray(ends / (2 * len(ordered)))


def confusion(columns: Columns) -> list[list[int]]:
    """How many items of each label (row) were given each label (column)."""
    probability_IL = _probabilities(columns)
    counts = np.zeros((probability_IL.shape[1],) * 2, dtype=np.int64)
    np.add.at(counts, (columns[LABEL].astype(np.int64), probability_IL.argmax(axis=1)), 1)
    return [[int(count) for count in row] for row in counts]


def _probabilities(columns: Columns) -> Floats:
    """The probability of every label for every item: [I, L]."""
    labels = sum(name.startswith(PROBABILITY) for name in columns)
    return np.stack([columns[f"{PROBABILITY}{label}"] for label in range(labels)], axis=1)
