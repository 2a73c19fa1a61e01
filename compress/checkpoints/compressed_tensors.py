"""compressed-tensors' "pack-quantized" weights of 4 and 8 bits (what llm-compressor's W4A16 and W8A16 write), read and
written without that library.

A matrix W [out, in] is stored as tensors of its module, here for 4 bits (of 8, an int32 holds four):

    weight_packed        int32 [out, in / 8]        eight codes each, the first in the lowest bits; c stands as c + 8
    weight_scale         float [out, groups]        W = (c - zero point) * scale of its group of in / groups columns;
                                                    "channel" has one group
    weight_zero_point    int32 [out / 8, groups]    packed along the rows; only where codes are asymmetric
    weight_shape         int64 [2]                  (out, in); the last int32 of a row may hold padding

What config.json says of them is checked first (`config.py`), and whatever else the library can do is refused: quantized
activations or caches, other widths, columns in another order, sparsity, rotations.
Source: compressed-tensors 0.20, compressors/pack_quantized and quantization/quant_args.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.checkpoints.codes import from_bytes, to_bytes

CODES, SCALES, ZEROS, SHAPE = ".weight_packed", ".weight_scale", ".weight_zero_point", ".weight_shape"
"""Ends of the names of a matrix's tensors."""
WIDTHS = (4, 8)
"""Bits of a code."""
WORD = 32
FORMAT = "pack-quantized"


def group_sizes(settings: dict[str, Any]) -> set[int | None]:
    """Columns that share a scale, of each of the groups of matrices; None: all of a row."""
    weights = [group["weights"] for group in settings["config_groups"].values()]
    return {entry.get("group_size") if entry["strategy"] == "group" else None for entry in weights}


def width_of(packed: Sequence[int], columns: int) -> int | None:
    """Bits of the codes of rows of `columns`, told by the shape of the packed ones; None: they fit no width."""
    fits = [bits for bits in WIDTHS if packed[-1] == _words(columns, bits)]
    return fits[-1] if fits else None


def _words(count: int, bits: int) -> int:
    return -(-count * bits // WORD)


def unpack(packed_OJ: NDArray[np.int32], shape: tuple[int, int], bits: int) -> NDArray[np.int8]:
    """codes_OI of that shape from the packed ones.

    Raises:
        ValueError: they do not fit the shape.
    """
    rows, columns = shape
    if packed_OJ.dtype != np.int32 or packed_OJ.shape != (rows, _words(columns, bits)):
        raise ValueError(f"expected int32 codes of {rows} x {columns}, got {packed_OJ.dtype} {packed_OJ.shape}")
    return from_bytes(packed_OJ.astype("<i4", copy=False).view(np.uint8), bits)[:, :columns]


def pack(codes_OI: NDArray[np.int8], bits: int) -> NDArray[np.int32]:
    """The packed codes [out, in * bits / 32, rounded up], as `unpack` reads them; what fills up a row is 0."""
    width = _words(codes_OI.shape[1], bits) * WORD // bits
    return to_bytes(codes_OI, bits, width, fill=0).view("<i4").astype(np.int32, copy=False)


def settings_of(group: int, ignore: Sequence[str], bits: Mapping[int, Sequence[str]]) -> dict[str, Any]:
    """`quantization_config` of a checkpoint with a scale for each `group` columns of its quantized linears.

    Args:
        ignore: names of linears that are float.
        bits: bits of a code -> names of the linears that have them; where there is one entry, all that are not ignored.
    """

    def linears(names: Sequence[str], width: int) -> dict[str, Any]:
        weights = {
            "num_bits": width,
            "type": "int",
            "symmetric": True,
            "strategy": "group",
            "group_size": group,
            "dynamic": False,
            "actorder": None,
            "observer": "minmax",
        }
        targets = ["Linear"] if len(bits) == 1 else list(names)
        return {"targets": targets, "weights": weights, "input_activations": None, "output_activations": None}

    return {
        "quant_method": "compressed-tensors",
        "format": FORMAT,
        "quantization_status": "compressed",
        "config_groups": {f"group_{place}": linears(bits[width], width) for place, width in enumerate(sorted(bits))},
        "ignore": list(ignore),
        "kv_cache_scheme": None,
    }
