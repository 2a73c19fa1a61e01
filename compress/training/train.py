"""Training: fit a GPT from a config, with a tokenizer of its own, or fine-tune one.

The loss is the mean cross-entropy of the next token over packed documents. From nothing, `architecture` is the
model's config (the keys of its config.json) and `vocabulary` the size of the byte-level BPE that is trained on the
training text first (Sennrich et al., arXiv 1508.07909; byte level as in GPT-2).
With `prune` the model becomes sparse as it trains (`gradual.py`); zeros that it already has stay in any case.

Not covered: data that does not fit into memory.
"""

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from compress.checkpoint import DType, end_of_text, load_model, load_tokenizer, save_checkpoint
from compress.stage import Facts, Material, Stage, StageConfig, StageError, StageInput
from compress.text import SEPARATOR, pack, read_documents, tokenize
from compress.training.gradual import GradualConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from compress.training.fit import Schedule

HELD_OUT_ROWS = 128


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

    def schedule(self) -> "Schedule":
        from compress.training.fit import Schedule

        return Schedule(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Schedule)})


class TrainConfig(TrainingKnobs):
    """Fit a GPT from a config, or fine-tune the source."""

    architecture: dict[str, Any] | None = None
    """The new model's config, as in config.json (`model_type` and the sizes); absent: fine-tune the source."""
    vocabulary: int = Field(default=4096, ge=257)
    """Size of the byte-level BPE vocabulary that a new model gets; not used in fine-tuning."""


def run(config: TrainConfig, given: StageInput) -> Facts:
    """Leaves a dense checkpoint, trained on `given.train_text`."""
    from compress.training.fit import fit
    from compress.training.objective import Objective
    from compress.training.zeros import pruning_facts

    if given.train_text is None:
        raise StageError("train: expected a training text (data.train), got none")
    if config.architecture is not None and given.source is not None:
        raise StageError("train: expected a model to fine-tune or `architecture` for a new one, got both")
    documents = read_documents(given.train_text)
    model, tokenizer = _fresh(config, documents, given.seed) if config.architecture is not None else _source(given)
    rows_NT = pack(tokenize(documents, tokenizer), config.length, end_of_text(tokenizer))
    schedule = config.schedule()
    history = fit(
        Objective(model),
        rows_NT,
        schedule,
        scratch=given.scratch,
        seed=given.seed,
        progress=given.progress,
        label="train",
        held_out_NT=held_out_rows(config, given, tokenizer),
        logs=given.logs,
    )
    save_checkpoint(model, tokenizer, given.out, dtype=config.save_dtype)
    pruned = pruning_facts(config.prune, schedule.steps(config.length), model)
    return {"text_tokens": int(rows_NT.size), **pruned, "history": history}


def held_out_rows(
    config: TrainingKnobs, given: StageInput, tokenizer: "PreTrainedTokenizerBase"
) -> "NDArray[np.int64] | None":
    """The first rows of the calibration text, where the loss on them is asked for."""
    if not config.held_out:
        return None
    if given.calibration_text is None:
        raise StageError("held_out: expected a calibration text (data.calibration), got none")
    documents = tokenize(read_documents(given.calibration_text), tokenizer)
    return pack(documents, config.length, end_of_text(tokenizer))[:HELD_OUT_ROWS]


def _source(given: StageInput) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    if given.source is None:
        raise StageError("train: expected a source model to fine-tune, or `architecture` to fit a new one")
    return load_model(given.source), load_tokenizer(given.source)


def _fresh(config: TrainConfig, documents: list[str], seed: int) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    architecture = dict(config.architecture or {})
    model_type = architecture.pop("model_type", None)
    if model_type is None:
        raise StageError('train: architecture: expected `model_type`, such as "gpt2"')
    tokenizer = train_tokenizer(documents, config.vocabulary)
    ends = end_of_text(tokenizer)
    try:
        shape = AutoConfig.for_model(
            model_type, vocab_size=len(tokenizer), bos_token_id=ends, eos_token_id=ends, **architecture
        )
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(shape), tokenizer
    except (ValueError, TypeError, KeyError) as error:
        raise StageError(f"train: architecture: {error}") from error


def train_tokenizer(documents: list[str], vocabulary: int) -> "PreTrainedTokenizerBase":
    """A byte-level BPE of `vocabulary` tokens, `<|endoftext|>` (id 0) among them; any text can be encoded."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[SEPARATOR],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer, length=len(documents))
    fast: PreTrainedTokenizerBase = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=SEPARATOR, eos_token=SEPARATOR
    )
    return fast


def materials(config: TrainingKnobs) -> frozenset[Material]:
    """Training text always; the calibration text too, where it is held out to follow the loss."""
    return frozenset({"train_text", "calibration_text"} if config.held_out else {"train_text"})


TRAIN = Stage(
    kind="train",
    summary="fit a GPT from a config, or fine-tune one",
    version=2,
    config=TrainConfig,
    takes=frozenset({"nothing", "dense"}),
    leaves="dense",
    run=run,
    parallel=True,
    materials=materials,
    libraries=("torch", "transformers", "accelerate", "tokenizers", "numpy"),
)
