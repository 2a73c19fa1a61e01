"""Texts with labels, and prompts with references, each from a file: read and checked.

With `limit` rows are drawn from all over the file, as those of tasks are (`multiple_choice.py`). How they are asked,
`evaluation.quality.classification` and `evaluation.quality.generation` say.

Not covered: data sets of the hub, which tasks are for.
"""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import TypeVar

from recipes.config.errors import did_you_mean, got, one_of
from recipes.config.evaluations import EXTRA, LIBRARIES, TEXT, FileConfig, GenerationConfig, LabeledConfig, TaskConfig
from recipes.measure.multiple_choice import MOST_PROBLEMS, TaskError, lacks, rows_of, spread

Asked = tuple[list[str], list[str]]
"""The prompts, and the label or the reference of each."""


_Config = TypeVar("_Config", bound=FileConfig)


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


def _read(config: FileConfig, column: str, key: str, seed: int, known: Sequence[str] | dict[str, str] = ()) -> Asked:
    prompts: list[str] = []
    wanted: list[str] = []
    problems: list[str] = []
    for place, row in rows_of(config.name, config.file):
        for name, knob in ((config.text, "text"), (column, key)):
            if name not in row:
                raise TaskError(f"{config.name}: {place}: {lacks(name, row, knob)}")
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
    from recipes.measure.harness_tasks import task_problems

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
    from recipes.measure.harness_tasks import open_task

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
