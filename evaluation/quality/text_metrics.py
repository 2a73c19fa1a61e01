"""Generated text against a reference, and against itself: figures of one text each.

    BLEU              counts of matching and of all n-grams, n = 1 to 4, and both lengths, as sacrebleu takes them (its
                      default tokenizer 13a, one reference); the score is that of the sums, 0 to 100:
                      min(1, exp(1 - reference / length)) exp(mean_n log precision_n), where the k-th order without a
                      match counts as 1 / 2^k of a match
    ROUGE-1, -2, -L   F measures of rouge-score, words stemmed
    repetition        share of a text's 4-grams of words that stood in it before
    distinct-n        different n-grams of words per n-gram; 0 for a text that has none

Papers: Papineni et al. 2002; Post 2018 (sacrebleu); Lin 2004 (ROUGE); Li et al. 2016 (distinct-n).

Not covered: several references for one text; languages without spaces, whose words these tokenizers do not find.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from evaluation.statistics import Floats

ORDERS = 4
BLEU_COUNTS = (
    "bleu.length",
    "bleu.reference",
    *(f"bleu.matches.{n}" for n in range(1, ORDERS + 1)),
    *(f"bleu.total.{n}" for n in range(1, ORDERS + 1)),
)
"""Columns that `bleu` takes the sums of, in this order."""
ROUGE = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}


def overlap_columns(texts: Sequence[str], references: Sequence[str]) -> dict[str, Floats]:
    """Every figure of every text: [I] each.

    Raises:
        ImportError: sacrebleu or rouge-score is not installed.
    """
    rows = [_overlap(text, reference) for text, reference in zip(texts, references, strict=True)]
    return {name: np.array([row[name] for row in rows], dtype=np.float64) for name in rows[0]}


def _overlap(text: str, reference: str) -> dict[str, float]:
    words = text.split()
    return {
        **_bleu_counts(text, reference),
        **_rouge(text, reference),
        "repetition": 1 - _distinct(words, 4) if len(words) >= 4 else 0.0,
        "distinct_1": _distinct(words, 1),
        "distinct_2": _distinct(words, 2),
    }


def _distinct(words: Sequence[str], n: int) -> float:
    grams = list(zip(*(words[start:] for start in range(n)), strict=False))
    return len(set(grams)) / len(grams) if grams else 0.0


def _bleu_counts(text: str, reference: str) -> dict[str, float]:
    from sacrebleu.metrics.bleu import BLEU

    found: Any = BLEU().corpus_score([text], [[reference]])
    return dict(zip(BLEU_COUNTS, [found.sys_len, found.ref_len, *found.counts, *found.totals], strict=True))


def _rouge(text: str, reference: str) -> dict[str, float]:
    from rouge_score.rouge_scorer import RougeScorer

    found = RougeScorer(list(ROUGE.values()), use_stemmer=True).score(reference, text)
    return {name: float(found[theirs].fmeasure) for name, theirs in ROUGE.items()}


def bleu(sums: Any) -> Any:
    """BLEU of summed counts [..., 10], as `sacrebleu.corpus_bleu` has it; real to real and complex to complex."""
    length, reference = sums[..., 0], sums[..., 1]
    matches, total = sums[..., 2 : 2 + ORDERS], sums[..., 2 + ORDERS :]
    none = matches.real == 0
    smoothed = np.where(none, 0.5 ** np.cumsum(none, axis=-1), matches)
    precision = smoothed / np.where(total.real == 0, 1, total)
    penalty = np.where(length.real < reference.real, np.exp(1 - reference / np.where(length.real == 0, 1, length)), 1)
    score = 100 * penalty * np.exp(np.log(precision).mean(axis=-1))
    return np.where(none.all(axis=-1) | (total.real == 0).any(axis=-1), 0, score)
