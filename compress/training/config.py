"""What every stage that trains lets one choose, what `train` does beside, and the losses over the vocabulary by name.

The registry is `LOSSES`; its functions are in `losses.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from compress.checkpoints.config import sound_architecture
from compress.checkpoints.folder import DType
from compress.registry import lazy
from compress.stage import Stage, StageConfig, StageInputName
from compress.training.pruning_schedule import GradualConfig

Architecture = Annotated[dict[str, Any], AfterValidator(sound_architecture)]
"""A new model's config."""


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A loss between distributions over the vocabulary."""

    summary: str
    function: Callable[..., Any]
    """Chunk -> (value_N, its gradient by the student's logits_NV)."""
    teacher: bool = True
    """Whether it looks at the teacher; else it sees the text alone, and is taken at T = 1."""
    stored: bool = False
    """Whether a few tokens of the teacher's distribution suffice."""


LOSSES: dict[str, Loss] = {
    "forward_kl": Loss(
        summary="KL(teacher || student): the student covers all that the teacher finds likely",
        function=lazy("compress.training.losses:forward_kl"),
        stored=True,
    ),
    "reverse_kl": Loss(
        summary="KL(student || teacher): the student keeps to what the teacher finds likely",
        function=lazy("compress.training.losses:reverse_kl"),
    ),
    "jensen_shannon": Loss(
        summary="half of each to the middle of both", function=lazy("compress.training.losses:jensen_shannon")
    ),
    "skewed_kl": Loss(
        summary="KL(teacher || a mixture of student and teacher)", function=lazy("compress.training.losses:skewed_kl")
    ),
    "cross_entropy": Loss(
        summary="the text itself; needs no teacher",
        function=lazy("compress.training.losses:cross_entropy"),
        teacher=False,
        stored=True,
    ),
}


class TrainingKnobs(StageConfig):
    """What every stage that trains lets one choose."""

    tokens: int = Field(default=1_000_000, gt=0)
    """Training tokens in all; the text is repeated, newly shuffled, when it is shorter."""
    length: int = Field(default=256, ge=2)
    """Tokens per training sequence."""
    distributed: Literal["ddp", "fsdp"] = "ddp"
    """On several processes: the whole model on each (ddp), or on each a part of it (fsdp); docs/distributed.md."""
    batch: int = Field(default=16, gt=0)
    """Sequences per step, over all processes."""
    accumulate: int = Field(default=1, gt=0)
    """Parts that a step's sequences are taken in, one after the other: less memory, the same step."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak learning rate; it rises over the warm-up and falls along a cosine to 0."""
    weight_decay: float = Field(default=0.1, ge=0)
    """AdamW's decoupled weight decay; norms, biases and embeddings are exempt."""
    warmup: float = Field(default=0.05, ge=0, le=1)
    """Share of the steps over which the learning rate rises."""
    precision: Literal["bf16", "fp32"] = "fp32"
    """Arithmetic of the matrix products: bf16 autocast pays where the hardware has bf16 matrix units (AMX, GPUs)."""
    gradient_checkpointing: bool = False
    """Keep only what enters each block and compute the rest again on the way back: less memory, a third more time."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to train; the result depends on it in the last digits."""
    checkpoints: int = Field(default=10, ge=0)
    """How many resumable checkpoints are written, evenly spaced."""
    held_out: bool = False
    """Take the loss on the calibration text at every checkpoint, and keep the weights for which it was lowest."""
    patience: int | None = Field(default=None, gt=0)
    """Checkpoints without a lower held-out loss after which training ends; absent: it goes on to the end."""
    report_to: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = ("tensorboard",)
    """Where the curves go while training."""
    save_dtype: DType = "float32"
    """Type of the saved weights."""
    prune: GradualConfig | None = None
    """Zero the smallest weights on the way: {sparsity: 0.5} or {pattern: "2:4"}, and when: `ramp`, `every`."""


class TrainConfig(TrainingKnobs):
    """Fit a GPT from a config, or fine-tune the source."""

    architecture: Architecture | None = None
    """The new model's config, as in config.json (`model_type` and the sizes); absent: fine-tune the source."""
    vocabulary: int = Field(default=4096, ge=257)
    """Size of the byte-level BPE vocabulary that a new model gets; not used in fine-tuning."""


def inputs_read(config: TrainingKnobs) -> frozenset[StageInputName]:
    """Training text always; the calibration text too, where it is held out to follow the loss."""
    return frozenset({"train_text", "calibration_text"} if config.held_out else {"train_text"})


TRAIN = Stage(
    kind="train",
    summary="fit a GPT from a config, or fine-tune one",
    version=3,
    config=TrainConfig,
    takes=frozenset({"nothing", "dense"}),
    leaves="dense",
    run=lazy("compress.training.stage:run"),
    parallel=True,
    inputs_read=inputs_read,
    libraries=("torch", "transformers", "accelerate", "tokenizers", "numpy"),
)
