"""What is looked at in a recipe's texts before anything runs: whether the test text stands in the texts that a model is
calibrated or trained on, and whether each suffices for what is asked of it, which takes the model's tokenizer.

    calibration text     as many tokens as the rows of each stage take, and none that the model has no row for
    test text            a stride that fits beside the BOS; for a gate on `noise_cost`, as many documents as it needs

Overlap: the share of a text's 13-word sequences (lower case, split at blanks) that also stand in another text, the
measure by which GPT-3's authors looked for contamination (arXiv 2005.14165, appendix C). Documents of fewer words, down
to 5, count as one sequence. A test text that the model was calibrated or trained on proves nothing, so a share of 1 %
either way is an error; below that stand the phrases that any two books share.

Not covered: languages written without blanks, paraphrases, and what the source model saw before it came here; lengths
where a recipe starts from nothing, whose tokenizer is yet to be made; training texts, of which one row is enough.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress import TextError, TextSource
from compress.text import read_documents
from evaluation.measurement import SEPARATOR
from evaluation.statistics import FEWEST_DOCUMENTS
from recipes.config.errors import KeyPath, Problem, RecipeError, raise_problems
from recipes.config.recipe import Recipe
from recipes.engine.model_source import Source
from recipes.engine.stages import StageStep
from recipes.engine.steps import Engine, Step

VERSION = 2
NOISE_COST = f"{SEPARATOR}noise_cost"
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


def check_texts(recipe: Recipe, source: Source, steps: Sequence[StageStep], engine: Engine) -> list[str]:
    """What is wrong with the texts by themselves, each of which is read once, or else for the model."""
    texts = {key: text.digest() for key, text in recipe.data if text is not None}
    step = Step(
        kind="texts", identity={"version": VERSION, "texts": texts}, make=lambda files, scratch: compare_texts(recipe)
    )
    try:
        documents = int(engine.obtain(step).metadata["documents"])
    except RecipeError as error:
        return list(error.errors)
    problems = [*_unfit_gates(recipe, 1 if recipe.evaluate.join else documents)]
    problems += _unfit_lengths(recipe, source, steps, engine)
    return [problem.text for problem in sorted(problems)]


def compare_texts(recipe: Recipe) -> dict[str, Any]:
    """Read every text and compare the test text with the others: how much each shares with it, and the number of its
    documents.

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
    found: dict[str, Any] = {"documents": len(texts.get("test", ()))}
    for key in ("calibration", "train"):
        if "test" in texts and key in texts:
            shared = overlap(texts["test"], texts[key])
            found[key] = asdict(shared)
            if max(shared.of_test, shared.of_other) >= LARGEST_SHARE:
                problems.append(recipe.where.problem(("data", key), _shares(shared)))
    raise_problems(problems)
    return found


def _unfit_gates(recipe: Recipe, documents: int) -> Iterator[Problem]:
    text = (
        f"expected a test text of at least {FEWEST_DOCUMENTS} documents, over which the cost of noise is told, got "
        f"{documents}; part them by lines of <|endoftext|>, leave `join` out, or drop the gate"
    )
    for metric in recipe.gate if documents < FEWEST_DOCUMENTS else ():
        if metric.endswith(NOISE_COST):
            yield recipe.where.problem(("gate", metric), text)


def _unfit_lengths(recipe: Recipe, source: Source, steps: Sequence[StageStep], engine: Engine) -> list[Problem]:
    """What is too short for the model, or does not fit it; found once for the same model, text and knobs."""
    checkpoint, evaluate, text = source.checkpoint, recipe.evaluate, recipe.data.calibration
    if checkpoint is None:
        return []
    rows = {step.index: wanted for step in steps if text is not None and (wanted := _rows(step)) is not None}
    identity = {"version": VERSION, "model": source.key, "text": text.digest() if text and rows else None}
    identity |= {"rows": [*rows.items()], "cut": [evaluate.window, evaluate.stride, evaluate.bos]}

    def look(files: Path, scratch: Path) -> dict[str, Any]:
        from compress.models.calibration import rows_of_model
        from recipes.measure.text_windows import beginnings

        found: list[tuple[KeyPath, str]] = []
        if evaluate.stride is not None:
            room = evaluate.window - len(beginnings(checkpoint.tokenizer, evaluate.bos))
            expected = f"expected at most {room}, the tokens of text in a window, since a BOS stands before them"
            if evaluate.stride > room:
                found.append((("evaluate", "stride"), f"{expected}, got {evaluate.stride}"))
        for index, (count, length) in rows.items():
            assert text is not None
            try:
                rows_of_model(checkpoint, text, count, length)
            except TextError as error:
                found.append((("stages", index, recipe.stages[index].kind), str(error)))
        return {"problems": found}

    problems = engine.obtain(Step(kind="lengths", identity=identity, make=look)).metadata["problems"]
    return [recipe.where.problem(tuple(path), wrong) for path, wrong in problems]


def _rows(step: StageStep) -> tuple[int, int] | None:
    """How many rows of how many tokens a stage takes of the calibration text, where its knobs say so."""
    rows, length = (getattr(step.config, name, None) for name in ("rows", "length"))
    if rows is None or length is None or "calibration_text" not in step.stage.inputs_read(step.config):
        return None
    return rows, length


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
