"""Whether a table of axes holds: a tiny model that is cut by it computes what the same model computes with the removed
units at zero.

    heads, ffn   the columns of the output linear that removed units feed are zero
    hidden       all that reads or writes a removed channel is zero, and norms go over the channels that are kept
    layers       the removed blocks hand on what they are given

That is asked of random weights, of other units in every layer, and of the logits. A table whose indices are wrong
fails it, and so does an architecture in which something else depends on a width: a norm over all heads together, an
embedding that is multiplied by the root of the width.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from compress.models.block_linears import blocks, linears_of
from compress.models.families import Axis, Family, Shape, Size
from compress.structured.extraction import Kept, KeptUnits, all_units, positions, sliced_model
from compress.structured.tiny_model import logits_of, norms_of, pass_by

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOLERANCE = 1e-3
"""Of the logits' root mean square: what float32 may differ by, and far less than a unit that is mistaken."""
CHANNELS = 48
"""Kept of a tiny model's hidden channels where heads do not decide it."""


def cut_equals_masked(model: "PreTrainedModel", family: Family, shape: Shape, size: Size) -> bool:
    """Whether a model without half of the units of an axis computes what it computes with them at zero."""
    layers = {layer: _units(shape, layer, size) for layer in range(shape.layers)}
    first = layers[0]
    wanted = replace(shape, heads=len(first.heads), kv_heads=len(first.kv_heads), ffn=len(first.ffn))
    if size == "hidden" or (size == "heads" and family.square):
        wanted = replace(wanted, hidden=wanted.heads * shape.head_dim if family.square else CHANNELS)
    kept = Kept(_channels(shape.hidden, wanted.hidden), layers)
    small = sliced_model(_reader(model), model, family, (shape, wanted), kept, {})
    masked = copy.deepcopy(model)
    outputs: dict[Axis, str] = {"query": family.attention_output, "ffn": family.ffn_output}
    for axis, name in outputs.items():
        if name and shape.width(axis) != wanted.width(axis):
            _silence(masked, name, axis, kept, shape)
    if wanted.hidden != shape.hidden:
        _mask_channels(masked, small, family, kept.hidden)
    return _same(logits_of(small), logits_of(masked)) and not _same(logits_of(small), logits_of(model))


def without_layers_equals_passed_by(model: "PreTrainedModel", family: Family, shape: Shape) -> bool:
    """Whether a model without every third layer computes what it computes when they are passed by."""
    gone = range(1, shape.layers, 3)
    kept = {layer: all_units(shape) for layer in range(shape.layers) if layer not in gone}
    shapes = (shape, replace(shape, layers=len(kept)))
    small = sliced_model(_reader(model), model, family, shapes, Kept(list(range(shape.hidden)), kept), {})
    passing = copy.deepcopy(model)
    pass_by(passing, gone)
    return _same(logits_of(small), logits_of(passing))


def _reader(model: nn.Module) -> Callable[[str], Tensor]:
    return dict(model.named_parameters()).__getitem__


def _units(shape: Shape, layer: int, size: Size) -> KeptUnits:
    """Half of the units of an axis, other ones in each layer; of grouped heads some groups, and some heads of each."""
    whole = all_units(shape)
    if size == "ffn":
        return replace(whole, ffn=list(range(layer % 2, 2 * (shape.ffn // 2), 2)))
    if size != "heads":
        return whole
    kv_heads = list(range(layer % 2, 2 * (shape.kv_heads // 2), 2)) or [0]
    queries = shape.heads // shape.kv_heads
    first = layer % 2 if queries > 1 else 0
    of_group = range(first, first + max(1, queries // 2))
    heads = [group * queries + query for group in kv_heads for query in of_group]
    return KeptUnits(heads, kv_heads, whole.ffn)


def _channels(whole: int, count: int) -> list[int]:
    order = torch.randperm(whole, generator=torch.Generator().manual_seed(1))
    return sorted(order[:count].tolist())


@torch.no_grad()
def _silence(model: "PreTrainedModel", name: str, axis: Axis, kept: Kept, shape: Shape) -> None:
    for layer, (prefix, block) in enumerate(blocks(model)):
        for linear in linears_of(prefix, block):
            if linear.name == f"{prefix}.{name}":
                gone = torch.ones(shape.width(axis), dtype=torch.bool)
                gone[positions(axis, kept.layers[layer], [], shape)] = False
                linear.weight_OI()[:, gone] = 0


@torch.no_grad()
def _mask_channels(model: "PreTrainedModel", small: "PreTrainedModel", family: Family, hidden: list[int]) -> None:
    for name, parameter in model.named_parameters():
        for dimension, axis in enumerate(family.axes(name) or ()):
            if axis == "hidden":
                gone = torch.ones(parameter.shape[dimension], dtype=torch.bool)
                gone[hidden] = False
                parameter.movedim(dimension, 0)[gone] = 0
    for name in norms_of(model):
        narrow = small.get_submodule(name)

        def over_kept(module: nn.Module, args: tuple[Any, ...], output: Tensor, narrow: nn.Module = narrow) -> Tensor:
            spread = torch.zeros_like(output)
            spread[..., hidden] = narrow(args[0][..., hidden])
            return spread

        model.get_submodule(name).register_forward_hook(over_kept)


def _same(found: Tensor, expected: Tensor) -> bool:
    return float((found - expected).abs().max()) <= TOLERANCE * float(expected.square().mean().sqrt())
