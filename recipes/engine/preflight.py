"""What is looked at before anything runs: the model, evaluations, texts, and whether disk and memory suffice."""

import shutil
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from compress.checkpoints.config import CheckpointError, context_length
from recipes.config.errors import Problem, RecipeError, raise_problems
from recipes.config.evaluations import EXTRA, LIBRARIES, GenerationConfig, LabeledConfig, TaskConfig
from recipes.config.loader import order_problem
from recipes.config.recipe import EvaluateConfig, Recipe, Stages
from recipes.engine.launcher import Launcher
from recipes.engine.model_source import NOTHING, Source, resolve
from recipes.engine.plan import ALONE, Estimate, chain, estimates, unfit_batches
from recipes.engine.stages import StageStep
from recipes.engine.steps import Engine, Step
from recipes.engine.text_checks import check_texts
from recipes.measure.harness_tasks import task_problems
from recipes.measure.peak_memory import DECODED
from recipes.measure.question_files import TaskError, read_generation, read_labeled
from recipes.runs.store import versions

VERSION = 1


def check(
    recipe: Recipe, engine: Engine, stages: Stages | None, launcher: Launcher | None
) -> tuple[Source, tuple[StageStep, ...]]:
    """The source and the stages of a recipe that can run.

    Raises:
        RecipeError: all that is wrong, in one message.
    """
    errors: list[str] = []
    source, steps = NOTHING, tuple[StageStep, ...]()
    try:
        source = resolve(recipe)
        steps = tuple(chain(recipe, source, stages))
        missing = [step for step in steps if not engine.store.has(step.stage.kind, step.key)]
        parallel = launcher is not None and any(step.stage.parallel for step in missing)
        size = launcher.size() if launcher is not None and parallel else ALONE
        unfit, needs = unfit_batches(recipe, steps, size), estimates(steps, source, size)
        problems = [*unfit, *check_model(recipe, source, steps)]
        problems += check_whole(recipe, source) if missing else []
        raise_problems(
            [*problems, *check_room(recipe, engine.store.root, [(step, needs[step.index]) for step in missing])]
        )
    except RecipeError as error:
        errors += error.errors
        source, steps = NOTHING, ()
    errors += [*check_evaluations(recipe.evaluate, engine), *check_texts(recipe, source, steps, engine)]
    if errors:
        raise RecipeError(errors)
    return source, steps


def check_whole(recipe: Recipe, source: Source) -> list[Problem]:
    """What is wrong with the model once its weights and its tokenizer are looked at as transformers takes them."""
    try:
        if source.checkpoint is not None:
            source.checkpoint.whole()
    except CheckpointError as error:
        return [recipe.where.problem(("model",), str(error))]
    return []


def check_model(recipe: Recipe, source: Source, steps: Sequence[StageStep]) -> list[Problem]:
    """The first stage takes the model as it is, and the model can read as much at once as is to be measured."""
    problems: list[Problem] = []
    if steps and source.folder is not None and source.format not in steps[0].stage.takes:
        text = order_problem(0, steps[0].stage.kind, steps[0].stage.takes, source.format, "the model")
        problems.append(recipe.where.problem(("stages", 0, steps[0].stage.kind), text))
    longest = source.checkpoint.context if source.checkpoint else _made(steps)
    if longest is None:
        return problems
    reads = f"expected at most {longest} tokens, all that the model can read at once"
    if recipe.evaluate.window > longest:
        problems.append(recipe.where.problem(("evaluate", "window"), f"{reads}, got {recipe.evaluate.window}"))
    decoded = max(recipe.benchmark.tokens, DECODED) if recipe.benchmark else 0
    if recipe.benchmark is not None and recipe.benchmark.prompt + decoded > longest:
        together = f"{recipe.benchmark.prompt} of the prompt and {decoded} decoded"
        problems.append(recipe.where.problem(("benchmark",), f"{reads}, got {together}"))
    return problems


def _made(steps: Sequence[StageStep]) -> int | None:
    """The context of the model that the first stage makes, where its knobs say so."""
    architecture = getattr(steps[0].config, "architecture", None) if steps else None
    return context_length(architecture) if architecture else None


def check_evaluations(evaluate: EvaluateConfig, engine: Engine) -> list[str]:
    """What is wrong with the named evaluations; opening the harness's own tasks takes seconds, and is done once."""
    tasks = [task for task in evaluate.tasks if task.file is None and task.include is None]
    given = [task for task in evaluate.tasks if task not in tasks]
    errors = evaluation_problems(given, evaluate.labeled, evaluate.generation)
    if tasks:
        identity = {"version": VERSION, "tasks": [task.digest() for task in tasks], "libraries": versions(("lm-eval",))}
        step = Step(kind="tasks", identity=identity, make=lambda files, scratch: _open(tasks))
        errors += _told(lambda: engine.obtain(step))
    return errors


def evaluation_problems(
    tasks: Sequence[TaskConfig], labeled: Sequence[LabeledConfig], generation: Sequence[GenerationConfig]
) -> list[str]:
    """What can be known of the evaluations before anything runs: files, columns, labels, and what is installed."""
    problems = [problem for task in tasks for problem in task_problems(task)]
    missing = [theirs for module, theirs in LIBRARIES.items() if generation and find_spec(module) is None]
    if missing:
        problems.append(f"generation: expected {' and '.join(missing)}, which is not installed; {EXTRA}")
    problems += [problem for config in labeled for problem in _told(partial(read_labeled, config))]
    problems += [problem for config in generation for problem in _told(partial(read_generation, config))]
    return problems


def _told(read: Callable[[], object]) -> list[str]:
    """What is wrong with a task or a file, once it is read."""
    try:
        read()
    except TaskError as error:
        return str(error).splitlines()
    return []


def _open(tasks: Sequence[TaskConfig]) -> dict[str, Any]:
    """Open the harness's own tasks, whose data is loaded.

    Raises:
        TaskError: there is no such task, or its data cannot be had; a line for each.
    """
    problems = [problem for task in tasks for problem in task_problems(task)]
    if problems:
        raise TaskError("\n".join(problems))
    return {}


def check_room(recipe: Recipe, out: Path, missing: Iterable[tuple[StageStep, Estimate]]) -> list[Problem]:
    """There is disk and memory for what is left to do."""
    problems: list[Problem] = []
    free, memory, needed = shutil.disk_usage(existing(out)).free, available_memory(), 0
    for step, estimate in missing:
        needed += estimate.disk
        if estimate.memory > memory:
            text = (
                f"needs about {_gib(estimate.memory)} of memory, got {_gib(memory)} free; lower `batch`, or free some"
            )
            problems.append(recipe.where.problem(("stages", step.index, step.stage.kind), text))
    if needed > free:
        way = "free some, or choose another --out"
        text = f"{out}: the run needs about {_gib(needed)} of disk, got {_gib(free)} free; {way}"
        problems.append(Problem(0, text))
    return problems


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    absolute = folder.absolute()
    return next(path for path in (absolute, *absolute.parents) if path.exists())


def available_memory() -> int:
    """Bytes that this process may still take: the machine's, or what is left of its control group."""
    import psutil

    free = int(psutil.virtual_memory().available)
    try:
        group = Path("/sys/fs/cgroup")
        return min(
            free, int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()) + _cached(group)
        )
    except (OSError, ValueError):  # no control group, or one without a limit
        return free


def _cached(group: Path) -> int:
    """Bytes of a control group that are only cached files and can be given back."""
    lines = (group / "memory.stat").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.split()[0] in {"inactive_file", "active_file"})


def _gib(amount: int) -> str:
    return f"{amount / 2**30:.1f} GiB"
