"""Codes as bytes, as ONNX Runtime's MatMulNBits holds them, and as words of 32 bits, as checkpoints do.

A code of `bits` bits, with a sign, is stored as code + 2^(bits - 1), without one. Of 8 bits each has a byte, of 4 bits
two share one, the first in its lower half. A word holds its bytes from the lowest to the highest.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

WORD = 32
"""Bits of a word."""


def to_bytes(codes_NK: NDArray[np.int8], bits: int, columns: int, fill: int) -> NDArray[np.uint8]:
    """[N, columns * bits / 8]; columns beyond the codes' own are stored as `fill`."""
    stored_NK: NDArray[np.uint8] = np.full((len(codes_NK), columns), fill, dtype=np.uint8)
    np.add(codes_NK.view(np.uint8), np.uint8(1 << bits - 1), out=stored_NK[:, : codes_NK.shape[1]])  # modulo 256
    if bits == 4:
        stored_NK = (stored_NK[:, ::2] | stored_NK[:, 1::2] << 4).astype(np.uint8)
    return stored_NK


def from_bytes(stored_NJ: NDArray[np.uint8], bits: int) -> NDArray[np.int8]:
    """The codes [N, J * 8 / bits], with whatever filled up a row."""
    if bits == 4:
        stored_NJ = np.stack([stored_NJ & 15, stored_NJ >> 4], axis=-1).reshape(len(stored_NJ), -1)
    return (stored_NJ - np.uint8(1 << bits - 1)).view(np.int8)  # modulo 256, as an int8 is read


def to_words(codes_NK: NDArray[np.int8], bits: int) -> NDArray[np.int32]:
    """The words [N, K * bits / 32, rounded up]; what fills up a row is stored as 0."""
    width = words(codes_NK.shape[1], bits) * WORD // bits
    return to_bytes(codes_NK, bits, width, fill=0).view("<i4").astype(np.int32, copy=False)


def from_words(stored_NJ: NDArray[Any], shape: tuple[int, int], bits: int) -> NDArray[np.int8]:
    """The codes of that shape, without what filled up a row.

    Raises:
        ValueError: the words do not fit the shape.
    """
    rows, columns = shape
    if stored_NJ.dtype != np.int32 or stored_NJ.shape != (rows, words(columns, bits)):
        got = f"{stored_NJ.dtype} {stored_NJ.shape}"
        raise ValueError(f"expected int32 codes of {rows} x {columns} in {bits} bits, got {got}")
    stored_NJ = np.ascontiguousarray(stored_NJ, dtype="<i4")
    return from_bytes(stored_NJ.view(np.uint8), bits)[:, :columns]


def words(count: int, bits: int) -> int:
    """How many words hold so many codes."""
    return -(-count * bits // WORD)
