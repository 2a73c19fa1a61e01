"""What the passes know besides the graph: the weights, and how quantized products are to be laid out."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from export.row_tracking import GraphWeights, Rows, WeightError

Floats = NDArray[np.floating[Any]]
SMALLEST_BLOCK = 16
"""MatMulNBits takes blocks of 16, 32, 64, 128 or 256 columns."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Packed:
    """One quantized matrix as it stands in the graph: codes [N, blocks, block * bits / 8] uint8, scales [N, groups],
    zero points [N, blocks * bits / 8] uint8 where its codes are not symmetric.
    """

    codes: ir.Value
    scales: ir.Value
    zeros: ir.Value | None
    bits: int
    rows: Rows
    modules: tuple[str, ...]
    columns: int
    block: int
    groups: int

    @property
    def blocks(self) -> int:
        return -(-self.columns // self.block)


CacheRow = list[tuple[Floats, Floats]]
"""Of each layer the keys and the values (heads, tokens, width) that a row of text leaves in the cache."""


@dataclass(frozen=True, eq=False, kw_only=True)
class PassContext:
    """Given to every pass."""

    weights: GraphWeights
    provider: Literal["cpu", "cuda"]
    block_size: int
    accuracy_level: int
    cache_rows: Callable[[], Iterator[CacheRow]] | None = None
    """What PyTorch puts into its cache on calibration text, for a cache of 8 bits; None: it stays float."""
    packed: dict[bytes, Packed] = field(default_factory=dict)
    """Filled as the passes place quantized matrices, by their row numbers: a matrix used twice is stored once."""


class GraphPass(ir.passes.InPlacePass):
    """A pass over the graph that knows the context."""

    def __init__(self, context: PassContext) -> None:
        super().__init__()
        self.context = context


def block_in(group: int, wanted: int) -> int:
    """The largest block of at most `wanted` columns of which a group is a whole number.

    Raises:
        WeightError: there is none.
    """
    block = block_for(group, wanted)
    if group % block:
        raise WeightError(
            f"expected groups of a multiple of {SMALLEST_BLOCK} columns, which ONNX Runtime's MatMulNBits needs, "
            f"got {group}; quantize with another group size, or one scale per row"
        )
    return block


def block_for(columns: int, wanted: int) -> int:
    """The largest block of at most `wanted` columns that divides `columns`; where none does, `wanted` itself, the
    last block padded.

    A row narrower than the block gets the smallest block that holds it.
    """
    block = wanted
    while block >= SMALLEST_BLOCK:
        if columns % block == 0:
            return block
        block //= 2
    block = wanted
    while block // 2 >= max(columns, SMALLEST_BLOCK):
        block //= 2
    return block
