"""Whether the texts suffice for what is asked of them, known before anything runs: it takes the model's tokenizer.

    calibration text     as many tokens as the rows of each stage take, and none that the model has no row for
    test text            a stride that fits beside the BOS; for a gate on `noise_cost`, as many documents as it needs

Not covered: recipes that start from nothing, whose tokenizer is yet to be made; training texts, of which one row is
enough.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from compress.checkpoints.config import context_length, vocabulary_size
from compress.checkpoints.folder import load_tokenizer
from compress.text import TextError, TextSource, check_ids, read_documents
from evaluation.measurement import SEPARATOR
from evaluation.statistics import FEWEST_DOCUMENTS
from recipes.config.errors import KeyPath
from recipes.config.recipe import Recipe
from recipes.engine.model_source import Source
from recipes.engine.stages import StageStep
from recipes.engine.steps import Engine, Step

VERSION = 1
Found = tuple[KeyPath, str]
"""Where in the recipe, and what is wrong."""
NOISE_COST = f"{SEPARATOR}noise_cost"


def check_lengths(recipe: Recipe, source: Source, steps: Sequence[StageStep], engine: Engine) -> list[str]:
    """What is too short, or does not fit; found once for the same model, texts and knobs."""
    rows = {step.index: wanted for step in steps if (wanted := _rows(step, source)) is not None}
    evaluate = recipe.evaluate
    noised = [metric for metric in recipe.gate if metric.endswith(NOISE_COST)]
    texts = {key: text.digest() for key, text in recipe.data if text is not None}
    cut = [evaluate.window, evaluate.stride, evaluate.bos, evaluate.join]
    identity = {"version": VERSION, "model": source.key, "texts": texts, "rows": [*rows.items()], "cut": cut}
    identity |= {"gates": noised}

    def look(files: Path, scratch: Path) -> dict[str, Any]:
        found = [*_documents(recipe, noised), *_stride(recipe, source), *_calibration(recipe, source, rows)]
        return {"problems": found}

    problems = engine.obtain(Step(kind="lengths", identity=identity, make=look)).metadata["problems"]
    placed = [recipe.where.problem(tuple(path), text) for path, text in problems]
    return [problem.text for problem in sorted(placed)]


def _rows(step: StageStep, source: Source) -> tuple[int, int] | None:
    """How many rows of how many tokens a stage takes of the calibration text, where its knobs say so."""
    rows, length = (getattr(step.config, name, None) for name in ("rows", "length"))
    if rows is None or length is None or "calibration_text" not in step.stage.inputs_read(step.config):
        return None
    longest = context_length(source.checkpoint.config) if source.checkpoint else None
    return rows, min(length, longest or length)


def _documents(recipe: Recipe, noised: list[str]) -> Iterator[Found]:
    if not noised:
        return
    documents = 1 if recipe.evaluate.join else len(read_documents(recipe.data.test))
    if documents < FEWEST_DOCUMENTS:
        text = (
            f"expected a test text of at least {FEWEST_DOCUMENTS} documents, over which the cost of noise is told, got "
            f"{documents}; part them by lines of <|endoftext|>, leave `join` out, or drop the gate"
        )
        yield from ((("gate", metric), text) for metric in noised)


def _stride(recipe: Recipe, source: Source) -> Iterator[Found]:
    from recipes.measure.text_windows import beginnings

    stride, window = recipe.evaluate.stride, recipe.evaluate.window
    if source.folder is None or stride is None:
        return
    room = window - len(beginnings(load_tokenizer(source.folder), recipe.evaluate.bos))
    if stride > room:
        text = f"expected at most {room}, the tokens of text in a window, since a BOS stands before them, got {stride}"
        yield ("evaluate", "stride"), text


def _calibration(recipe: Recipe, source: Source, rows: dict[int, tuple[int, int]]) -> Iterator[Found]:
    text: TextSource | None = recipe.data.calibration
    if source.folder is None or source.checkpoint is None or text is None or not rows:
        return
    from compress.models.calibration import calibration_rows

    tokenizer = load_tokenizer(source.folder)
    for index, (count, length) in rows.items():
        kind = recipe.stages[index].kind
        try:
            rows_NT = calibration_rows(text, tokenizer, count, length)
            check_ids(rows_NT, tokenizer, vocabulary_size(source.checkpoint.config))
        except TextError as error:
            yield ("stages", index, kind), str(error)
