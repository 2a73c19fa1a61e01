"""Small graphs for test_placement.py: those that do not run wholly on CUDA, with what must be said of each."""

from collections.abc import Callable
from typing import Any

import onnx
from onnx import TensorProto, helper

from export.placement.assignments import Told

FLOAT, HALF, INT64 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64


def model_of(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, list[Any]]],
    outputs: dict[str, int],
    constants: dict[str, tuple[int, list[int], list[Any]]] | None = None,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
        [helper.make_tensor(name, *rest) for name, rest in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def attention(kind: int) -> onnx.ModelProto:
    """GroupQueryAttention of this type, its total length from the mask's shape."""
    nodes = [
        helper.make_node("Shape", ["mask"], ["total.long"], name="shape", start=1),
        helper.make_node("Cast", ["total.long"], ["total"], name="cast", to=TensorProto.INT32),
        helper.make_node(
            "GroupQueryAttention",
            ["packed", "", "", "key", "value", "last", "total"],
            ["y", "new_key", "new_value"],
            name="attention",
            domain="com.microsoft",
            num_heads=4,
            kv_num_heads=2,
        ),
    ]
    cache = (kind, [1, 2, 16, 64])
    inputs = {"packed": (kind, [1, 1, 512]), "key": cache, "value": cache}
    others = {"last": (TensorProto.INT32, [1]), "mask": (INT64, [1, "total"])}
    return model_of(nodes, inputs | others, {"y": kind, "new_key": kind, "new_value": kind})


def product(bits: int, block: int) -> onnx.ModelProto:
    columns, rows = 512, 64
    blocks = columns // block
    node = helper.make_node(
        "MatMulNBits",
        ["x", "codes", "scales"],
        ["y"],
        name="product",
        domain="com.microsoft",
        K=columns,
        N=rows,
        bits=bits,
        block_size=block,
    )
    codes = [0] * (rows * blocks * block * bits // 8)
    constants = {
        "codes": (TensorProto.UINT8, [rows, blocks, block * bits // 8], codes),
        "scales": (HALF, [rows, blocks], [0.0] * rows * blocks),
    }
    return model_of([node], {"x": (HALF, [1, "tokens", columns])}, {"y": HALF}, constants)


def copying() -> onnx.ModelProto:
    """A number from a shape, computed on the CPU and multiplied by on the device."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"], name="shape"),
        helper.make_node("Gather", ["shape", "one"], ["length"], name="gather"),
        helper.make_node("Cast", ["length"], ["factor"], name="cast", to=HALF),
        helper.make_node("Mul", ["x", "factor"], ["y"], name="mul"),
    ]
    return model_of(nodes, {"x": (HALF, ["rows", "columns"])}, {"y": HALF}, {"one": (INT64, [], [1])})


def no_kernel() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Neg", ["x"], ["negative"], name="neg"),
        helper.make_node("DynamicQuantizeLinear", ["negative"], ["y", "scale", "zero"], name="rounding"),
    ]
    kinds = {"y": TensorProto.UINT8, "scale": FLOAT, "zero": TensorProto.UINT8}
    return model_of(nodes, {"x": (FLOAT, ["rows", 8])}, kinds)


def reads_input_on_host() -> onnx.ModelProto:
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"], name="reshape")]
    return model_of(nodes, {"x": (HALF, ["rows", 8]), "shape": (INT64, [2])}, {"y": HALF})


def output_on_host() -> onnx.ModelProto:
    nodes = [helper.make_node("Shape", ["x"], ["y"], name="shape")]
    return model_of(nodes, {"x": (HALF, ["rows", 8])}, {"y": INT64})


def branching() -> onnx.ModelProto:
    branch = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["z"])], "branch", [], [helper.make_tensor_value_info("z", HALF, None)]
    )
    node = helper.make_node("If", ["condition"], ["y"], name="choice", then_branch=branch, else_branch=branch)
    return model_of([node], {"x": (HALF, ["rows", 8]), "condition": (TensorProto.BOOL, [1])}, {"y": HALF})


REFUSED: dict[str, tuple[Callable[[], onnx.ModelProto], str, Callable[[Told], bool]]] = {
    "no kernel": (
        no_kernel,
        r"node rounding \(DynamicQuantizeLinear\) would run on the CPU: CUDA has no kernel of it",
        lambda told: ("rounding", "DynamicQuantizeLinear") in told.elsewhere,
    ),
    "float32 attention": (
        lambda: attention(FLOAT),
        r"node attention \(GroupQueryAttention\) would run on the CPU: .* for float \(T\): it takes bfloat16, float16; "
        "export it again with `provider: cuda`",
        lambda told: ("attention", "GroupQueryAttention") in told.elsewhere,
    ),
    "copy": (
        copying,
        r"node mul \(Mul\) reads factor, which every step would copy from the CPU to the device",
        lambda told: told.copies > 0 and ("cast", "Cast") in told.elsewhere,
    ),
    "input read on the CPU": (
        reads_input_on_host,
        r"node reshape \(Reshape\) reads the graph's input shape on the CPU",
        lambda told: told.inputs_on_host == ["shape"],
    ),
    "output on the CPU": (
        output_on_host,
        r"node shape \(Shape\) makes the graph's output y on the CPU",
        lambda told: told.outputs_on_host == ["y"],
    ),
    "control flow": (
        branching,
        r"node choice \(If\) is control flow",
        lambda told: "control flow nodes" in told.error,
    ),
    "bits": (
        lambda: product(3, 32),
        r"node product \(MatMulNBits\) is refused by CUDA's kernel: .*supports bits = 2, 4 or 8",
        lambda told: "supports bits = 2, 4 or 8" in told.error,
    ),
}
"""What is wrong -> the graph, the message that refuses it, and what a session says of it."""
