"""bitsandbytes' 8-bit weights, read without that library.

A matrix is stored as codes CB int8 [out, in] and one scale SCB float32 [out], so that W = CB * SCB / 127: one group,
its scale SCB / 127. SCB is the largest absolute value of the row (of the row cast to float16, where bitsandbytes itself
quantizes); a row of zeros has SCB 0. In a Hugging Face folder the codes stand under `<module>.weight` and the scales
under `<module>.SCB`, always [out, in], also where the float checkpoint held the matrix as [in, out] (GPT-2's Conv1D).

No format here has an int8 embedding, so an embedding that was quantized too is stored twice over: rounded to the grid
as a float table, which plain transformers loads, and as codes and scales in `EMBEDDINGS_FILE`, which transformers
ignores and the ONNX export carries. There SCB may be float32 [out, groups].
Source: bitsandbytes 0.50 (Linear8bitLt) and "LLM.int8()" (arXiv 2208.07339), section 2.
"""

from collections.abc import Mapping
from typing import ClassVar

from compress.checkpoints.matrix_format import MatrixFormat, Role, Tensors
from compress.checkpoints.quantized_matrix import QuantizedMatrix

EMBEDDINGS_FILE = "int8_embeddings.safetensors"
CODES, SCALES = ".weight", ".SCB"


class Int8Rows(MatrixFormat):
    """bitsandbytes' 8 bits."""

    title = "bitsandbytes"
    roles: ClassVar[Mapping[str, Role]] = {CODES: "codes", SCALES: "scales", ".weight_format": "storage"}
    mark = SCALES
    library = "bitsandbytes"

    def faults(self) -> list[str]:
        if self.settings.get("load_in_4bit"):
            kind = self.settings.get("bnb_4bit_quant_type") or "fp4"
            return [f"`load_in_8bit`: expected true, got 4 bits of {kind}, a table of values that no grid has"]
        return [] if self.settings.get("load_in_8bit") else ["`load_in_8bit`: expected true"]

    def bits(self, stored: tuple[int, ...], rows: int, columns: int) -> int | None:
        return 8 if stored == (rows, columns) else None

    def has_zeros(self, tensors: Tensors) -> bool:
        return False

    def read(self, tensors: Tensors) -> QuantizedMatrix:
        codes_OI, scale_O = tensors[CODES], tensors[SCALES]
        if codes_OI.shape[1] % scale_O[0].size or len(codes_OI) != len(scale_O):
            raise ValueError(f"{scale_O.shape} scales do not fit codes {codes_OI.shape}")
        return QuantizedMatrix.from_rows(codes_OI, scale_O)
