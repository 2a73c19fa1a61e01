"""How much to prune and where it is counted: the knobs that every pruning method shares, and their plain value.

sparsity  a share of the weights, counted within each output row, each matrix, or all matrices together (`scope`)
pattern   "N:M": at most N nonzero weights in every M consecutive inputs, the form that sparse tensor cores take
"""

from dataclasses import dataclass
from typing import Literal

from pydantic import Field, field_validator, model_validator

from compress.stage import StageConfig

Scope = Literal["row", "layer", "global"]
LATENCY = (
    "unchanged: ONNX Runtime has no sparse kernels, so zeros make the model smaller to store and no faster to run; "
    "`slim` makes it faster"
)
"""What every report on zeros says of speed."""


@dataclass(frozen=True)
class Amount:
    """Either `sparsity` within each unit of `scope`, or `pattern` (n, m)."""

    sparsity: float | None = None
    scope: Scope = "layer"
    pattern: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if (self.sparsity is None) == (self.pattern is None):
            raise ValueError("expected either `sparsity`, such as 0.5, or `pattern`, such as (2, 4)")


class AmountConfig(StageConfig):
    """The knobs `sparsity` and `pattern`, one of which is given, and `scope`."""

    sparsity: float | None = Field(default=None, gt=0, lt=1)
    """Share of the block linears' weights to set to zero, counted as `scope` says; or give `pattern`."""
    pattern: str | None = None
    """ "N:M": keep at most N of every M consecutive inputs, such as "2:4"; or give `sparsity`."""
    scope: Scope = "layer"
    """Where `sparsity` is counted: each output row, each layer's matrix, or all of them together."""

    @field_validator("pattern", mode="before")
    @classmethod
    def _pattern(cls, value: object) -> object:
        parts = value.split(":") if isinstance(value, str) else []
        if value is None or (
            len(parts) == 2 and all(part.isdigit() for part in parts) and 0 < int(parts[0]) < int(parts[1])
        ):
            return value
        raise ValueError(f'expected "N:M" such as "2:4", got {value!r}')

    @model_validator(mode="after")
    def _one_amount(self) -> "AmountConfig":
        if (self.sparsity is None) == (self.pattern is None):
            raise ValueError("expected either `sparsity`, such as 0.5, or `pattern`, such as 2:4")
        return self

    def amount(self) -> Amount:
        """The same as a plain value."""
        if self.pattern is None:
            return Amount(sparsity=self.sparsity, scope=self.scope)
        n, m = map(int, self.pattern.split(":"))
        return Amount(pattern=(n, m))
