"""What each block, and each kind of linear, can bear: held-out loss against the share of weights set to zero.

    loss(part, level) - loss of the dense model,   nats per token, one part pruned at a time and all others dense

A part is a block (all its linears) or a kind of linear ("mlp.c_fc": that linear in every block). The calibration rows
tell the criterion what the linears are fed in the dense model; the loss is taken on other rows. Each increase comes
with its standard error over the held-out rows, paired row by row with the dense model.

Not covered: how parts pruned together add up - each curve is about its part alone.
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from compress.pruning.amount import Amount, AmountConfig
from compress.stage import Progress, Silent, StageConfig, StageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Level = float | str
"""A share of zeros such as 0.5, or a pattern such as "2:4"."""
Take = Callable[[str, str, Callable[[], list[float]]], list[float]]
"""(part, level, measure) -> the loss of each held-out row, measured now or noted earlier."""


class SensitivityConfig(StageConfig):
    """What is tried, and on how much text."""

    criterion: Literal["magnitude", "wanda", "sparsegpt", "random"] = "wanda"
    """How the weights that go are chosen."""
    sparsities: tuple[Level, ...] = Field(default=(0.25, 0.5, 0.75), min_length=1)
    """Shares of zeros to try, and patterns such as "2:4"."""
    scope: Literal["row", "layer"] = "row"
    """Where a share is counted: each output row, or each matrix."""
    rows: int = Field(default=16, ge=1)
    """Rows of text that tell the criterion what each linear is fed."""
    held_out: int = Field(default=8, ge=2)
    """Rows of text, after those, that the loss is taken on."""
    length: int = Field(default=256, ge=2)
    """Tokens per row."""
    kinds: bool = True
    """Look at each kind of linear as well as at each block."""

    @field_validator("sparsities")
    @classmethod
    def _sparsities(cls, levels: tuple[Level, ...]) -> tuple[Level, ...]:
        for level in levels:
            _knobs(level, "row")
        return tuple(sorted(set(levels), key=lambda level: (isinstance(level, str), level)))

    def amounts(self) -> dict[Level, Amount]:
        """Each level as a pruning method takes it."""
        return {level: _knobs(level, self.scope).amount() for level in self.sparsities}


class Value(BaseModel):
    """A frozen value that reads and writes as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, ser_json_inf_nan="constants")


class Point(Value):
    """One part at one level."""

    level: Level
    loss: float
    """Mean negative log-likelihood of the held-out tokens, in nats."""
    increase: float
    """What that is above the dense model's."""
    error: float
    """Standard error of the increase over the held-out rows."""


class Curve(Value):
    """One part at every level."""

    name: str
    """A block's name in the model, or a kind of linear."""
    parameters: int
    """Weights of its linears."""
    points: tuple[Point, ...]


class Sensitivity(Value):
    """Every part at every level."""

    criterion: str
    scope: str
    calibration_tokens: int
    held_out_tokens: int
    dense: float
    """Loss of the dense model on the held-out rows."""
    blocks: tuple[Curve, ...]
    """In the model's order."""
    kinds: tuple[Curve, ...] = ()

    def write(self, file: Path) -> None:
        """As JSON."""
        file.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, file: Path) -> "Sensitivity":
        """Raises StageError where the file holds something else."""
        try:
            return cls.model_validate_json(file.read_text(encoding="utf-8"))
        except (OSError, ValidationError) as error:
            raise StageError(f"{file}: expected what `demitasse sensitivity` writes ({error})") from error


def measure_sensitivity(
    folder: Path,
    ids_NT: "NDArray[np.int64]",
    config: SensitivityConfig | None = None,
    *,
    notes: Path | None = None,
    progress: Progress | None = None,
) -> Sensitivity:
    """Prune every part of the dense checkpoint in `folder` at every level, one at a time, and take the loss.

    The whole model is held in memory in float32. For L blocks this runs (L / 2 + number of kinds) * number of levels
    times the model on the held-out rows.

    Args:
        ids_NT: rows of token ids: the last `config.held_out` of them are held out, the others calibrate.
        notes: a JSON file of this checkpoint's own, in which each loss is noted as it is taken, and looked up when the
            same is asked again.

    Raises:
        CheckpointError: the folder holds no dense checkpoint.
        StageError: there are too few rows, or a pattern does not fit a linear.
    """
    from compress.pruning.ablation import Ablation

    config = config or SensitivityConfig()
    if len(ids_NT) <= config.held_out:
        raise StageError(
            f"sensitivity: expected more than the {config.held_out} rows that are held out, got {len(ids_NT)}; "
            "give more rows"
        )
    ablation = Ablation(folder, ids_NT, config)
    taken = _Notes(notes, _identity(ids_NT, config))
    dense = taken("dense", "dense", ablation.dense)
    with (progress or Silent()).task("sensitivity", ablation.work()) as task:
        blocks = [_curve(name, size, found, dense) for name, size, found in ablation.blocks(taken, task)]
        kinds = [_curve(name, size, found, dense) for name, size, found in ablation.kinds(taken, task)]
    return Sensitivity(
        criterion=config.criterion,
        scope=config.scope,
        calibration_tokens=ids_NT[: -config.held_out].size,
        held_out_tokens=config.held_out * (ids_NT.shape[1] - 1),
        dense=float(np.mean(dense)),
        blocks=tuple(blocks),
        kinds=tuple(kinds),
    )


def _knobs(level: Level, scope: Literal["row", "layer"]) -> AmountConfig:
    if isinstance(level, str):
        return AmountConfig(pattern=level)
    if not 0 < level < 1:
        raise ValueError(f'expected shares between 0 and 1, or patterns such as "2:4", got {level}')
    return AmountConfig(sparsity=level, scope=scope)


def _curve(name: str, parameters: int, found: dict[Level, list[float]], dense_N: list[float]) -> Curve:
    points = []
    for level, loss_N in found.items():
        increase_N = np.subtract(loss_N, dense_N)
        error = float(increase_N.std(ddof=1)) / len(increase_N) ** 0.5
        increase = float(increase_N.mean())
        points.append(Point(level=level, loss=float(np.mean(loss_N)), increase=increase, error=error))
    return Curve(name=name, parameters=parameters, points=tuple(points))


def _identity(ids_NT: "NDArray[np.int64]", config: SensitivityConfig) -> str:
    """What must be the same for noted losses to be taken over; the levels may differ."""
    knobs = config.model_dump_json(include={"criterion", "scope", "held_out"})
    return hashlib.sha256(knobs.encode() + str(ids_NT.shape).encode() + ids_NT.tobytes()).hexdigest()


class _Notes:
    """Losses that were taken already, in a file that is replaced as a whole."""

    def __init__(self, file: Path | None, identity: str) -> None:
        self.file, self.identity = file, identity
        self.losses: dict[str, list[float]] = {}
        if file is not None and file.is_file():
            content = json.loads(file.read_text(encoding="utf-8"))
            self.losses = content["losses"] if content["identity"] == identity else {}

    def __call__(self, part: str, level: str, measure: Callable[[], list[float]]) -> list[float]:
        key = f"{part} {level}"
        if key not in self.losses:
            self.losses[key] = measure()
            self._write()
        return self.losses[key]

    def _write(self) -> None:
        if self.file is None:
            return
        unfinished = self.file.with_name(f".{self.file.name}.{os.getpid()}")
        unfinished.write_text(json.dumps({"identity": self.identity, "losses": self.losses}), encoding="utf-8")
        unfinished.replace(self.file)
