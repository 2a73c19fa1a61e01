"""What PyTorch says on the rows of parity: computed once in float32, kept on disk, the model let go.

A model and its bundle need not be in memory at the same time: the reference is taken first, row by row, and read back
a row at a time. A row of T tokens and V words takes T * V * 4 bytes.

    B rows    T tokens    V vocabulary    C tokens of the row that fills the context    S steps
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from export.runtime.batch import Floats, Ids
from export.runtime.model import log_softmax

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STEPS = 64
"""Tokens of each row that are decoded on a warm cache, where the rows are twice that long."""
LIMIT_STEPS = 8
"""The last tokens of the row that fills the context are decoded one by one."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Reference:
    """Rows of real text, and where PyTorch's log-probabilities on them lie."""

    ids_BT: Ids
    long_C: Ids
    """One row as long as the context, or as is asked for."""
    folder: Path
    load: "Callable[[], PreTrainedModel]"
    """The model once more, for who wants to look inside."""

    def row(self, row: int) -> Floats:
        """Log-probabilities (T, V) of one row."""
        return np.asarray(np.load(self.folder / f"row{row}.npy", mmap_mode="r"))

    def limit(self) -> Floats:
        """Log-probabilities (S + 1, V) at the end of the long row."""
        return np.asarray(np.load(self.folder / "limit.npy"))


def take_reference(load: "Callable[[], PreTrainedModel]", ids_BT: Ids, long_C: Ids, folder: Path) -> Reference:
    """Run PyTorch on every row and keep what it says in `folder`."""
    model = load()
    for row, ids_T in enumerate(ids_BT):
        np.save(folder / f"row{row}.npy", scores(model, ids_T, len(ids_T)))
    np.save(folder / "limit.npy", scores(model, long_C, min(LIMIT_STEPS, len(long_C) - 1) + 1))
    return Reference(ids_BT=ids_BT, long_C=long_C, folder=folder, load=load)


def scores(model: "PreTrainedModel", ids_T: Ids, last: int) -> Floats:
    """PyTorch's log-probabilities at the `last` positions of a row: float32 (last, V)."""
    import torch

    with torch.inference_mode():
        logits = model(torch.from_numpy(ids_T[None]), use_cache=False, logits_to_keep=last).logits
    scores_TV: Floats = logits[0, -last:].float().numpy()
    log_softmax(scores_TV)
    return scores_TV


def cached_rows(model: "PreTrainedModel", ids_BT: Ids) -> "Iterator[list[tuple[Floats, Floats]]]":
    """Of each row and layer the keys and the values (heads, tokens, width) that PyTorch puts into its cache."""
    import torch

    for ids_T in ids_BT:
        with torch.inference_mode():
            layers = model(torch.from_numpy(ids_T[None]), use_cache=True, logits_to_keep=1).past_key_values.layers
        yield [(layer.keys[0].float().numpy(), layer.values[0].float().numpy()) for layer in layers]


def lengths(ids_BT: Ids) -> tuple[Ids, int]:
    """How many tokens of each row are read at once (all different where there is room, the longest first), and how
    many more are then decoded.
    """
    rows, tokens = ids_BT.shape
    steps = min(STEPS, tokens // 2)
    longest = tokens - steps
    return np.maximum(1, longest - np.arange(rows) * max(1, longest // (rows + 1))), steps
