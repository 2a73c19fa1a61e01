"""compressed-tensors' "pack-quantized" weights of 8 bits (what llm-compressor's W8A16 writes), read and written without
that library.

A matrix W [out, in] is stored as three tensors of its module:

    weight_packed   int32 [out, in / 4]    four codes each, the first in the lowest byte; a code c stands as c + 128
    weight_scale    float [out, groups]    W = c * scale of its group of in / groups columns; "channel" has one group
    weight_shape    int64 [2]              (out, in); the last int32 of a row may hold padding

What config.json says of them is checked first, and whatever else the library can do is refused: zero points,
quantized activations or caches, other widths, columns in another order, sparsity, rotations.
Source: compressed-tensors 0.20, compressors/pack_quantized and quantization/quant_args.py.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

CODES, SCALES, SHAPE = ".weight_packed", ".weight_scale", ".weight_shape"
"""Ends of the names of a matrix's tensors."""
ZERO = 128
WEIGHTS: dict[str, tuple[Any, ...]] = {
    "num_bits": (8,),
    "type": ("int",),
    "symmetric": (True,),
    "strategy": ("group", "channel"),
    "dynamic": (False, None),
    "actorder": (None, False, "weight", "static"),  # these two order the calibration, not the columns
}
"""What the entries of `weights` may be."""
FORMAT = "pack-quantized"


def packed_faults(settings: dict[str, Any]) -> list[str]:
    """What in a `quantization_config` of compressed-tensors is not covered, each as "key: expected, got"."""
    faults = _faults("", settings, {"format": (FORMAT,), "quantization_status": ("compressed", None)})
    for key in ("kv_cache_scheme", "sparsity_config", "transform_config"):
        if settings.get(key) and settings[key] != {"format": "dense"}:
            faults.append(f"`{key}`: expected none, got {settings[key]!r}")
    groups = settings.get("config_groups")
    if not isinstance(groups, dict) or not groups or not all(isinstance(group, dict) for group in groups.values()):
        return [*faults, f"`config_groups`: expected groups with their `weights`, got {groups!r}"]
    for name, group in groups.items():
        plain: dict[str, tuple[Any, ...]] = {"input_activations": (None,), "output_activations": (None,)}
        faults += _faults(f"{name}.", group, plain | {"format": (FORMAT, None)})
        faults += _faults(f"{name}.weights.", group.get("weights") or {}, WEIGHTS)
    return faults


def _faults(place: str, settings: dict[str, Any], covered: dict[str, tuple[Any, ...]]) -> list[str]:
    return [
        f"`{place}{key}`: expected {' or '.join(map(repr, values))}, got {settings.get(key)!r}"
        for key, values in covered.items()
        if settings.get(key) not in values
    ]


def group_sizes(settings: dict[str, Any]) -> set[int | None]:
    """Columns that share a scale, of each of the groups of matrices; None: all of a row."""
    weights = [group["weights"] for group in settings["config_groups"].values()]
    return {entry.get("group_size") if entry["strategy"] == "group" else None for entry in weights}


def unpack(packed_OJ: NDArray[np.int32], scale_OG: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.int8]:
    """codes_OI from the packed ones.

    Raises:
        ValueError: the three tensors do not fit each other.
    """
    rows, columns = shape
    if packed_OJ.dtype != np.int32 or packed_OJ.shape != (rows, -(-columns // 4)):
        raise ValueError(f"expected int32 codes of {rows} x {columns}, got {packed_OJ.dtype} {packed_OJ.shape}")
    if scale_OG.ndim != 2 or len(scale_OG) != rows or columns % scale_OG.shape[1]:
        raise ValueError(f"expected scales of {rows} rows of equal groups of {columns} columns, got {scale_OG.shape}")
    bytes_OI = packed_OJ.astype("<i4", copy=False).view(np.uint8)[:, :columns]
    return (bytes_OI ^ np.uint8(ZERO)).view(np.int8)


def pack(codes_OI: NDArray[np.int8]) -> NDArray[np.int32]:
    """The packed codes [out, in / 4, rounded up], as `unpack` reads them; the last int32 of a row is filled with 0."""
    rows, columns = codes_OI.shape
    bytes_OI = np.zeros((rows, -(-columns // 4) * 4), dtype=np.uint8)
    bytes_OI[:, :columns] = codes_OI.view(np.uint8) ^ np.uint8(ZERO)
    return bytes_OI.view("<i4").astype(np.int32, copy=False)


def settings_of(group: int, ignore: Sequence[str]) -> dict[str, Any]:
    """`quantization_config` of a checkpoint whose linears, but for those in `ignore`, have a scale for each `group`
    columns.
    """
    weights = {
        "num_bits": 8,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": group,
        "dynamic": False,
        "actorder": None,
        "observer": "minmax",
    }
    linears = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": FORMAT,
        "quantization_status": "compressed",
        "config_groups": {"group_0": linears},
        "ignore": list(ignore),
        "kv_cache_scheme": None,
    }
