"""Multiply-accumulates of one decoded token, counted from an artifact's shapes; nothing is run.

    products     every matrix [out, in] that a token is multiplied by: out * in, the head too; of experts the share
                 that a token uses
    attention    2 * layers * heads * head width * tokens in the cache: scores, and the sum over values

A checkpoint is counted from the headers of its weight files and its config, a bundle from its graph. Zeros count: no
runtime here skips them. Biases, norms, activations, rotations and the reading of embeddings are left out.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.checkpoints.folder import Checkpoint
from compress.checkpoints.layout import WEIGHTS, Layout
from compress.models.components import part_of
from compress.models.families import size_in
from export.manifest import bundle_folder

if TYPE_CHECKING:
    from onnx import NodeProto


def macs_of_checkpoint(folder: Path, context: int) -> int:
    """Of a token that is decoded on a cache of `context` tokens, by a checkpoint's headers and config."""
    checkpoint = Checkpoint(folder)
    config, matrices = checkpoint.config, dict(_matrices(checkpoint.layout))
    share = _share_of_experts(config)
    products = sum(
        size * (share if ".experts." in name else 1) for name, size in matrices.items() if part_of(name) != "embeddings"
    )
    if not any(part_of(name) == "head" for name in matrices):
        tables = (size for name, size in matrices.items() if part_of(name) == "embeddings")
        products += max(tables, default=0)  # the tied head is the table of tokens, the largest one
    heads = size_in(config, "heads")
    width = size_in(config, "head_dim") or size_in(config, "hidden") // heads
    return round(products) + 2 * size_in(config, "layers") * heads * width * context


def _matrices(layout: Layout) -> Iterator[tuple[str, int]]:
    """(name, number of weights) of every weight of two or more dimensions."""
    for weight in layout.weights():
        if weight.number in WEIGHTS and len(weight.stored.shape) >= 2:
            yield weight.name, weight.count


def _share_of_experts(config: dict[str, Any]) -> float:
    """How much of its experts' weights a token uses."""
    experts = config.get("num_local_experts") or config.get("num_experts") or config.get("n_routed_experts")
    return int(config.get("num_experts_per_tok") or 1) / int(experts) if experts else 1.0


def macs_of_bundle(folder: Path, context: int) -> int:
    """The same by a bundle's graph."""
    from export.external_data import read_graph

    graph = read_graph(bundle_folder(folder)).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    widths = {
        value.name: value.type.tensor_type.shape.dim[-1].dim_value
        for value in graph.input
        if value.name.startswith("past_key_values.")
    }
    return sum(_of_node(node, shapes, widths, context) for node in graph.node)


def _of_node(node: "NodeProto", shapes: dict[str, tuple[int, ...]], widths: dict[str, int], context: int) -> int:
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    if node.op_type == "MatMulNBits":
        return int(attributes["K"] * attributes["N"])
    if node.op_type in {"MatMul", "FusedMatMul", "Gemm"}:
        return sum(math.prod(shapes[name]) for name in node.input[:2] if len(shapes.get(name, ())) == 2)
    if node.op_type == "GroupQueryAttention":
        width = next(widths[name] for name in node.input if name in widths)
        return int(2 * attributes["num_heads"] * width * context)
    return 0
