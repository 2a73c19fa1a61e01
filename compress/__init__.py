"""A checkpoint goes in, a smaller checkpoint comes out."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compress.checkpoints.config import CheckpointError
    from compress.checkpoints.folder import Checkpoint, inspect_checkpoint
    from compress.distillation.config import DISTILL, DistillConfig
    from compress.pruning.config import PRUNE, PruneConfig
    from compress.quantization.config import QUANTIZE, QuantizeConfig
    from compress.stage import (
        FormatName,
        Progress,
        Silent,
        Stage,
        StageConfig,
        StageError,
        StageInput,
        StageInputName,
        StageMetadata,
        Task,
    )
    from compress.stages import STAGES
    from compress.structured.config import SLIM, SlimConfig
    from compress.text import TextError, TextSource
    from compress.training.config import TRAIN, TrainConfig
else:
    from compress.names import face

    __getattr__, __dir__ = face(
        __name__,
        {
            "DISTILL": "compress.distillation.config",
            "PRUNE": "compress.pruning.config",
            "QUANTIZE": "compress.quantization.config",
            "SLIM": "compress.structured.config",
            "STAGES": "compress.stages",
            "TRAIN": "compress.training.config",
            "Checkpoint": "compress.checkpoints.folder",
            "CheckpointError": "compress.checkpoints.config",
            "DistillConfig": "compress.distillation.config",
            "StageMetadata": "compress.stage",
            "FormatName": "compress.stage",
            "StageInputName": "compress.stage",
            "Progress": "compress.stage",
            "PruneConfig": "compress.pruning.config",
            "QuantizeConfig": "compress.quantization.config",
            "Silent": "compress.stage",
            "SlimConfig": "compress.structured.config",
            "Stage": "compress.stage",
            "StageConfig": "compress.stage",
            "StageError": "compress.stage",
            "StageInput": "compress.stage",
            "Task": "compress.stage",
            "TextError": "compress.text",
            "TextSource": "compress.text",
            "TrainConfig": "compress.training.config",
            "inspect_checkpoint": "compress.checkpoints.folder",
        },
    )

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
    "FormatName",
    "Progress",
    "PruneConfig",
    "QuantizeConfig",
    "Silent",
    "SlimConfig",
    "Stage",
    "StageConfig",
    "StageError",
    "StageInput",
    "StageInputName",
    "StageMetadata",
    "Task",
    "TextError",
    "TextSource",
    "TrainConfig",
    "inspect_checkpoint",
]
