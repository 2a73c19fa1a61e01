"""Choosing the next token from logits: greedy, or sampled with temperature, top-k, top-p and a repetition penalty.

    penalty r    a token that was seen: logit / r where positive, logit * r where negative     (CTRL, arXiv 1909.05858)
    top-k        only the k largest logits
    top-p        only the smallest set whose probabilities sum to at least p                    (arXiv 1904.09751)

Temperature 0 is greedy. Every row draws from a generator of its own, so that its tokens do not depend on its batch-
mates.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen."""

    temperature: float = 0.0
    """0: greedy."""
    top_k: int = 0
    """0: no limit."""
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1 or self.repetition_penalty <= 0:
            raise ValueError(
                "expected temperature >= 0, top_k >= 0, 0 < top_p <= 1 and repetition_penalty > 0, "
                f"got {self.temperature}, {self.top_k}, {self.top_p} and {self.repetition_penalty}"
            )


def choose(logits_V: NDArray[np.float32], seen: Sequence[int], how: Sampling, random: np.random.Generator) -> int:
    """The next token's id."""
    if how.repetition_penalty != 1.0 and seen:
        logits_V = penalize(logits_V, seen, how.repetition_penalty)
    if how.temperature == 0:
        return int(logits_V.argmax())
    scaled_V = logits_V.astype(np.float64) / how.temperature
    kept = nucleus(scaled_V, how.top_k, how.top_p)
    weights = np.exp(scaled_V[kept] - scaled_V[kept[0]])
    return int(random.choice(kept, p=weights / weights.sum()))


def penalize(logits_V: NDArray[np.float32], seen: Sequence[int], penalty: float) -> NDArray[np.float32]:
    """A copy of the logits in which every seen token is less likely."""
    ids = np.unique(np.asarray(seen, dtype=np.int64))
    result = logits_V.copy()
    result[ids] = np.where(result[ids] > 0, result[ids] / penalty, result[ids] * penalty)
    return result


def nucleus(scaled_V: NDArray[np.float64], top_k: int, top_p: float) -> NDArray[np.int64]:
    """Ids that may be drawn, the likeliest first."""
    order = np.argsort(-scaled_V, kind="stable")
    if top_k:
        order = order[:top_k]
    if top_p < 1:
        weights = np.exp(scaled_V[order] - scaled_V[order[0]])
        before = np.cumsum(weights) - weights
        order = order[before < top_p * weights.sum()]
    return order
