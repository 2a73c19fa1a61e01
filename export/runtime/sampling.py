"""Choosing the next token from logits: greedy, or sampled with temperature, top-k, top-p and a repetition penalty.

    penalty r    a token that was seen: logit / r where positive, logit * r where negative     (CTRL, arXiv 1909.05858)
    top-k        only the k largest logits
    top-p        only the smallest set whose probabilities sum to at least p                    (arXiv 1904.09751)

Temperature 0 is greedy. Every row draws from a generator of its own, so that its tokens do not depend on its batch-
mates.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
FIRST_LOOK = 256
"""How many of the likeliest tokens are looked at first for top-p."""


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

    @property
    def likeliest(self) -> bool:
        """Whether it is the likeliest token that is chosen, whatever was seen."""
        return self.temperature == 0 and self.repetition_penalty == 1.0

    def __post_init__(self) -> None:
        finite = math.isfinite(self.temperature) and math.isfinite(self.repetition_penalty)
        fits = self.temperature >= 0 and self.top_k >= 0 and 0 < self.top_p <= 1 and self.repetition_penalty > 0
        if not (finite and fits):
            raise ValueError(
                "expected temperature >= 0, top_k >= 0, 0 < top_p <= 1 and repetition_penalty > 0, all finite, "
                f"got {self.temperature}, {self.top_k}, {self.top_p} and {self.repetition_penalty}"
            )


def choose(logits_V: Floats, seen_V: NDArray[np.bool_], how: Sampling, random: np.random.Generator) -> int:
    """The next token's id; `seen_V` marks the tokens that the repetition penalty is for."""
    if how.repetition_penalty != 1.0:
        logits_V = penalize(logits_V, seen_V, how.repetition_penalty)
    if how.temperature == 0:
        return int(logits_V.argmax())
    scaled_V = logits_V.astype(np.float64) / how.temperature
    kept = nucleus(scaled_V, how.top_k, how.top_p)
    weights = np.exp(scaled_V[kept] - scaled_V.max())
    return int(random.choice(kept, p=weights / weights.sum()))


def penalize(logits_V: Floats, seen_V: NDArray[np.bool_], penalty: float) -> Floats:
    """A copy of the logits in which every seen token is less likely."""
    penalized_V = np.where(logits_V > 0, logits_V / penalty, logits_V * penalty)
    return np.where(seen_V, penalized_V, logits_V)


def nucleus(scaled_V: NDArray[np.float64], top_k: int, top_p: float) -> NDArray[np.int64]:
    """Ids that may be drawn: all, in their order, or the likeliest first.

    Only as many as are needed are sorted: a whole vocabulary would take longer than a step of a small model.
    """
    count = min(top_k or len(scaled_V), len(scaled_V))
    if top_p == 1 and count == len(scaled_V):
        return np.arange(count)
    weights_V = np.exp(scaled_V - scaled_V.max())
    whole = weights_V.sum() if count == len(scaled_V) else weights_V[_largest(scaled_V, count)].sum()
    found = min(FIRST_LOOK, count)
    while True:
        order = _largest(scaled_V, found)
        sums = np.cumsum(weights_V[order])
        if found == count or sums[-1] >= top_p * whole:
            return order[sums - weights_V[order] < top_p * whole] if top_p < 1 else order
        found = count if top_p == 1 else min(found * 8, count)


def _largest(scaled_V: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """The ids of the `count` largest, largest first; of equals the lower id first."""
    threshold = np.partition(scaled_V, -count)[-count]
    ids = np.flatnonzero(scaled_V >= threshold)
    return ids[np.argsort(-scaled_V[ids], kind="stable")][:count]
