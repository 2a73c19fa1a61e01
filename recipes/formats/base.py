"""What depends on a format, and nothing else: how an artifact is opened, and what its files tell without running it.

An artifact's *format* is where its weights lie and what runs them; how they are rounded is a *scheme*, of which nobody
here asks. `FORMATS` (`recipes/formats/__init__.py`) has an adapter for each.

    B rows    T tokens    V vocabulary
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from compress.errors import DemitasseError
from evaluation.latency import Variant

if TYPE_CHECKING:
    from recipes.formats.hidden_states import HiddenStates

Ids = NDArray[np.int64]
NOT_NUMBERS = "its logits are not numbers (NaN or infinite)"
Device = Literal["cpu", "cuda"]


class MeasureError(DemitasseError):
    """A measurement could not be taken; the message says of what and why."""

    exit_code = 4


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What a model takes in and gives out."""

    context: int | None
    """Tokens at once; None: its config names no limit."""
    vocabulary: int


class LoadedModel(Protocol):
    """A model that is open."""

    runtime: str
    """What runs it, with its version, in a few words."""
    context: int
    """The longest sequence that it takes, in tokens."""

    def logits(self, ids_BT: Ids) -> NDArray[np.float32]:
        """Scores of the next token [B, T, V] of rows that are padded on the right."""

    def text_logits(self, ids_BT: Ids) -> NDArray[np.float32]:
        """The same for text that is scored again with every artifact."""

    def generate(self, prompts: Sequence[Ids], tokens: int) -> list[Ids]:
        """The likeliest tokens after each prompt, at most so many, whatever the model's own settings ask for; they end
        before the first token that ends texts.
        """

    def decoding(self, ids_BT: Ids, tokens: int) -> Variant:
        """What is timed on this prompt, with room for `tokens` new tokens. It pays for its own argmax, and returns when
        the next ids are on the host, so that a GPU's work is waited for.
        """


class Format(Protocol):
    """Everything that depends on a format."""

    @property
    def libraries(self) -> tuple[str, ...]:
        """Distributions whose versions change what is measured."""

    @property
    def bytes_per_weight(self) -> int | None:
        """About; None: as many as the artifact that it is made of."""

    @property
    def released(self) -> bool:
        """Whether it is what is handed on for serving, so that it carries a model card."""

    def open(
        self,
        folder: Path,
        *,
        threads: int | None = None,
        hidden: "HiddenStates | None" = None,
        device: Device | None = None,
    ) -> LoadedModel:
        """Open what a folder holds.

        Args:
            threads: of one product; None: the library's default.
            device: where to run it, and nowhere else, as what is timed must; None: where it belongs, or, as its
                figures are about the same there, on the CPU if that is not here.
            hidden: what is known of the model's layers, and is added to.

        Raises:
            CheckpointError, BundleError, ProviderError: it cannot be opened, or not where it was exported for.
        """

    def runtime(self, folder: Path) -> str:
        """What runs it, in a few words."""

    def sizes(self, folder: Path) -> Sizes:
        """Context and vocabulary."""

    def device(self, folder: Path) -> Device:
        """Where it runs.

        Raises:
            MeasureError: it does not say.
        """

    def weight_files(self, folder: Path) -> list[Path]:
        """The files that hold its weights; of a graph, the graph too."""

    def weight_bytes(self, folder: Path) -> int:
        """Bytes of the weights as they are held to run."""

    def counts(self, folder: Path) -> dict[str, float]:
        """parameters, nonzero_parameters, weight_bytes, disk_bytes."""

    def components(self, folder: Path) -> dict[str, dict[str, int]]:
        """Bytes of the weights by component of the model and kind of number, which add up to `weight_bytes` (of a
        graph, but for the graph itself), read from headers alone.
        """

    def macs(self, folder: Path, *, context: int) -> int:
        """Multiply-accumulates of a token that is decoded on a cache of `context` tokens."""
