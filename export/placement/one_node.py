"""Models of one node, by the facts that `trials` crosses, and what such a model is fed with.

    MODELS["MatMulNBits"]({"type": "float16", "bits": 4, "block_size": 32, ...}) -> Model

Every weight is an input, so that nothing needs to be filled; a fact that is not given has its usual value. The facts
are those that `node_facts` reads of the nodes of a graph, under the same names.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Facts = dict[str, Any]
CONTRIBUTED = "com.microsoft"
OPSET, IR_VERSION = 21, 10
TOKENS = "tokens"
"""In a shape: as many as are fed."""
PAST = 16
"""Tokens for which a cache has room."""


@dataclass(frozen=True, kw_only=True)
class Input:
    """One input of a node."""

    name: str
    type: str
    shape: list[int | str]
    value: int = 0
    """Of every element."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """One node. An input that is not given is None."""

    operator: str
    inputs: list[Input | None]
    outputs: list[str]
    attributes: Facts
    domain: str = CONTRIBUTED

    def write(self) -> bytes:
        """The ONNX file."""
        from onnx import TensorProto, ValueInfoProto, helper

        given = [value for value in self.inputs if value is not None]
        values = [
            helper.make_tensor_value_info(value.name, TensorProto.DataType.Value(value.type.upper()), value.shape)
            for value in given
        ]
        names = ["" if value is None else value.name for value in self.inputs]
        node = helper.make_node(self.operator, names, self.outputs, name="node", domain=self.domain, **self.attributes)
        graph = helper.make_graph([node], "one", values, [ValueInfoProto(name=name) for name in self.outputs if name])
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIBUTED, 1)]
        return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION).SerializeToString())

    def feeds(self, tokens: int) -> dict[str, Any]:
        """A value for every input."""
        return {value.name: _filled(value, tokens) for value in self.inputs if value is not None}


def _filled(value: Input, tokens: int) -> Any:
    from onnx import TensorProto, helper
    from onnxruntime import OrtValue

    shape = [tokens if size == TOKENS else int(size) for size in value.shape]
    if value.type == "bfloat16":  # numpy has none of its own: zeros, whatever they are called
        zeros = np.zeros(shape, dtype=np.uint16)
        return OrtValue.ortvalue_from_numpy_with_onnx_type(zeros, TensorProto.BFLOAT16)
    kind = helper.tensor_dtype_to_np_dtype(TensorProto.DataType.Value(value.type.upper()))
    return OrtValue.ortvalue_from_numpy(np.full(shape, value.value, dtype=kind))


def mat_mul_n_bits(facts: Facts) -> Model:
    """[1, tokens, K] by an [N, K] matrix of `bits` bits."""
    kind, bits, block = facts.get("type", "float16"), facts.get("bits", 8), facts.get("block_size", 32)
    rows, columns = facts.get("N", 64), facts.get("K", 512)
    blocks = -(-columns // block)
    zeros = {
        "none": None,
        "uint8": Input(name="zeros", type="uint8", shape=[rows, -(-blocks * bits // 8)]),
        "float": Input(name="zeros", type=kind, shape=[rows, blocks]),
    }
    return Model(
        operator="MatMulNBits",
        inputs=[
            Input(name="x", type=kind, shape=[1, TOKENS, columns]),
            Input(name="codes", type="uint8", shape=[rows, blocks, block * bits // 8]),
            Input(name="scales", type=kind, shape=[rows, blocks]),
            zeros[facts.get("zero_points", "none")],
            None,
            Input(name="bias", type=kind, shape=[rows]) if facts.get("bias") else None,
        ],
        outputs=["y"],
        attributes={"K": columns, "N": rows, "bits": bits, "block_size": block}
        | {name: facts[name] for name in ("accuracy_level",) if name in facts},
    )


def group_query_attention(facts: Facts) -> Model:
    """Packed queries, keys and values of two key-value heads, over a cache that is written in place."""
    kind, width, heads = facts.get("type", "float16"), facts.get("head_size", 64), 2
    groups, cache, rotary = facts.get("groups", 4), facts.get("cache", "float"), facts.get("do_rotary", 0)
    cache_kind = kind if cache == "float" else "int8"
    scale_shape: list[int | str] = [1] if cache == "PER_TENSOR" else [1, heads, 1, width]
    angles = [Input(name=name, type=kind, shape=[PAST, width // 2]) if rotary else None for name in ("cos", "sin")]
    scales = [Input(name=name, type="float", shape=scale_shape) for name in ("key_scale", "value_scale")]
    quantized = {"k_quant_type": cache, "v_quant_type": cache, "kv_cache_bit_width": 8}
    told = ("do_rotary", "rotary_interleaved", "local_window_size", "softcap", "smooth_softmax")
    return Model(
        operator="GroupQueryAttention",
        inputs=[
            Input(name="packed", type=kind, shape=[1, TOKENS, heads * (groups + 2) * width]),
            *[None, None],
            *[Input(name=name, type=cache_kind, shape=[1, heads, PAST, width]) for name in ("key", "value")],
            Input(name="last", type="int32", shape=[1], value=PAST - 1),
            Input(name="total", type="int32", shape=[1], value=PAST),
            *angles,
            *[None, None, None],
            *(scales if cache != "float" else []),
        ],
        outputs=["y", "new_key", "new_value"],
        attributes={"num_heads": heads * groups, "kv_num_heads": heads}
        | {name: facts[name] for name in told if name in facts}
        | (quantized if cache != "float" else {}),
    )


def gather_block_quantized(facts: Facts) -> Model:
    """Rows of a table of `bits` bits."""
    kind, bits, block = facts.get("type", "float16"), facts.get("bits", 8), facts.get("block_size", 32)
    columns = 512
    zeros = Input(name="zeros", type="uint8", shape=[64, -(-columns // block * bits // 8)])
    return Model(
        operator="GatherBlockQuantized",
        inputs=[
            Input(name="codes", type="uint8", shape=[64, columns * bits // 8]),
            Input(name="indices", type="int64", shape=[1, TOKENS]),
            Input(name="scales", type=kind, shape=[64, columns // block]),
            zeros if facts.get("zero_points") == "uint8" else None,
        ],
        outputs=["y"],
        attributes={"bits": bits, "block_size": block, "gather_axis": 0, "quantize_axis": 1},
    )


def rotary_embedding(facts: Facts) -> Model:
    """Four heads, rotated whole or in a part."""
    kind, width, part = facts.get("type", "float16"), facts.get("head_size", 64), facts.get("rotary_embedding_dim", 0)
    return Model(
        operator="RotaryEmbedding",
        inputs=[
            Input(name="x", type=kind, shape=[1, TOKENS, 4 * width]),
            Input(name="positions", type="int64", shape=[1, TOKENS]),
            *[Input(name=name, type=kind, shape=[PAST, (part or width) // 2]) for name in ("cos", "sin")],
        ],
        outputs=["y"],
        attributes={"num_heads": 4, "rotary_embedding_dim": part, "interleaved": facts.get("interleaved", 0)},
    )


def skip_normalization(operator: str) -> Callable[[Facts], Model]:
    """The sum of two, normalized."""

    def make(facts: Facts) -> Model:
        kind, width = facts.get("type", "float16"), facts.get("width", 64)
        values = [Input(name=name, type=kind, shape=[1, TOKENS, width]) for name in ("x", "skip")]
        weight = Input(name="weight", type=kind, shape=[width])
        return Model(operator=operator, inputs=[*values, weight], outputs=["y"], attributes={})

    return make


MODELS: dict[str, Callable[[Facts], Model]] = {
    "MatMulNBits": mat_mul_n_bits,
    "GroupQueryAttention": group_query_attention,
    "GatherBlockQuantized": gather_block_quantized,
    "RotaryEmbedding": rotary_embedding,
    "SkipLayerNormalization": skip_normalization("SkipLayerNormalization"),
    "SkipSimplifiedLayerNormalization": skip_normalization("SkipSimplifiedLayerNormalization"),
}
