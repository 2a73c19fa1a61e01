"""transformers' Trainer for an `Objective`: rows in a given order, and what else a run of ours needs beside its loop.

A checkpoint holds the parameters under the objective's own names, each tensor once. What an objective tells beside its
loss is logged as `part_<name>`.
"""

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Dataset, SequentialSampler
from transformers import (
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations.integration_utils import TensorBoardCallback
from transformers.trainer_callback import PrinterCallback
from transformers.utils import SAFE_WEIGHTS_NAME

from compress.pruning.sparsity import Amount
from compress.stage import StageError, Task
from compress.training.objective import Objective
from compress.training.pruning_schedule import GradualConfig, Ramp
from compress.training.sparsity_masks import SparsityMasks


class Rows(Dataset[dict[str, Tensor]]):
    """Rows of token ids in the order of training."""

    def __init__(self, rows_NT: NDArray[np.int64], order: NDArray[np.int64]) -> None:
        self.rows_NT = rows_NT
        self.order = order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = self.order[index]
        return {"input_ids": torch.from_numpy(self.rows_NT[row]), "row": torch.tensor(row)}


class Pruning(TrainerCallback):
    """Holds a model's zeros while it trains, and adds to them where a ramp is asked for."""

    def __init__(self, model: nn.Module, config: GradualConfig | None, steps: int) -> None:
        self.zeros = SparsityMasks(model)
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


class Tracker(TrainerCallback):
    """Moves the progress bar: tokens per second and the latest losses stand beside it."""

    def __init__(self, task: Task, *, tokens: int) -> None:
        self.task = task
        self.tokens = tokens
        self.losses: dict[str, float] = {}
        self.started, self.first = time.monotonic(), 0

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        self.started, self.first = time.monotonic(), state.global_step

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **rest: Any) -> None:
        for key, name in (("loss", "loss"), ("eval_loss", "held-out loss")):
            if logs and key in logs:
                self.losses[name] = float(logs[key])

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        rate = (state.global_step - self.first) * self.tokens / max(time.monotonic() - self.started, 1e-9)
        shown = [f"{name} {value:.3f}" for name, value in self.losses.items()]
        self.task.advance(1.0, ", ".join([f"{rate:,.0f} tokens/s", *shown]))
        if args.eval_strategy != "no" and state.global_step == state.max_steps:
            control.should_evaluate = True


class PlainTrainer(Trainer):
    """The Trainer whose model is its own loss."""

    def __init__(
        self,
        objective: Objective,
        arguments: TrainingArguments,
        *,
        pruning: Pruning,
        patience: int | None,
        tracker: Tracker,
        logs: Path | None,
        **rest: Any,
    ) -> None:
        super().__init__(model=objective, args=arguments, callbacks=[pruning, tracker], **rest)
        self.pruning = pruning
        self.model_accepts_loss_kwargs = False
        self.remove_callback(PrinterCallback)  # a stage never prints
        if patience is not None:
            self.add_callback(EarlyStoppingCallback(patience))
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback) and logs is not None:
                callback.logging_dir = str(logs)

    @property
    def trained(self) -> Objective:
        """What is trained, out of whatever wraps it."""
        model = self.accelerator.unwrap_model(self.model)
        assert isinstance(model, Objective)
        return model

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss = model(**inputs)
        return (loss, {}) if return_outputs else loss

    def training_step(self, *arguments: Any, **named: Any) -> Tensor:
        self.trained.progress = self.state.global_step / self.state.max_steps
        loss: Tensor = super().training_step(*arguments, **named)
        if not math.isfinite(loss.item()):
            raise StageError(
                f"the loss became {loss.item()} at step {self.state.global_step + 1} of {self.state.max_steps}; "
                f"lower `learning_rate` ({self.args.learning_rate:g}), lengthen `warmup`, or use `precision: fp32`"
            )
        return loss

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None) -> Any:
        with torch.no_grad(), self.compute_loss_context_manager():
            return model(**self._prepare_inputs(inputs), held_out=True).detach(), None, None

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Matrices decay; norms, biases and embeddings (and a head that is tied to one) do not."""
        embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
        return [
            name
            for name, parameter in model.named_parameters()
            if parameter.ndim > 1 and id(parameter) not in embeddings
        ]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        parts = {f"part_{name}": value for name, value in self.parts().items()} if "loss" in logs else {}
        super().log(logs | parts | self.pruning.figures(), start_time)

    def parts(self) -> dict[str, float]:
        """What the objective tells beside its loss."""
        return self.trained.figures()

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        assert output_dir is not None
        if self.args.should_save:
            folder = Path(output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            parameters = {name: tensor.detach().contiguous() for name, tensor in self.trained.named_parameters()}
            save_file(parameters, folder / SAFE_WEIGHTS_NAME)
            self.pruning.save(folder)

    @torch.no_grad()
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        saved = load_file(Path(resume_from_checkpoint) / SAFE_WEIGHTS_NAME)
        for name, parameter in self.trained.named_parameters():
            parameter.copy_(saved.pop(name))
        assert not saved, f"left over: {', '.join(saved)}"

    def _load_best_model(self) -> None:
        assert self.state.best_model_checkpoint is not None
        self._load_from_checkpoint(self.state.best_model_checkpoint)

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        assert isinstance(self.train_dataset, Rows)
        return SequentialSampler(self.train_dataset)
