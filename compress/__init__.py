"""A checkpoint goes in, a smaller checkpoint comes out."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compress.checkpoint import Checkpoint, CheckpointError, inspect_checkpoint
    from compress.distillation.distill import DISTILL, DistillConfig
    from compress.pruning.prune import PRUNE, PruneConfig
    from compress.quantize import QUANTIZE, QuantizeConfig
    from compress.slimming.slim import SLIM, SlimConfig
    from compress.stage import Facts, Form, Material, Progress, Silent, Stage, StageConfig, StageError, StageInput, Task
    from compress.stages import STAGES
    from compress.text import TextError, TextSource
    from compress.training.train import TRAIN, TrainConfig

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

_HOMES = {
    "DISTILL": "distillation.distill",
    "PRUNE": "pruning.prune",
    "QUANTIZE": "quantize",
    "SLIM": "slimming.slim",
    "STAGES": "stages",
    "TRAIN": "training.train",
    "Checkpoint": "checkpoint",
    "CheckpointError": "checkpoint",
    "DistillConfig": "distillation.distill",
    "Facts": "stage",
    "Form": "stage",
    "Material": "stage",
    "Progress": "stage",
    "PruneConfig": "pruning.prune",
    "QuantizeConfig": "quantize",
    "Silent": "stage",
    "SlimConfig": "slimming.slim",
    "Stage": "stage",
    "StageConfig": "stage",
    "StageError": "stage",
    "StageInput": "stage",
    "Task": "stage",
    "TextError": "text",
    "TextSource": "text",
    "TrainConfig": "training.train",
    "inspect_checkpoint": "checkpoint",
}


def __getattr__(name: str) -> object:
    """Every name is loaded when it is asked for, so that a process brings only what it needs."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"compress.{_HOMES[name]}"), name)
