"""Metrics of the test text that other packages bring: the mean over its tokens of something made of their scores.

    value = sum of x / tokens     ratio = sum of x / sum of the baseline's x     change = the difference of the means

with intervals over documents, as of our own. `recipes` fills `TOKEN_METRICS` with what is installed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from evaluation.measurement import Metric
from evaluation.quality.scoring import TokenScores
from evaluation.statistics import Floats, Statistic


@dataclass(frozen=True, kw_only=True)
class TokenMetric:
    """A metric of the test text."""

    metric: Metric
    """Its name, unit and direction, with more="documents"."""
    of_tokens: Callable[[TokenScores], Floats]
    """From the scores of N tokens to a number each: float64 [N], all finite."""


TOKEN_METRICS: dict[str, TokenMetric] = {}
TOKENS, OWN, BASELINE = range(3)
"""Columns of the sums: 1, x, and the baseline's x."""
VALUE: Statistic = lambda sums: sums[..., OWN] / sums[..., TOKENS]  # noqa: E731
RATIO: Statistic = lambda sums: sums[..., OWN] / sums[..., BASELINE]  # noqa: E731
CHANGE: Statistic = lambda sums: (sums[..., OWN] - sums[..., BASELINE]) / sums[..., TOKENS]  # noqa: E731


def columns(name: str, scores: TokenScores, baseline: TokenScores | None) -> tuple[Floats, Floats, Floats]:
    """The columns of a metric, [N] each; without a baseline the model's own stand in its place.

    Raises:
        ValueError: the metric gives something else than a number for each token.
    """
    own_N, against_N = (_checked(name, found) for found in (scores, scores if baseline is None else baseline))
    return np.ones(len(scores.nll)), own_N, against_N


def _checked(name: str, scores: TokenScores) -> Floats:
    found_N = np.asarray(TOKEN_METRICS[name].of_tokens(scores), dtype=np.float64)
    if found_N.shape != scores.nll.shape or not np.isfinite(found_N).all():
        raise ValueError(f"{name}: expected a finite number for each of {len(scores.nll)} tokens, got {found_N.shape}")
    return found_N
