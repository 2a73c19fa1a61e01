"""From a callable that gives scores to what it made of every token. With x the next token:

    nll = -log q(x)                       correct = [argmax q = x]
    kl = sum_v p(v) log (p(v) / q(v))     agree = [argmax q = argmax p]

p is the baseline's distribution, q the model's, over the whole vocabulary. Both are made from float32 scores in float64
and streamed: only one batch of scores of each is held at a time.

Legend: B windows of a batch, T positions, V vocabulary, N scored tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.quality.windows import Windows
from evaluation.statistics import Floats

Scorer = Callable[[NDArray[np.int64]], NDArray[np.float32]]
"""From token ids [B, T], right padded, to scores of the next token [B, T, V]: logits or log-probabilities."""

_SCORES_AT_ONCE = 4_000_000


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
