"""A bundle as a model of NVIDIA Triton: the folders its ONNX Runtime backend reads, and config.pbtxt.

    <repository>/<name>/config.pbtxt
    <repository>/<name>/1/model.onnx/        the bundle: model.onnx, model.onnx.data, manifest.json, tokenizer ...

Triton takes a graph with external data as a *directory* named model.onnx, and of what lies in it opens the file
model.onnx. So the bundle is that directory, stored once; everything else that opens bundles finds it by
`bundle_folder`.

config.pbtxt is a ModelConfig in protobuf's text format, made from the graph's own inputs and outputs:

- max_batch_size is 0, as the batch is an ordinary axis of every tensor, cache included; a client sends whole shapes.
- A dimension is the graph's number, or -1 where it varies. A first request sends caches of length 0, which Triton
  admits in requests (not in config.pbtxt), and sends each `present` back as `past_key_values` afterwards.
- An input with a default value (an initializer that is also an input) is `optional`, which the backend allows for
  exactly these, and only with max_batch_size 0.
- One instance, on the CPU or the GPU as the bundle was exported; without a word Triton starts two on a CPU.

Sources: triton-inference-server/server docs/user_guide/model_repository.md and model_configuration.md;
onnxruntime_backend src/onnxruntime.cc (LoadModel, ValidateInputs); common protobuf/model_config.proto.
Not covered: sequence batching with the cache held by the server, tokenization on the server.
"""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from compress.stage import StageError
from export.external_data import GRAPH
from export.runtime.session import Provider

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

CONFIG = "config.pbtxt"
VERSION = "1"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
TYPES = {
    "FLOAT": "TYPE_FP32",
    "FLOAT16": "TYPE_FP16",
    "BFLOAT16": "TYPE_BF16",
    "INT8": "TYPE_INT8",
    "INT32": "TYPE_INT32",
    "INT64": "TYPE_INT64",
    "BOOL": "TYPE_BOOL",
}
"""ONNX element type -> Triton's."""
KINDS = {"cpu": "KIND_CPU", "cuda": "KIND_GPU"}


def bundle_place(repository: Path, name: str) -> Path:
    """Where in a model repository the bundle of the model `name` is to be written.

    Raises:
        StageError: Triton could not serve a model of that name.
    """
    if not NAME.fullmatch(name):
        raise StageError(
            f"expected a model name of letters, digits, '.', '_' and '-', which is also a folder's name, got {name!r}"
        )
    return repository / name / VERSION / GRAPH


def write_config(repository: Path, name: str, model: "ModelProto", provider: Provider) -> Path:
    """Write config.pbtxt for the graph of the bundle at `bundle_place(repository, name)`; returns the file.

    Raises:
        StageError: it has an input or output of a type that Triton does not know.
    """
    file = repository / name / CONFIG
    file.write_text(config_text(model, name, KINDS[provider]), encoding="utf-8")
    return file


def config_text(model: "ModelProto", name: str, kind: str) -> str:
    """The ModelConfig of a graph in protobuf's text format; `kind` is Triton's word for where it runs."""
    defaults = {tensor.name for tensor in model.graph.initializer}
    inputs = [_tensor(value, optional=value.name in defaults) for value in model.graph.input]
    outputs = [_tensor(value) for value in model.graph.output]
    fields = [
        f"name: {_quoted(name)}",
        'backend: "onnxruntime"',
        "max_batch_size: 0",
        f"input [\n{_joined(inputs)}\n]",
        f"output [\n{_joined(outputs)}\n]",
        f"instance_group [ {{ count: 1 kind: {kind} }} ]",
    ]
    return "\n".join(fields) + "\n"


def _tensor(value: "ValueInfoProto", *, optional: bool = False) -> str:
    from onnx import TensorProto

    tensor = value.type.tensor_type
    element = TensorProto.DataType.Name(tensor.elem_type)
    if element not in TYPES:
        raise StageError(f"{value.name}: expected a type that Triton knows ({', '.join(TYPES)}), got {element}")
    sizes = ", ".join(str(dim.dim_value) if dim.dim_value > 0 else "-1" for dim in tensor.shape.dim)
    end = " optional: true" if optional else ""
    return f"  {{ name: {_quoted(value.name)} data_type: {TYPES[element]} dims: [ {sizes} ]{end} }}"


def _joined(tensors: list[str]) -> str:
    return ",\n".join(tensors)


def _quoted(text: str) -> str:
    return json.dumps(text)
