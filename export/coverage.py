"""Which weights of a bundle are int8 and which are not, read from the file that ships; and proof that the int8 ones
are the checkpoint's.

Nothing here trusts what the export meant to do: it opens the written files. The usual tools skip GPT-2's matrices
without a word, and leave a file as large as it was.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compress.checkpoints.quantized_matrix import QuantizedMatrix
from compress.errors import DemitasseError
from compress.models.components import Held
from export.external_data import read_graph, tensor_bytes
from export.initializers import StoredValues

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

CODES, SCALES = ".codes", ".scales"
TABLES = ("cos_cache", "sin_cache")
"""Ends of the names of matrices that are no weights: tables computed from positions."""


class CoverageError(DemitasseError):
    """A weight was to be int8 and is not, or is not the checkpoint's; the message names the tensors."""


def coverage(model: "ModelProto") -> dict[str, Any]:
    """What the graph holds, as plain data: the names of int8 and of float matrices, and the bytes of each kind."""
    products, tables, codes = _int8_matrices(model)
    held = weights_in_memory(model)
    matrices = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) > 1}
    floats = {name for name, number, _ in held if number == "float"}
    sizes = {number: sum(size for _, kind, size in held if kind == number) for number in ("int8", "scales", "float")}
    return {
        "int8": sorted(module for name in codes for module in name.removesuffix(CODES).split("+")),
        "float": sorted(name for name in floats & matrices if not name.endswith(TABLES)),
        "int8_bytes": sizes["int8"],
        "scale_bytes": sizes["scales"],
        "float_bytes": sizes["float"],
        "shared_table": bool(tables & products),
    }


def weights_in_memory(model: "ModelProto") -> list[Held]:
    """Every stored tensor of the graph: int8 codes, their scales, and whatever else."""
    _, _, codes = _int8_matrices(model)
    numbers = dict.fromkeys(codes, "int8") | {name.removesuffix(CODES) + SCALES: "scales" for name in codes}
    return [
        (tensor.name, numbers.get(tensor.name, "float"), tensor_bytes(tensor)) for tensor in model.graph.initializer
    ]


def _int8_matrices(model: "ModelProto") -> tuple[set[str], set[str], set[str]]:
    """Names of what int8 products multiply by, of what is looked up in, and of all codes among them."""
    products = {node.input[1] for node in model.graph.node if node.op_type == "MatMulNBits"}
    tables = {node.input[0] for node in model.graph.node if node.op_type == "Gather"}
    return products, tables, products | {name for name in tables if name.endswith(CODES)}


def check_carried(
    folder: Path, matrices: dict[str, QuantizedMatrix], placed: Iterable[tuple[str, QuantizedMatrix]]
) -> None:
    """Compare the bundle's int8 matrices with the checkpoint's, bit for bit.

    `placed` says which matrix was to stand under which name, as (name, rows of the checkpoint).

    Raises:
        CoverageError: a matrix of the checkpoint is not in the bundle as int8, or differs.
    """
    model = read_graph(folder)
    missing = sorted(set(matrices) - set(coverage(model)["int8"]))
    if missing:
        raise CoverageError(f"these weights are int8 in the checkpoint, but not in the bundle: {', '.join(missing)}")
    stored = StoredValues(model, folder)
    products = {node.input[1]: node for node in model.graph.node if node.op_type == "MatMulNBits"}
    for name, matrix in placed:
        _compare_codes(name, matrix, stored[name + CODES])
        _compare_scales(name, matrix, stored[name + SCALES])
        if name + CODES in products:
            _compare_scales(name, matrix, _scales_of(products[name + CODES], stored))


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
    codes_NK = codes_NBC.reshape(rows, -1)
    if (
        not np.array_equal((codes_NK[:, :columns] ^ np.uint8(128)).view(np.int8), matrix.codes_OI)
        or (codes_NK[:, columns:] != 128).any()
    ):
        raise CoverageError(
            f"{name}: the bundle's int8 values are not the checkpoint's; this is a defect of the export"
        )


def _compare_scales(name: str, matrix: QuantizedMatrix, scales_NB: NDArray[Any]) -> None:
    """Scales of a group each, or of the blocks of a group."""
    step_NG = matrix.scale_OG.astype(scales_NB.dtype)
    repeats, rest = divmod(scales_NB.shape[1], step_NG.shape[1])
    if rest or not np.array_equal(scales_NB, np.repeat(step_NG, repeats, axis=1)):
        raise CoverageError(
            f"{name}: the bundle's int8 scales are not the checkpoint's; this is a defect of the export"
        )
