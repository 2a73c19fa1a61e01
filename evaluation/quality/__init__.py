"""What compression cost in quality, on anything that scores tokens."""

from evaluation.quality.scoring import Scorer, TokenScores, score
from evaluation.quality.tokens import (
    AGREE,
    BASELINE_CORRECT,
    BASELINE_NLL,
    CHANGES,
    CORRECT,
    KL,
    NLL,
    RATIOS,
    STATISTICS,
    TOKENS,
    quality_measurements,
)
from evaluation.quality.windows import PAD, Select, Windows, windows_of

__all__ = [
    "AGREE",
    "BASELINE_CORRECT",
    "BASELINE_NLL",
    "CHANGES",
    "CORRECT",
    "KL",
    "NLL",
    "PAD",
    "RATIOS",
    "STATISTICS",
    "TOKENS",
    "Scorer",
    "Select",
    "TokenScores",
    "Windows",
    "quality_measurements",
    "score",
    "windows_of",
]
