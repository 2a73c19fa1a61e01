"""What compression cost in quality: perplexity, next-token accuracy, agreement and KL divergence against the baseline.

Text is cut into windows that do not overlap. A window's first token has nothing before it and is not scored; every
later one is, given the tokens before it in the same window. So the perplexity depends on the window's length, which
belongs into `method`. With x the next token:

    nll = -log q(x)                       correct = [argmax q = x]
    kl = sum_v p(v) log (p(v) / q(v))     agree = [argmax q = argmax p]

p is the baseline's distribution, q the model's, over the whole vocabulary. Both are made from float32 scores in float64
and streamed: only one batch of scores of each is held at a time. Reported are token averages, with intervals over
documents (`statistics.py`).

Not covered: strided windows (more context per token, many times the work), and word perplexity.

Legend: W windows, B windows of a batch, T positions, V vocabulary, N scored tokens.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from evaluation.measurement import METRICS, Change, Measurement, Ratio
from evaluation.statistics import Bootstrap, Floats, Scale, Statistic, Units, units_of

Scorer = Callable[[NDArray[np.int64]], NDArray[np.float32]]
"""From token ids [B, T], right padded, to scores of the next token [B, T, V]: logits or log-probabilities."""

Select = Literal["even", "first"]
PAD = 0
_SCORES_AT_ONCE = 4_000_000


@dataclass(frozen=True, eq=False)
class Windows:
    """Pieces of text to score: ids_WT int64, right padded; the length and the document of each."""

    ids_WT: NDArray[np.int64]
    length_W: NDArray[np.int64]
    document_W: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.length_W)

    @property
    def tokens(self) -> int:
        """How many tokens are scored."""
        return int((self.length_W - 1).sum())

    def digest(self) -> str:
        """sha256 (hex) of everything in it: scores are paired if and only if their windows' digests agree."""
        digest = hashlib.sha256(repr(self.ids_WT.shape).encode())
        for array in (self.ids_WT, self.length_W, self.document_W):
            digest.update(np.ascontiguousarray(array, dtype="<i8").tobytes())
        return digest.hexdigest()


def windows_of(
    documents: Sequence[NDArray[np.int64]],
    *,
    length: int,
    count: int | None = None,
    select: Select = "even",
    join: bool = False,
) -> Windows:
    """Cut documents (token ids, shape (tokens,) each) into windows of at most `length` tokens; none crosses a document.

    Args:
        count: how many windows to keep; None, or more than there are: all of them.
        select: keep them spread evenly over the whole text, or the first.
        join: treat the documents as one stream, as the published WikiText-2 figures do.

    Raises:
        ValueError: `length` or `count` is too small, or the text holds no window of two tokens.
    """
    if length < 2 or (count is not None and count < 1):
        raise ValueError(
            f"expected windows of at least 2 tokens and at least one window, got length {length}, count {count}"
        )
    texts = [np.concatenate(documents)] if join and documents else documents
    cuts = [
        (document, start, min(start + length, len(ids)))
        for document, ids in enumerate(texts)
        for start in range(0, len(ids) - 1, length)
    ]
    if not cuts:
        raise ValueError("expected text of at least two tokens, got none; give a longer test text")
    if count is not None and count < len(cuts):
        cuts = cuts[:count] if select == "first" else [cuts[index * len(cuts) // count] for index in range(count)]
    ids_WT = np.full((len(cuts), length), PAD, dtype=np.int64)
    for row_T, (document, start, stop) in zip(ids_WT, cuts, strict=True):
        row_T[: stop - start] = texts[document][start:stop]
    return Windows(
        ids_WT,
        length_W=np.array([stop - start for _, start, stop in cuts], dtype=np.int64),
        document_W=np.array([document for document, _, _ in cuts], dtype=np.int64),
    )


@dataclass(frozen=True, eq=False)
class TokenScores:
    """What a model made of every scored token, in the order of the windows: arrays of shape [N]."""

    nll: NDArray[np.float64]
    """Negative log-likelihood in nats."""
    correct: NDArray[np.bool_]
    agree: NDArray[np.bool_]
    """True throughout if the model was its own baseline."""
    kl: NDArray[np.float64]
    """KL(baseline || model) in nats; zero throughout if the model was its own baseline."""
    document: NDArray[np.int64]
    window: NDArray[np.int64]
    digest: str
    """Of the windows that were scored."""

    def save(self, file: Path) -> None:
        """Write a compressed .npz without pickled objects."""
        with file.open("wb") as stream:
            arrays: dict[str, Any] = {field.name: np.asarray(getattr(self, field.name)) for field in fields(self)}
            np.savez_compressed(stream, **arrays)

    @classmethod
    def load(cls, file: Path) -> "TokenScores":
        """Read what `save` wrote; a file with pickled objects in it is refused (ValueError)."""
        with np.load(file, allow_pickle=False) as arrays:
            return cls(
                **{name: arrays[name] for name in arrays.files if name != "digest"}, digest=str(arrays["digest"])
            )


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
    columns: list[tuple[NDArray[np.float64], ...]] = []
    for start in range(0, len(windows), batch):
        length_B = windows.length_W[start : start + batch]
        ids_BT = np.ascontiguousarray(windows.ids_WT[start : start + batch, : length_B.max()])
        scored_BT = np.arange(1, ids_BT.shape[1])[None, :] < length_B[:, None]
        model_NV = _scores(model, ids_BT)[:, :-1][scored_BT]
        baseline_NV = None if baseline is None else _scores(baseline, ids_BT)[:, :-1][scored_BT]
        columns.extend(_compare(model_NV, baseline_NV, ids_BT[:, 1:][scored_BT]))
        on_batch(len(length_B))
    nll, correct, agree, kl = (np.concatenate(column) for column in zip(*columns, strict=True))
    window = np.repeat(np.arange(len(windows)), windows.length_W - 1)
    return TokenScores(
        nll=nll,
        correct=correct.astype(np.bool_),
        agree=agree.astype(np.bool_),
        kl=kl,
        document=windows.document_W[window],
        window=window,
        digest=windows.digest(),
    )


def _scores(scorer: Scorer, ids_BT: NDArray[np.int64]) -> NDArray[np.float32]:
    scores_BTV = scorer(ids_BT)
    if scores_BTV.ndim != 3 or scores_BTV.shape[:2] != ids_BT.shape:
        raise ValueError(f"expected scores of shape {ids_BT.shape} x vocabulary, got {scores_BTV.shape}")
    if ids_BT.max() >= scores_BTV.shape[2]:
        raise ValueError(f"expected token ids below the vocabulary of {scores_BTV.shape[2]}, got {ids_BT.max()}")
    return scores_BTV


def _compare(
    model_NV: NDArray[np.float32], baseline_NV: NDArray[np.float32] | None, target_N: NDArray[np.int64]
) -> list[tuple[NDArray[np.float64], ...]]:
    """Columns (nll, correct, agree, kl) for a few rows at a time, so that float64 copies stay small."""
    if baseline_NV is not None and baseline_NV.shape != model_NV.shape:
        sizes = f"{baseline_NV.shape[1]} and {model_NV.shape[1]} tokens"
        raise ValueError(f"expected one vocabulary for baseline and model, got {sizes}: they cannot be compared")
    rows = max(1, _SCORES_AT_ONCE // model_NV.shape[1])
    return [
        _compare_rows(
            model_NV[start : start + rows].astype(np.float64),
            None if baseline_NV is None else baseline_NV[start : start + rows].astype(np.float64),
            target_N[start : start + rows],
        )
        for start in range(0, len(model_NV), rows)
    ]


def _compare_rows(model_NV: Floats, baseline_NV: Floats | None, target_N: NDArray[np.int64]) -> tuple[Floats, ...]:
    first_N = model_NV.argmax(axis=1)
    model_sum_N = _log_sum_exp(model_NV)
    with np.errstate(
        invalid="ignore"
    ):  # a broken model's NaN and inf travel on and are reported as an invalid measurement
        nll_N = model_sum_N - model_NV[np.arange(len(target_N)), target_N]
        correct_N = (first_N == target_N).astype(np.float64)
        if baseline_NV is None:
            return nll_N, correct_N, np.ones_like(nll_N), np.zeros_like(nll_N)
        baseline_sum_N = _log_sum_exp(baseline_NV)
        p_NV = np.exp(baseline_NV - baseline_sum_N[:, None])
        difference_NV = np.where(p_NV > 0, baseline_NV - model_NV, 0.0)
        kl_N = (p_NV * difference_NV).sum(axis=1) + (model_sum_N - baseline_sum_N)
    return nll_N, correct_N, (first_N == baseline_NV.argmax(axis=1)).astype(np.float64), np.maximum(kl_N, 0.0)


def _log_sum_exp(scores_NV: Floats) -> Floats:
    with np.errstate(invalid="ignore"):  # see _compare_rows
        largest_N1 = scores_NV.max(axis=1, keepdims=True)
        return np.asarray(largest_N1[:, 0] + np.log(np.exp(scores_NV - largest_N1).sum(axis=1)))


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
