"""A checkpoint goes in, a smaller checkpoint comes out."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compress.checkpoints.config import CheckpointError
    from compress.checkpoints.folder import Checkpoint, inspect_checkpoint
    from compress.distillation.config import DISTILL, DistillConfig
    from compress.pruning.config import PRUNE, PruneConfig
    from compress.quantization.config import QUANTIZE, QuantizeConfig
    from compress.stage import (
        Facts,
        FormatName,
        Material,
        Progress,
        Silent,
        Stage,
        StageConfig,
        StageError,
        StageInput,
        Task,
    )
    from compress.stages import STAGES
    from compress.structured.config import SLIM, SlimConfig
    from compress.text import TextError, TextSource
    from compress.training.config import TRAIN, TrainConfig

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
    "FormatName",
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
    "DISTILL": "distillation.config",
    "PRUNE": "pruning.config",
    "QUANTIZE": "quantization.config",
    "SLIM": "structured.config",
    "STAGES": "stages",
    "TRAIN": "training.config",
    "Checkpoint": "checkpoints.folder",
    "CheckpointError": "checkpoints.config",
    "DistillConfig": "distillation.config",
    "Facts": "stage",
    "FormatName": "stage",
    "Material": "stage",
    "Progress": "stage",
    "PruneConfig": "pruning.config",
    "QuantizeConfig": "quantization.config",
    "Silent": "stage",
    "SlimConfig": "structured.config",
    "Stage": "stage",
    "StageConfig": "stage",
    "StageError": "stage",
    "StageInput": "stage",
    "Task": "stage",
    "TextError": "text",
    "TextSource": "text",
    "TrainConfig": "training.config",
    "inspect_checkpoint": "checkpoints.folder",
}


def __getattr__(name: str) -> object:
    """Every name is loaded when it is asked for, so that a process brings only what it needs."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"compress.{_HOMES[name]}"), name)
