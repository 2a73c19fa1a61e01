"""A checkpoint goes in, a smaller checkpoint comes out."""

from typing import Any

from compress.checkpoint import Checkpoint, CheckpointError, inspect_checkpoint
from compress.distillation.distill import DISTILL, DistillConfig
from compress.pruning.prune import PRUNE, PruneConfig
from compress.quantize import QUANTIZE, QuantizeConfig
from compress.slimming.slim import SLIM, SlimConfig
from compress.stage import Facts, Form, Material, Progress, Silent, Stage, StageConfig, StageError, StageInput, Task
from compress.text import TextError, TextSource
from compress.training.train import TRAIN, TrainConfig

STAGES: dict[str, Stage[Any]] = {"train": TRAIN, "prune": PRUNE, "slim": SLIM, "distill": DISTILL, "quantize": QUANTIZE}

__all__ = [
    "DISTILL",
    "PRUNE",
    "QUANTIZE",
    "SLIM",
    "STAGES",
    "TRAIN",
    "Checkpoint",
    "CheckpointError",
    "DistillConfig",
    "Facts",
    "Form",
    "Material",
    "Progress",
    "PruneConfig",
    "QuantizeConfig",
    "Silent",
    "SlimConfig",
    "Stage",
    "StageConfig",
    "StageError",
    "StageInput",
    "Task",
    "TextError",
    "TextSource",
    "TrainConfig",
    "inspect_checkpoint",
]
