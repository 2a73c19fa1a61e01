"""One training loop for every stage that trains: transformers' Trainer with a fixed order of data and exact resumption.

    rows_NT (N sequences of T token ids)  --shuffled by the seed, once per pass-->  steps of `batch` rows
    learning rate  rises over the warm-up, falls along a cosine to 0
    optimizer      AdamW (arXiv 1711.05101); no weight decay on norms, biases and embeddings

The order of rows is computed ahead of the run, so a resumed run continues in the same order. A checkpoint counts when
its trainer_state.json, which the Trainer writes last, can be read; half-written ones are removed. On a CPU a killed
and resumed run ends in the same bits.

Where a held-out text is given, its loss is taken at every checkpoint and at the end, the weights of the lowest one are
the result, and with `patience` training ends early. Where weights are dropped on the way the last weights are the
result, because the best ones may be those from before.

Sparse models stay sparse: a weight of the block linears that is exactly zero at the start is held there
(`sparsity_masks.py`). Where the schedule says `prune`, more of them follow along a ramp (`pruning_schedule.py`); the
masks are a part of every checkpoint then.
"""

import importlib.util
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from compress.checkpoints.folder import no_bars
from compress.stage import Progress, StageError
from compress.training.config import TrainingKnobs
from compress.training.distributed import from_first, make_whole, shard, shard_frozen, together
from compress.training.distributed_trainer import ShardedTrainer
from compress.training.launch import Launch, launch, unfit
from compress.training.malloc import kept_memory
from compress.training.objective import Objective
from compress.training.pruning_schedule import GradualConfig
from compress.training.trainer import PlainTrainer, Pruning, Rows, Tracker

FIGURES = {"loss": "loss", "eval_loss": "held_out_loss", "sparsity": "sparsity"}
"""What the Trainer logs of every run, and what it is called in a history."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The knobs that every training stage shares."""

    tokens: int
    """Training tokens in all; rounded down to whole steps, at least one."""
    batch: int
    """Sequences per step, over all processes."""
    distributed: Literal["ddp", "fsdp"] = "ddp"
    """How several processes share the work."""
    accumulate: int = 1
    """Parts that a step's sequences are taken in, one after the other."""
    learning_rate: float
    weight_decay: float
    warmup: float
    """Share of the steps over which the learning rate rises from 0."""
    precision: Literal["bf16", "fp32"]
    gradient_checkpointing: bool = False
    device: Literal["cpu", "cuda"]
    checkpoints: int
    """How many times a resumable checkpoint is written, evenly spaced."""
    patience: int | None = None
    """Checkpoints without a lower held-out loss after which training ends."""
    report_to: Sequence[str] = ()
    prune: GradualConfig | None = None
    """What to prune on the way."""

    @classmethod
    def of(cls, knobs: TrainingKnobs) -> "Schedule":
        """Those of a stage's config."""
        return cls(**{field.name: getattr(knobs, field.name) for field in fields(cls)})

    def steps(self, length: int) -> int:
        return max(1, self.tokens // (self.batch * length))


def fit(
    objective: Objective,
    rows_NT: NDArray[np.int64],
    schedule: Schedule,
    *,
    scratch: Path,
    seed: int,
    progress: Progress,
    label: str,
    held_out_NT: NDArray[np.int64] | None = None,
    logs: Path | None = None,
) -> list[dict[str, float]]:
    """Train `objective.model` in place; returns its history: step, tokens, loss and held_out_loss (nats per token).

    Where weights are dropped on the way, a row also has `sparsity`, the share of the block weights held at zero; and
    whatever else the objective tells.

    Args:
        logs: a folder for TensorBoard's event files.

    Raises:
        StageError: the device or a tracker is not there, the batch cannot be divided as asked, there is nothing (left)
            to prune, or the loss is no longer a number.
    """
    check(schedule, held_out=held_out_NT is not None)
    with together(schedule.device) as here:
        if here.world > 1 and schedule.distributed == "fsdp":
            shard(objective, schedule.device)
            for model in objective.frozen():
                shard_frozen(model, schedule.device)
        else:
            nn.Module.to(objective, schedule.device)
        history = _fit(
            objective,
            rows_NT,
            schedule,
            here,
            scratch=scratch,
            seed=seed,
            progress=progress,
            label=label,
            held_out_NT=held_out_NT,
            logs=logs,
        )
        make_whole(objective)
    return history


def _fit(
    objective: Objective,
    rows_NT: NDArray[np.int64],
    schedule: Schedule,
    here: Launch,
    *,
    scratch: Path,
    seed: int,
    progress: Progress,
    label: str,
    held_out_NT: NDArray[np.int64] | None,
    logs: Path | None,
) -> list[dict[str, float]]:
    length = rows_NT.shape[1]
    steps = schedule.steps(length)
    order = data_order(len(rows_NT), steps * schedule.batch, seed)
    pruning = Pruning(objective.model, schedule.prune, steps)
    resume = from_first(_found_again(last_checkpoint(scratch)) if here.first else None)
    if resume is not None:
        pruning.resume(resume)
    if schedule.gradient_checkpointing:
        objective.model.activation_checkpointing_enable({"use_reentrant": False})
    arguments = _arguments(schedule, steps, scratch, seed, here.world, evaluate=held_out_NT is not None)
    with no_bars(), kept_memory(), progress.task(label, total=steps, done=_step_of(resume)) as task:
        trainer = (ShardedTrainer if here.world > 1 else PlainTrainer)(
            objective,
            arguments,
            pruning=pruning,
            patience=schedule.patience,
            tracker=Tracker(task, tokens=schedule.batch * length),
            logs=logs,
            train_dataset=Rows(rows_NT, order),
            eval_dataset=None if held_out_NT is None else Rows(held_out_NT, np.arange(len(held_out_NT))),
        )
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    if schedule.gradient_checkpointing:
        objective.model.activation_checkpointing_disable()
    objective.eval()
    return _history(trainer.state.log_history, schedule.batch * length)


def check(schedule: Schedule, *, held_out: bool) -> None:
    """Refuse what cannot be trained so."""
    if schedule.device == "cuda" and not torch.cuda.is_available():
        raise StageError("device: cuda: PyTorch sees no CUDA device here; use cpu, or a PyTorch built for this GPU")
    wrong = unfit(schedule.batch, schedule.accumulate, launch().world)
    if wrong is not None:
        raise StageError(f"batch: {wrong}")
    if schedule.patience is not None and not held_out:
        raise StageError("patience: expected `held_out: true`, whose loss tells when to stop")
    if schedule.patience is not None and schedule.prune is not None:
        raise StageError("patience: expected no `prune`, whose ramp has to be walked to its end")
    for tracker in schedule.report_to:
        if importlib.util.find_spec(tracker) is None:
            raise StageError(f"report_to: {tracker} is not installed; pip install {tracker}, or leave it out")


def data_order(rows: int, wanted: int, seed: int) -> NDArray[np.int64]:
    """Indices of the rows in the order of training, shape (wanted,): whole shuffled passes, the last one cut."""
    generator = np.random.default_rng(seed)
    passes = [generator.permutation(rows) for _ in range(-(-wanted // rows))]
    return np.concatenate(passes)[:wanted]


def last_checkpoint(scratch: Path) -> Path | None:
    """The newest complete checkpoint; incomplete ones are removed."""
    complete: dict[int, Path] = {}
    for folder in scratch.glob("checkpoint-*"):
        try:
            json.loads((folder / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            shutil.rmtree(folder)
        else:
            complete[_step_of(folder)] = folder
    return complete[max(complete)] if complete else None


def _found_again(checkpoint: Path | None) -> Path | None:
    """A checkpoint that knows where the best one lies, also where the folder of both was moved."""
    if checkpoint is not None:
        file = checkpoint / TRAINER_STATE_NAME
        state = json.loads(file.read_text(encoding="utf-8"))
        best = state.get("best_model_checkpoint")
        if best is not None and Path(best).parent != checkpoint.parent:
            state["best_model_checkpoint"] = str(checkpoint.parent / Path(best).name)
            file.write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
    return checkpoint


def _step_of(checkpoint: Path | None) -> int:
    return 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])


def _arguments(
    schedule: Schedule, steps: int, scratch: Path, seed: int, world: int, *, evaluate: bool
) -> TrainingArguments:
    interval = max(1, steps // (schedule.checkpoints + 1))
    arguments = TrainingArguments(
        output_dir=str(scratch),
        max_steps=steps,
        per_device_train_batch_size=schedule.batch // (schedule.accumulate * world),
        per_device_eval_batch_size=schedule.batch // (schedule.accumulate * world),
        gradient_accumulation_steps=schedule.accumulate,
        learning_rate=schedule.learning_rate,
        weight_decay=schedule.weight_decay,
        adam_beta2=0.95,
        lr_scheduler_type="cosine",
        warmup_steps=round(schedule.warmup * steps),
        bf16=schedule.precision == "bf16",
        use_cpu=schedule.device == "cpu",
        optim="adamw_torch_fused",
        seed=seed,
        data_seed=seed,
        save_strategy="steps",
        save_steps=interval,
        save_total_limit=2,
        eval_strategy="steps" if evaluate else "no",
        eval_steps=interval,
        load_best_model_at_end=evaluate and schedule.prune is None,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        restore_callback_states_from_checkpoint=True,
        prediction_loss_only=True,
        logging_steps=max(1, steps // 50),
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to=list(schedule.report_to),
        remove_unused_columns=False,
        average_tokens_across_devices=False,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # else every GPU gets `batch` rows, and a step is no longer one step
    return arguments


def _history(log: list[dict[str, Any]], tokens_per_step: int) -> list[dict[str, float]]:
    history: dict[int, dict[str, float]] = {}
    for entry in log:
        step = int(entry["step"])
        row = history.setdefault(step, {"step": step, "tokens": step * tokens_per_step})
        row |= {name: float(entry[key]) for key, name in FIGURES.items() if key in entry}
        row |= {key.removeprefix("part_"): float(value) for key, value in entry.items() if key.startswith("part_")}
    return [row for _, row in sorted(history.items()) if len(row) > 2]
