"""What a quantized matrix is, whatever format a checkpoint holds it in.

A matrix W [out, in] is codes int8 [out, in] and scales float32 [out, groups]: the columns of a row fall into equal
groups, and W = (code - zero point) * scale of its group. One group is a scale for the whole row; codes of 4 bits lie
between -8 and 7.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEVELS = 127.0


@dataclass(frozen=True, eq=False)
class QuantizedMatrix:
    """W = (code - zero point) * scale of its group: whatever a scheme leaves of a matrix [out, in].

    For an embedding, out is the vocabulary.
    """

    codes_OI: NDArray[np.int8]
    scale_OG: NDArray[np.float32]
    """One scale for each of the equal groups that the columns of a row fall into."""
    zero_OG: NDArray[np.int8] | None = None
    """The code that stands for zero in each group; None: 0 in all."""
    bits: int = 8
    """Of a code, as it is stored."""

    def __post_init__(self) -> None:
        if self.codes_OI.dtype != np.int8:
            raise ValueError(f"expected codes int8, got {self.codes_OI.dtype}")

    @property
    def group(self) -> int:
        """Columns that share a scale."""
        return int(self.codes_OI.shape[1]) // int(self.scale_OG.shape[1])

    @classmethod
    def from_rows(cls, codes_OI: NDArray[np.int8], scale_O: NDArray[np.float32]) -> "QuantizedMatrix":
        """From bitsandbytes' scales [out] or [out, groups], which are what code 127 stands for."""
        return cls(codes_OI, scale_O.reshape(len(scale_O), -1) / np.float32(LEVELS))

    def rows(self, low: int, high: int) -> "QuantizedMatrix":
        """Some of its rows, as a view."""
        zero_OG = None if self.zero_OG is None else self.zero_OG[low:high]
        return QuantizedMatrix(self.codes_OI[low:high], self.scale_OG[low:high], zero_OG, self.bits)

    def zeros_OG(self) -> NDArray[np.int8]:
        """The zero points, also where all are 0."""
        return np.zeros(self.scale_OG.shape, np.int8) if self.zero_OG is None else self.zero_OG

    def dequantize(self) -> NDArray[np.float32]:
        """The matrix that the codes stand for, float32 [out, in]."""
        weight_OGI = self._off_zero().astype(np.float32)
        weight_OGI *= self.scale_OG[:, :, None]
        return weight_OGI.reshape(self.codes_OI.shape)

    def count_nonzero(self) -> int:
        """How many of its weights are not exactly zero."""
        return int(np.count_nonzero(self._off_zero()))

    def _off_zero(self) -> NDArray[np.int16]:
        """code - zero point [out, groups, columns of a group]."""
        code_OGI = self.codes_OI.reshape(*self.scale_OG.shape, -1).astype(np.int16)
        if self.zero_OG is not None:
            code_OGI -= self.zero_OG[:, :, None]
        return code_OGI


def quantize_rows(weight_OI: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """(codes_OI, scale_O) by rounding to nearest, one scale per row: the largest error is half a step, scale / 254."""
    scale_O = np.abs(weight_OI).max(axis=1).astype(np.float32)
    step_O = np.where(scale_O > 0, scale_O, 1.0) / np.float32(LEVELS)
    codes_OI = np.rint(weight_OI / step_O[:, None]).clip(-LEVELS, LEVELS).astype(np.int8)
    return codes_OI, scale_O
