"""Questions from a file, read and checked: those of a recipe's `tasks`, texts with labels, prompts with references.

A row of a task is a context and what it should go on with. By `kind`, with the default columns (HellaSwag's, where
there are several endings, of which one is right, counted from 0):

    choice        {"context": "Canoeing: Two women ...", "endings": ["are then shown ...", ...], "label": 2}
    exact_match   {"context": "What is the capital of France?", "answer": "Paris"}
    last_word     {"context": "... and the only one who had ever called him that was Chester"}

Formats: .jsonl, .jsonl.gz (one row a line), .csv (a head line; the endings are a JSON list in one column, or lie in
several columns). With `shots`, that many rows are asked with their answers before each question: the first rows of
`examples`, or of the file itself, which are not asked then. With `limit`, the rows are cut into that many runs of
equal length and one row is drawn from each by the seed, since files are often sorted by where their rows are from.

`harness_tasks.py` asks them; how texts with labels and prompts are asked, `evaluation.quality.classification` and
`evaluation.quality.generation` say. Not covered: several right endings or answers, endings that share a context written
once only, and texts with labels from data sets of the hub, which tasks are for.
"""

import csv
import io
import json
import re
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from compress.checkpoints.json_file import PlainFileError
from compress.errors import DemitasseError
from compress.text import decoded
from recipes.config.errors import did_you_mean, got, one_of
from recipes.config.evaluations import SUFFIXES, TEXT, FileConfig, GenerationConfig, LabeledConfig, TaskConfig, TaskKind

MOST_PROBLEMS = 5
"""Rows that one error tells of."""
LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class TaskError(DemitasseError):
    """A task cannot be asked; the message names it, what was expected, what came and the way out."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A context, what it may go on with, and the index of what it does."""

    context: str
    endings: list[str]
    label: int

    def row(self) -> dict[str, Any]:
        """As a row of a data set."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class OpenQuestion:
    """A context, and the answer that it should go on with."""

    context: str
    answer: str
    """Of `last_word` with the blank before it."""

    def row(self) -> dict[str, Any]:
        """As a row of a data set."""
        return asdict(self)


AnyQuestion = Question | OpenQuestion
Asked = tuple[list[str], list[str]]
"""The prompts, and the label or the reference of each."""
_Read = TypeVar("_Read")


def read_questions(config: TaskConfig, *, seed: int = 0) -> tuple[list[AnyQuestion], list[AnyQuestion]]:
    """What is asked, and the examples before each question.

    Raises:
        TaskError: a file is missing or empty, lacks a column, has a row that is no question, or too few rows.
    """
    assert config.file is not None  # the named tasks bring their own questions
    shots = config.shots or 0
    questions = _questions(config, config.file)
    if config.examples is None:
        examples, questions = questions[:shots], questions[shots:]
        if not questions:
            raise TaskError(
                f"{config.name}: {config.file}: expected more than {shots} rows, since the first {shots} become "
                f"examples, got {len(examples)}; lower `shots` or name another file as `examples`"
            )
    else:
        examples = _questions(config, config.examples)[:shots]
        if len(examples) < shots:
            raise TaskError(
                f"{config.name}: {config.examples}: expected {shots} rows or more for `shots`, got {len(examples)}"
            )
    return [questions[index] for index in spread(len(questions), config.limit, seed)], examples


def spread(rows: int, limit: int | None, seed: int) -> list[int]:
    """Which rows are asked, ascending: one drawn from each of `limit` runs of equal length; all without a limit."""
    if limit is None or limit >= rows:
        return list(range(rows))
    edges = [run * rows // limit for run in range(limit + 1)]
    generator = np.random.default_rng(seed)
    return [int(generator.integers(low, high)) for low, high in pairwise(edges)]


def read_labeled(config: LabeledConfig, *, seed: int = 0) -> Asked:
    """The prompts, and the label of each.

    Raises:
        TaskError: the file is missing or empty, lacks a column, or has a label without an answer.
    """
    return _asked(config, config.label, "label", seed, config.answers)


def read_generation(config: GenerationConfig, *, seed: int = 0) -> Asked:
    """The prompts, and the reference of each.

    Raises:
        TaskError: the file is missing or empty, or lacks a column.
    """
    return _asked(config, config.reference, "reference", seed)


def _asked(config: FileConfig, column: str, key: str, seed: int, known: Collection[str] = ()) -> Asked:
    def take(row: dict[str, Any]) -> tuple[str, str] | str:
        text, answer = row[config.text], row[column]
        answer = str(answer) if known and isinstance(answer, int) and not isinstance(answer, bool) else answer
        if not isinstance(text, str) or not text.strip():
            return f"{config.text}: expected a text, got {got(text)}"
        if not isinstance(answer, str) or (not known and not answer.strip()):
            return f"{column}: expected a text, got {got(answer)}"
        if known and answer not in known:
            labels = one_of(map(repr, known))
            return f"{column}: expected a label of `answers` ({labels}), got {got(answer)}{did_you_mean(answer, known)}"
        return config.prompt.replace(TEXT, text), answer

    rows = _read(config.name, config.file, {config.text: "text", column: key}, take, "rows")
    chosen = [rows[index] for index in spread(len(rows), config.limit, seed)]
    return [prompt for prompt, _ in chosen], [wanted for _, wanted in chosen]


def _questions(config: TaskConfig, file: Path) -> list[AnyQuestion]:
    """Every row as a question."""
    columns = {column: _knob(config, column) for column in config.columns}
    return _read(config.name, file, columns, lambda row: _READERS[config.kind](config, row), "questions")


def _read(
    name: str, file: Path, columns: Mapping[str, str], take: Callable[[dict[str, Any]], _Read | str], what: str
) -> list[_Read]:
    """What `take` makes of every row, or says is wrong with it; `columns` are those that it reads, and their knobs."""
    found: list[_Read] = []
    problems: list[str] = []
    for place, row in _rows_of(name, file):
        missing = [column for column in columns if column not in row]
        if missing:
            raise TaskError(f"{name}: {place}: {_lacks(missing[0], row, columns[missing[0]])}")
        taken = take(row)
        if isinstance(taken, str):
            problems.append(f"{name}: {place}: {taken}")
        else:
            found.append(taken)
    if problems:
        more = len(problems) - MOST_PROBLEMS
        rest = [f"{name}: {file}: {more} more such rows"] if more > 0 else []
        raise TaskError("\n".join([*problems[:MOST_PROBLEMS], *rest]))
    if not found:
        raise TaskError(f"{name}: {file}: expected {what}, got an empty file")
    return found


def _knob(config: TaskConfig, column: str) -> str:
    """The knob that names a column."""
    named = (knob for knob in ("context", "label", "answer") if column == getattr(config, knob))
    return next(named, "endings")


def _lacks(column: str, row: dict[str, Any], knob: str) -> str:
    """What is said of a row without a column."""
    there = one_of(map(repr, row)) if row else "an empty row"
    return f"expected the column {column!r}, got {there}; name the column with `{knob}`{did_you_mean(column, row)}"


def _question(config: TaskConfig, row: dict[str, Any]) -> Question | str:
    """The row's question, or what is wrong with it."""
    context, endings, label = row[config.context], _endings(config, row), row[config.label]
    if not isinstance(context, str):
        return f"{config.context}: expected a text, got {got(context)}"
    if not isinstance(endings, list) or len(endings) < 2 or not all(isinstance(end, str) and end for end in endings):
        return f"{_named(config)}: expected two or more texts, got {got(endings)}"
    number = int(label) if isinstance(label, str) and label.strip().isdecimal() else label
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < len(endings):
        return f"{config.label}: expected the number of an ending from 0 to {len(endings) - 1}, got {got(label)}"
    return Question(context=context, endings=endings, label=number)


def _answered(config: TaskConfig, row: dict[str, Any]) -> OpenQuestion | str:
    """The row's question and its answer, or what is wrong with it."""
    context, answer = row[config.context], row[config.answer]
    if not isinstance(context, str):
        return f"{config.context}: expected a text, got {got(context)}"
    answer = str(answer) if isinstance(answer, int | float) and not isinstance(answer, bool) else answer
    if not isinstance(answer, str) or not answer.strip():
        return f"{config.answer}: expected a text or a number, got {got(answer)}"
    return OpenQuestion(context=context, answer=answer.strip())


def _last_word(config: TaskConfig, row: dict[str, Any]) -> OpenQuestion | str:
    """The row's text without its last word, and that word with the blank before it, or what is wrong with it."""
    text = row[config.context]
    if not isinstance(text, str):
        return f"{config.context}: expected a text, got {got(text)}"
    before, blank, word = text.rpartition(" ")
    if not before.strip() or word.split() != [word]:
        return f"{config.context}: expected a text that ends in a blank and a word, got {got(text[-40:])}"
    return OpenQuestion(context=before, answer=blank + word)


_READERS: dict[TaskKind, Callable[[TaskConfig, dict[str, Any]], AnyQuestion | str]] = {
    "choice": _question,
    "exact_match": _answered,
    "last_word": _last_word,
}


def _named(config: TaskConfig) -> str:
    return config.endings if isinstance(config.endings, str) else ", ".join(config.endings)


def _endings(config: TaskConfig, row: dict[str, Any]) -> Any:
    """The endings as the file has them; a text in one column is a JSON list."""
    if not isinstance(config.endings, str):
        return [row[column] for column in config.endings]
    endings = row[config.endings]
    if not isinstance(endings, str):
        return endings
    try:
        return json.loads(endings)
    except (ValueError, RecursionError):
        return endings


def _rows_of(name: str, file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every row of a file with its place, such as "questions.jsonl:7".

    Raises:
        TaskError: the file is missing, no text, or a row cannot be read.
    """
    try:
        text = decoded(file)
    except PlainFileError as error:
        raise TaskError(f"{name}: {file}: {error}") from error
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise TaskError(f"{name}: {file}: expected text in UTF-8 ({one_of(SUFFIXES)}), got {error}") from error
    for place, row in _csv(name, file, text) if file.suffix == ".csv" else _json_lines(name, file, text):
        if LONE_SURROGATE.search(json.dumps(row, ensure_ascii=False)):
            raise TaskError(f"{name}: {place}: expected text, got half of a surrogate pair, which is no character")
        yield place, row


def _json_lines(name: str, file: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(io.StringIO(text), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise TaskError(f"{name}: {file}:{number}: expected one JSON object per line, got {error}") from error
        if not isinstance(row, dict):
            raise TaskError(f"{name}: {file}:{number}: expected one JSON object per line, got {got(row)}")
        yield f"{file}:{number}", row


def _csv(name: str, file: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            yield f"{file}:{reader.line_num}", _whole(name, f"{file}:{reader.line_num}", row, reader.fieldnames or [])
    except csv.Error as error:
        after = f"after line {reader.line_num}"
        raise TaskError(f"{name}: {file}: expected comma-separated values, got {error} {after}") from error


def _whole(name: str, place: str, row: dict[Any, Any], columns: Sequence[str]) -> dict[str, Any]:
    """A row of as many cells as there are columns."""
    if None in row or None in row.values():
        cells = sum(value is not None for key, value in row.items() if key is not None) + len(row.get(None) or [])
        raise TaskError(f"{name}: {place}: expected {len(columns)} cells, as the head line has, got {cells}")
    return row
