"""Every stage that makes a checkpoint smaller, or trains one, by its kind."""

from typing import Any

from compress.distillation.config import DISTILL
from compress.pruning.config import PRUNE
from compress.quantization.config import QUANTIZE
from compress.stage import Stage
from compress.structured.config import SLIM
from compress.training.config import TRAIN

STAGES: dict[str, Stage[Any]] = {stage.kind: stage for stage in (TRAIN, PRUNE, SLIM, DISTILL, QUANTIZE)}
