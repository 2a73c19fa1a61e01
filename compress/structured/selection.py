"""What a slimmed model keeps: its layers first, then the channels, then heads and neurons of the layers that stay.

    layers     ranked on the unchanged model             (`depth.py`)
    channels   ranked on the unchanged model, one set for the whole model, since they are one residual stream
    units      ranked layer by layer on what the narrower layers before leave    (`width.py`)

Heads and channels are chosen apart, even where their numbers hang together: a channel is not part of a head.
"""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from compress.models.families import Family, Shape
from compress.models.layerwise import BlockWalk
from compress.stage import StageInput, StageMetadata
from compress.structured.config import IMPORTANCES, SlimConfig
from compress.structured.depth import Stack, least_missed, most_influential
from compress.structured.extraction import Kept, all_units
from compress.structured.importance import ActivationStatistics, most_important
from compress.structured.width import Cut, PrunedWidth, Survey, channel_slices, choose_units, survey

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Choice:
    """What is kept, what was refitted, and what there is to say about it."""

    kept: Kept
    changed: dict[str, Tensor]
    metadata: StageMetadata


def choose(
    config: SlimConfig,
    given: StageInput,
    family: Family,
    shapes: tuple[Shape, Shape],
    ids_NT: "NDArray[np.int64] | None",
) -> Choice:
    """What to keep of the source's shape to reach the wanted one."""
    chooser = _Chooser(config, given, family, *shapes, ids_NT)
    layers = chooser.layers()
    hidden = chooser.hidden()
    narrowed = chooser.units(layers)
    return Choice(Kept(hidden, narrowed.units), narrowed.changed, chooser.metadata)


@dataclass
class _Chooser:
    config: SlimConfig
    given: StageInput
    family: Family
    source: Shape
    wanted: Shape
    ids_NT: "NDArray[np.int64] | None"
    metadata: StageMetadata = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        assert self.given.source is not None
        return self.given.source

    @cached_property
    def seen(self) -> Survey:
        with self.given.progress.task("survey", total=self.source.layers) as task:
            return survey(BlockWalk(self.folder, self.ids_NT), self.family, task)

    def layers(self) -> list[int]:
        """The layers that stay."""
        if self.wanted.layers == self.source.layers:
            return list(range(self.source.layers))
        if self.config.depth_by == "block_influence":
            self.metadata["depth"] = {"by": self.config.depth_by, "influence": self.seen.influence}
            return most_influential(self.seen.influence, self.wanted.layers)
        assert self.ids_NT is not None
        stack = Stack(self.folder, self.ids_NT)
        kept, gone = least_missed(stack, self.wanted.layers, self.given.progress)
        self.metadata["depth"] = {"by": self.config.depth_by, "gone": gone}
        return kept

    def hidden(self) -> list[int]:
        """The channels that stay."""
        if self.wanted.hidden == self.source.hidden:
            return list(range(self.source.hidden))
        importance = IMPORTANCES[self.config.importance]
        if importance.reads_text:
            channel_D = self.seen.channel_D
        else:
            slices = channel_slices(BlockWalk(self.folder), self.family, self.source)
            rng_key = f"{self.given.seed}:hidden"
            channel_D = importance.score(ActivationStatistics(slices=slices, count=self.source.hidden, rng_key=rng_key))
        kept = most_important(channel_D, self.wanted.hidden)
        self.metadata["hidden_share"] = float(channel_D[kept].sum() / channel_D.sum())
        return kept

    def units(self, layers: list[int]) -> PrunedWidth:
        """Heads and neurons that stay, in the layers that do."""
        if (self.wanted.heads, self.wanted.ffn) == (self.source.heads, self.source.ffn):
            return PrunedWidth(units={layer: all_units(self.source) for layer in layers})
        importance = IMPORTANCES[self.config.importance]
        cut = Cut(
            family=self.family,
            source=self.source,
            wanted=self.wanted,
            layers=layers,
            importance=importance,
            repair=self.config.repair,
            seed=self.given.seed,
        )
        fed = importance.reads_text or self.config.repair
        with self.given.progress.task("choose heads and neurons", total=self.source.layers) as task:
            narrowed = choose_units(BlockWalk(self.folder, self.ids_NT if fed else None), cut, task)
        self.metadata |= {"importance": self.config.importance, "repaired": self.config.repair}
        for axis, shares in narrowed.shares.items():
            self.metadata[f"{axis}_share"] = {"mean": sum(shares) / len(shares), "least": min(shares)}
        return narrowed
