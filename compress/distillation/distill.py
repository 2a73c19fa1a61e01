"""Distillation: a smaller student learns to predict what the teacher predicts.

The student is the source with some blocks left out (`layers`, `keep`), the source itself (`layers` absent: how a pruned
or slimmed model recovers), another checkpoint (`student`), or a model made from a config (`architecture`); wherever
shapes allow, it starts with the teacher's weights. The teacher is the recipe's source. It runs beside the student, or
it ran once before and was written down (`stored`).

    loss = sum of weight * loss over LOSSES (`compress/training/losses.py`: between distributions over the vocabulary)
           and LAYER_LOSSES (`layers.py`: between hidden states and attention relations)

With `quantization_aware` the student computes with its weights rounded to int8, as `quantize` will round them, so that
it makes up for that rounding too; its losses are divergences from the teacher alone, because the text would pull it
away from what is to be preserved (LLM-QAT, arXiv 2305.17888).
Sources: Hinton et al. (arXiv 1503.02531); DistilBERT for the spread of the kept layers (arXiv 1910.01108); Minitron for
forward KL as the main loss (arXiv 2407.14679).

Not covered: teachers of another vocabulary, text that the student writes itself (on-policy distillation).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from compress.checkpoint import end_of_text, load_model, load_tokenizer, read_config, save_checkpoint
from compress.stage import Facts, Stage, StageConfig, StageError, StageInput
from compress.text import pack, read_documents, tokenize
from compress.training.train import TrainingKnobs, held_out_rows, materials

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

    from compress.distillation.objective import Distillation

LossName = Literal[
    "forward_kl",
    "reverse_kl",
    "jensen_shannon",
    "skewed_kl",
    "cross_entropy",
    "hidden_states",
    "attention_relations",
]
BETWEEN_LAYERS = frozenset({"hidden_states", "attention_relations"})
PROBE_ROWS = 32
"""Rows of the training text on which layers are weighed."""
STORABLE = frozenset({"forward_kl", "cross_entropy"})


class Fade(BaseModel):
    """A weight that changes while training."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

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
    architecture: dict[str, Any] | None = None
    """Or a new model: what its config.json has other than the teacher's; it starts with what fits of the teacher."""
    losses: Mapping[LossName, float | Fade] = Field(default={"forward_kl": 0.9, "cross_entropy": 0.1})
    """Weights of the losses: numbers, or {start: 1, end: 0, over: 0.5}."""
    temperature: float = Field(default=1.0, gt=0)
    """Softening of both distributions in the divergences."""
    skew: float = Field(default=0.1, gt=0, lt=1)
    """Share of the teacher in the mixture of `skewed_kl`."""
    layer_map: tuple[tuple[int, int], ...] | None = None
    """[student's layer, teacher's layer] of the losses between layers; absent: each kept layer to where it was."""
    stored: StoredConfig | None = None
    """Run the teacher once and write it down: {draws: 64} or {top_k: 64}; absent: it runs beside the student."""
    quantization_aware: bool = False
    """Train against the rounding to int8 that `quantize` will do, embeddings too; losses: divergences alone."""

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
        if self.stored is not None and set(self.losses) - STORABLE - BETWEEN_LAYERS:
            raise ValueError("losses: a stored teacher knows a few tokens, which suffices for forward_kl and no other")
        if self.stored is not None and set(self.losses) & BETWEEN_LAYERS:
            raise ValueError("losses: a stored teacher has no hidden states; leave out `stored`, or the layers' losses")
        if self.quantization_aware and set(self.losses) & {"cross_entropy", *BETWEEN_LAYERS}:
            raise ValueError("losses: expected divergences alone with quantization_aware, such as {forward_kl: 1}")
        if self.quantization_aware and self.save_dtype != "float32":
            raise ValueError("save_dtype: expected float32 with quantization_aware: rounded weights round differently")
        return self


def run(config: DistillConfig, given: StageInput) -> Facts:
    """Leaves a dense checkpoint of the student, trained on `given.train_text`."""
    from compress.linears import sparsity
    from compress.training.fit import fit
    from compress.training.rounding import round_int8, unround
    from compress.training.zeros import pruning_facts

    assert given.source is not None
    if given.teacher is None or given.train_text is None:
        raise StageError("distill: expected a teacher (the recipe's source) and a training text (data.train)")
    tokenizer = load_tokenizer(given.source)
    rows_NT = pack(tokenize(read_documents(given.train_text), tokenizer), config.length, end_of_text(tokenizer))
    student, made = _student(config, given, rows_NT)
    objective, teacher = _objective(config, given, student, rows_NT, made)
    if config.quantization_aware:
        round_int8(student, embeddings=True)
    schedule = config.schedule()
    history = fit(
        objective,
        rows_NT,
        schedule,
        scratch=given.scratch,
        seed=given.seed,
        progress=given.progress,
        label="distill",
        held_out_NT=held_out_rows(config, given, tokenizer),
        logs=given.logs,
    )
    objective.close()
    unround(student)
    save_checkpoint(student, tokenizer, given.out, dtype=config.save_dtype)
    pruned = pruning_facts(config.prune, schedule.steps(config.length), student)
    facts = {"sparsity": sparsity(student), "text_tokens": int(rows_NT.size)}
    return {**made, **teacher, **facts, **pruned, "history": history}


def _student(config: DistillConfig, given: StageInput, rows_NT: "NDArray[np.int64]") -> "tuple[PreTrainedModel, Facts]":
    """The student before training, and what is to be said of where it came from."""
    from compress.distillation.students import by_influence, fresh, listed, same_tokenizer, spread, with_layers

    assert given.source is not None
    assert given.teacher is not None
    folder = config.student or given.source
    tokenizer = load_tokenizer(given.teacher)
    same_tokenizer(tokenizer, load_tokenizer(folder))
    if config.architecture is not None:
        return fresh(config.architecture, load_model(given.teacher), tokenizer, given.seed)
    source = load_model(folder)
    depth, noted = source.config.num_hidden_layers, dict[str, Any]()
    layers = depth if config.layers is None else config.layers
    if layers > depth:
        raise StageError(
            f"distill: layers: the source has {depth} layers, so a student of {layers} cannot be cut from it"
        )
    if config.keep is not None:
        kept = listed(config.keep, depth)
    elif config.choose == "spread" or layers == depth:
        kept = spread(depth, layers)
    else:
        kept, noted = by_influence(folder, rows_NT[:PROBE_ROWS], layers, by=config.choose, progress=given.progress)
    return with_layers(source, kept), {"kept_layers": kept, **noted}


def _objective(
    config: DistillConfig,
    given: StageInput,
    student: "PreTrainedModel",
    rows_NT: "NDArray[np.int64]",
    made: Facts,
) -> "tuple[Distillation, Facts]":
    """What is minimized, and what is to be said of the teacher."""
    import torch

    from compress.distillation.objective import Distillation, Live, cached
    from compress.distillation.students import spread

    assert given.source is not None
    assert given.teacher is not None
    teacher = load_model(given.teacher, dtype="bfloat16" if config.precision == "bf16" else "float32")
    teacher.requires_grad_(False)
    source, facts = (Live(teacher), {}) if config.stored is None else cached(config, given, teacher, rows_NT)
    uncut = read_config(config.student or given.source) == read_config(given.teacher)
    origins = made.get("kept_layers") if uncut else None
    if config.architecture is not None and made["from_teacher"]["weights"]:
        origins = spread(teacher.config.num_hidden_layers, student.config.num_hidden_layers)
    return Distillation(student, source, config, origins=origins, probe_BT=torch.from_numpy(rows_NT[:4])), facts


DISTILL = Stage(
    kind="distill",
    summary="train a smaller student (or the pruned model itself) on the teacher's predictions",
    version=2,
    config=DistillConfig,
    takes=frozenset({"dense"}),
    leaves="dense",
    run=run,
    parallel=True,
    materials=lambda config: materials(config) | {"teacher"},
    folders=lambda config: {} if config.student is None else {"student": config.student},
    libraries=("torch", "transformers", "accelerate", "tokenizers", "numpy"),
)
