"""The values that a bundle's graph holds, read from the written files.

A stored value is an initializer, or what the graph spreads from one: Expand and Reshape of stored scales, which ONNX
Runtime computes once as it opens a session.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from export.external_data import BundleIntegrityError

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

SPREADING: dict[str, Callable[[NDArray[Any], list[int]], NDArray[Any]]] = {
    "Expand": np.broadcast_to,
    "Reshape": np.reshape,
}
"""What may stand between a stored value and who uses it."""


def attributes_of(node: "NodeProto") -> dict[str, int]:
    """Its whole numbers by name."""
    return {attribute.name: attribute.i for attribute in node.attribute}


class StoredValues:
    """Values of a graph by name; `read_graph` has checked where they lie."""

    def __init__(self, graph: "ModelProto", folder: Path) -> None:
        self.folder = folder
        self.held = {tensor.name: tensor for tensor in graph.graph.initializer}
        self._makers = {value: node for node in graph.graph.node for value in node.output}

    def __getitem__(self, name: str) -> NDArray[Any]:
        """A value; one that lies in a file is mapped, not loaded.

        Raises:
            KeyError: it is neither stored nor spread from a stored one.
            BundleIntegrityError: it cannot be read.
        """
        if name in self.held:
            return self._read(self.held[name])
        node = self._makers[name]
        given, shape = (self[value] for value in node.input)
        return SPREADING[node.op_type](given, shape.tolist())

    def _read(self, tensor: "TensorProto") -> NDArray[Any]:
        from onnx import TensorProto, numpy_helper
        from onnx.helper import tensor_dtype_to_np_dtype

        if tensor.data_location != TensorProto.EXTERNAL:
            return numpy_helper.to_array(tensor)
        entries = {entry.key: entry.value for entry in tensor.external_data}
        dtype, shape = tensor_dtype_to_np_dtype(tensor.data_type), tuple(tensor.dims)
        file = self.folder / entries["location"]
        try:
            return np.memmap(file, dtype, "r", int(entries.get("offset", "0")), shape)
        except (OSError, ValueError) as error:
            raise BundleIntegrityError(f"{file}: the weight {tensor.name!r} cannot be read ({error})") from error
