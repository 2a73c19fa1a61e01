"""What each block, and each kind of linear, can bear: held-out loss against the share of weights set to zero.

    loss(part, level) - loss of the dense model,   nats per token, one part pruned at a time and all others dense

A part is a block (all its linears) or a kind of linear ("mlp.c_fc": that linear in every block). The calibration rows
tell the criterion what the linears are fed in the dense model; the loss is taken on other rows. Each increase comes
with its standard error over the held-out rows, paired row by row with the dense model.

Not covered: how parts pruned together add up - each curve is about its part alone.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from compress.checkpoints.json_file import LIMIT, PlainFileError, read_plain
from compress.pruning.config import SparsityLevel
from compress.stage import StageError

if TYPE_CHECKING:
    pass


class Value(BaseModel):
    """A frozen value that reads and writes as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, ser_json_inf_nan="constants")


class Point(Value):
    """One part at one level."""

    level: SparsityLevel
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

    def __repr__(self) -> str:
        parts = f"{len(self.blocks)} blocks, {len(self.kinds)} kinds of linears"
        return f"Sensitivity({self.criterion}, {self.scope}: {parts}; dense loss {self.dense:.4g})"

    __str__ = __repr__

    def write(self, file: Path) -> None:
        """As JSON."""
        file.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, file: Path) -> "Sensitivity":
        """Raises StageError where the file holds something else."""
        try:
            return cls.model_validate_json(read_plain(file, LIMIT))
        except (PlainFileError, ValidationError) as error:
            raise StageError(f"{file}: expected what `demitasse sensitivity` writes ({error})") from error
