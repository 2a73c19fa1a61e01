"""Whether the test text stands in the texts that a model is calibrated or trained on.

Overlap: the share of a text's 13-word sequences (lower case, split at blanks) that also stand in another text, the
measure by which GPT-3's authors looked for contamination (arXiv 2005.14165, appendix C). Documents of fewer words, down
to 5, count as one sequence. A test text that the model was calibrated or trained on proves nothing, so a share of 1 %
either way is an error; below that stand the phrases that any two books share.

Not covered: languages written without blanks, paraphrases, and what the source model saw before it came here.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress import TextError, TextSource
from compress.text import read_documents
from recipes.config.errors import Problem, RecipeError, raise_problems
from recipes.config.recipe import Recipe
from recipes.engine.steps import Engine, Step

VERSION = 1
WORDS = 13
FEWEST = 5
LARGEST_SHARE = 0.01
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_GAP = 0
"""Stands between documents; no word has this hash."""
Hashes = NDArray[np.uint64]


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """How much two texts share."""

    of_test: float
    """Share of the test text's sequences that stand in the other."""
    of_other: float
    """Share of the other's sequences that stand in the test text."""
    example: str
    """A sequence of words that both have; empty where there is none."""


def check_overlaps(recipe: Recipe, engine: Engine) -> list[str]:
    """What is wrong with the texts; they are read once."""
    texts = {key: text.digest() for key, text in recipe.data if text is not None}

    def overlaps(files: Path, scratch: Path) -> dict[str, Any]:
        return {key: asdict(overlap) for key, overlap in check_texts(recipe).items()}

    try:
        engine.obtain(Step(kind="texts", identity={"version": VERSION, "texts": texts}, make=overlaps))
    except RecipeError as error:
        return list(error.errors)
    return []


def check_texts(recipe: Recipe) -> dict[str, Overlap]:
    """Read every text and compare the test text with the others: how much each shares with it.

    Raises:
        RecipeError: a text cannot be read, is empty or binary, or shares too much with the test text.
    """
    problems: list[Problem] = []
    texts: dict[str, list[str]] = {}
    for key, source in recipe.data:
        if isinstance(source, TextSource):
            try:
                texts[key] = read_documents(source)
            except TextError as error:
                problems.append(recipe.where.problem(("data", key), str(error)))
    overlaps: dict[str, Overlap] = {}
    for key in ("calibration", "train"):
        if "test" in texts and key in texts:
            overlaps[key] = found = overlap(texts["test"], texts[key])
            if max(found.of_test, found.of_other) >= LARGEST_SHARE:
                problems.append(recipe.where.problem(("data", key), _shares(found)))
    raise_problems(problems)
    return overlaps


def _shares(found: Overlap) -> str:
    return (
        "expected a text apart from data.test, "
        f"got one that holds {found.of_test:.1%} of it ({found.of_other:.1%} of this text), "
        f'such as "{found.example}"; split the texts by document'
    )


def overlap(test: Sequence[str], other: Sequence[str]) -> Overlap:
    """How much two texts share, by sequences of 13 words."""
    test_N, first_N, words = _sequences(test)
    other_M, _, _ = _sequences(other)
    shared = np.intersect1d(test_N, other_M)
    in_test_N, in_other_M = np.isin(test_N, shared), np.isin(other_M, shared)
    if not shared.size:
        return Overlap(of_test=0.0, of_other=0.0, example="")
    start = int(first_N[int(in_test_N.argmax())])
    return Overlap(
        of_test=float(in_test_N.mean()),
        of_other=float(in_other_M.mean()),
        example=" ".join(word for word in words[start : start + WORDS] if word),
    )


def _sequences(documents: Sequence[str]) -> tuple[Hashes, NDArray[np.int64], list[str]]:
    """(hash of every sequence, index of its first word, words with an empty one between documents)."""
    words: list[str] = []
    short: dict[int, int] = {}
    for document in documents:
        own = document.lower().split()
        if FEWEST <= len(own) < WORDS:
            short[len(words)] = len(own)
        words += [*own, ""]
    hash_W = np.fromiter((_hash(word) if word else _GAP for word in words), dtype=np.uint64, count=len(words))
    count = max(0, len(words) - WORDS + 1)
    hash_N = np.zeros(count, dtype=np.uint64)
    for offset in range(WORDS):
        hash_N = hash_N * _FACTOR + hash_W[offset : offset + count]
    gaps = np.concatenate([[0], np.cumsum([not word for word in words])]) if words else np.zeros(1, dtype=np.int64)
    whole_K = np.flatnonzero(gaps[WORDS:] == gaps[: len(gaps) - WORDS]) if count else np.zeros(0, dtype=np.int64)
    brief = [_hash(tuple(words[start : start + length])) for start, length in short.items()]
    hashes = np.concatenate([hash_N[whole_K], np.array(brief, dtype=np.uint64)])
    return hashes, np.concatenate([whole_K, np.array(list(short), dtype=np.int64)]).astype(np.int64), words


def _hash(value: object) -> int:
    """Python's own hash as 64 unsigned bits: it differs between processes, and is never stored."""
    return hash(value) & (2**64 - 1)
