"""Evaluations that a recipe names besides tasks: texts with labels, and prompts with references, each from a file.

    evaluate:
      labeled:    [{name: sentiment, file: reviews.jsonl, prompt: "{text}\\nSentiment:",
                    answers: {positive: " positive", negative: " negative"}}]
      generation: [{name: summaries, file: articles.jsonl, prompt: "{text}\\nSummary:", reference: summary, tokens: 48}]

Files are .jsonl, .jsonl.gz or .csv, as those of tasks (`choices.py`); with `limit` rows are drawn from all over the
file, alike. How they are asked, `evaluation.quality.labeled` and `evaluation.quality.generation` say.

Not covered: data sets of the hub, which tasks are for.
"""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator

from evaluation.measurement import SEPARATOR
from recipes.errors import did_you_mean, got, one_of
from recipes.quality.choices import EXTRA, MOST_PROBLEMS, SUFFIXES, TaskConfig, TaskError, rows_of, spread

LIBRARIES: dict[str, str] = {"sacrebleu": "sacrebleu", "rouge_score": "rouge-score"}
"""What generated text needs: module -> distribution."""
TEXT = "{text}"
"""Stands in a prompt for the row's text."""
Asked = tuple[list[str], list[str]]
"""The prompts, and the label or the reference of each."""


class _FileConfig(BaseModel):
    """What is asked of the rows of a file."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    libraries: ClassVar[tuple[str, ...]] = ()
    """Distributions that its figures depend on, besides those that run the model."""

    name: str = Field(min_length=1)
    """What its figures are called before the slash, such as sentiment/accuracy."""
    file: Path
    """A .jsonl, .jsonl.gz or .csv file."""
    text: str = "text"
    """The file's column that stands for {text} in the prompt."""
    prompt: str = TEXT
    """What the model reads; {text} is the row's text."""
    limit: int | None = Field(default=None, ge=1)
    """Rows asked, spread evenly over the file; null: all."""

    @field_validator("file")
    @classmethod
    def _kind(cls, file: Path) -> Path:
        if not file.name.endswith(SUFFIXES):
            raise ValueError(f"expected a file that ends in {one_of(SUFFIXES)}, got {file.name!r}")
        return file

    @field_validator("prompt")
    @classmethod
    def _holds_text(cls, prompt: str) -> str:
        if TEXT not in prompt:
            raise ValueError(f"expected a prompt with {TEXT} in it, got {prompt!r}")
        return prompt

    def digest(self) -> str:
        """sha256 (hex) of this config and of the file's content."""
        content = hashlib.sha256(self.file.read_bytes()).hexdigest()
        knobs = self.model_dump(mode="json", exclude={"file"})
        return hashlib.sha256(json.dumps([knobs, self.file.suffix, content], sort_keys=True).encode()).hexdigest()


_Config = TypeVar("_Config", bound=_FileConfig)


class LabeledConfig(_FileConfig):
    """Texts with labels, told apart by the likelihood of what stands for each label."""

    label: str = "label"
    """The file's column of labels."""
    answers: dict[str, str] = Field(min_length=2)
    """Label -> the words that stand for it after the prompt, such as {positive: " positive", negative: " negative"}."""


class GenerationConfig(_FileConfig):
    """Prompts, whose generated texts are held against references."""

    libraries: ClassVar[tuple[str, ...]] = tuple(LIBRARIES.values())
    reference: str = "reference"
    """The file's column of references."""
    tokens: int = Field(default=64, ge=1)
    """New tokens of each text, at most."""


def read_labeled(config: LabeledConfig, *, seed: int = 0) -> Asked:
    """The prompts, and the label of each.

    Raises:
        TaskError: the file is missing or empty, lacks a column, or has a label without an answer.
    """
    return _read(config, config.label, "label", seed, config.answers)


def read_generation(config: GenerationConfig, *, seed: int = 0) -> Asked:
    """The prompts, and the reference of each.

    Raises:
        TaskError: the file is missing or empty, or lacks a column.
    """
    return _read(config, config.reference, "reference", seed)


def _read(config: _FileConfig, column: str, key: str, seed: int, known: Sequence[str] | dict[str, str] = ()) -> Asked:
    prompts: list[str] = []
    wanted: list[str] = []
    problems: list[str] = []
    for place, row in rows_of(config.name, config.file):
        for name, knob in ((config.text, "text"), (column, key)):
            if name not in row:
                raise TaskError(
                    f"{config.name}: {place}: expected the column {name!r}, got {one_of(map(repr, row))}"
                    f"{did_you_mean(name, row)}; name the column with `{knob}`"
                )
        text, answer = row[config.text], row[column]
        answer = str(answer) if known and isinstance(answer, int) and not isinstance(answer, bool) else answer
        if not isinstance(text, str) or not text.strip():
            problems.append(f"{config.name}: {place}: {config.text}: expected a text, got {got(text)}")
        elif not isinstance(answer, str) or (not known and not answer.strip()):
            problems.append(f"{config.name}: {place}: {column}: expected a text, got {got(answer)}")
        elif known and answer not in known:
            problems.append(
                f"{config.name}: {place}: {column}: expected a label of `answers` ({one_of(map(repr, known))}), "
                f"got {got(answer)}{did_you_mean(answer, known)}"
            )
        else:
            prompts.append(config.prompt.replace(TEXT, text))
            wanted.append(answer)
    if problems:
        more = len(problems) - MOST_PROBLEMS
        rest = [f"{config.name}: {config.file}: {more} more such rows"] if more > 0 else []
        raise TaskError("\n".join([*problems[:MOST_PROBLEMS], *rest]))
    if not prompts:
        raise TaskError(f"{config.name}: {config.file}: expected rows, got an empty file")
    chosen = spread(len(prompts), config.limit, seed)
    return [prompts[index] for index in chosen], [wanted[index] for index in chosen]


def evaluation_problems(
    tasks: Sequence[TaskConfig], labeled: Sequence[LabeledConfig], generation: Sequence[GenerationConfig]
) -> list[str]:
    """What can be known of the evaluations before anything runs: files, columns, labels, and what is installed."""
    from recipes.quality.harness import task_problems

    problems = [problem for task in tasks for problem in task_problems(task)]
    missing = [theirs for module, theirs in LIBRARIES.items() if generation and find_spec(module) is None]
    if missing:
        problems.append(f"generation: expected {' and '.join(missing)}, which is not installed; {EXTRA}")
    return [
        *problems,
        *(problem for config in labeled for problem in _problems(read_labeled, config)),
        *(problem for config in generation for problem in _problems(read_generation, config)),
    ]


def _problems(read: Callable[[_Config], Asked], config: _Config) -> list[str]:
    try:
        read(config)
    except TaskError as error:
        return str(error).splitlines()
    return []


def questions_of(tasks: Sequence[TaskConfig]) -> dict[str, int]:
    """How many questions each task has; of the harness's own, their data is loaded.

    Raises:
        TaskError: there is no such task, or its data cannot be had; a line for each.
    """
    from recipes.quality.harness import open_task

    questions: dict[str, int] = {}
    problems: list[str] = []
    for task in tasks:
        try:
            questions[task.name] = len(open_task(task))
        except TaskError as error:
            problems.append(str(error))
    if problems:
        raise TaskError("\n".join(problems))
    return questions


NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def name_problems(names: Sequence[str], taken: Sequence[str]) -> list[str]:
    """What is wrong with each of the names of evaluations, or empty: one for each name.

    Args:
        taken: names that mean something else, such as those of noises.
    """
    return [
        f"expected a name of up to 64 letters, digits, '.', '_', '-' ({SEPARATOR!r} begins a metric), got {name!r}"
        if not NAME.fullmatch(name)
        else f"expected another name than {one_of(map(repr, taken))}, which are noises, got {name!r}"
        if name in taken
        else f"expected each name once, got {name!r} again"
        if name.lower() in {earlier.lower() for earlier in names[:index]}  # file systems may not tell them apart
        else ""
        for index, name in enumerate(names)
    ]
