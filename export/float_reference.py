"""A bundle without rounding of activations: each MatMulNBits written out as what it stands for; and, where that is
asked for, with a float cache in place of one of 8 bits.

    MatMulNBits(x, codes, scales, zeros, , bias)  ->  x @ W^T + bias        W_NK = (codes - zeros) * scales

In a graph of float16 the product alone is in float32, between two casts.
Float products, as fast as a float model's. (MatMulNBits itself at accuracy_level 0 multiplies its weights out at every
step, which is 80 times slower.) The weights are multiplied out one at a time, from the bundle's own file into another
one that is four times as large, and ONNX Runtime maps them from there.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from compress.checkpoints.codes import from_bytes
from export.external_data import GRAPH
from export.genai import CONFIG
from export.initializers import StoredValues, attributes_of
from export.runtime.batch import LOGITS

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

ROUNDED = 4
BIT_WIDTH = "kv_cache_bit_width"
CACHE_ATTRIBUTES = {BIT_WIDTH, "k_quant_type", "v_quant_type"}
CACHE_SCALES = 12
"""GroupQueryAttention's first input that is a scale of its cache."""
DATA = "exact.data"
ALIGNMENT = 4096


def float_of(graph: "ModelProto") -> Literal["float32", "float16"]:
    """What a graph computes its logits in."""
    from onnx import TensorProto

    logits = next(value for value in graph.graph.output if value.name == LOGITS)
    return "float16" if logits.type.tensor_type.elem_type == TensorProto.FLOAT16 else "float32"


def multiplies_codes(graph: "ModelProto") -> bool:
    """Whether a product of the graph is by codes."""
    return any(node.op_type == "MatMulNBits" for node in graph.graph.node)


def rounds_activations(graph: "ModelProto") -> bool:
    """Whether a product of the graph rounds its activations to 8 bits."""
    return any(attributes_of(node).get("accuracy_level") == ROUNDED for node in graph.graph.node)


def rounds_cache(graph: "ModelProto") -> bool:
    """Whether an attention of the graph keeps its keys and values in 8 bits."""
    return any(BIT_WIDTH in attributes_of(node) for node in graph.graph.node)


def write_float_reference(bundle: Path, graph: "ModelProto", folder: Path, *, float_cache: bool = True) -> None:
    """Write into `folder` what a session needs to run the bundle's graph with float products.

    Args:
        float_cache: False leaves a cache of 8 bits as it is.
    """
    from onnx import ModelProto

    exact, narrow = ModelProto(), float_of(graph) == "float16"
    exact.CopyFrom(graph)
    for field in (exact.graph.node, exact.graph.initializer):
        del field[:]
    for node in graph.graph.node:
        exact.graph.node.extend(_product(node, narrow) if node.op_type == "MatMulNBits" else [node])
    if float_cache:
        _unround_cache(exact)
    used = {name for node in exact.graph.node for name in node.input}
    stored = StoredValues(graph, bundle)
    with (folder / DATA).open("wb") as data:
        for tensor in graph.graph.initializer:
            if tensor.name in used:
                exact.graph.initializer.append(
                    _append(data, tensor.name, stored[tensor.name]) if tensor.external_data else tensor
                )
        for name, weight_NK in _weights(graph, stored):
            exact.graph.initializer.append(_append(data, name, weight_NK))
    (folder / GRAPH).write_bytes(exact.SerializeToString())
    shutil.copyfile(bundle / CONFIG, folder / CONFIG)


def _unround_cache(graph: "ModelProto") -> None:
    """Caches of 8 bits become float ones."""
    from onnx import TensorProto

    for node in graph.graph.node:
        if BIT_WIDTH in attributes_of(node):
            kept = [attribute for attribute in node.attribute if attribute.name not in CACHE_ATTRIBUTES]
            del node.attribute[:], node.input[CACHE_SCALES:]
            node.attribute.extend(kept)
    for value in (*graph.graph.input, *graph.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.INT8:
            value.type.tensor_type.elem_type = TensorProto.FLOAT


def _weights(graph: "ModelProto", stored: StoredValues) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """W (N, K) of each product by its name, one at a time."""
    products = {_name(node): node for node in graph.graph.node if node.op_type == "MatMulNBits"}
    for name, node in products.items():
        yield name, _weight(node, stored)


def _weight(node: "NodeProto", stored: StoredValues) -> NDArray[np.float32]:
    attributes = attributes_of(node)
    codes_NBJ = stored[node.input[1]]
    rows, blocks, _ = codes_NBJ.shape
    weight_NBK = from_bytes(codes_NBJ.reshape(rows, -1), attributes["bits"]).astype(np.float32)
    weight_NBK = weight_NBK.reshape(rows, blocks, -1)
    if len(node.input) > 3 and node.input[3]:
        weight_NBK -= from_bytes(stored[node.input[3]], attributes["bits"])[:, :blocks, None]
    weight_NBK *= stored[node.input[2]][..., None]
    return weight_NBK.reshape(rows, -1)[:, : attributes["K"]]


def _append(data: IO[bytes], name: str, array: NDArray[Any]) -> "TensorProto":
    """Write a tensor's values at the end of the file; an initializer that points there."""
    from onnx import TensorProto
    from onnx.helper import np_dtype_to_tensor_dtype

    data.write(bytes(-data.tell() % ALIGNMENT))
    place = {"location": DATA, "offset": str(data.tell()), "length": str(array.nbytes)}
    data.write(np.ascontiguousarray(array).data)
    tensor = TensorProto(
        name=name,
        data_type=np_dtype_to_tensor_dtype(array.dtype),
        dims=array.shape,
        data_location=TensorProto.EXTERNAL,
    )
    for key, value in place.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def _name(node: "NodeProto") -> str:
    return f"{node.input[1]}.exact"


def _product(node: "NodeProto", narrow: bool) -> "Iterator[NodeProto]":
    from onnx import TensorProto
    from onnx.helper import make_node

    (result,) = node.output
    x, bias = node.input[0], node.input[5] if len(node.input) > 5 else ""
    product = f"{result}.product" if bias else result
    wide = f"{result}.wide" if narrow else product
    if narrow:
        yield make_node("Cast", [x], [f"{result}.x"], to=TensorProto.FLOAT)
        x = f"{result}.x"
    yield make_node("FusedMatMul", [x, _name(node)], [wide], domain="com.microsoft", transB=1)
    if narrow:
        yield make_node("Cast", [wide], [product], to=TensorProto.FLOAT16)
    if bias:
        yield make_node("Add", [product, bias], [result])
