"""Facts of a graph's nodes under the names that the trials cross (`trials`, `one_node`), so that what was tried out of
a kernel can be said of a node.

    MatMulNBits              type, bits, block_size, zero_points, bias, accuracy_level, N, K
    GroupQueryAttention      type, head_size, groups, cache, do_rotary, rotary_interleaved, local_window_size, softcap,
                             smooth_softmax
    GatherBlockQuantized     type, bits, block_size, zero_points
    RotaryEmbedding          type, head_size, rotary_embedding_dim, interleaved

A fact that the graph does not tell, such as a width that has no number, is left out: nothing is then said by it.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnx import NodeProto

Facts = dict[str, Any]
Shape = list[int | None] | None
CACHE, COSINES = 3, 7
"""Inputs of GroupQueryAttention."""


def facts_of(node: "NodeProto", types: list[str], shapes: list[Shape]) -> Facts:
    """What is known of a node, given the types and shapes of its inputs; "" is the type of one that is not there."""
    attributes = _attributes(node)
    read = READERS.get(node.op_type) if node.domain == "com.microsoft" else None
    found = read(attributes, types + [""] * 16, shapes + [None] * 16) if read else {}
    return {name: value for name, value in found.items() if value is not None}


def _attributes(node: "NodeProto") -> Facts:
    from onnx import helper

    told = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in told.items()}


def _mat_mul_n_bits(told: Facts, types: list[str], shapes: list[Shape]) -> Facts:
    return {
        "type": types[0],
        "bits": told.get("bits", 4),
        "block_size": told.get("block_size"),
        "zero_points": {"": "none", "uint8": "uint8"}.get(types[3], "float"),
        "bias": int(bool(types[5])),
        "accuracy_level": told.get("accuracy_level", 0),
        "N": told.get("N"),
        "K": told.get("K"),
    }


def _group_query_attention(told: Facts, types: list[str], shapes: list[Shape]) -> Facts:
    cache = shapes[CACHE]
    heads, pairs = told.get("num_heads"), told.get("kv_num_heads")
    return {
        "type": types[0],
        "head_size": cache[-1] if cache and types[CACHE] != "uint8" else None,
        "groups": heads // pairs if heads and pairs else None,
        "cache": told.get("k_quant_type", "NONE").replace("NONE", "float"),
        "do_rotary": told.get("do_rotary", 0),
        "rotary_interleaved": told.get("rotary_interleaved", 0),
        "local_window_size": told.get("local_window_size", -1),
        "softcap": told.get("softcap", 0.0),
        "smooth_softmax": max(told.get("smooth_softmax", 0), 0),
    }


def _gather_block_quantized(told: Facts, types: list[str], shapes: list[Shape]) -> Facts:
    return {
        "type": types[2],
        "bits": told.get("bits", 4),
        "block_size": told.get("block_size", 128),
        "zero_points": types[3] or "none",
    }


def _rotary_embedding(told: Facts, types: list[str], shapes: list[Shape]) -> Facts:
    part, angles = told.get("rotary_embedding_dim", 0), shapes[2]
    whole = 2 * angles[-1] if angles and angles[-1] and not part else None
    return {
        "type": types[0],
        "head_size": whole,
        "rotary_embedding_dim": part,
        "interleaved": told.get("interleaved", 0),
    }


READERS: dict[str, Callable[[Facts, list[str], list[Shape]], Facts]] = {
    "MatMulNBits": _mat_mul_n_bits,
    "GroupQueryAttention": _group_query_attention,
    "GatherBlockQuantized": _gather_block_quantized,
    "RotaryEmbedding": _rotary_embedding,
}
