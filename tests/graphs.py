"""Tiny graphs for the tests of the passes: written as ONNX text, filled with arrays, run in ONNX Runtime."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from compress.checkpoints.quantized_matrix import QuantizedMatrix
from export.passes import PASSES, PassContext
from export.row_tracking import CodeTable, GraphWeights

Array = NDArray[Any]
HEADER = '<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]>'
SIZES = {"B": 2, "T": 5}


@dataclass(frozen=True, kw_only=True)
class Example:
    """A graph that a pass is for, or one that it must leave alone (without `after`)."""

    text: str
    arrays: dict[str, Array] = field(default_factory=dict)
    """Initializers."""
    int8: dict[str, list[QuantizedMatrix]] = field(default_factory=dict)
    """Initializers that the checkpoint holds as int8: the matrices that lie there one upon the other."""
    floats: tuple[str, ...] = ()
    """Initializers, among `arrays`, that the pass is to take from the checkpoint."""
    before: dict[str, int] = field(default_factory=dict)
    after: dict[str, int] = field(default_factory=dict)
    tolerance: float = 0.0
    """Largest difference of an output from the graph before, relative to that output's largest number."""
    provider: Literal["cpu", "cuda"] = "cpu"
    meta: dict[str, Any] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    """Graph inputs whose names ONNX text cannot write."""

    def full(self) -> ir.Model:
        """The graph with all its weights, int8 ones multiplied out: what the pass must not change the meaning of."""
        tables = {name: np.concatenate([matrix.dequantize() for matrix in parts]) for name, parts in self.int8.items()}
        return graph(self.text, {**self.arrays, **tables}, self)

    def model(self) -> ir.Model:
        """The graph as the pass gets it: what comes from the checkpoint is still to be placed."""
        model = self.full()
        for name in (*self.int8, *self.floats):
            model.graph.initializers[name].const_value = None
        return model

    def context(self, block_size: int = 16) -> PassContext:
        import torch

        parts = {f"{name}.{index}": part for name, row in self.int8.items() for index, part in enumerate(row)}
        table, first = CodeTable.of(parts), 0
        for name, row in self.int8.items():
            rows = sum(len(part.codes_OI) for part in row)
            table.rows[name] = np.arange(first, first + rows, dtype=np.int32)
            first += rows
        floats = {name: torch.from_numpy(self.arrays[name].copy()) for name in self.floats}
        weights = GraphWeights(floats, table)
        return PassContext(weights=weights, provider=self.provider, block_size=block_size, accuracy_level=0)


def graph(text: str, arrays: dict[str, Array], example: Example | None = None) -> ir.Model:
    """A graph from ONNX text; `arrays` are its initializers."""
    proto = onnx.parser.parse_model(f"{HEADER} tiny {text}")
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in arrays.items())
    model = ir.from_proto(proto)
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.name = (example.names if example else {}).get(value.name or "", value.name)
    model.meta.update(example.meta if example else {})
    return model


def applied(name: str, example: Example) -> tuple[ir.Model, bool]:
    """The example's graph after a pass, and whether the pass says that it changed it."""
    model = example.model()
    modified = PASSES[name](example.context())(model).modified
    if modified and example.int8:
        RemoveUnusedNodesPass()(model)  # as the pass that places the floats does next: a place without weight is lost
    return model, modified


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def written(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString(deterministic=True)


def session(model: ir.Model) -> onnxruntime.InferenceSession:
    """The graph as ONNX Runtime takes it: only what the checker passes, each operator by its own kernel."""
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def inputs_for(model: ir.Model) -> dict[str, Array]:
    """Random numbers for every input without a default; token ids are below 4."""
    random = np.random.default_rng(11)
    feeds: dict[str, Array] = {}
    for value in model.graph.inputs:
        if value.name in model.graph.initializers:
            continue
        shape = [SIZES[str(size)] if isinstance(size, ir.SymbolicDim) else size for size in value.shape or ()]
        integer = value.dtype is not None and value.dtype.is_integer()
        feeds[str(value.name)] = (
            random.integers(0, 4, shape, dtype=value.dtype.numpy())  # type: ignore[union-attr]
            if integer
            else random.standard_normal(shape).astype(np.float32)
        )
    return feeds


def run(model: ir.Model, feeds: dict[str, Array]) -> list[Array]:
    """Every output; random numbers must have come to something."""
    outputs: list[Array] = session(model).run(None, feeds)
    assert outputs
    assert all(np.isfinite(output).all() and np.ptp(output) > 0.1 for output in outputs)
    return outputs


def difference(found: Array, expected: Array) -> float:
    """Largest difference, relative to the largest number expected."""
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    return float(np.abs(found - expected).max() / np.abs(expected).max())
