"""What a recipe is, once it has been loaded: a frozen value without any open question, and its JSON Schema for editors.

The knobs of a stage live beside the stage's own code; here is only what surrounds the stages: the model, the texts, how
to measure and what to require. `loader.py` makes a Recipe of a file, and finds everything that is wrong with it.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, SerializeAsAny, SkipValidation, field_validator, model_validator
from pydantic.json_schema import models_json_schema

from compress import Stage, StageConfig, TextSource
from compress.knobs import Knobs
from compress.registry import lazy
from evaluation.gate import Limit
from evaluation.machine import available_cores
from evaluation.measurement import METRICS, SEPARATOR, is_metric
from recipes.config.errors import Locations
from recipes.config.evaluations import AUTO, Bos, GenerationConfig, LabeledConfig, TaskConfig

Stages = Mapping[str, Stage[Any]]
_recipe_of = lazy("recipes.config.loader:recipe_of")
"""Checks a mapping; it is in the module that makes recipes, and so imports this one."""
COMMIT = re.compile(r"[0-9a-f]{40}")
FEWEST_BLOCKS = 3
"""Of a variant that is timed."""


class Section(Knobs):
    """A part of a recipe: frozen, unknown keys refused."""


class ModelSource(Section):
    """Where the model is: a folder, or a model of the Hugging Face hub at a pinned commit."""

    folder: Path | None = None
    """A Hugging Face checkpoint folder: config.json, *.safetensors and the tokenizer."""
    hub: str | None = None
    """A model's id on the Hugging Face hub, such as "HuggingFaceTB/SmolLM2-135M-Instruct"."""
    revision: str | None = None
    """The model's commit hash on the hub, so that the model cannot change under a recipe."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"folder": value} if isinstance(value, str | Path) else value

    @model_validator(mode="after")
    def _one_place(self) -> "ModelSource":
        if (self.folder is None) == (self.hub is None):
            raise ValueError("expected either `folder` or `hub`")
        if self.hub is not None and (self.revision is None or not COMMIT.fullmatch(self.revision)):
            raise ValueError(
                f"expected {pinned(self.hub)}, got {f'revision {self.revision!r}' if self.revision else 'no revision'}"
            )
        if self.folder is not None and self.revision is not None:
            raise ValueError("expected `revision` only beside `hub`; a folder has none")
        return self

    def __str__(self) -> str:
        return str(self.folder) if self.folder is not None else f"{self.hub}@{self.revision}"


def pinned(hub: str) -> str:
    """How a model of the hub is written so that it cannot change: the way out of the error about one that could."""
    return (
        f"a pinned model {{hub: {hub}, revision: <commit hash of 40 hex digits>}} "
        f"(the hash stands at https://huggingface.co/{hub}/commits/main)"
    )


class DataConfig(Section):
    """The texts of a recipe."""

    train: TextSource | None = None
    """What stages train on."""
    calibration: TextSource | None = None
    """What stages look at to decide what matters; never the test text."""
    test: TextSource
    """What every artifact is measured on; no stage sees it."""


class NoiseConfig(Section):
    """The test text under noise: its figures are called typos/perplexity, case/perplexity, truncation/perplexity."""

    typos: float | None = Field(default=None, gt=0, lt=1)
    """Share of the letters that are mistyped."""
    case: float | None = Field(default=None, gt=0, lt=1)
    """Share of the letters whose case is flipped."""
    truncation: float | None = Field(default=None, gt=0, lt=1)
    """Share of every document that is cut away at its beginning."""


class EvaluateConfig(Section):
    """How quality is measured: on the test text, and by the evaluations that are named."""

    window: int = Field(default=256, ge=2)
    """Tokens per window; a window never crosses documents unless `join` is set."""
    windows: int | None = Field(default=128, ge=1)
    """How many windows; null: all of them."""
    select: Literal["even", "first"] = "even"
    """Which windows: spread evenly over the text, or the first ones."""
    join: bool = False
    """Lay the documents end to end and cut that stream, as published WikiText figures do."""
    batch: int = Field(default=8, ge=1)
    """Windows per forward pass."""
    stride: int | None = Field(default=None, ge=1)
    """Tokens by which a window moves on; only new tokens are scored. null: windows do not overlap."""
    bos: Bos = AUTO
    """What stands before every window, prompt and question: auto, what the tokenizer itself puts before a text; true,
    its beginning-of-text token; false, nothing.
    """
    stages: Literal["all", "last"] = "all"
    """What quality is measured of, beside the baseline: what every stage made, or the last artifact alone, which is the
    one that gates are about; the others then have sizes and latencies only.
    """
    noise: NoiseConfig | None = None
    """Measure the test text under noise too: {typos: 0.05, case: 0.1, truncation: 0.25}, each a share."""
    tasks: tuple[TaskConfig, ...] = ()
    """Multiple choice from files, and tasks of lm-evaluation-harness by name: [{name: hellaswag, file: h.jsonl.gz}]."""
    labeled: tuple[LabeledConfig, ...] = ()
    """Labeled text by likelihood: [{name: sentiment, file: reviews.jsonl, answers: {positive: " yes", ...}}]."""
    generation: tuple[GenerationConfig, ...] = ()
    """Generated text against references: [{name: summaries, file: a.jsonl, prompt: "{text} TL;DR", tokens: 48}]."""

    @model_validator(mode="after")
    def _moves_within(self) -> "EvaluateConfig":
        room = self.window - (self.bos is True)
        if self.stride is not None and self.stride > room:
            raise ValueError(f"expected a stride of at most {room}, the tokens of text in a window, got {self.stride}")
        return self

    @property
    def noises(self) -> dict[str, float]:
        """The noises that are asked for, with their shares."""
        return {kind: share for kind, share in self.noise or () if share is not None}

    @property
    def named(self) -> tuple[TaskConfig | LabeledConfig | GenerationConfig, ...]:
        """The evaluations that have a name."""
        return (*self.tasks, *self.labeled, *self.generation)

    def identity(self) -> dict[str, Any]:
        """How the test text is cut and treated; where files lie says nothing about that."""
        return self.model_dump(mode="json", exclude={"tasks", "labeled", "generation", "stages"})

    def identity_of(self, name: str) -> dict[str, Any]:
        """What one evaluation depends on: of the test text under the noise of a name ("": as it is), how it is cut and
        treated; of one that is named, what is common to all of those.
        """
        if name in {named.name for named in self.named}:
            return self.model_dump(mode="json", include={"batch", "bos"})
        return {**self.identity(), "noise": {name: self.noises[name]} if name else None}


class BenchmarkConfig(Section):
    """How latency is measured: the baseline and every artifact in randomly ordered blocks, batch 1."""

    prompt: int = Field(default=128, ge=1)
    """Tokens of the prompt."""
    tokens: int = Field(default=64, ge=1)
    """Tokens decoded after it."""
    blocks: int = Field(default=15, ge=FEWEST_BLOCKS)
    """The most timed blocks of the baseline and the last artifact; fewer where they decide the gates on latency."""
    stage_blocks: int = Field(default=5, ge=0)
    """Undisturbed blocks, from the first on, in which the artifacts between are timed too, at least 3; 0: those are not
    timed, nor is their memory taken.
    """
    threads: int = Field(default_factory=available_cores, ge=1, le=1024)
    """CPU threads of each; default: every core that is available."""

    @field_validator("stage_blocks")
    @classmethod
    def _enough(cls, blocks: int) -> int:
        if 0 < blocks < FEWEST_BLOCKS:
            raise ValueError(f"expected 0 or at least {FEWEST_BLOCKS}, got {blocks}: fewer give no interval")
        return blocks


def short_benchmark(evaluate: EvaluateConfig) -> BenchmarkConfig:
    """What peak memory is taken with where no benchmark is asked for: a prompt that leaves room for what is decoded."""
    return BenchmarkConfig(prompt=max(1, min(128, evaluate.window // 2)))


class PlannedStage(Section):
    """A stage of a recipe: its kind and its knobs."""

    kind: str
    config: SerializeAsAny[StageConfig]


class Recipe(Section):
    """A whole recipe, checked."""

    name: str
    """The file's name without its ending; the run folder is called after it."""
    model: ModelSource | None = None
    """The model to compress; None only where the first stage makes one."""
    data: DataConfig
    stages: tuple[PlannedStage, ...] = ()
    evaluate: EvaluateConfig = EvaluateConfig()
    benchmark: BenchmarkConfig | None = None
    """None: no latency is measured."""
    gate: dict[str, Limit] = Field(default_factory=dict)
    """What must hold for a release, by metric."""
    seed: int = 0
    launcher: str | None = None
    """The command that starts the processes of a training stage, such as "torchrun --nproc-per-node 4"; None: one."""
    path: Path | None = None
    """The file it was loaded from."""
    text: str = Field(default="", exclude=True)
    """What it would say as a file, where it was made of a mapping."""
    where: SkipValidation[Locations] = Field(default_factory=Locations, exclude=True, repr=False)
    """Where each key stands, for the errors found later."""

    @classmethod
    def from_dict(
        cls,
        content: Mapping[str, Any],
        *,
        name: str = "recipe",
        folder: str | Path | None = None,
        overrides: Mapping[str, Any] | Sequence[str] = (),
        stages: Stages | None = None,
    ) -> "Recipe":
        """The recipe that a mapping says, with the keys of a recipe file; it is checked in the same way.

        Args:
            content: such as {"model": Path("gpt2"), "data": {"test": "t.txt"}, "stages": [{"prune": {}}, "export"]}.
            name: what the run is called, and the run folder after it.
            folder: what relative paths count from (default: the working directory).
            overrides: as in `load_recipe`.
            stages: the kinds of stages that it may name (default: all).

        Raises:
            RecipeError: everything that is wrong, one line each.
        """
        made: Recipe = _recipe_of(content, name=name, folder=folder, overrides=overrides, stages=stages)
        return made

    def __repr__(self) -> str:
        made = " -> ".join([str(self.model or "nothing"), *(stage.kind for stage in self.stages)])
        return f"Recipe({self.name}: {made}; gates: {', '.join(self.gate) or 'none'})"

    __str__ = __repr__


def json_schema(stages: Stages | None = None) -> dict[str, Any]:
    """JSON Schema of a recipe file, for completion and checks in editors; a stage is told by its key."""
    if stages is None:
        from recipes.config.stages import STAGES

        stages = STAGES
    sections: list[type[BaseModel]] = [ModelSource, DataConfig, TextSource, EvaluateConfig, BenchmarkConfig, Limit]
    models = [*sections, *(stage.config for stage in stages.values())]
    references, definitions = models_json_schema([(model, "validation") for model in dict.fromkeys(models)])
    refs = {model: dict(reference) for (model, _), reference in references.items()}
    for short in (ModelSource, TextSource):
        name = refs[short]["$ref"].removeprefix("#/$defs/")
        definitions["$defs"][name] = {"anyOf": [{"type": "string"}, definitions["$defs"][name]]}
    return {
        "$schema": "https://json-schema.org/raw/2020-12/schema",
        "title": "demitasse recipe",
        "type": "object",
        "additionalProperties": False,
        "required": ["data", "stages"],
        "properties": {
            "model": refs[ModelSource],
            "data": refs[DataConfig],
            "stages": {"type": "array", "items": {"oneOf": _stage_items(stages, refs)}},
            "evaluate": refs[EvaluateConfig],
            "benchmark": refs[BenchmarkConfig],
            "gate": {
                "type": "object",
                "additionalProperties": False,
                "properties": {name: refs[Limit] for name, metric in METRICS.items() if not metric.named},
                "patternProperties": {_of_evaluations(): refs[Limit]},
            },
            "seed": {"type": "integer", "minimum": 0, "default": 0},
            "launcher": {"type": "string", "minLength": 1},
        },
        **definitions,
    }


def _of_evaluations() -> str:
    """A pattern of the metrics that have a name before them."""
    return f"^.+{SEPARATOR}({'|'.join(metric for metric in METRICS if is_metric(f'name{SEPARATOR}{metric}'))})$"


def _stage_items(stages: Stages, refs: Mapping[Any, dict[str, Any]]) -> list[dict[str, Any]]:
    bare = {"enum": sorted(stages), "description": "a stage with its default knobs"}
    keyed = [
        {
            "type": "object",
            "description": stage.summary,
            "additionalProperties": False,
            "required": [kind],
            "properties": {kind: {"anyOf": [refs[stage.config], {"type": "null"}]}},
        }
        for kind, stage in stages.items()
    ]
    return [bare, *keyed]
