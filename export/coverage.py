"""Which weights of a bundle are quantized, to how many bits, and which are not, read from the file that ships; and
proof that the quantized ones are the checkpoint's.

Nothing here trusts what the export meant to do: it opens the written files. The usual tools skip GPT-2's matrices
without a word, and leave a file as large as it was.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compress.checkpoints.codes import from_bytes
from compress.checkpoints.quantized_matrix import QuantizedMatrix
from compress.errors import DemitasseError
from compress.models.components import Held
from export.external_data import tensor_bytes
from export.initializers import StoredValues, attributes_of

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

CODES, SCALES, ZEROS = ".codes", ".scales", ".zeros"
WIDTHS = (8, 4)
"""Bits of codes."""
TABLES = ("cos_cache", "sin_cache")
"""Ends of the names of matrices that are no weights: tables computed from positions."""


class CoverageError(DemitasseError):
    """A weight was to be quantized and is not, or is not the checkpoint's; the message names the tensors."""


def coverage(model: "ModelProto") -> dict[str, Any]:
    """What the graph holds, as plain data: the names of quantized and of float matrices, and the bytes of each kind."""
    bits, tables = _widths(model), _tables(model)
    held = weights_in_memory(model)
    matrices = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) > 1}
    floats = {name for name, number, _ in held if number == "float"}
    kinds = [f"int{width}" for width in WIDTHS]
    sizes = {number: sum(size for _, kind, size in held if kind == number) for number in (*kinds, "scales", "float")}
    names = {width: [name.removesuffix(CODES) for name, own in bits.items() if own == width] for width in WIDTHS}
    return {
        **{f"int{width}": sorted(module for name in names[width] for module in name.split("+")) for width in WIDTHS},
        "float": sorted(name for name in floats & matrices if not name.endswith(TABLES)),
        **{f"{kind}_bytes": sizes[kind] for kind in kinds},
        "scale_bytes": sizes["scales"],
        "float_bytes": sizes["float"],
        "shared_table": bool(tables & {node.input[1] for node in _products(model)}),
    }


def weights_in_memory(model: "ModelProto") -> list[Held]:
    """Every stored tensor of the graph: codes, their scales and zero points, and whatever else."""
    bits = _widths(model)
    numbers = {name: f"int{width}" for name, width in bits.items()}
    numbers |= {name.removesuffix(CODES) + end: "scales" for name in bits for end in (SCALES, ZEROS)}
    return [
        (tensor.name, numbers.get(tensor.name, "float"), tensor_bytes(tensor)) for tensor in model.graph.initializer
    ]


def _widths(model: "ModelProto") -> dict[str, int]:
    """Name of codes that are multiplied by or looked up in -> their bits."""
    tables = {name: 8 for name in _tables(model) if name.endswith(CODES)}
    return tables | {node.input[1]: attributes_of(node)["bits"] for node in _products(model)}


def _products(model: "ModelProto") -> list["NodeProto"]:
    return [node for node in model.graph.node if node.op_type == "MatMulNBits"]


def _tables(model: "ModelProto") -> set[str]:
    return {node.input[0] for node in model.graph.node if node.op_type == "Gather"}


def check_carried(
    model: "ModelProto",
    folder: Path,
    matrices: dict[str, QuantizedMatrix],
    placed: Iterable[tuple[str, QuantizedMatrix]],
) -> None:
    """Compare the quantized matrices of a graph, whose files lie in `folder`, with the checkpoint's, bit for bit.

    `placed` says which matrix was to stand under which name, as (name, rows of the checkpoint).

    Raises:
        CoverageError: a quantized matrix of the checkpoint is not in the bundle as such, or differs.
    """
    covered = coverage(model)
    missing = sorted(set(matrices).difference(*(covered[f"int{width}"] for width in WIDTHS)))
    if missing:
        names = ", ".join(missing)
        raise CoverageError(f"these weights are quantized in the checkpoint, but not in the bundle: {names}")
    stored = StoredValues(model, folder)
    products = {node.input[1]: node for node in _products(model)}
    for name, matrix in placed:
        product = products.get(name + CODES)
        if product is not None and attributes_of(product)["bits"] != matrix.bits:
            raise _differs(name, "bits")
        _compare_codes(name, matrix, stored[name + CODES])
        _compare_scales(name, matrix, stored[name + SCALES])
        if product is not None:
            _compare_scales(name, matrix, _scales_of(product, stored))
            _compare_zeros(name, matrix, product, stored)


def _differs(name: str, what: str) -> CoverageError:
    return CoverageError(f"{name}: the bundle's {what} are not the checkpoint's; this is a defect of the export")


def _scales_of(product: "NodeProto", stored: StoredValues) -> NDArray[Any]:
    """What the graph makes of stored scales on their way to a product."""
    try:
        return stored[product.input[2]]
    except KeyError:
        raise CoverageError(
            f"{product.input[2]}: expected scales that are stored, or spread from stored ones, in {stored.folder}"
        ) from None


def _compare_codes(name: str, matrix: QuantizedMatrix, codes_NBC: NDArray[Any]) -> None:
    rows, columns = matrix.codes_OI.shape
    codes_NK = from_bytes(codes_NBC.reshape(rows, -1), matrix.bits)
    if not np.array_equal(codes_NK[:, :columns], matrix.codes_OI) or codes_NK[:, columns:].any():
        raise _differs(name, "codes")


def _compare_scales(name: str, matrix: QuantizedMatrix, scales_NB: NDArray[Any]) -> None:
    """Scales of a group each, or of the blocks of a group."""
    step_NG = matrix.scale_OG.astype(scales_NB.dtype)
    repeats, rest = divmod(scales_NB.shape[1], step_NG.shape[1])
    if rest or not np.array_equal(scales_NB, np.repeat(step_NG, repeats, axis=1)):
        raise _differs(name, "scales")


def _compare_zeros(name: str, matrix: QuantizedMatrix, product: "NodeProto", stored: StoredValues) -> None:
    place = product.input[3] if len(product.input) > 3 else ""
    if not place or matrix.zero_OG is None:
        if place or matrix.zero_OG is not None:
            raise _differs(name, "zero points")
        return
    blocks = stored[product.input[1]].shape[1]
    zero_NB = from_bytes(stored[place], matrix.bits)[:, :blocks]
    if not np.array_equal(zero_NB, np.repeat(matrix.zero_OG, blocks // matrix.zero_OG.shape[1], axis=1)):
        raise _differs(name, "zero points")
