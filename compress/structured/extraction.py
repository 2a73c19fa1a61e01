"""A smaller model out of a larger one: the kept units of every axis, their places in every parameter, and the copy.

    units       heads, neurons and channels, counted from 0; of an axis in a layer, the same number in every layer
    positions   the rows or columns of a parameter that the kept units occupy (see `families.py` for the layouts)

The copy is exact: a weight of the result is a weight of the source. Only where GPT-2 divides a layer's scores by the
layer's number does the query part of a layer that has moved up carry the ratio of the two numbers.

Not covered: which units to keep (`importance.py`), and what is left to repair in the weights (`reconstruction.py`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from compress.models.families import Axis, Family, Shape, config_for, split_name

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class KeptUnits:
    """What is kept of one layer."""

    heads: list[int]
    kv_heads: list[int]
    ffn: list[int]


@dataclass(frozen=True)
class Kept:
    """What is kept of a model."""

    hidden: list[int]
    layers: Mapping[int, KeptUnits]
    """By the layer's number in the source, in rising order; layers that are left out are not there."""


def all_units(shape: Shape) -> KeptUnits:
    """Every unit of a layer."""
    return KeptUnits(list(range(shape.heads)), list(range(shape.kv_heads)), list(range(shape.ffn)))


def positions(axis: Axis, units: KeptUnits, hidden: list[int], source: Shape) -> Tensor:
    """Indices, within a dimension of the source that lies on `axis`, of what is kept; int64."""
    columns = source.head_dim
    if axis == "hidden":
        return torch.tensor(hidden)
    if axis == "ffn":
        return torch.tensor(units.ffn)
    if axis == "gated":
        return torch.arange(2 * source.ffn).view(2, source.ffn)[:, units.ffn].flatten()
    query = torch.arange(source.heads * columns).view(source.heads, columns)[units.heads].flatten()
    key = torch.arange(source.kv_heads * columns).view(source.kv_heads, columns)[units.kv_heads].flatten()
    if axis == "key_value":
        return key
    if axis == "query":
        return query
    if axis == "stacked":
        keys = source.heads * columns
        return torch.cat([query, keys + key, keys + source.kv_heads * columns + key])
    if axis == "interleaved":
        return torch.arange(3 * source.heads * columns).view(source.heads, 3 * columns)[units.heads].flatten()
    raise ValueError(f"expected an axis that can be cut, got {axis!r}")


def cut(tensor: Tensor, axes: tuple[Axis, ...], units: KeptUnits, hidden: list[int], source: Shape) -> Tensor:
    """A parameter without what is not kept."""
    for dimension, axis in enumerate(axes):
        if axis != "fixed":
            tensor = tensor.index_select(dimension, positions(axis, units, hidden, source))
    return tensor


def slices(tensor: Tensor, axes: tuple[Axis, ...], axis: str, shape: Shape) -> Iterator[Tensor]:
    """A parameter as [units, -1], once for each of its dimensions that lies on the `axis` "hidden", "ffn" or "heads".

    Query heads that share a key-value head share its slice, each holding its part of it.
    """
    for dimension, found in enumerate(axes):
        flat = tensor.movedim(dimension, 0).reshape(len(tensor.movedim(dimension, 0)), -1)
        if found == axis:
            yield flat
        elif axis == "heads" and found in {"query", "interleaved"}:
            yield flat.reshape(shape.heads, -1)
        elif axis == "ffn" and found == "gated":
            yield flat.reshape(2, shape.ffn, -1).transpose(0, 1).reshape(shape.ffn, -1)
        elif axis == "heads" and found == "stacked":
            query, *packed = flat.split([shape.width("query"), shape.width("key_value"), shape.width("key_value")])
            parts = [query.reshape(shape.heads, -1), *(_shared(part, shape) for part in packed)]
            yield torch.cat(parts, dim=1)
        elif axis == "heads" and found == "key_value":
            yield _shared(flat, shape)


def _shared(flat: Tensor, shape: Shape) -> Tensor:
    """Key-value heads as their query heads hold them: [query heads, any]."""
    queries = shape.heads // shape.kv_heads
    repeated: Tensor = flat.reshape(shape.kv_heads, -1).repeat_interleave(queries, dim=0) / queries**0.5
    return repeated


@torch.no_grad()
def sliced_model(
    read: Callable[[str], Tensor],
    source: "PreTrainedModel",
    family: Family,
    shapes: tuple[Shape, Shape],
    kept: Kept,
    changed: Mapping[str, Tensor],
) -> "PreTrainedModel":
    """A new model of the kept units, in float32.

    Args:
        read: a parameter of the source by its name, in float32.
        source: the source's architecture; its weights are not read.
        shapes: the source's shape and the result's.
        changed: parameters of the source, by name, that are taken instead of the files' own.
    """
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    whole, wanted = shapes
    layers = list(kept.layers)
    with no_init_weights():
        config = config_for(source.config, family, wanted, layers)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.tie_weights()
    for name, parameter in model.named_parameters():
        origin, units = name, next(iter(kept.layers.values()))
        if name.startswith(f"{family.blocks}."):
            index, rest = split_name(family, name)
            origin, units = f"{family.blocks}.{layers[index]}.{rest}", kept.layers[layers[index]]
        tensor = changed[origin] if origin in changed else read(origin)
        axes = family.axes(name)
        assert axes is not None, name
        parameter.copy_(cut(tensor, axes, units, kept.hidden, whole))
    if getattr(source.config, "scale_attn_by_inverse_layer_idx", False):
        renumber(model, family.blocks, layers)
    model.eval()
    return model


def renumber(model: "PreTrainedModel", blocks: str, layers: Sequence[int]) -> None:
    """Let queries that GPT-2 divides by their layer's new number give the scores that the old number gave."""
    for new, old in enumerate(layers):
        packed = model.get_submodule(f"{blocks}.{new}.attn.c_attn")
        for parameter in packed.parameters():
            parameter[..., : parameter.shape[-1] // 3] *= (new + 1) / (old + 1)
