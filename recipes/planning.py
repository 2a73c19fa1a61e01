"""What a run would do: every stage with its key, what is there already, and what the rest will take.

The key of a stage is known before anything runs, because it holds what goes in and not what comes out (see `store.py`).
Memory, disk and time are rough, from the number of weights and tokens: they are there to refuse a plan that cannot
work and to tell minutes from days. Time does not cover the measurements. Where several processes train together, memory
is what those on this machine take, and time assumes that every machine has as many cores as this one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress import Form, Stage, StageConfig
from compress.training.launch import Launch, launch
from recipes.loader import TEXTS
from recipes.schema import Recipe, Stages, available_cores
from recipes.source import Source, digest_folder, resolve
from recipes.store import Store, digest_of, versions

FLOAT = 4
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
class Step:
    """A stage of a recipe in its place, with the key of what it will leave."""

    index: int
    name: str
    """Unique in the recipe: "prune", "prune 2"."""
    stage: Stage[Any]
    config: StageConfig
    identity: dict[str, Any]

    @property
    def key(self) -> str:
        return digest_of(self.identity)


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
    form: Form
    """The form it leaves."""
    knobs: dict[str, Any]
    """Those that differ from their defaults."""
    key: str
    folder: Path
    cached: bool
    """Its result is in the store; `estimate` is then of nothing left to do."""
    estimate: Estimate


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `run` would do."""

    recipe: str
    model: str
    out: Path
    steps: tuple[PlannedStep, ...]

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


def plan(recipe: Recipe, out: Path | None = None, *, stages: Stages | None = None) -> Plan:
    """What `run(recipe, out=out)` would do; nothing is written.

    Raises:
        RecipeError: the model cannot be used.
    """
    folder = run_folder(recipe, out)
    store = Store(folder / "artifacts")
    source = resolve(recipe)
    steps = tuple(chain(recipe, source, stages))
    return Plan(
        recipe=recipe.name,
        model="nothing" if recipe.model is None else str(recipe.model),
        out=folder,
        steps=tuple(
            _planned(step, store, estimate) for step, estimate in zip(steps, estimates(steps, source), strict=True)
        ),
    )


def run_folder(recipe: Recipe, out: Path | None) -> Path:
    """Where a run's report, log and results go: `out`, or runs/<name> below the working directory."""
    return Path("runs") / recipe.name if out is None else out


def _planned(step: Step, store: Store, estimate: Estimate) -> PlannedStep:
    cached = store.has(step.stage.kind, step.key)
    return PlannedStep(
        number=step.index + 1,
        name=step.name,
        kind=step.stage.kind,
        form=step.stage.leaves,
        knobs=step.config.model_dump(mode="json", exclude_defaults=True),
        key=step.key,
        folder=store.name(step.stage.kind, step.key),
        cached=cached,
        estimate=Estimate(memory=0, disk=0, seconds=0.0) if cached else estimate,
    )


def chain(recipe: Recipe, source: Source, stages: Stages | None = None) -> Iterator[Step]:
    """The recipe's stages, each with the identity that its result is stored under."""
    if stages is None:
        from recipes.stages import STAGES

        stages = STAGES
    texts = {material: getattr(recipe.data, key) for material, key in TEXTS.items()}
    parent, teacher, seen = source.key, source.key if source.folder is not None else None, dict[str, int]()
    for index, planned in enumerate(recipe.stages):
        stage = stages[planned.kind]
        wanted = sorted(stage.materials(planned.config))
        digests: dict[str, str | None] = {
            name: teacher if name == "teacher" else texts[name].digest() for name in wanted
        }
        digests |= {knob: digest_folder(folder) for knob, folder in stage.folders(planned.config).items()}
        identity = {
            "kind": stage.kind,
            "version": stage.version,
            "knobs": planned.config.model_dump(mode="json"),
            "parent": parent,
            "materials": digests,
            "seed": recipe.seed,
            "libraries": versions(stage.libraries),
        }
        seen[stage.kind] = seen.get(stage.kind, 0) + 1
        name = stage.kind if seen[stage.kind] == 1 else f"{stage.kind} {seen[stage.kind]}"
        step = Step(index=index, name=name, stage=stage, config=planned.config, identity=identity)
        yield step
        parent = step.key
        teacher = (
            teacher or step.key
        )  # a recipe that starts from nothing: its first artifact is what the rest is held to


def estimates(steps: tuple[Step, ...], source: Source) -> list[Estimate]:
    """What each stage will take; one that makes the model smaller is taken to leave it as large as it was."""
    config = source.checkpoint.config if source.checkpoint else _architecture(steps)
    weights = source.checkpoint.parameters if source.checkpoint else _weights(config)
    form: Form = source.form
    found = []
    for step in steps:
        found.append(_estimate(step, weights, config, form))
        form = step.stage.leaves
    return found


def _estimate(step: Step, weights: int, config: dict[str, Any], form: Form) -> Estimate:
    materials = step.stage.materials(step.config)
    result = weights * {"int8": 2, "onnx": 2 if form == "int8" else FLOAT}.get(step.stage.leaves, FLOAT)
    if "train_text" not in materials:
        return Estimate(
            memory=LIBRARIES_MEMORY + COPIES["other"] * FLOAT * weights,
            disk=result,
            seconds=START_SECONDS + weights / WEIGHTS_PER_SECOND,
        )
    tokens, batch, length = (int(getattr(step.config, name, default)) for name, default in _TRAINING)
    teachers = 1 if "teacher" in materials else 0
    models = (COPIES["train"] + teachers) * FLOAT * weights
    flops = (6 + 2 * teachers) * weights * tokens
    crew = launch() if step.stage.parallel else Launch()
    share = crew.local_world / crew.world
    held = models * (share if getattr(step.config, "distributed", "ddp") == "fsdp" else crew.local_world)
    return Estimate(
        memory=int(crew.local_world * LIBRARIES_MEMORY + held + share * _activations(config, batch * length)),
        disk=result + 2 * (COPIES["train"] - 1) * FLOAT * weights,  # two checkpoints with their moments, for a moment
        seconds=START_SECONDS + share * flops / (FLOPS_PER_CORE * available_cores()),
    )


_TRAINING = (("tokens", 1_000_000), ("batch", 16), ("length", 256))


def _size(config: dict[str, Any], *names: str) -> int:
    """The first of the sizes that a model's config gives, under whatever name its family has for it."""
    return next((int(config[name]) for name in names if isinstance(config.get(name), int)), 0)


def width(config: dict[str, Any]) -> int:
    return _size(config, "hidden_size", "n_embd", "d_model")


def depth(config: dict[str, Any]) -> int:
    return _size(config, "num_hidden_layers", "n_layer", "num_layers")


def _activations(config: dict[str, Any], tokens: int) -> int:
    """Bytes that one training step holds for its way back: 16 values of the width a layer, and the logits twice."""
    return FLOAT * tokens * (16 * width(config) * depth(config) + 2 * _size(config, "vocab_size"))


def _architecture(steps: tuple[Step, ...]) -> dict[str, Any]:
    """The config of the model that the first stage is going to make."""
    config = steps[0].config if steps else None
    sizes = {"vocab_size": getattr(config, "vocabulary", 0)}
    return sizes | dict(getattr(config, "architecture", None) or {})


def _weights(config: dict[str, Any]) -> int:
    """About how many weights a decoder of these sizes has."""
    return 12 * depth(config) * width(config) ** 2 + _size(config, "vocab_size") * width(config)
