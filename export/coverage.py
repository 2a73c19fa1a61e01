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

from compress.int8 import LEVELS, Int8Matrix
from export.external_data import BundleIntegrityError, read_graph, tensor_bytes

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

CODES, SCALES = ".codes", ".scales"
TABLES = ("cos_cache", "sin_cache")
"""Ends of the names of matrices that are no weights: tables computed from positions."""


class CoverageError(Exception):
    """A weight was to be int8 and is not, or is not the checkpoint's; the message names the tensors."""


def coverage(model: "ModelProto") -> dict[str, Any]:
    """What the graph holds, as plain data: the names of int8 and of float matrices, and the bytes of each kind."""
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    codes = {name for node in model.graph.node if node.op_type == "MatMulNBits" for name in node.input[1:2]}
    codes |= {node.input[0] for node in model.graph.node if node.op_type == "Gather" and node.input[0].endswith(CODES)}
    scales = {name.removesuffix(CODES) + SCALES for name in codes}
    floats = [tensor for name, tensor in held.items() if name not in codes | scales]
    return {
        "int8": sorted(module for name in codes for module in name.removesuffix(CODES).split("+")),
        "float": sorted(tensor.name for tensor in floats if len(tensor.dims) > 1 and not tensor.name.endswith(TABLES)),
        "int8_bytes": sum(tensor_bytes(held[name]) for name in codes),
        "scale_bytes": sum(tensor_bytes(held[name]) for name in scales),
        "float_bytes": sum(tensor_bytes(tensor) for tensor in floats),
        "shared_table": any(node.op_type == "Gather" and node.input[0] in codes for node in model.graph.node),
    }


def check_carried(folder: Path, matrices: dict[str, Int8Matrix], placed: Iterable[tuple[str, Int8Matrix]]) -> None:
    """Compare the bundle's int8 matrices with the checkpoint's, bit for bit.

    `placed` says which matrix was to stand under which name, as (name, rows of the checkpoint).

    Raises:
        CoverageError: a matrix of the checkpoint is not in the bundle as int8, or differs.
    """
    model = read_graph(folder)
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    missing = sorted(set(matrices) - set(coverage(model)["int8"]))
    if missing:
        raise CoverageError(f"these weights are int8 in the checkpoint, but not in the bundle: {', '.join(missing)}")
    for name, matrix in placed:
        codes_NK = _read(held[name + CODES], folder).reshape(len(matrix.scale_O), -1)
        scales_NB = _read(held[name + SCALES], folder)
        _compare(name, matrix, codes_NK, scales_NB)


def _compare(name: str, matrix: Int8Matrix, codes_NK: NDArray[Any], scales_NB: NDArray[Any]) -> None:
    columns = matrix.codes_OI.shape[1]
    if (
        not np.array_equal((codes_NK[:, :columns] ^ np.uint8(128)).view(np.int8), matrix.codes_OI)
        or (codes_NK[:, columns:] != 128).any()
    ):
        raise CoverageError(
            f"{name}: the bundle's int8 values are not the checkpoint's; this is a defect of the export"
        )
    step_N = (matrix.scale_O / np.float32(LEVELS)).astype(scales_NB.dtype)
    if not (scales_NB == step_N[:, None]).all():
        raise CoverageError(
            f"{name}: the bundle's int8 scales are not the checkpoint's; this is a defect of the export"
        )


def _read(tensor: "TensorProto", folder: Path) -> NDArray[Any]:
    """The values of an initializer; external ones mapped, not loaded. `read_graph` has checked where they lie."""
    from onnx import TensorProto, numpy_helper
    from onnx.helper import tensor_dtype_to_np_dtype

    if tensor.data_location != TensorProto.EXTERNAL:
        return numpy_helper.to_array(tensor)
    entries = {entry.key: entry.value for entry in tensor.external_data}
    dtype, shape = tensor_dtype_to_np_dtype(tensor.data_type), tuple(tensor.dims)
    try:
        return np.memmap(folder / entries["location"], dtype, "r", int(entries.get("offset", "0")), shape)
    except (OSError, ValueError) as error:
        raise BundleIntegrityError(f"{folder}: the weight {tensor.name!r} cannot be read ({error})") from error
