"""AWQ's weights of 4 bits in the layout that AutoAWQ calls GEMM (AutoRound's `auto_awq` too), read without them.

A matrix W [out, in] is stored as tensors of its module:

    qweight    int32 [in, out / 8]        eight codes of a row each, from the lowest bits on those of the outputs
                                          0, 2, 4, 6, 1, 3, 5, 7
    qzeros     int32 [groups, out / 8]    zero points in the same order
    scales     float [groups, out]        W = (code - zero point) * scale of its group of in / groups inputs

Codes and zero points are stored without a sign, 0 to 15; less 8 they are ours. The scales that AWQ puts on channels
before it rounds are in the weights already.

Not covered: the layouts for other kernels (gemv, gemv_fast, exllama, marlin, llm-awq).
Source: AutoAWQ 0.2.9, modules/linear/gemm.py (from_linear), "AWQ" (arXiv 2306.00978).
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from compress.checkpoints.codes import WORD, from_words, words
from compress.checkpoints.matrix_format import (
    MatrixFormat,
    Role,
    Tensors,
    choice_faults,
    grid_faults,
    group_of,
    group_size,
)
from compress.checkpoints.quantized_matrix import QuantizedMatrix

CODES, SCALES, ZEROS = ".qweight", ".scales", ".qzeros"
"""Ends of the names of a matrix's tensors."""
BITS = 4
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""The output that each code of a word is for."""
LAYOUT, OTHER_LAYOUT = "gemm", "llm-awq"


class Awq(MatrixFormat):
    """AWQ in the layout GEMM."""

    title = "AWQ"
    roles: ClassVar[Mapping[str, Role]] = {CODES: "codes", SCALES: "scales", ZEROS: "zeros"}
    mark = CODES

    def faults(self) -> list[str]:
        told = self.settings.get("version") or self.settings.get("format") or LAYOUT
        layout = told.lower() if isinstance(told, str) else told
        if self.settings.get("backend") == OTHER_LAYOUT:  # which transformers lets stand for the version
            layout = OTHER_LAYOUT
        return [
            *choice_faults({"version": layout}, {"version": (LAYOUT,)}),
            *grid_faults(self.settings, (BITS,)),
            *choice_faults(self.settings, {"zero_point": (True, None)}),
        ]

    def bits(self, stored: tuple[int, ...], rows: int, columns: int) -> int | None:
        return BITS if stored == (columns, words(rows, BITS)) else None

    def has_zeros(self, tensors: Tensors) -> bool:
        return bool(self._zeros(tensors).any())

    def read(self, tensors: Tensors) -> QuantizedMatrix:
        zero_OG, scale_OG = self._zeros(tensors), np.ascontiguousarray(tensors[SCALES].T)
        return QuantizedMatrix(_in_order(tensors[CODES]), scale_OG, zero_OG, BITS)

    def _zeros(self, tensors: Tensors) -> NDArray[np.int8]:
        """[rows, groups]."""
        columns, width = tensors.shape(CODES)
        rows = width * WORD // BITS
        group_of(tensors.shape(SCALES)[::-1], rows, columns, {group_size(self.settings)})
        zero_OG = _in_order(tensors[ZEROS])
        if zero_OG.shape != tensors.shape(SCALES)[::-1]:
            raise ValueError(f"expected a zero point for each scale, got {zero_OG.shape}")
        return zero_OG


def _in_order(stored_KJ: NDArray[Any]) -> NDArray[np.int8]:
    """Codes [out, K] of words [K, out / 8]."""
    columns, width = stored_KJ.shape
    shuffled_KN = from_words(stored_KJ, (columns, width * WORD // BITS), BITS)
    code_KJ8 = shuffled_KN.reshape(columns, width, len(ORDER))[..., np.argsort(ORDER)]
    return np.ascontiguousarray(code_KJ8.reshape(columns, -1).T)
