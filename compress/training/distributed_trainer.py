"""The Trainer of several processes: what one process does with a model, each does with its part of it.

    ddp     the Trainer (through accelerate) wraps the objective, and averages the gradients of all processes
    fsdp    the objective has been sharded before (`distributed.py`); the Trainer is told that it looks after itself

Step s sees rows [s batch, (s + 1) batch) on any number of processes: batches of batch / world rows are dealt out in
turn. Zeros that stay are kept by masking the gradients right before they are clipped, because a sharded parameter's
gradient comes without the hooks of a whole one. The norm that clipping looks at is that of all processes' parts.

Checkpoints are those of one process (`distributed.py`); the random generators of every process lie beside them.

Not covered: dropout in the same bits on another number of processes.
"""

from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from transformers import TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME
from transformers.utils import SAFE_WEIGHTS_NAME

from compress.training.distributed import (
    clip,
    full_moments,
    full_parameters,
    is_first,
    is_sharded,
    load_moments,
    load_parameters,
    of_all,
    save_random_states,
)
from compress.training.objective import Objective
from compress.training.trainer import PlainTrainer


class ShardedTrainer(PlainTrainer):
    """The Trainer on every process of a group that is open."""

    def __init__(self, objective: Objective, arguments: TrainingArguments, **rest: Any) -> None:
        self.sharded = is_sharded(objective)
        super().__init__(objective, arguments, **rest)
        self.is_distributed_loading_by_transformers = self.sharded  # said later, because it would refuse checkpoints
        torch.manual_seed(arguments.seed + arguments.process_index)  # else all would drop out the same units

    def _move_model_to_device(self, model: Any, device: Any) -> None:
        if not self.sharded:
            super()._move_model_to_device(model, device)

    def _defer_fsdp_gradient_reduction(self) -> Any:
        return nullcontext()  # gradients are reduced after every part of a step, so that no whole ones are kept

    def _clip_grad_norm(self, model: Any) -> Tensor:
        self.pruning.zeros.mask_gradients()
        return clip(model.parameters(), self.args.max_grad_norm)

    def parts(self) -> dict[str, float]:
        own = super().parts()
        everyone = of_all(own)
        return {name: sum(parts[name] for parts in everyone) / len(everyone) for name in own}

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        assert output_dir is not None
        folder, parameters = Path(output_dir), full_parameters(self.trained)
        if is_first():
            folder.mkdir(parents=True, exist_ok=True)
            save_file(parameters, folder / SAFE_WEIGHTS_NAME)
        self.pruning.save(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_parameters(self.trained, load_file(Path(resume_from_checkpoint) / SAFE_WEIGHTS_NAME))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        moments = full_moments(self._optimizer)
        if is_first():
            torch.save(moments, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self._scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_moments(self._optimizer, _read(Path(checkpoint) / OPTIMIZER_NAME))
            self._scheduler.load_state_dict(_read(Path(checkpoint) / SCHEDULER_NAME))

    def _save_rng_state(self, output_dir: str) -> None:
        save_random_states(Path(output_dir))

    @property
    def _optimizer(self) -> torch.optim.Optimizer:
        return cast(torch.optim.Optimizer, self.optimizer)

    @property
    def _scheduler(self) -> LRScheduler:
        return cast(LRScheduler, self.lr_scheduler)


def _read(file: Path) -> Any:
    """A file of tensors, of which only the pages that are looked at are read."""
    return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
