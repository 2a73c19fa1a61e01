"""What an int8 tensor is: bitsandbytes' 8-bit format, read and written without bitsandbytes.

A matrix W [out, in] is stored as codes CB int8 [out, in] and one scale SCB float32 [out], so that W = CB * SCB / 127.
SCB is the largest absolute value of the row (of the row cast to float16, where bitsandbytes itself quantizes); a row
of zeros has SCB 0. In a Hugging Face folder the codes stand under `<module>.weight` and the scales under
`<module>.SCB`, always [out, in], also where the float checkpoint held the matrix as [in, out] (GPT-2's Conv1D).

The format has no int8 embedding, so an embedding that was quantized too is stored twice over: rounded to the grid as
a float table, which plain transformers loads, and as codes and scales in `EMBEDDINGS_FILE`, which transformers
ignores and the ONNX export carries.
Source: bitsandbytes 0.50 (Linear8bitLt) and "LLM.int8()" (arXiv 2208.07339), section 2.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

EMBEDDINGS_FILE = "int8_embeddings.safetensors"
LEVELS = 127.0


@dataclass(frozen=True, eq=False)
class Int8Matrix:
    """codes_OI int8 [out, in] with scale_O float32 [out]; for an embedding, out is the vocabulary."""

    codes_OI: NDArray[np.int8]
    scale_O: NDArray[np.float32]

    def dequantize(self) -> NDArray[np.float32]:
        """The matrix that the codes stand for, float32 [out, in]."""
        return self.codes_OI.astype(np.float32) * (self.scale_O / np.float32(LEVELS))[:, None]


def quantize_rows(weight_OI: NDArray[np.float32]) -> Int8Matrix:
    """Round to nearest, one scale per row: the largest error is half a step, scale / 254."""
    scale_O = np.abs(weight_OI).max(axis=1).astype(np.float32)
    step_O = np.where(scale_O > 0, scale_O, 1.0) / np.float32(LEVELS)
    codes_OI = np.rint(weight_OI / step_O[:, None]).clip(-LEVELS, LEVELS).astype(np.int8)
    return Int8Matrix(codes_OI, scale_O)


def read_int8_matrices(folder: Path) -> dict[str, Int8Matrix]:
    """Every int8 matrix of an int8 checkpoint, embeddings too, by its module's name ("transformer.h.0.attn.c_attn")."""
    matrices: dict[str, Int8Matrix] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (a safetensors handle is not iterable)
                if name.endswith(".SCB"):
                    module = name.removesuffix(".SCB")
                    matrices[module] = Int8Matrix(tensors.get_tensor(f"{module}.weight"), tensors.get_tensor(name))
    return matrices
