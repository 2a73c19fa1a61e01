"""What distillation lets one choose: the student, the losses, how the teacher is had.

The losses over the vocabulary are in `compress/training/config.py`; those between layers are `LAYER_LOSSES`, whose
functions are in `layer_losses.py`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from compress.knobs import Knobs
from compress.models.families import Part
from compress.quantization.config import QuantizeConfig
from compress.registry import OneOf, lazy
from compress.stage import Stage, StageConfig
from compress.training.config import LOSSES, Architecture, TrainingKnobs, inputs_read


@dataclass(frozen=True, kw_only=True)
class LayerLoss:
    """A loss between layers."""

    summary: str
    function: Callable[..., Any]
    """(student's parts, teacher's parts, bridge) -> a number."""
    parts: tuple[Part, ...]
    """What it reads."""
    everywhere: bool
    """Of every mapped pair of layers; else of the last one."""


LAYER_LOSSES: dict[str, LayerLoss] = {
    "hidden_states": LayerLoss(
        summary="squared error of the hidden states, each channel in its own unit",
        function=lazy("compress.distillation.layer_losses:hidden_states"),
        parts=("hidden",),
        everywhere=True,
    ),
    "attention_relations": LayerLoss(
        summary="KL between how alike two positions' queries, keys and values are, in the last mapped layer (MiniLMv2)",
        function=lazy("compress.distillation.layer_losses:attention_relations"),
        parts=("query", "key", "value"),
        everywhere=False,
    ),
}
ALL_LOSSES: dict[str, object] = {**LOSSES, **LAYER_LOSSES}


class Fade(Knobs):
    """A weight that changes while training."""

    start: float = Field(ge=0)
    """The weight at the first step."""
    end: float = Field(ge=0)
    """The weight from the end of the change on."""
    over: float = Field(default=1.0, gt=0, le=1)
    """Share of the steps over which it changes, along a line."""


class StoredConfig(StageConfig):
    """A teacher that runs once over the training text and is written down."""

    draws: int | None = Field(default=None, gt=0)
    """Sampled: about how many tokens of each position are kept at most; the loss stays unbiased."""
    top_k: int | None = Field(default=None, gt=0)
    """Or the likeliest tokens of each position with one bucket for the rest: biased."""
    folder: Path | None = None
    """Where stored teachers are kept for further runs and students; default: ~/.cache/demitasse/teachers."""

    @model_validator(mode="after")
    def _one_way(self) -> "StoredConfig":
        if (self.draws is None) == (self.top_k is None):
            raise ValueError("expected either `draws`, sampled and unbiased, or `top_k`, biased")
        return self


class DistillConfig(TrainingKnobs):
    """Train a smaller student on the teacher's predictions."""

    layers: int | None = Field(default=None, gt=0)
    """How many of the source's layers the student keeps; absent: all of them."""
    choose: Literal["spread", "block_influence", "perplexity"] = "block_influence"
    """Which: those that the training text shows to matter most, or evenly spaced with first and last among them."""
    keep: tuple[int, ...] | None = None
    """Or the kept layers themselves, counted from 0."""
    student: Path | None = None
    """Or another checkpoint with the teacher's tokenizer."""
    architecture: Architecture | None = None
    """Or a new model: what its config.json has other than the teacher's; it starts with what fits of the teacher."""
    losses: Mapping[Annotated[str, OneOf(ALL_LOSSES)], float | Fade] = Field(
        default={"forward_kl": 0.9, "cross_entropy": 0.1}
    )
    """Weights of the losses: numbers, or {start: 1, end: 0, over: 0.5}."""
    temperature: float = Field(default=1.0, gt=0)
    """Softening of both distributions in the divergences."""
    skew: float = Field(default=0.1, gt=0, lt=1)
    """Share of the teacher in the mixture of `skewed_kl`."""
    layer_map: tuple[tuple[int, int], ...] | None = None
    """[student's layer, teacher's layer] of the losses between layers; absent: each kept layer to where it was."""
    stored: StoredConfig | None = None
    """Run the teacher once and write it down: {draws: 64} or {top_k: 64}; absent: it runs beside the student."""
    quantization_aware: bool | QuantizeConfig = False
    """Train against the rounding that `quantize` will do with these knobs, such as {scheme: int4, group: 32}; true: to
    int8, embeddings too. Losses: divergences alone.
    """

    @model_validator(mode="after")
    def _fits_together(self) -> "DistillConfig":
        students = [name for name in ("layers", "keep", "student", "architecture") if getattr(self, name) is not None]
        if len(students) > 1:
            raise ValueError(f"expected one of {', '.join(students)}: each says what the student is")
        if self.keep is not None and (not self.keep or list(self.keep) != sorted(set(self.keep)) or self.keep[0] < 0):
            raise ValueError("keep: expected layer numbers from 0, rising, such as [0, 2, 5]")
        weights = self.losses.values()
        if not any(max(weight.start, weight.end) > 0 if isinstance(weight, Fade) else weight > 0 for weight in weights):
            raise ValueError("losses: expected at least one weight above 0")
        if self.stored is not None and any(not LOSSES[name].stored for name in self.losses if name in LOSSES):
            raise ValueError("losses: a stored teacher knows a few tokens, which suffices for forward_kl and no other")
        if self.stored is not None and set(self.losses) & set(LAYER_LOSSES):
            raise ValueError("losses: a stored teacher has no hidden states; leave out `stored`, or the layers' losses")
        if self.quantization_aware and any(name in LAYER_LOSSES or not LOSSES[name].teacher for name in self.losses):
            raise ValueError("losses: expected divergences alone with quantization_aware, such as {forward_kl: 1}")
        if self.quantization_aware and self.save_dtype != "float32":
            raise ValueError("save_dtype: expected float32 with quantization_aware: rounded weights round differently")
        if self.quantization_aware and self.rounding().method != "rtn":
            raise ValueError("quantization_aware: method: expected rtn, by which training rounds, got another")
        if self.quantization_aware and self.rounding().average_bits is not None:
            raise ValueError("quantization_aware: average_bits: expected `bits`, as what is chosen changes in training")
        return self

    def rounding(self) -> QuantizeConfig:
        """What the weights are trained against."""
        aware = self.quantization_aware
        return aware if isinstance(aware, QuantizeConfig) else QuantizeConfig(embeddings=True)


DISTILL = Stage(
    kind="distill",
    summary="train a smaller student (or the pruned model itself) on the teacher's predictions",
    version=3,
    config=DistillConfig,
    takes=frozenset({"dense"}),
    leaves="dense",
    run=lazy("compress.distillation.stage:run"),
    parallel=True,
    inputs_read=lambda config: inputs_read(config) | {"teacher"},
    folders=lambda config: {} if config.student is None else {"student": config.student},
    libraries=("torch", "transformers", "accelerate", "tokenizers", "numpy"),
)
