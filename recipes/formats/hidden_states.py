"""What the layers of a baseline made of the test text, kept while a run lasts.

Every artifact is held against the baseline's whole distributions, which are too large to keep: V numbers a token. The
last hidden states are D numbers, and the head makes the distributions of them again, with the same product as before:

    first time    ids_BT --layers--> hidden_BTD (kept) --head--> scores_BTV
    further       ids_BT ------------> hidden_BTD ------head--> scores_BTV

A model whose scores are not, bit for bit, those of its head on its last hidden states (a soft cap, a scale) is run
whole each time, and so is text beyond `LIMIT`.

Legend: B windows, T positions, D hidden width, V vocabulary.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

    from evaluation.quality import Scorer

LIMIT = 2**30
"""Bytes that are kept."""
Ids = NDArray[np.int64]


class HiddenStates:
    """Of one model, by the ids that they came of."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._kept: dict[tuple[bytes, int], Tensor] = {}
        self._room = limit
        self._reproduces: bool | None = None

    def scorer(self, model: "PreTrainedModel") -> "Scorer":
        """What `model(...).logits` gives, by fewer products where these ids came before."""
        import torch

        head = model.get_output_embeddings()

        def score(ids_BT: Ids) -> NDArray[np.float32]:
            with torch.inference_mode():
                return np.asarray(self._logits(model, head, ids_BT).float().numpy())

        return score

    def _logits(self, model: "PreTrainedModel", head: "torch.nn.Module", ids_BT: Ids) -> "Tensor":
        import torch

        key, ids = (ids_BT.tobytes(), ids_BT.shape[1]), torch.from_numpy(ids_BT)
        if key in self._kept:
            logits: Tensor = head(self._kept[key])
            return logits
        if self._reproduces is False:
            whole: Tensor = model(input_ids=ids, use_cache=False).logits
            return whole
        hidden_BTD = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        logits = head(hidden_BTD)
        if self._reproduces is None:
            whole = model(input_ids=ids, use_cache=False).logits
            self._reproduces = torch.equal(logits, whole)
            logits = whole
        if self._reproduces and hidden_BTD.nbytes <= self._room:
            self._kept[key] = hidden_BTD
            self._room -= hidden_BTD.nbytes
        return logits
