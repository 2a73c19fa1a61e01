"""Every stage that makes a checkpoint smaller, or trains one, by its kind."""

from typing import Any

from compress.distillation.distill import DISTILL
from compress.pruning.prune import PRUNE
from compress.quantize import QUANTIZE
from compress.slimming.slim import SLIM
from compress.stage import Stage
from compress.training.train import TRAIN

STAGES: dict[str, Stage[Any]] = {stage.kind: stage for stage in (TRAIN, PRUNE, SLIM, DISTILL, QUANTIZE)}
