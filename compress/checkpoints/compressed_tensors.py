"""compressed-tensors' "pack-quantized" weights of 4 and 8 bits (what llm-compressor's W4A16 and W8A16 write), read and
written without that library.

A matrix W [out, in] is stored as tensors of its module, here for 4 bits (of 8, an int32 holds four):

    weight_packed        int32 [out, in / 8]        eight codes each, the first in the lowest bits; c stands as c + 8
    weight_scale         float [out, groups]        W = (c - zero point) * scale of its group of in / groups columns;
                                                    "channel" has one group
    weight_zero_point    int32 [out / 8, groups]    packed along the rows; only where codes are asymmetric
    weight_shape         int64 [2]                  (out, in); the last int32 of a row may hold padding

What config.json says of them is checked first, and whatever else the library can do is refused: quantized activations
or caches, other widths, columns in another order, sparsity, rotations.
Source: compressed-tensors 0.20, compressors/pack_quantized and quantization/quant_args.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from compress.checkpoints.codes import from_words, to_words, words
from compress.checkpoints.matrix_format import MatrixFormat, Role, Tensors, choice_faults, group_of
from compress.checkpoints.quantized_matrix import QuantizedMatrix

CODES, SCALES, ZEROS, SHAPE = ".weight_packed", ".weight_scale", ".weight_zero_point", ".weight_shape"
"""Ends of the names of a matrix's tensors."""
WIDTHS = (4, 8)
"""Bits of a code."""
WEIGHTS: dict[str, tuple[Any, ...]] = {
    "num_bits": WIDTHS,
    "type": ("int",),
    "symmetric": (True, False),
    "strategy": ("group", "channel"),
    "dynamic": (False, None),
    "actorder": (None, False, "weight", "static"),  # these two order the calibration, not the columns
}
"""What the entries of `weights` may be."""
FORMAT = "pack-quantized"


class PackQuantized(MatrixFormat):
    """compressed-tensors' packed weights."""

    title = "compressed-tensors"
    roles: ClassVar[Mapping[str, Role]] = {CODES: "codes", SCALES: "scales", ZEROS: "zeros", SHAPE: "storage"}
    mark = CODES

    def faults(self) -> list[str]:
        return packed_faults(self.settings)

    def bits(self, stored: tuple[int, ...], rows: int, columns: int) -> int | None:
        fits = [bits for bits in WIDTHS if stored == (rows, words(columns, bits))]
        return fits[-1] if fits else None

    def has_zeros(self, tensors: Tensors) -> bool:
        zero_OG = self._zeros(tensors)
        return zero_OG is not None and bool(zero_OG.any())

    def read(self, tensors: Tensors) -> QuantizedMatrix:
        packed_OJ, scale_OG = tensors[CODES], tensors[SCALES]
        rows, columns = tensors[SHAPE].tolist()
        bits = self.bits(packed_OJ.shape, rows, columns)
        if bits is None:
            raise ValueError(f"expected int32 codes of {rows} x {columns}, got {packed_OJ.dtype} {packed_OJ.shape}")
        group_of(scale_OG.shape, rows, columns, _group_sizes(self.settings))
        codes_OI = from_words(packed_OJ, (rows, columns), bits)
        return QuantizedMatrix(codes_OI, scale_OG, self._zeros(tensors), bits)

    def _zeros(self, tensors: Tensors) -> NDArray[np.int8] | None:
        """[rows, groups]; None where they are left out."""
        if ZEROS not in tensors:
            return None
        packed_GJ, (rows, _) = tensors[ZEROS].T, tensors[SHAPE].tolist()
        groups = packed_GJ.shape[0]
        bits = self.bits(packed_GJ.shape, groups, rows)
        if bits is None:
            raise ValueError(f"expected int32 zero points of {rows} rows, got {packed_GJ.dtype} {packed_GJ.T.shape}")
        return np.ascontiguousarray(from_words(packed_GJ, (groups, rows), bits).T)


def packed_faults(settings: Mapping[str, Any]) -> list[str]:
    """What in a `quantization_config` of compressed-tensors is not covered, each as "key: expected, got"."""
    faults = choice_faults(settings, {"format": (FORMAT,), "quantization_status": ("compressed", None)})
    for key in ("kv_cache_scheme", "sparsity_config", "transform_config"):
        if settings.get(key) and settings[key] != {"format": "dense"}:
            faults.append(f"`{key}`: expected none, got {settings[key]!r}")
    groups = settings.get("config_groups")
    if not isinstance(groups, dict) or not groups or not all(isinstance(group, dict) for group in groups.values()):
        return [*faults, f"`config_groups`: expected groups with their `weights`, got {groups!r}"]
    for name, group in groups.items():
        plain: dict[str, tuple[Any, ...]] = {"input_activations": (None,), "output_activations": (None,)}
        faults += choice_faults(group, plain | {"format": (FORMAT, None)}, f"{name}.")
        faults += choice_faults(group.get("weights") or {}, WEIGHTS, f"{name}.weights.")
    return faults


def _group_sizes(settings: Mapping[str, Any]) -> set[int | None]:
    """Columns that share a scale, of each of the groups of matrices; None: all of a row."""
    weights = [group["weights"] for group in settings["config_groups"].values()]
    return {entry.get("group_size") if entry["strategy"] == "group" else None for entry in weights}


def tensors_of(matrix: QuantizedMatrix) -> dict[str, NDArray[Any]]:
    """The tensors of a matrix without zero points, by the ends of their names."""
    return {
        CODES: to_words(matrix.codes_OI, matrix.bits),
        SCALES: matrix.scale_OG,
        SHAPE: np.asarray(matrix.codes_OI.shape),
    }


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
