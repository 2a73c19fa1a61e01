"""What compression cost in quality, on anything that scores tokens: one file for each subject.

windows      text cut into what is scored          amounts       bytes and words that a token stands for
scoring      what a model made of every token      tokens        perplexity and the like, with intervals
noise        the same under typos, case, cuts      worst_tokens       which tokens and documents lost most
likelihood   of continuations                      items         tasks, labels, generation: one sample an item
"""

from evaluation.quality.custom_metrics import TokenMetric
from evaluation.quality.robustness import NOISES, describe_noise, noise_measurements, noised
from evaluation.quality.scoring import Scorer, TokenScores, score
from evaluation.quality.text_amounts import amounts_of
from evaluation.quality.token_metrics import BASELINE_NLL, NLL, RATIOS, STATISTICS, TOKENS, quality_measurements
from evaluation.quality.windows import Select, Windows, windows_of
from evaluation.quality.worst_tokens import worst_tokens

__all__ = [
    "BASELINE_NLL",
    "NLL",
    "NOISES",
    "RATIOS",
    "STATISTICS",
    "TOKENS",
    "Scorer",
    "Select",
    "TokenMetric",
    "TokenScores",
    "Windows",
    "amounts_of",
    "describe_noise",
    "noise_measurements",
    "noised",
    "quality_measurements",
    "score",
    "windows_of",
    "worst_tokens",
]
