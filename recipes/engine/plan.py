"""What a run would do: every stage with its key, what is there already, and what the rest will take.

The key of a stage is known before anything runs, because it holds what goes in and not what comes out (see `store.py`).
Memory, disk and time are rough, from the number of weights and tokens: they are there to refuse a plan that cannot
work and to tell minutes from days. `plan` times a few operations first (`costs.py`), and tells time within about twice,
measurements too; a stage that makes the model smaller is taken to leave it as large. Where several processes train
together, memory is what those on this machine take, and time assumes that every machine has as many cores as this one.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from compress.checkpoints.config import context_length
from compress.models.families import size_in
from compress.stage import FormatName, Stage, StageConfig, StageInputName, StageMetadata
from compress.text import TextSource
from compress.training.launch import unfit
from evaluation.report import BASELINE
from export.config import ExportConfig
from recipes.config.errors import Problem
from recipes.config.loader import TEXTS
from recipes.config.recipe import Recipe, Stages
from recipes.engine import costs
from recipes.engine.launcher import Launcher, Size
from recipes.engine.model_source import Source, resolve
from recipes.engine.stages import StageStep, stage_step
from recipes.formats import FORMATS
from recipes.runs.folder import run_folder, store_of
from recipes.runs.store import Store

FLOAT = 4
LONG = 4096
"""A context where the config names none."""
ALONE = Size(world=1, local_world=1)
LIBRARIES_MEMORY = 600 * 2**20
"""What PyTorch and transformers hold before there is a model."""
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
    measuring: Mapping[str, float]
    """Seconds that the quality of each artifact takes, by the name of its row, and "timing", all of them side by side;
    also where they are there already. Timing is told as it mostly is: its gates are decided early.
    """
    undecided: float
    """Seconds of the timing where its gates stay open to the last block."""

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
        """Of what is left to do, measuring included."""
        return sum(step.estimate.seconds for step in self.steps) + sum(self.measuring.values())


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
    folder = run_folder(recipe.name, out)
    held = store_of(folder, store)
    source = resolve(recipe)
    steps = tuple(chain(recipe, source, stages))
    command = launcher or recipe.launcher
    size = ALONE if command is None else Launcher(command=command).size()
    config, weights = _model(steps, source)
    measured = costs.Size.of(weights, config)
    speed = costs.timed(max(measured.hidden, 1))
    rows = _rows(source, steps)
    return Plan(
        recipe=recipe.name,
        model="nothing" if recipe.model is None else str(recipe.model),
        out=folder,
        steps=tuple(
            _planned(step, held, estimate)
            for step, estimate in zip(steps, estimates(steps, source, size, speed), strict=True)
        ),
        measuring=_measuring(recipe, rows, measured, speed),
        undecided=costs.timing_seconds(recipe, _timed(rows, measured), speed, undecided=True),
    )


def _rows(source: Source, steps: tuple[StageStep, ...]) -> dict[str, FormatName]:
    """What is measured, by the names of the report's rows."""
    formats = {step.name: step.stage.leaves for step in steps}
    return {BASELINE: source.format, **formats} if source.folder is not None else formats


def _timed(rows: Mapping[str, FormatName], size: costs.Size) -> list[tuple[costs.Size, FormatName]]:
    return [(size, format) for format in rows.values()]


def _measuring(
    recipe: Recipe, rows: Mapping[str, FormatName], size: costs.Size, speed: costs.Speed
) -> dict[str, float]:
    """Seconds of each artifact's quality, and of the timing."""
    wanted = [name for place, name in enumerate(rows) if recipe.evaluate.stages == "all" or place in {0, len(rows) - 1}]
    found = {name: costs.quality_seconds(recipe, size, speed, baseline=name == next(iter(rows))) for name in wanted}
    timing = costs.timing_seconds(recipe, _timed(rows, size), speed)
    return found | ({"timing": timing} if timing else {})


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


def estimates(
    steps: tuple[StageStep, ...], source: Source, size: Size = ALONE, speed: costs.Speed = costs.UNTIMED
) -> list[Estimate]:
    """What each stage will take; one that makes the model smaller is taken to leave it as large as it was."""
    config, weights = _model(steps, source)
    format: FormatName = source.format
    found = []
    for step in steps:
        found.append(_estimate(step, weights, config, format, size, speed))
        format = step.stage.leaves
    return found


def _model(steps: tuple[StageStep, ...], source: Source) -> tuple[dict[str, Any], int]:
    """The config of the model that the recipe is about, and how many weights it has."""
    config = source.checkpoint.config if source.checkpoint else _architecture(steps)
    return config, source.checkpoint.elements if source.checkpoint else _weights(config)


def _estimate(
    step: StageStep, weights: int, config: dict[str, Any], format: FormatName, size: Size, speed: costs.Speed
) -> Estimate:
    inputs_read = step.stage.inputs_read(step.config)
    result = weights * (FORMATS[step.stage.leaves].bytes_per_weight or FORMATS[format].bytes_per_weight or FLOAT)
    seconds = _seconds(step, format, costs.Size.of(weights, config), context_length(config), speed)
    if "train_text" not in inputs_read:
        return Estimate(
            memory=LIBRARIES_MEMORY + COPIES["other"] * FLOAT * weights,
            disk=result,
            seconds=seconds,
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
        seconds=seconds + share * flops / (costs.EFFICIENCY * speed.products),
    )


def _seconds(step: StageStep, format: FormatName, size: costs.Size, context: int | None, speed: costs.Speed) -> float:
    """Of a stage but for its training, an export's proof included."""
    longest = context or LONG
    seconds = costs.stage_seconds(step.stage, step.config, size, longest, speed)
    if isinstance(step.config, ExportConfig):
        quantized = format == "quantized"
        seconds += costs.parity_seconds(step.config, size, longest, speed, quantized=quantized)
    return seconds


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
