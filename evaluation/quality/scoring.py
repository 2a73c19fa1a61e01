"""From a callable that gives scores to what it made of every token. With x the next token and the scores z_v:

    nll = -log q(x) = (max z - z_x) + log(1 + sum_{v not the first} exp(z_v - max z))
    rank = number of v with z_v >= z_x but x           kl = sum_v p(v) log (p(v) / q(v))
    correct = [rank = 0]                        agree = [argmax q = argmax p]

p is the baseline's distribution, q the model's, over the whole vocabulary. The exponentials are taken in float32 and
summed without that of the first token, which is exactly 1, so that also a small nll keeps its digits: it is within
1e-6 of float64's, relatively. With c = log sum exp of the baseline's scores less that of the model's,

    kl = sum_v p(v) (z'_v - z_v - c)            z' the baseline's scores

whose terms are as small as the difference of the two is: kl is within 1e-6 nat of float64's, 1e-7 where the scores are
of one kind (c is small). Rows in which one model rules out what the other does not are worked out again in float64.

A few rows at a time are treated, as many as the processor's cache holds, on all cores, and only one batch of scores of
each model is held. The last token of a window is never fed: nothing is asked after it.

Legend: B windows of a batch, T positions, V vocabulary, N scored tokens, R rows at a time, S lanes of a sum.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.machine import available_cores
from evaluation.quality.arrays import ArrayFile
from evaluation.quality.windows import Ids, Windows
from evaluation.statistics import Floats

Scores = NDArray[np.float32]
Scorer = Callable[[Ids], Scores]
"""From token ids [B, T], right padded, to scores of the next token [B, T, V]: logits or log-probabilities."""

_SCORES_AT_ONCE = 100_000
_POSITIONS_OF_A_JOB = 64
_LANES = 1024


@dataclass(frozen=True, eq=False)
class TokenScores(ArrayFile):
    """What a model made of every scored token, in the order of the windows: arrays of shape [N]."""

    nll: Floats
    """Negative log-likelihood in nats."""
    rank: Ids
    """How many tokens it found likelier than the one that came."""
    agree: NDArray[np.bool_]
    """True throughout if the model was its own baseline."""
    kl: Floats
    """KL(baseline || model) in nats; zero throughout if the model was its own baseline."""
    bytes: Ids
    """Of text that each token stands for; zero throughout if that is not known."""
    words: Ids
    """That begin in each token; zero throughout if that is not known."""
    document: Ids
    window: Ids
    digest: str
    """Of the windows that were scored."""


def score(
    model: Scorer,
    windows: Windows,
    baseline: Scorer | None = None,
    *,
    batch: int = 8,
    on_batch: Callable[[int], None] = lambda windows: None,
) -> TokenScores:
    """Score every window, `batch` at a time, by the model and, for agreement and KL, by the baseline.

    Args:
        baseline: None scores the baseline itself.
        on_batch: told how many windows were scored just now.

    Raises:
        ValueError: the scores have the wrong shape, or model and baseline differ in vocabulary.
    """
    columns = _Columns.empty(windows.tokens)
    window = np.repeat(np.arange(len(windows)), windows.scored_W)
    before_W = np.cumsum(windows.scored_W) - windows.scored_W
    with ThreadPoolExecutor(available_cores()) as pool:
        for start in range(0, len(windows), batch):
            length_B, first_B = windows.length_W[start : start + batch], windows.first_W[start : start + batch]
            ids_BT = np.ascontiguousarray(windows.ids_WT[start : start + batch, : length_B.max()])
            model_BTV = _scores(model, ids_BT)
            baseline_BTV = None if baseline is None else _scores(baseline, ids_BT)
            _check_vocabularies(model_BTV, baseline_BTV)
            jobs = [
                pool.submit(
                    columns.fill,
                    int(before_W[start + row] + at + 1 - first),
                    model_BTV[row, at:stop],
                    None if baseline_BTV is None else baseline_BTV[row, at:stop],
                    ids_BT[row, at + 1 : stop + 1],
                )
                for row, (first, length) in enumerate(zip(first_B, length_B, strict=True))
                for at, stop in _pieces(int(first) - 1, int(length) - 1, _POSITIONS_OF_A_JOB)
            ]
            for job in jobs:
                job.result()
            del jobs, model_BTV, baseline_BTV  # before the next batch of scores is made
            on_batch(len(length_B))
    return TokenScores(
        nll=columns.nll_N,
        rank=columns.rank_N,
        agree=columns.agree_N,
        kl=columns.kl_N,
        bytes=windows.bytes_N,
        words=windows.words_N,
        document=windows.document_W[window],
        window=window,
        digest=windows.digest(),
    )


def _pieces(start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    for at in range(start, stop, size):
        yield at, min(at + size, stop)


def _scores(scorer: Scorer, ids_BT: Ids) -> Scores:
    """Scores after every token but the last, for which no next one is known."""
    fed_BT = np.ascontiguousarray(ids_BT[:, :-1])
    scores_BTV = scorer(fed_BT)
    if scores_BTV.ndim != 3 or scores_BTV.shape[:2] != fed_BT.shape:
        raise ValueError(f"expected scores of shape {fed_BT.shape} x vocabulary, got {scores_BTV.shape}")
    if ids_BT.max() >= scores_BTV.shape[2]:
        raise ValueError(f"expected token ids below the vocabulary of {scores_BTV.shape[2]}, got {ids_BT.max()}")
    return scores_BTV


def _check_vocabularies(model_BTV: Scores, baseline_BTV: Scores | None) -> None:
    if baseline_BTV is not None and baseline_BTV.shape != model_BTV.shape:
        sizes = f"{baseline_BTV.shape[2]} and {model_BTV.shape[2]} tokens"
        raise ValueError(f"expected one vocabulary for baseline and model, got {sizes}: they cannot be compared")


@dataclass(frozen=True, eq=False)
class _Columns:
    """The figures of all tokens, filled piece by piece."""

    nll_N: Floats
    rank_N: Ids
    agree_N: NDArray[np.bool_]
    kl_N: Floats

    @classmethod
    def empty(cls, tokens: int) -> "_Columns":
        return cls(
            np.empty(tokens), np.empty(tokens, np.int64), np.ones(tokens, dtype=np.bool_), np.zeros(tokens, np.float64)
        )

    def fill(self, at: int, model_PV: Scores, baseline_PV: Scores | None, target_P: Ids) -> None:
        """The figures of some positions, which are those from `at` on."""
        vocabulary = model_PV.shape[1]
        rows = max(1, _SCORES_AT_ONCE // vocabulary)
        own, against = Exponentials(rows, vocabulary), Exponentials(rows, vocabulary)
        with np.errstate(all="ignore"):  # NaN and inf of a broken model travel on, and are reported as invalid
            for start, stop in _pieces(0, len(target_P), rows):
                here, model_RV, target_R = slice(at + start, at + stop), model_PV[start:stop], target_P[start:stop]
                first_R = own.take(model_RV)
                self.nll_N[here], self.rank_N[here] = own.target(model_RV, target_R)
                if baseline_PV is not None:
                    baseline_RV = baseline_PV[start:stop]
                    self.agree_N[here] = first_R == against.take(baseline_RV)
                    self.kl_N[here] = _divergence(against, baseline_RV, own, model_RV)


class Exponentials:
    """exp(scores - largest) of a few rows in memory that is used again and again, and what follows from them."""

    largest_R: Floats
    rest_R: Floats
    """The sum of all but the first, of which the exponential is 1."""

    def __init__(self, rows: int, vocabulary: int) -> None:
        self._vocabulary = vocabulary
        self._lanes = min(_LANES, vocabulary)
        padded = -(-vocabulary // self._lanes) * self._lanes
        self._padded_RV = np.zeros((rows, padded), dtype=np.float32)
        self._below_RV = np.empty((rows, vocabulary), dtype=np.bool_)

    def take(self, scores_RV: Scores) -> Ids:
        """Look at these rows; the first-ranked token of each."""
        rows = np.arange(len(scores_RV))
        self.taken_RV = self._padded_RV[: len(rows), : self._vocabulary]
        self._first_R = scores_RV.argmax(axis=1)
        largest_R = scores_RV[rows, self._first_R]
        self.largest_R = largest_R.astype(np.float64)
        np.subtract(scores_RV, largest_R[:, None], out=self.taken_RV)
        np.exp(self.taken_RV, out=self.taken_RV)
        spoiled_R = self.taken_RV[rows, self._first_R] != 1  # NaN, or an infinite score
        self.taken_RV[rows, self._first_R] = np.where(spoiled_R, np.float32("nan"), np.float32(0))
        self.rest_R = self.sum()
        return np.asarray(self._first_R)

    def sum(self) -> Floats:
        """Of the memory's rows as they are now: lanes are added up in float32, and their sums in float64."""
        rows_RSL = self._padded_RV[: len(self._first_R)].reshape(len(self._first_R), -1, self._lanes)
        return np.asarray(rows_RSL.sum(axis=1).sum(axis=1, dtype=np.float64))

    def target(self, scores_RV: Scores, target_R: Ids) -> tuple[Floats, Ids]:
        """Negative log-likelihood and rank of each target; a tie counts against it, or a constant would be right."""
        scores_R = scores_RV[np.arange(len(target_R)), target_R]
        below_RV = np.less(scores_RV, scores_R[:, None], out=self._below_RV[: len(target_R)])
        rank_R = scores_RV.shape[1] - 1 - np.array([np.count_nonzero(below_V) for below_V in below_RV], dtype=np.int64)
        return (self.largest_R - scores_R) + np.log1p(self.rest_R), rank_R

    def log_sum(self) -> Floats:
        """log sum exp of each row's scores."""
        return np.asarray(self.largest_R + np.log1p(self.rest_R))

    def expectation(self, values_RV: Scores) -> Floats:
        """sum_v p(v) values_v; the exponentials are spent."""
        first_R = values_RV[np.arange(len(values_RV)), self._first_R].astype(np.float64)
        np.multiply(self.taken_RV, values_RV, out=self.taken_RV)  # the first's exponential is 0 here
        return np.asarray((first_R + self.sum()) / (1 + self.rest_R))


def _divergence(p: Exponentials, baseline_RV: Scores, q: Exponentials, model_RV: Scores) -> Floats:
    """KL(p || q) of each row; what both have taken is spent."""
    shift_R = p.log_sum() - q.log_sum()
    rounded_R = shift_R.astype(np.float32)
    difference_RV = np.subtract(baseline_RV, model_RV, out=q.taken_RV)
    difference_RV -= rounded_R[:, None]
    kl_R = p.expectation(difference_RV) + (rounded_R - shift_R)
    for row in np.flatnonzero(~np.isfinite(kl_R)):
        kl_R[row] = _exact_divergence(baseline_RV[row].astype(np.float64), model_RV[row].astype(np.float64))
    return np.maximum(kl_R, 0.0)


def _exact_divergence(baseline_V: Floats, model_V: Floats) -> float:
    """Infinite where the model rules out what the baseline does not; what the baseline rules out counts nothing."""
    log_p_V, log_q_V = (
        scores_V - scores_V.max() - np.log(np.exp(scores_V - scores_V.max()).sum())
        for scores_V in (baseline_V, model_V)
    )
    p_V = np.exp(log_p_V)
    return float((p_V * np.where(p_V > 0, log_p_V - log_q_V, 0.0)).sum())
