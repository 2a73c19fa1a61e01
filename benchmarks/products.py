"""ONNX Runtime's products by quantized weights, one kernel against the other, on this processor.

    python -m benchmarks.products [--rows 1] [--rows 128]

Every variant multiplies the same activations (rows, K) by many matrices (N, K) of its own, one after the other in one
graph, so that they come from memory as a decoder's do. All take turns in randomly ordered blocks. A figure is the
median over blocks, per product; the ratio is to 8 bits in blocks of 64 columns, paired within blocks, with its 95 %
interval.

    8 bits, 64     MatMulNBits at accuracy level 4: activations are rounded to 8 bits per 64 columns
    rows           DynamicQuantizeLinear and MatMulIntegerToFloat: activations are rounded per tensor, weights per row;
                   signed weights saturate in 16 bits where the processor has no VNNI, unsigned ones do not
    float          MatMul of float32
"""

import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

if __name__ == "__main__" and not __package__:  # started by its path: imports begin at the repository
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import onnx
import onnxruntime
import typer
from onnx import TensorProto, helper, numpy_helper

from benchmarks.page import finish
from benchmarks.products_tables import REFERENCE
from benchmarks.results import RESULTS

Json = dict[str, Any]
Nodes = tuple[list[onnx.NodeProto], list[onnx.TensorProto]]
SHAPES = {"qkv": (960, 576), "gate or up": (1536, 576), "gate and up": (3072, 576), "down": (576, 1536)}
"""Products of a SmolLM2-135M's block: outputs N, inputs K."""
BYTES = 96e6
"""Of the matrices of a variant, at 8 bits."""


def main(
    rows: Annotated[list[int], typer.Option(help="Rows of activations; repeatable.")] = [1, 128],  # noqa: B006
    blocks: Annotated[int, typer.Option(help="Blocks of every shape.")] = 15,
    threads: Annotated[int, typer.Option(help="Threads of every variant.")] = 2,
    out: Annotated[Path, typer.Option(help="Where the results go as JSON.")] = RESULTS / "products.json",
) -> None:
    """Time every kernel on every shape."""
    from benchmarks.machine import machine

    shapes = {
        f"{name} ({size[0]} x {size[1]}), {count} row{'s' if count > 1 else ''}": time_shape(
            *size, count, blocks, threads
        )
        for count in rows
        for name, size in SHAPES.items()
    }
    finish(
        {
            "kind": "products",
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "machine": machine("cpu"),
            "settings": {"threads": threads, "blocks": blocks},
            "shapes": shapes,
        },
        out,
    )


def time_shape(outputs: int, inputs: int, rows: int, blocks: int, threads: int) -> Json:
    """{variant: {"seconds": of a product in each block, "bytes": that it reads}}."""
    count = max(2, int(BYTES / (outputs * inputs)))
    random = np.random.default_rng(0)
    activations = {"x": random.normal(size=(rows, inputs)).astype(np.float32)}
    sessions = {name: _session(make, outputs, inputs, count, threads) for name, make in VARIANTS.items()}
    found: Json = {name: {"seconds": []} for name in sessions}
    for block in range(blocks + 1):
        for name in (list(sessions)[index] for index in random.permutation(len(sessions))):
            started = time.perf_counter()
            sessions[name].run(None, activations)
            if block:  # the first warms up
                found[name]["seconds"].append((time.perf_counter() - started) / count)
    return found


def _session(
    make: Callable[[int, int, int, np.random.Generator], Nodes], outputs: int, inputs: int, count: int, threads: int
) -> Any:
    random = np.random.default_rng(1)
    nodes, tensors = [], []
    for number in range(count):
        own = make(number, outputs, inputs, random)
        nodes += own[0]
        tensors += own[1]
    last = helper.make_node("Sum", [f"y{number}" for number in range(count)], ["y"])
    graph = helper.make_graph(
        [*nodes, last],
        "products",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", outputs])],
        tensors,
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _n_bits(bits: int, block: int, level: int = 4) -> Callable[[int, int, int, np.random.Generator], Nodes]:
    def make(number: int, outputs: int, inputs: int, random: np.random.Generator) -> Nodes:
        codes = random.integers(0, 256, (outputs, inputs // block, block * bits // 8), dtype=np.uint8)
        scales = np.full((outputs, inputs // block), 0.01, dtype=np.float32)
        names = [f"codes{number}", f"scales{number}"]
        settings = {"K": inputs, "N": outputs, "bits": bits, "block_size": block, "accuracy_level": level}
        node = helper.make_node("MatMulNBits", ["x", *names], [f"y{number}"], domain="com.microsoft", **settings)
        return [node], [
            numpy_helper.from_array(array, name) for array, name in zip((codes, scales), names, strict=True)
        ]

    return make


def _rows(dtype: Any) -> Callable[[int, int, int, np.random.Generator], Nodes]:
    def make(number: int, outputs: int, inputs: int, random: np.random.Generator) -> Nodes:
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        weight = random.integers(low, high, (inputs, outputs), dtype=dtype, endpoint=True)
        parts = {
            f"weight{number}": weight,
            f"scale{number}": np.full(outputs, 0.01, dtype=np.float32),
            f"zero{number}": np.full(outputs, 0 if low else 128, dtype=dtype),
        }
        x = [f"x{number}.codes", f"x{number}.scale", f"x{number}.zero"]
        weight_name, scale, zero = parts
        nodes = [
            helper.make_node("DynamicQuantizeLinear", ["x"], x),
            helper.make_node(
                "MatMulIntegerToFloat",
                [x[0], weight_name, x[1], scale, x[2], zero],
                [f"y{number}"],
                domain="com.microsoft",
            ),
        ]
        return nodes, [numpy_helper.from_array(array, name) for name, array in parts.items()]

    return make


def _float(number: int, outputs: int, inputs: int, random: np.random.Generator) -> Nodes:
    weight = random.normal(size=(inputs, outputs)).astype(np.float32)
    node = helper.make_node("MatMul", ["x", f"weight{number}"], [f"y{number}"])
    return [node], [numpy_helper.from_array(weight, f"weight{number}")]


VARIANTS: dict[str, Callable[[int, int, int, np.random.Generator], Nodes]] = {
    "8 bits, 32": _n_bits(8, 32),
    REFERENCE: _n_bits(8, 64),
    "8 bits, 64, activations float": _n_bits(8, 64, level=0),
    "4 bits, 32": _n_bits(4, 32),
    "4 bits, 64": _n_bits(4, 64),
    "4 bits, 32, activations float": _n_bits(4, 32, level=0),
    "rows, signed": _rows(np.int8),
    "rows, unsigned": _rows(np.uint8),
    "float": _float,
}


if __name__ == "__main__":
    typer.run(main)
