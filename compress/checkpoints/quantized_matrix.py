"""What a quantized matrix is, and the checkpoints that hold them: bitsandbytes' 8-bit format, read and written without
bitsandbytes, and compressed-tensors' (`compressed_tensors.py`).

A matrix W [out, in] is codes int8 [out, in] and scales float32 [out, groups]: the columns of a row fall into equal
groups, and W = (code - zero point) * scale of its group. One group is a scale for the whole row; codes of 4 bits lie
between -8 and 7.

In bitsandbytes' format a matrix is stored as codes CB int8 [out, in] and one scale SCB float32 [out], so that W = CB *
SCB / 127: one group, its scale SCB / 127. SCB is the largest absolute value of the row (of the row cast to float16,
where bitsandbytes itself quantizes); a row of zeros has SCB 0. In a Hugging Face folder the codes stand under
`<module>.weight` and the scales under `<module>.SCB`, always [out, in], also where the float checkpoint held the matrix
as [in, out] (GPT-2's Conv1D).

Neither format has an int8 embedding, so an embedding that was quantized too is stored twice over: rounded to the grid
as a float table, which plain transformers loads, and as codes and scales in `EMBEDDINGS_FILE`, which transformers
ignores and the ONNX export carries. There SCB may be float32 [out, groups].
Source: bitsandbytes 0.50 (Linear8bitLt) and "LLM.int8()" (arXiv 2208.07339), section 2.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from compress.checkpoints.compressed_tensors import CODES, SCALES, SHAPE, ZEROS, group_sizes, unpack, width_of
from compress.checkpoints.config import CheckpointError, read_config
from compress.checkpoints.weight_files import weight_files

EMBEDDINGS_FILE = "int8_embeddings.safetensors"
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


def read_quantized_matrices(folder: Path) -> dict[str, QuantizedMatrix]:
    """Every matrix of a quantized checkpoint, embeddings too, by its module's name ("transformer.h.0.attn.c_attn").

    Raises:
        CheckpointError: a matrix's tensors do not fit each other, or one is missing.
    """
    return dict(quantized_matrices(folder, read_config(folder)))


def quantized_matrices(folder: Path, config: Mapping[str, Any]) -> Iterator[tuple[str, QuantizedMatrix]]:
    """The same, one after the other, of a checkpoint whose config.json is known."""
    for files in (weight_files(folder), [*folder.glob(EMBEDDINGS_FILE)]):  # which holds tensors of the same names
        with ExitStack() as stack:
            opened = [stack.enter_context(safe_open(file, framework="pt")) for file in files]
            held = {name: tensors for tensors in opened for name in tensors.keys()}  # noqa: SIM118 (not iterable)
            try:
                yield from _matrices(held, config)
            except (KeyError, ValueError) as error:
                raise CheckpointError(
                    f"{folder}: a quantized matrix cannot be read ({error}); download or quantize the checkpoint again"
                ) from error


def _matrices(held: dict[str, Any], config: Mapping[str, Any]) -> Iterator[tuple[str, QuantizedMatrix]]:
    """(module, matrix) for each of the matrices in open safetensors files; `held` says where a tensor lies."""
    packed = any(name.endswith(CODES) for name in held)
    sizes = group_sizes(config["quantization_config"]) if packed else set()

    def read(name: str) -> Any:
        return held[name].get_tensor(name)

    for name in held:
        if name.endswith(".SCB"):
            module = name.removesuffix(".SCB")
            codes_OI, scale_O = read(f"{module}.weight").numpy(), read(name).numpy()
            if codes_OI.shape[1] % scale_O[0].size or len(codes_OI) != len(scale_O):
                raise ValueError(f"{module}: {scale_O.shape} scales do not fit codes {codes_OI.shape}")
            yield module, QuantizedMatrix.from_rows(codes_OI, scale_O)
        elif name.endswith(CODES):
            module = name.removesuffix(CODES)
            zeros = read(module + ZEROS).numpy() if module + ZEROS in held else None
            scale_OG = read(module + SCALES).float().numpy()  # numpy has no bfloat16
            rows, columns = read(module + SHAPE).tolist()
            matrix = _unpacked(read(name).numpy(), scale_OG, zeros, (rows, columns))
            whole = scale_OG.shape[1] == 1 and None in sizes
            if not whole and matrix.group not in sizes:
                raise ValueError(f"{module}: {scale_OG.shape[1]} scales for {columns} columns do not fit config.json")
            yield module, matrix


def _unpacked(
    packed_OJ: NDArray[np.int32], scale_OG: NDArray[np.float32], zeros: NDArray[np.int32] | None, shape: tuple[int, int]
) -> QuantizedMatrix:
    rows, columns = shape
    bits = width_of(packed_OJ.shape, columns)
    if bits is None:
        raise ValueError(f"expected int32 codes of {rows} x {columns}, got {packed_OJ.dtype} {packed_OJ.shape}")
    if scale_OG.ndim != 2 or len(scale_OG) != rows or columns % scale_OG.shape[1]:
        raise ValueError(f"expected scales of {rows} rows of equal groups of {columns} columns, got {scale_OG.shape}")
    codes_OI = unpack(packed_OJ, shape, bits)
    if zeros is None:
        return QuantizedMatrix(codes_OI, scale_OG, bits=bits)
    zero_GO = unpack(np.ascontiguousarray(zeros.T), (scale_OG.shape[1], rows), bits)
    return QuantizedMatrix(codes_OI, scale_OG, np.ascontiguousarray(zero_GO.T), bits)
