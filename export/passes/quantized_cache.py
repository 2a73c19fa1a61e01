"""Keys and values are kept in 8 bits, with one scale for each channel of each head.

    GroupQueryAttention(..., k_scale, v_scale [1, H, 1, D])      code = round(value / scale), in [-128, 127]

Attention over a long text reads the whole cache at every step; a cache of a quarter of the bytes is read faster, and
ONNX Runtime's kernels for it have the vector instructions that those for float32 lack.

A value's scale is its channel's largest magnitude on calibration text, divided by 127. Keys are stored after rotation,
which turns the channels of a pair (x, y) into each other: at another position the whole length sqrt(x^2 + y^2) may lie
in either of them. So both get the scale of the longest pair, whatever the positions of the calibration text.

    H heads of keys and values    D width of a head    T tokens
"""

from functools import reduce

import numpy as np
import onnx_ir as ir

from export.attention_facts import LAYERS, Layer, layer_of
from export.passes.context import CacheRow, Floats, GraphPass
from export.passes.quantized_linears import constant

Reach = list[tuple[Floats, Floats]]
"""Of each layer's keys and values the largest magnitude of each channel, (H, D)."""
LARGEST = 127
SMALLEST_SCALE = 1e-8
SCALES = {"k": 12, "v": 13}
"""Inputs of GroupQueryAttention by the attribute that goes with them."""
CACHES = {3: 1, 4: 2}
"""Inputs of GroupQueryAttention that are caches -> the outputs that they become."""


class QuantizedCache(GraphPass):
    """Caches of float -> caches of int8."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        if self.context.cache_rows is None:
            return ir.passes.PassResult(model, modified=False)
        layers = model.meta[LAYERS]
        found = [(node, layer) for node in model.graph if (layer := layer_of(node, layers)) is not None]
        reaches = (_reach(found, row) for row in self.context.cache_rows())
        reach = reduce(_larger, reaches)
        for number, ((node, _), (keys_HD, values_HD)) in enumerate(zip(found, reach, strict=True)):
            _quantize(model.graph, node, f"cache.{number}", {"k": keys_HD, "v": values_HD})
        return ir.passes.PassResult(model, modified=bool(found))


def _larger(reach: Reach, other: Reach) -> Reach:
    return [(np.maximum(k, a), np.maximum(v, b)) for (k, v), (a, b) in zip(reach, other, strict=True)]


def _reach(found: list[tuple[ir.Node, Layer]], row: CacheRow) -> Reach:
    """Of one row; of keys whatever their rotation."""
    return [
        (longest_pairs(keys_HTD, _rotated(layer), _interleaved(node)).max(axis=1), np.abs(values_HTD).max(axis=1))
        for (node, layer), (keys_HTD, values_HTD) in zip(found, row, strict=True)
    ]


def longest_pairs(keys_HTD: Floats, rotated: int, interleaved: bool) -> Floats:
    """Magnitudes (H, T, D): of the `rotated` first channels the length of the pair that a channel is rotated in."""
    lengths_HTD = np.abs(keys_HTD)
    turning = keys_HTD[..., :rotated]
    half = rotated // 2
    neighbors, halves = (slice(0, None, 2), slice(1, None, 2)), (slice(0, half), slice(half, rotated))
    first, second = neighbors if interleaved else halves
    length = np.hypot(turning[..., first], turning[..., second])
    for part in (first, second):
        lengths_HTD[..., :rotated][..., part] = length
    return lengths_HTD


def _rotated(layer: Layer) -> int:
    return 2 * len(layer.rotation.frequencies) if layer.rotates and layer.rotation is not None else 0


def _interleaved(node: ir.Node) -> bool:
    """Whether neighbors are rotated in each other, by this attention or before it."""
    before = node.inputs[1].producer() if node.inputs[1] is not None else None
    for place, name in ((node, "rotary_interleaved"), (before, "interleaved")):
        if place is not None and name in place.attributes and place.attributes[name].as_int():
            return True
    return False


def _quantize(graph: ir.Graph, node: ir.Node, name: str, reach: dict[str, Floats]) -> None:
    node.resize_inputs(max(SCALES.values()) + 1)
    for side, magnitude_HD in reach.items():
        scale_HD = np.maximum(magnitude_HD / LARGEST, SMALLEST_SCALE).astype(np.float32)
        node.replace_input_with(SCALES[side], constant(graph, f"{name}.{side}_scale", scale_HD[None, :, None]))
        node.attributes[f"{side}_quant_type"] = ir.AttrString(f"{side}_quant_type", "PER_CHANNEL")
    node.attributes["kv_cache_bit_width"] = ir.AttrInt64("kv_cache_bit_width", 8)
    for past, present in CACHES.items():
        for value in (node.inputs[past], node.outputs[present]):
            assert value is not None
            value.dtype = ir.DataType.INT8
