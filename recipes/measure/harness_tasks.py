"""Tasks: questions asked of a model of any format, scored by lm-evaluation-harness (github.com/EleutherAI).

    TaskConfig --open_task--> OpenTask --ask_task: ScorerLM--> a figure per question --> PerExample, paired by their
    digest

A recipe's task is one of the harness's own by its name (a group or a tag: all of its tasks, every question counting
alike), whose data is loaded from the Hugging Face hub or its cache, or questions from a file (`question_files.py`),
which become a task of the harness made in memory. Either way the harness builds the prompts and scores the answers, so
that a figure here is the figure it prints; only the questions of a `limit` are chosen here, spread over the data where
the harness takes the first. With log-likelihood l_e of ending e and its length in characters c_e:

    accuracy        share of questions with argmax_e l_e right                 the harness's acc
    accuracy_norm   share of questions with argmax_e l_e / c_e right           the harness's acc_norm
    exact_match     share of questions whose generated text is the answer      the harness's exact_match
    answer_perplexity    exp(-mean l) over the right answers, such as last words    the harness's perplexity
    score           the first other figure that is a mean over questions and better when higher

Not covered: figures that are no means over questions (F1), several answers per question of which one is drawn (the
harness's filters beyond the first), chat templates, tasks that run code which a model wrote or show images.
"""

import hashlib
import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.digests import digest_file, digest_of
from compress.stage import first_line
from evaluation.quality.generation import Generator
from evaluation.quality.per_example import LOG_LIKELIHOOD, PerExample
from evaluation.quality.scoring import Scorer
from evaluation.quality.windows import describe_bos
from recipes.config.errors import did_you_mean, one_of
from recipes.config.evaluations import EXTRA, GenerationConfig, LabeledConfig, TaskConfig
from recipes.measure.question_files import AnyQuestion, TaskError, read_questions, spread
from recipes.measure.task_code import check_code, sandbox_templates

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

METRIC_OF = {"acc": "accuracy", "acc_norm": "accuracy_norm", "exact_match": "exact_match", "perplexity": LOG_LIKELIHOOD}
"""The harness's names for what has a name of its own here; every other figure is a score."""
OTHER = "score"
SHOTS_SEED = 1234
"""The harness's own seed for drawing a named task's examples."""


@dataclass(frozen=True, kw_only=True)
class OpenTask:
    """A task with its questions loaded."""

    config: TaskConfig
    tasks: Mapping[str, Any]
    """The harness's tasks by name; one, unless a group was named."""
    rows: Mapping[str, Sequence[int]]
    """Which questions of each are asked, ascending."""
    protocol: str
    """What is asked and how, in words."""

    def __len__(self) -> int:
        """How many questions are asked."""
        return sum(len(rows) for rows in self.rows.values())


def task_problems(config: TaskConfig) -> list[str]:
    """What is wrong with a task, found before anything runs: in a moment for a file, in seconds for a named task, whose
    data is loaded for it.
    """
    problems = [] if find_spec("lm_eval") else [_extra_missing(config)]
    if config.include is not None and not config.include.is_dir():
        problems.append(f"{config.name}: expected an existing folder as `include`, got {str(config.include)!r}")
    try:
        if config.file is not None:
            read_questions(config)
        elif not problems:
            open_task(config)
    except TaskError as error:
        problems += str(error).splitlines()
    return problems


def open_task(config: TaskConfig, *, seed: int = 0) -> OpenTask:
    """The task with its questions.

    Raises:
        TaskError: the extra is missing, there is no such task, it is of a kind that is not covered, or its data cannot
            be loaded.
    """
    if not find_spec("lm_eval"):
        raise TaskError(_extra_missing(config))
    tasks = _named_tasks(config) if config.file is None else {config.name: _file_task(config, seed)}
    for name, task in tasks.items():
        _check_kind(config, name, task)
        _set_shots(config, name, task)
    limit = config.limit if config.file is None else None  # of a file, only those that are asked were kept
    rows = {name: spread(len(task.eval_docs), limit, seed) for name, task in tasks.items()}
    return OpenTask(config=config, tasks=tasks, rows=rows, protocol=_protocol(config, tasks, rows))


def digest_of_evaluation(named: TaskConfig | LabeledConfig | GenerationConfig) -> str:
    """sha256 (hex) of everything that an evaluation reads.

    The configuration of a task in an `include` folder names data, other configurations and code that may lie anywhere,
    so what it came to is hashed once it is loaded: settings, the files of its functions, questions and examples.

    Raises:
        TaskError: as in `open_task`.
    """
    if not isinstance(named, TaskConfig) or named.include is None:
        return named.digest()
    read = [
        [name, task.config.to_dict(keep_callable=True), list(task.eval_docs), list(task.fewshot_docs() or ())]
        for name, task in sorted(open_task(named).tasks.items())
    ]
    return digest_of([named.digest(), json.dumps(read, sort_keys=True, default=_as_read)])


def _as_read(value: Any) -> Any:
    """What stands for a value that JSON does not know: of code, the file that it is in."""
    if not callable(value):
        return type(value).__qualname__ if " at 0x" in repr(value) else repr(value)  # an address says nothing
    file = inspect.getsourcefile(value) if inspect.isroutine(value) or inspect.isclass(value) else None
    return [type(value).__qualname__, getattr(value, "__qualname__", ""), digest_file(Path(file)) if file else ""]


def ask_task(
    config: TaskConfig,
    *,
    scorer: Scorer,
    generator: Generator,
    tokenizer: "PreTrainedTokenizerBase",
    prefix: Sequence[int] = (),
    context: int,
    batch: int = 8,
    seed: int = 0,
    on_item: Callable[[float], None] = lambda items: None,
) -> PerExample:
    """Ask the questions: `PerExample` of kind "task" with a column per metric; an item is NaN where a likelihood is.

    Args:
        scorer: token ids [B, T], right padded, to scores [B, T, V].
        generator: prompts' ids and a number of new tokens to the new ids, greedy.
        prefix: tokens before every text, such as the beginning-of-text token.
        context: the longest sequence that the model takes, in tokens.
        seed: which questions a `limit` leaves.
        on_item: told how many items were answered just now; `len(open_task(config))` of them in all.

    Raises:
        TaskError: as in `open_task`; or the task gives no figure that could be kept.
    """
    from lm_eval.evaluator import evaluate

    from recipes.measure.harness_model import ScorerLM

    task = open_task(config, seed=seed)
    model = ScorerLM(
        scorer=scorer,
        generator=generator,
        tokenizer=tokenizer,
        prefix=prefix,
        context=context,
        batch=batch,
        on_share=lambda share: on_item(share * len(task)),
    )
    found = evaluate(
        lm=model,
        task_dict={"tasks": dict(task.tasks), "groups": {}},
        samples={name: list(rows) for name, rows in task.rows.items()},
        bootstrap_iters=0,
    )
    protocol = f"{task.protocol}, {describe_bos(prefix, 'text')}"
    return _items(replace(task, protocol=protocol), found["samples"])


def _extra_missing(config: TaskConfig) -> str:
    return f"{config.name}: expected lm-evaluation-harness for `tasks`, which is not installed; {EXTRA}"


def _file_task(config: TaskConfig, seed: int) -> Any:
    """The file's questions as a task of the harness."""
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    questions, examples = read_questions(config, seed=seed)

    def data_set(**_: Any) -> dict[str, Dataset]:
        return {"test": Dataset.from_list([question.row() for question in questions])}

    shots = {"fewshot_config": {"sampler": "first_n", "samples": _rows(examples)}} if examples else {}
    return ConfigurableTask(
        config={
            "task": config.name,
            "custom_dataset": data_set,
            "test_split": "test",
            "doc_to_text": "context",
            "target_delimiter": config.join,
            **_asking(config),
            **shots,
        }
    )


def _asking(config: TaskConfig) -> dict[str, Any]:
    """What the harness is told of a kind of questions."""
    if config.kind == "choice":
        metrics = [_averaged("acc"), _averaged("acc_norm")]
        choice = {"doc_to_choice": "endings", "doc_to_target": "label"}
        return {"output_type": "multiple_choice", **choice, "metric_list": metrics}
    if config.kind == "last_word":
        perplexity = {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}
        metrics = [perplexity, _averaged("acc")]
        return {"output_type": "loglikelihood", "doc_to_target": "answer", "metric_list": metrics}
    exact = _averaged("exact_match") | {f"ignore_{what}": True for what in config.ignore}
    return {
        "output_type": "generate_until",
        "doc_to_target": "answer",
        "generation_kwargs": {"until": list(config.until), "max_gen_toks": config.tokens, "do_sample": False},
        "filter_list": [{"name": "bare", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]}],
        "metric_list": [exact],
    }


def _averaged(metric: str) -> dict[str, Any]:
    return {"metric": metric, "aggregation": "mean", "higher_is_better": True}


def _rows(questions: Sequence[AnyQuestion]) -> list[dict[str, Any]]:
    return [question.row() for question in questions]


def _named_tasks(config: TaskConfig) -> dict[str, Any]:
    """The harness's tasks of that name, their data loaded."""
    sandbox_templates()
    if config.include is not None and not config.allow_code:
        check_code(config.name, config.include)
    manager = _manager_with(config)
    try:
        tasks: dict[str, Any] = manager.load([config.name])["tasks"]
    except Exception as error:  # a task is code and data of its own, which may fail in any way
        raise TaskError(
            f"{config.name}: expected a task whose data can be loaded, got {first_line(error)}; run once where the "
            "Hugging Face hub can be reached, after which its cache serves, or give questions of your own as `file:`"
        ) from error
    return tasks


def _manager_with(config: TaskConfig) -> Any:
    """Who knows the task: the included folder alone where it has it, else all.

    Raises:
        TaskError: nobody does.
    """
    if config.include is not None:
        own = _manager(config.include, include_defaults=False)
        if config.name in (*own.all_subtasks, *own.all_tags):  # a group may name tasks that are not its own
            return own
    manager = _manager(config.include, include_defaults=True)
    if config.name not in manager.task_index:
        raise TaskError(
            f"{config.name}: expected a task of lm-evaluation-harness {version('lm-eval')}, got an unknown "
            f"name; questions of your own are given as `file:`{did_you_mean(config.name, manager.task_index)}"
        )
    return manager


@cache
def _manager(include: Path | None, *, include_defaults: bool) -> Any:
    """The index of tasks by name; reading its thousands of files takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include, include_defaults=include_defaults)


def _check_kind(config: TaskConfig, name: str, task: Any) -> None:
    for mark, what in (
        ("UNSAFE_CODE", "runs code that the model wrote"),
        ("MULTIMODAL", "shows images or plays sound"),
    ):
        if getattr(task, mark, False):
            raise TaskError(f"{config.name}: expected a task of text alone, but {name} {what}; measure another")


def _set_shots(config: TaskConfig, name: str, task: Any) -> None:
    own = task.get_config("num_fewshot")
    if own == 0 and config.shots:
        raise TaskError(f"{config.name}: {name} takes no examples, got `shots: {config.shots}`; leave `shots` out")
    task.set_config(key="num_fewshot", value=(own or 0) if config.shots is None else config.shots)
    task.set_fewshot_seed(seed=SHOTS_SEED)


def _protocol(config: TaskConfig, tasks: Mapping[str, Any], rows: Mapping[str, Sequence[int]]) -> str:
    asked = sum(map(len, rows.values()))
    there = sum(len(task.eval_docs) for task in tasks.values())
    versions = sorted({str(task.VERSION) for task in tasks.values()})
    shots = sorted({int(task.get_config("num_fewshot")) for task in tasks.values()})
    if config.file is None:
        what = f"task {config.name}" + (f" ({len(tasks)} tasks)" if len(tasks) > 1 else "")
        what += f", version {one_of(versions)}, {asked} of {there} questions"
    else:
        what = f"{config.file.name}, {asked} questions" + ("" if config.limit is None else " spread evenly over it")
        what += f", {_manner(config)}"
    return f"lm-evaluation-harness {version('lm-eval')}: {what}, {one_of(map(str, shots))}-shot, no chat template"


def _manner(config: TaskConfig) -> str:
    """How a file's questions are asked, in words."""
    if config.kind == "choice":
        return f"endings joined by {config.join!r}"
    if config.kind == "last_word":
        return "the last word given the text before it, its blank counted with the word"
    ignored = f" and without {one_of(config.ignore).replace(' or ', ' and ')}" if config.ignore else ""
    until = one_of(map(repr, config.until)) if config.until else "end of text"
    return (
        f"greedy text of at most {config.tokens} tokens up to {until}, compared without blanks at its ends{ignored}, "
        f"examples joined by {config.join!r}"
    )


def _items(task: OpenTask, samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> PerExample:
    """What every question came to, in the order of the tasks and their questions."""
    rows = {name: _first_filter(samples[name]) for name in task.tasks}
    kept = {name: _kept(task.tasks[name], rows[name]) for name in task.tasks}
    metrics = [metric for metric in (*METRIC_OF.values(), OTHER) if all(metric in own for own in kept.values())]
    if not metrics:
        given = sorted({name for of_task in rows.values() for name in of_task[0]["metrics"]})
        raise TaskError(
            f"{task.config.name}: expected a task with a figure that is a mean over questions and better when higher, "
            f"got {one_of(given)}; measure another task"
        )
    columns = {
        metric: np.array(
            [_figure(row, kept[name][metric]) for name, of_task in rows.items() for row in of_task], dtype=np.float64
        )
        for metric in metrics
    }
    asked = [[row["arguments"], row["target"]] for of_task in rows.values() for row in of_task]
    digest = hashlib.sha256(json.dumps(asked, default=str).encode()).hexdigest()
    metadata = {
        "protocol": task.protocol,
        "figures": {metric: sorted({own[metric] for own in kept.values()}) for metric in metrics},
        "questions": {name: len(of_task) for name, of_task in rows.items()},
    }
    return PerExample(kind="task", columns=columns, digest=digest, metadata=metadata)


def _first_filter(samples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """One row per question: the harness gives one for each of a task's filters."""
    return [sample for sample in samples if sample["filter"] == samples[0]["filter"]]


def _kept(task: Any, rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Metric -> the harness's name of the figure that is kept for it."""
    from lm_eval.api.metrics import mean, perplexity

    kept: dict[str, str] = {}
    for name in rows[0]["metrics"]:
        aggregation = task.aggregation().get(name, mean)
        averaged = aggregation is mean and task.higher_is_better().get(name, True)
        averaged = aggregation is perplexity if name == "perplexity" else averaged
        if averaged and all(isinstance(row.get(name), int | float | np.number) for row in rows):
            kept.setdefault(METRIC_OF.get(name, OTHER), name)
    return kept


def _figure(row: Mapping[str, Any], name: str) -> float:
    """What one question came to; NaN where a likelihood behind it is no number, since some ending always wins."""
    likelihoods = [answer[0] for answer in row["filtered_resps"] if isinstance(answer, tuple)]
    return float(row[name]) if all(map(math.isfinite, likelihoods)) else math.nan
