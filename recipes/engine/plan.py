"""What a run would do: every stage with its key, what is there already, and what the rest will take.

The key of a stage is known before anything runs, because it holds what goes in and not what comes out (see `store.py`).
Memory, disk and time are rough, from the number of weights and tokens: they are there to refuse a plan that cannot
work and to tell minutes from days. Time does not cover the measurements. Where several processes train together, memory
is what those on this machine take, and time assumes that every machine has as many cores as this one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from compress.models.families import size_in
from compress.stage import FormatName, Stage, StageConfig, StageInputName, StageMetadata
from compress.text import TextSource
from compress.training.launch import unfit
from evaluation.machine import available_cores
from recipes.config.errors import Problem
from recipes.config.loader import TEXTS
from recipes.config.recipe import Recipe, Stages
from recipes.engine.launcher import Launcher, Size
from recipes.engine.model_source import Source, resolve
from recipes.engine.stages import StageStep, stage_step
from recipes.formats import FORMATS
from recipes.runs.store import Store

FLOAT = 4
ALONE = Size(world=1, local_world=1)
LIBRARIES_MEMORY = 600 * 2**20
"""What PyTorch and transformers hold before there is a model."""
FLOPS_PER_CORE = 40e9
"""Of a training step in float32, on a current x86-64 core."""
START_SECONDS = 5.0
WEIGHTS_PER_SECOND = 20e6
"""Through a stage that looks at every weight, reading and writing included."""
COPIES = {"train": 4, "other": 3}
"""float32 copies of the model in memory: weights, gradients, AdamW's two moments; or source, result and a spare."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a stage will take, roughly."""

    memory: int
    """Bytes at its peak."""
    disk: int
    """Bytes of its result and of what it keeps while it works."""
    seconds: float


@dataclass(frozen=True, kw_only=True)
class PlannedStep:
    """A stage as `demitasse plan` shows it."""

    number: int
    name: str
    kind: str
    format: FormatName
    """The format it leaves."""
    knobs: dict[str, Any]
    """Those that differ from their defaults."""
    key: str
    folder: Path
    cached: bool
    """Its result is in the store; `estimate` is then of nothing left to do."""
    estimate: Estimate


@dataclass(frozen=True, kw_only=True, repr=False)
class Plan:
    """What `run` would do."""

    recipe: str
    model: str
    out: Path
    steps: tuple[PlannedStep, ...]

    def __repr__(self) -> str:
        steps = (f"{step.name}{' (cached)' if step.cached else ''}" for step in self.steps)
        return f"Plan({self.recipe} in {self.out}: {' -> '.join([self.model, *steps])}; {self.seconds:.0f} s)"

    @property
    def memory(self) -> int:
        """Bytes at the peak of what is left to do."""
        return max((step.estimate.memory for step in self.steps), default=0)

    @property
    def disk(self) -> int:
        """Bytes that what is left to do will write."""
        return sum(step.estimate.disk for step in self.steps)

    @property
    def seconds(self) -> float:
        return sum(step.estimate.seconds for step in self.steps)


def plan(
    recipe: Recipe,
    out: str | Path | None = None,
    *,
    store: str | Path | None = None,
    stages: Stages | None = None,
    launcher: str | None = None,
) -> Plan:
    """What `run` would do with the same arguments; nothing is written.

    Raises:
        RecipeError: the model cannot be used.
        LauncherError: the launcher does not work.
    """
    folder = run_folder(recipe, out)
    held = store_of(folder, store)
    source = resolve(recipe)
    steps = tuple(chain(recipe, source, stages))
    command = launcher or recipe.launcher
    size = ALONE if command is None else Launcher(command=command).size()
    return Plan(
        recipe=recipe.name,
        model="nothing" if recipe.model is None else str(recipe.model),
        out=folder,
        steps=tuple(
            _planned(step, held, estimate) for step, estimate in zip(steps, estimates(steps, source, size), strict=True)
        ),
    )


def run_folder(recipe: Recipe, out: str | Path | None) -> Path:
    """Where a run's report, log and results go: `out`, or runs/<name> below the working directory."""
    return Path("runs") / recipe.name if out is None else Path(out)


def store_of(folder: Path, store: str | Path | None) -> Store:
    """The store of a run in this folder: `store`, or its own."""
    return Store(folder / "artifacts") if store is None else Store(Path(store).absolute(), option="--store")


def _planned(step: StageStep, store: Store, estimate: Estimate) -> PlannedStep:
    cached = store.has(step.stage.kind, step.key)
    return PlannedStep(
        number=step.index + 1,
        name=step.name,
        kind=step.stage.kind,
        format=step.stage.leaves,
        knobs=step.config.model_dump(mode="json", exclude_defaults=True),
        key=step.key,
        folder=store.name(step.stage.kind, step.key),
        cached=cached,
        estimate=Estimate(memory=0, disk=0, seconds=0.0) if cached else estimate,
    )


def chain(recipe: Recipe, source: Source, stages: Stages | None = None) -> Iterator[StageStep]:
    """The recipe's stages, each with the identity that its result is stored under."""
    if stages is None:
        from recipes.config.stages import STAGES

        stages = STAGES
    texts: dict[StageInputName, TextSource | None] = {
        cast(StageInputName, material): getattr(recipe.data, key) for material, key in TEXTS.items()
    }
    parent, teacher, seen = source.key, source.key if source.folder is not None else None, dict[str, int]()
    lineage: tuple[StageMetadata, ...] = ({"source": source.key},)
    for index, planned in enumerate(recipe.stages):
        kind = planned.kind
        seen[kind] = seen.get(kind, 0) + 1
        step = stage_step(
            stages[kind],
            planned.config,
            parent=parent,
            teacher=teacher,
            texts=texts,
            seed=recipe.seed,
            lineage=lineage,
            index=index,
            name=kind if seen[kind] == 1 else f"{kind} {seen[kind]}",
            threads=None if recipe.benchmark is None else recipe.benchmark.threads,
        )
        yield step
        parent = step.key
        teacher = teacher or step.key  # a recipe that starts from nothing: the rest is held to its first artifact
        lineage = (*lineage, {"kind": kind, "knobs": planned.config.model_dump(mode="json")})


def unfit_batches(recipe: Recipe, steps: Sequence[StageStep], size: Size) -> list[Problem]:
    """Batches that cannot be dealt out to that many processes."""
    found = ((step, unfit_batch(step.stage, step.config, size)) for step in steps)
    return [
        recipe.where.problem(("stages", step.index, step.stage.kind, "batch"), wrong)
        for step, wrong in found
        if wrong is not None
    ]


def unfit_batch(stage: Stage[Any], config: StageConfig, size: Size) -> str | None:
    """What is wrong with a stage's batch for that many processes, if anything is."""
    batch: int | None = getattr(config, "batch", None)
    if batch is None or not stage.parallel:
        return None
    return unfit(batch, getattr(config, "accumulate", 1), size.world)


def estimates(steps: tuple[StageStep, ...], source: Source, size: Size = ALONE) -> list[Estimate]:
    """What each stage will take; one that makes the model smaller is taken to leave it as large as it was."""
    config = source.checkpoint.config if source.checkpoint else _architecture(steps)
    weights = source.checkpoint.elements if source.checkpoint else _weights(config)
    format: FormatName = source.format
    found = []
    for step in steps:
        found.append(_estimate(step, weights, config, format, size))
        format = step.stage.leaves
    return found


def _estimate(step: StageStep, weights: int, config: dict[str, Any], format: FormatName, size: Size) -> Estimate:
    inputs_read = step.stage.inputs_read(step.config)
    result = weights * (FORMATS[step.stage.leaves].bytes_per_weight or FORMATS[format].bytes_per_weight or FLOAT)
    if "train_text" not in inputs_read:
        return Estimate(
            memory=LIBRARIES_MEMORY + COPIES["other"] * FLOAT * weights,
            disk=result,
            seconds=START_SECONDS + weights / WEIGHTS_PER_SECOND,
        )
    tokens, batch, length = (int(getattr(step.config, name, default)) for name, default in _TRAINING)
    teachers = 1 if "teacher" in inputs_read else 0
    models = (COPIES["train"] + teachers) * FLOAT * weights
    flops = (6 + 2 * teachers) * weights * tokens
    workers = size if step.stage.parallel else ALONE
    share = workers.local_world / workers.world
    held = models * (share if getattr(step.config, "distributed", "ddp") == "fsdp" else workers.local_world)
    return Estimate(
        memory=int(workers.local_world * LIBRARIES_MEMORY + held + share * _activations(config, batch * length)),
        disk=result + 2 * (COPIES["train"] - 1) * FLOAT * weights,  # two checkpoints with their moments, for a moment
        seconds=START_SECONDS + share * flops / (FLOPS_PER_CORE * available_cores()),
    )


_TRAINING = (("tokens", 1_000_000), ("batch", 16), ("length", 256))


def _activations(config: dict[str, Any], tokens: int) -> int:
    """Bytes that one training step holds for its way back: 16 values of the width a layer, and the logits twice."""
    return (
        FLOAT
        * tokens
        * (16 * size_in(config, "hidden") * size_in(config, "layers") + 2 * size_in(config, "vocabulary"))
    )


def _architecture(steps: tuple[StageStep, ...]) -> dict[str, Any]:
    """The config of the model that the first stage is going to make."""
    config = steps[0].config if steps else None
    sizes = {"vocab_size": getattr(config, "vocabulary", 0)}
    return sizes | dict(getattr(config, "architecture", None) or {})


def _weights(config: dict[str, Any]) -> int:
    """About how many weights a decoder of these sizes has."""
    hidden = size_in(config, "hidden")
    return 12 * size_in(config, "layers") * hidden**2 + size_in(config, "vocabulary") * hidden
