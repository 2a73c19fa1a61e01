"""Walks through a model that decide what is kept: one over the whole model as it is, one that cuts as it goes.

    survey        every block as it is: how much it turns what flows through it (block influence), and how large each
                  hidden channel is after every norm, summed over the norms
    choose_units  block by block: as the output linear of the attention or of the MLP is about to be fed, its inputs
                  are scored, the units chosen, the linear refitted to what is kept (`reconstruction.py`), and the
                  forward pass goes on with the narrower layer. So every later layer sees what it will see in the
                  result, and layers that are left out are passed by.

Both run each block once on all rows at once; without text, `choose_units` only looks at the weights.

    N rows    T tokens    D hidden width    I inputs of a linear
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from compress.models.block_linears import BlockLinear
from compress.models.families import Axis, Family, Shape
from compress.models.layerwise import Block, BlockWalk
from compress.stage import Task
from compress.structured.config import Importance
from compress.structured.depth import block_influence
from compress.structured.extraction import KeptUnits, all_units, positions, slices
from compress.structured.importance import ActivationStatistics, by_activations, most_important, most_important_heads
from compress.structured.reconstruction import refit

UnitAxis = Literal["heads", "ffn"]


@dataclass(frozen=True, eq=False)
class Survey:
    """What a pass through the unchanged model shows."""

    influence: list[float]
    """Block influence of each layer."""
    channel_D: Tensor
    """Score of each hidden channel."""


@dataclass(eq=False)
class PrunedWidth:
    """What `choose_units` decided."""

    units: dict[int, KeptUnits] = field(default_factory=dict)
    """By layer."""
    changed: dict[str, Tensor] = field(default_factory=dict)
    """Refitted parameters of the source, by name: zero where an input went."""
    shares: dict[UnitAxis, list[float]] = field(default_factory=dict)
    """Share of each layer's scores that the kept units have."""


def survey(walk: BlockWalk, family: Family, task: Task) -> Survey:
    """One pass over all blocks; needs text."""
    assert walk.ids_NT is not None
    rows, length = walk.ids_NT.shape
    scores: list[Tensor] = []
    influence = []

    def note(module: nn.Module, args: tuple[Any, ...], y: Tensor) -> None:
        scores.append(by_activations(ActivationStatistics(y.reshape(rows, length, -1))))

    for block in walk:
        before_NTD = walk.hidden_NTD
        assert before_NTD is not None
        hooks = [block.module.get_submodule(name).register_forward_hook(note) for name in family.norms]
        influence.append(block_influence(before_NTD, block.forward()))
        for hook in hooks:
            hook.remove()
        task.advance(note=f"{block.name}: influence {influence[-1]:.3f}")
    norm = walk.model.get_submodule(family.final_norm)
    walk.files.fill(norm, family.final_norm)
    with torch.inference_mode():
        note(norm, (), norm(walk.hidden_NTD))
    return Survey(influence, torch.stack(scores).sum(dim=0))


def channel_slices(walk: BlockWalk, family: Family, shape: Shape) -> Iterator[Tensor]:
    """The weights that would go with each hidden channel, one tensor in memory at a time: [hidden, any]."""
    for name, _ in walk.model.named_parameters():
        axes = family.axes(name)
        assert axes is not None, name
        if "hidden" in axes:
            yield from slices(walk.files.read(name), axes, "hidden", shape)


@dataclass(frozen=True, kw_only=True)
class Cut:
    """What `choose_units` is to do."""

    family: Family
    source: Shape
    wanted: Shape
    layers: list[int]
    """The layers that stay; the others are passed by."""
    importance: Importance
    repair: bool
    seed: int


def choose_units(walk: BlockWalk, cut: Cut, task: Task) -> PrunedWidth:
    """Choose the heads and neurons of every layer that stays, each layer on what the narrower ones before it leave."""
    narrowed = PrunedWidth()
    for block in walk:
        if block.index in cut.layers:
            layer = _Layer(block, cut, narrowed)
            if walk.ids_NT is None:
                layer.choose("heads", None)
                layer.choose("ffn", None)
            else:
                layer.run(walk.ids_NT.shape)
            narrowed.units[block.index] = layer.units
        task.advance(note=block.name)
    return narrowed


class _Layer:
    """One block as it is narrowed."""

    def __init__(self, block: Block, cut: Cut, narrowed: PrunedWidth) -> None:
        self.block, self.cut, self.narrowed = block, cut, narrowed
        self.units = all_units(cut.source)
        self.linears: dict[str, BlockLinear] = {linear.name: linear for linear in block.linears()}

    def run(self, rows: tuple[int, ...]) -> None:
        """Run the block, narrowing it on the way."""
        outputs: list[tuple[UnitAxis, str]] = [
            ("heads", self.cut.family.attention_output),
            ("ffn", self.cut.family.ffn_output),
        ]
        hooks = []
        for axis, name in outputs:

            def feed(module: nn.Module, args: tuple[Any, ...], axis: UnitAxis = axis, name: str = name) -> None:
                fed_NTI = args[0].reshape(*rows, -1)
                self.choose(axis, fed_NTI)
                self.refit(axis, name, fed_NTI.flatten(0, 1))

            if getattr(self.cut.wanted, axis) < getattr(self.cut.source, axis):
                hooks.append(self.block.module.get_submodule(name).register_forward_pre_hook(feed))
        self.block.forward()
        for hook in hooks:
            hook.remove()

    def choose(self, axis: UnitAxis, fed_NTI: Tensor | None) -> None:
        """Score the units of an axis and keep the best."""
        source, wanted = self.cut.source, self.cut.wanted
        count, keep = getattr(source, axis), getattr(wanted, axis)
        if keep == count:
            return
        rng_key = f"{self.cut.seed}:{self.block.index}:{axis}"
        unit = source.head_dim if axis == "heads" else 1
        score_U = self.cut.importance.score(ActivationStatistics(fed_NTI, unit, self._slices(axis), count, rng_key))
        if axis == "heads":
            heads, kv_heads = most_important_heads(score_U, source.kv_heads, wanted.heads, wanted.kv_heads)
            self.units = KeptUnits(heads, kv_heads, self.units.ffn)
            kept = heads
        else:
            kept = most_important(score_U, keep)
            self.units = KeptUnits(self.units.heads, self.units.kv_heads, kept)
        share = float(score_U[kept].sum() / score_U.sum().clamp_min(torch.finfo(score_U.dtype).tiny))
        self.narrowed.shares.setdefault(axis, []).append(share)

    def _slices(self, axis: UnitAxis) -> Iterator[Tensor]:
        for name, parameter in self.block.module.named_parameters():
            yield from slices(parameter.detach(), self.cut.family.inside[name], axis, self.cut.source)

    def refit(self, axis: UnitAxis, name: str, x_TI: Tensor) -> None:
        """Let the output linear do without what is removed, in place; note what it has become if it was repaired."""
        full = f"{self.block.name}.{name}"
        weight_OI = self.linears[full].weight_OI()
        module = self.block.module.get_submodule(name)
        bias = getattr(module, "bias", None)
        lies_on: Axis = "query" if axis == "heads" else "ffn"
        kept_S = positions(lies_on, self.units, [], self.cut.source)
        if not self.cut.repair:
            gone = torch.ones(weight_OI.shape[1], dtype=torch.bool)
            gone[kept_S] = False
            weight_OI[:, gone] = 0
            return
        refitted_OI, refitted_O = refit(weight_OI, None if bias is None else bias.detach(), x_TI, kept_S)
        weight_OI.copy_(refitted_OI)
        self.narrowed.changed[f"{full}.weight"] = self.linears[full].parameter.detach().clone()
        if refitted_O is not None and bias is not None:
            bias.detach().copy_(refitted_O)
            self.narrowed.changed[f"{full}.bias"] = refitted_O
