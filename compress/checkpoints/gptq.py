"""GPTQ's weights of 4 and 8 bits, as GPTQModel, AutoGPTQ and AutoRound (`auto_gptq`) write them, read and written
without those.

A matrix W [out, in] is stored as tensors of its module, here for 4 bits (of 8, an int32 holds four):

    qweight    int32 [in / 8, out]        eight codes of a column each, the first in the lowest bits
    scales     float [groups, out]        W = (code - zero point) * scale of its group of in / groups inputs
    qzeros     int32 [groups, out / 8]    zero points, packed along the outputs
    g_idx      int32 [in]                 the group of each input; may be left out

Codes and zero points are stored without a sign, 0 to 15; less 8 they are ours. Version 1 of the format ("gptq") stores
zero points less 1, version 2 ("gptq_v2") as they are. A zero point of 0 has no place in version 1: what is stored for
it, 15, is read by one tool as 16, by another as 0 with a carry into the next, and is refused.

`dynamic` of `quantization_config` may give modules other bits, `{"+:REGEX": {"bits": 8}}`, or leave them out,
`{"-:REGEX": {}}`; a regular expression matches from the beginning of a module's name. Which bits a matrix has is told
by its shape.

Not covered: columns in order of activation (act-order, `desc_act`), where the inputs of a group lie scattered:
MatMulNBits has groups of neighbors alone. `desc_act` with one group a row orders nothing, and is read.
Source: GPTQModel 7.7, nn_modules/qlinear and utils/model.py (convert_gptq_v1_to_v2_format_module).
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from compress.checkpoints.codes import WORD, from_words, to_words, words
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

CODES, SCALES, ZEROS, ORDER = ".qweight", ".scales", ".qzeros", ".g_idx"
"""Ends of the names of a matrix's tensors."""
WIDTHS = (4, 8)
"""Bits of a code."""
VERSIONS = ("gptq", "gptq_v2")
LEFT_OUT = "-:"
"""How the name of modules that stay floats begins in `dynamic`."""
OTHERWISE = ("is_marlin_format", "rotation", "adapter", "activation")
"""Keys that change the layout, the weights or what they are multiplied by."""


class Gptq(MatrixFormat):
    """GPTQ, versions 1 and 2."""

    title = "GPTQ"
    roles: ClassVar[Mapping[str, Role]] = {CODES: "codes", SCALES: "scales", ZEROS: "zeros", ORDER: "storage"}
    mark = CODES

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__(settings)
        self._bits = settings.get("bits", WIDTHS[0])
        self._widths = list(dict.fromkeys([self._bits, *_other_widths(settings.get("dynamic"))]))
        self._version = settings.get("checkpoint_format") or settings.get("format") or VERSIONS[0]

    def faults(self) -> list[str]:
        return [
            *choice_faults({"checkpoint_format": self._version}, {"checkpoint_format": VERSIONS}),
            *grid_faults(self.settings, WIDTHS),
            *choice_faults(self.settings, {"pack_dtype": ("int32", None)}),
            *(f"`{key}`: expected none, got {self.settings[key]!r}" for key in OTHERWISE if self.settings.get(key)),
            *_override_faults(self.settings.get("dynamic") or {}),
        ]

    def bits(self, stored: tuple[int, ...], rows: int, columns: int) -> int | None:
        return next((bits for bits in self._widths if stored == (words(columns, bits), rows)), None)

    def has_zeros(self, tensors: Tensors) -> bool:
        return bool(self._zeros(tensors).any())

    def read(self, tensors: Tensors) -> QuantizedMatrix:
        zero_OG, scale_OG = self._zeros(tensors), np.ascontiguousarray(tensors[SCALES].T)
        rows, columns, bits = self._shape(tensors)
        codes_OI = from_words(tensors[CODES].T, (rows, columns), bits)
        return QuantizedMatrix(codes_OI, scale_OG, zero_OG, bits)

    def _shape(self, tensors: Tensors) -> tuple[int, int, int]:
        """Rows, columns and bits of a code."""
        height, rows = tensors.shape(CODES)
        if len(self._widths) == 1:
            return rows, height * WORD // self._bits, self._bits
        group = group_size(self.settings)
        if ORDER not in tensors and group is None:
            raise ValueError("expected `g_idx` where rows have one scale and `dynamic` gives some modules other bits")
        columns = tensors.shape(ORDER)[0] if ORDER in tensors else tensors.shape(SCALES)[0] * (group or 0)
        bits = self.bits((height, rows), rows, columns)
        if bits is None:
            raise ValueError(f"expected codes of {columns} columns, got {height} x {WORD} bits")
        return rows, columns, bits

    def _zeros(self, tensors: Tensors) -> NDArray[np.int8]:
        """[rows, groups], of a matrix whose groups are neighbors."""
        rows, columns, bits = self._shape(tensors)
        groups = columns // group_of(tensors.shape(SCALES)[::-1], rows, columns, {group_size(self.settings)})
        if ORDER in tensors and not np.array_equal(tensors[ORDER], np.arange(columns) // (columns // groups)):
            raise ValueError(
                "`g_idx`: expected groups of neighbors, got columns in order of activation (act-order); quantize it "
                "with desc_act: false"
            )
        stored_GO = from_words(tensors[ZEROS], (groups, rows), bits)
        if self._version == VERSIONS[0]:
            highest = (1 << bits) - 1
            if (stored_GO == highest >> 1).any():
                raise ValueError(
                    f"a zero point is stored as {highest}, which tools read in two ways; save it as gptq_v2"
                )
            stored_GO = stored_GO + np.int8(1)
        return np.ascontiguousarray(stored_GO.T)


def tensors_of(matrix: QuantizedMatrix) -> dict[str, NDArray[Any]]:
    """The tensors of a matrix without zero points, by the ends of their names, in version 1.

    Raises:
        ValueError: its rows do not fill whole int32 of zero points.
    """
    rows, columns = matrix.codes_OI.shape
    if rows * matrix.bits % WORD:
        raise ValueError(f"expected a multiple of {WORD // matrix.bits} rows, got {rows}")
    groups = matrix.scale_OG.shape[1]
    stored_GO = np.full((groups, rows), -1, dtype=np.int8)  # zero points of 0, less 1
    return {
        CODES: np.ascontiguousarray(to_words(matrix.codes_OI, matrix.bits).T),
        SCALES: np.ascontiguousarray(matrix.scale_OG.T),
        ZEROS: to_words(stored_GO, matrix.bits),
        ORDER: np.arange(columns, dtype=np.int32) // np.int32(columns // groups),
    }


def settings_of(group: int, ignore: Sequence[str], bits: Mapping[int, Sequence[str]]) -> dict[str, Any]:
    """`quantization_config` of a checkpoint with a scale for each `group` columns of its quantized linears.

    Args:
        ignore: names of linears that are float; the format has no list of them.
        bits: bits of a code -> names of the linears that have them.
    """
    width, *others = sorted(bits)
    dynamic = {f"+:^{re.escape(name)}$": {"bits": other} for other in others for name in bits[other]}
    return {
        "quant_method": "gptq",
        "checkpoint_format": VERSIONS[0],
        "bits": width,
        "group_size": group,
        "sym": True,
        "desc_act": False,
        "pack_dtype": "int32",
        "lm_head": False,
        **({"dynamic": dynamic} if dynamic else {}),
    }


def _other_widths(dynamic: Any) -> list[int]:
    """Bits that `dynamic` gives modules, as far as it can be followed."""
    given = dynamic.values() if isinstance(dynamic, dict) else ()
    return sorted({values["bits"] for values in given if _is_grid(values) and "bits" in values})


def _override_faults(dynamic: Any) -> list[str]:
    """`dynamic` may leave modules out and give some other bits; any other grid is not followed."""
    expected = (
        f"expected modules that are left out ({LEFT_OUT}...) or have other bits ({' or '.join(map(str, WIDTHS))})"
    )
    if not isinstance(dynamic, dict):
        return [f"`dynamic`: {expected}, got {dynamic!r}"]
    wrong = {name: values for name, values in dynamic.items() if not (name.startswith(LEFT_OUT) or _is_grid(values))}
    return [f"`dynamic`: {expected}, got {wrong!r}"] if wrong else []


def _is_grid(values: Any) -> bool:
    """Whether it says nothing of a module's grid but perhaps its bits."""
    if not isinstance(values, dict) or values.keys() - {"bits"}:
        return False
    bits = values.get("bits", WIDTHS[0])
    return type(bits) is int and bits in WIDTHS
