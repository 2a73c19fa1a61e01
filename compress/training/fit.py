"""One training loop for every stage that trains: transformers' Trainer with a fixed order of data and exact resumption.

    rows_NT (N sequences of T token ids)  --shuffled by the seed, once per pass-->  steps of `batch` rows
    learning rate  rises over the warm-up, falls along a cosine to 0        optimizer  AdamW (arXiv 1711.05101)

The order of rows is computed ahead of the run, so a resumed run continues in the same order. A checkpoint counts when
its trainer_state.json, which the Trainer writes last, can be read; half-written ones are removed. On a CPU a killed
and resumed run ends in the same bits.

Sparse models stay sparse: a weight of the block linears that is exactly zero at the start is held there (`zeros.py`).
Where the schedule says `prune`, more of them follow along a ramp (`gradual.py`); the masks are a part of every
checkpoint then.

Not covered: several processes, evaluation-driven stopping.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset, SequentialSampler
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback

from compress.checkpoint import no_bars
from compress.pruning.amount import Amount
from compress.stage import Progress, StageError, Task
from compress.training.gradual import GradualConfig, Ramp
from compress.training.zeros import Zeros

Loss = Callable[[PreTrainedModel, Tensor], Tensor]
"""(model, ids_BT) -> mean loss over the predicted tokens, a scalar tensor with gradient."""
FIGURES = {"loss": "loss", "eval_loss": "held_out_loss", "sparsity": "sparsity"}
"""What the Trainer logs, and what it is called in a history."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The knobs that every training stage shares."""

    tokens: int
    """Training tokens in all; rounded down to whole steps, at least one."""
    batch: int
    """Sequences per step."""
    learning_rate: float
    weight_decay: float
    warmup: float
    """Share of the steps over which the learning rate rises from 0."""
    precision: Literal["bf16", "fp32"]
    device: Literal["cpu", "cuda"]
    checkpoints: int
    """How many times a resumable checkpoint is written, evenly spaced."""
    prune: GradualConfig | None = None
    """What to prune on the way."""

    def steps(self, length: int) -> int:
        return max(1, self.tokens // (self.batch * length))


def next_token_loss(model: PreTrainedModel, ids_BT: Tensor) -> Tensor:
    """Mean cross-entropy of each token given those before it, in nats."""
    logits_BTV = model(input_ids=ids_BT, use_cache=False).logits
    return nn.functional.cross_entropy(logits_BTV[:, :-1].flatten(0, 1).float(), ids_BT[:, 1:].flatten())


def fit(
    model: PreTrainedModel,
    rows_NT: NDArray[np.int64],
    schedule: Schedule,
    *,
    loss: Loss,
    scratch: Path,
    seed: int,
    progress: Progress,
    label: str,
    held_out_NT: NDArray[np.int64] | None = None,
) -> list[dict[str, float]]:
    """Train `model` in place; returns its history: step, tokens, loss and held_out_loss (both in nats per token).

    Where weights are dropped on the way, a row also has `sparsity`, the share of the block weights held at zero.

    Raises:
        StageError: the device is not there, or there is nothing (left) to prune.
    """
    if schedule.device == "cuda" and not torch.cuda.is_available():
        raise StageError("device: cuda: PyTorch sees no CUDA device here; use cpu, or a PyTorch built for this GPU")
    nn.Module.to(model, schedule.device)
    length = rows_NT.shape[1]
    steps = schedule.steps(length)
    order = data_order(len(rows_NT), steps * schedule.batch, seed)
    pruning = _Pruning(model, schedule.prune, steps)
    resume = last_checkpoint(scratch)
    if resume is not None:
        pruning.resume(resume)
    arguments = _arguments(schedule, steps, scratch, seed, evaluate=held_out_NT is not None)
    arguments.use_cache = model.config.use_cache  # the Trainer would turn it off, and that would be saved
    with no_bars(), progress.task(label, total=steps, done=_step_of(resume)) as task:
        trainer = _Trainer(
            model,
            arguments,
            loss=loss,
            pruning=pruning,
            train_dataset=_Rows(rows_NT, order),
            eval_dataset=None if held_out_NT is None else _Rows(held_out_NT, np.arange(len(held_out_NT))),
            callbacks=[pruning, _Advance(task)],
        )
        trainer.remove_callback(PrinterCallback)  # a stage never prints
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    model.eval()
    return _history(trainer.state.log_history, schedule.batch * length)


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


def _step_of(checkpoint: Path | None) -> int:
    return 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])


def _arguments(schedule: Schedule, steps: int, scratch: Path, seed: int, *, evaluate: bool) -> TrainingArguments:
    interval = max(1, steps // (schedule.checkpoints + 1))
    arguments = TrainingArguments(
        output_dir=str(scratch),
        max_steps=steps,
        per_device_train_batch_size=schedule.batch,
        per_device_eval_batch_size=schedule.batch,
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
        prediction_loss_only=True,
        logging_steps=max(1, steps // 50),
        disable_tqdm=True,
        report_to=[],
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
    return [row for _, row in sorted(history.items()) if len(row) > 2]


class _Rows(Dataset[dict[str, Tensor]]):
    def __init__(self, rows_NT: NDArray[np.int64], order: NDArray[np.int64]) -> None:
        self.rows_NT = rows_NT
        self.order = order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": torch.from_numpy(self.rows_NT[self.order[index]])}


class _Trainer(Trainer):
    """The Trainer with a loss that is handed to it, rows taken in the order given, and masks in its checkpoints."""

    def __init__(
        self, model: PreTrainedModel, arguments: TrainingArguments, *, loss: Loss, pruning: "_Pruning", **rest: Any
    ) -> None:
        super().__init__(model=model, args=arguments, **rest)
        self.loss = loss
        self.pruning = pruning
        self.model_accepts_loss_kwargs = False

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        ids_BT = inputs["input_ids"]
        # the Trainer autocasts only the model's own forward, but a loss may call parts of it
        with torch.autocast(ids_BT.device.type, torch.bfloat16, enabled=self.args.bf16):
            loss = self.loss(model, ids_BT)
        return (loss, {}) if return_outputs else loss

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None) -> Any:
        ids_BT = self._prepare_inputs(inputs)["input_ids"]
        with torch.no_grad(), torch.autocast(ids_BT.device.type, torch.bfloat16, enabled=self.args.bf16):
            return next_token_loss(model, ids_BT), None, None

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        assert output_dir is not None
        self.pruning.save(Path(output_dir))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs | self.pruning.figures(), start_time)

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        assert isinstance(self.train_dataset, _Rows)
        return SequentialSampler(self.train_dataset)


class _Pruning(TrainerCallback):
    """Holds a model's zeros while it trains, and adds to them where a ramp is asked for."""

    def __init__(self, model: nn.Module, config: GradualConfig | None, steps: int) -> None:
        self.zeros = Zeros(model)
        self.plan: tuple[Amount, Ramp] | None = None
        if config is not None:
            first, last = self.zeros.reach(config.amount())
            self.plan = config.amount(), Ramp.of(config, steps, first=first, last=last)

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, optimizer: Any = None, **rest: Any
    ) -> None:
        if self.plan is not None:
            amount, ramp = self.plan
            if ramp.due(state.global_step):
                self.zeros.drop(amount, ramp.share(state.global_step), optimizer)

    def figures(self) -> dict[str, float]:
        """What belongs beside the loss."""
        return {} if self.plan is None else {"sparsity": self.zeros.share}

    def save(self, checkpoint: Path) -> None:
        if self.plan is not None:
            self.zeros.save(checkpoint)

    def resume(self, checkpoint: Path) -> None:
        """Take over the masks of a checkpoint; its weights and moments are the Trainer's business."""
        if self.plan is not None:
            self.zeros.load(checkpoint)


class _Advance(TrainerCallback):
    """Moves the progress bar and shows the latest loss beside it."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.note = ""

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **rest: Any) -> None:
        for key, name in (("loss", "loss"), ("eval_loss", "held-out loss")):
            if logs and key in logs:
                self.note = f"{name} {float(logs[key]):.3f}"

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        self.task.advance(1.0, self.note)
