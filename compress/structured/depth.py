"""Which layers to leave out.

    block_influence  BI = 1 - mean over tokens of cos(what enters the block, what leaves it): one pass through the
                     model. A block that hardly turns what flows through it is the first to go. (ShortGPT,
                     arXiv 2403.03853)
    perplexity       the next-token loss without the block, on the same text: the block whose absence costs least goes,
                     then again on the model without it, until enough are gone. Costs depth / 2 passes for every layer
                     that goes, with the whole model in memory. (SLEB, arXiv 2402.09025)

No layer is kept for its place: the first and the last stay if they measure as important, which they nearly always do.

    N rows    T tokens    D hidden width    V vocabulary
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from compress.checkpoints.loading import load_model
from compress.models.block_linears import blocks
from compress.models.layerwise import hidden_of
from compress.stage import Progress
from compress.structured.importance import most_important

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

AT_ONCE = 2048
"""Tokens whose logits are held at once."""


def block_influence(before_NTD: Tensor, after_NTD: Tensor) -> float:
    """1 - mean cosine between what enters a block and what leaves it."""
    return 1 - float(functional.cosine_similarity(before_NTD.float(), after_NTD.float(), dim=-1).mean())


def most_influential(influence: list[float], layers: int) -> list[int]:
    """The `layers` layers of the largest influence, in rising order."""
    return most_important(torch.tensor(influence), layers)


class Stack:
    """A model's blocks, run one by one on rows of text, with any of them left out."""

    def __init__(self, folder: Path, ids_NT: "NDArray[np.int64]") -> None:
        self.model = load_model(folder)
        self.modules = [module for _, module in blocks(self.model)]
        self.in_tuple = False
        self.ids = list(torch.from_numpy(ids_NT).split(max(1, AT_ONCE // ids_NT.shape[1])))
        self.entering: list[Tensor] = []
        """What enters the first block, for each batch of rows."""
        self.calls: list[list[tuple[tuple[Any, ...], dict[str, Any]]]] = [self._noted(ids) for ids in self.ids]

    @torch.inference_mode()
    def _noted(self, ids_BT: Tensor) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        """What each block is called with beside the hidden states."""
        noted: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if not noted:
                self.entering.append(args[0])
            self.in_tuple = isinstance(output, tuple)
            noted.append((args[1:], kwargs))

        hooks = [module.register_forward_hook(note, with_kwargs=True) for module in self.modules]
        self.model.base_model(input_ids=ids_BT, use_cache=False)
        for hook in hooks:
            hook.remove()
        return noted

    @torch.inference_mode()
    def through(self, hidden: list[Tensor], layers: list[int]) -> list[Tensor]:
        """What leaves the last of `layers`, run in turn on each batch's hidden states."""
        left = []
        for batch, calls in zip(hidden, self.calls, strict=True):
            for layer in layers:
                args, kwargs = calls[layer]
                batch = hidden_of(self.modules[layer](batch, *args, **kwargs))
            left.append(batch)
        return left

    @torch.inference_mode()
    def loss(self, hidden: list[Tensor]) -> float:
        """Mean next-token loss in nats, given what leaves the last block."""
        total, count = 0.0, 0
        for hidden_BTD, ids_BT in zip(hidden, self.ids, strict=True):
            logits_BTV = self._logits(hidden_BTD, ids_BT)[:, :-1]
            total += float(functional.cross_entropy(logits_BTV.flatten(0, 1), ids_BT[:, 1:].flatten(), reduction="sum"))
            count += ids_BT[:, 1:].numel()
        return total / count

    def _logits(self, hidden_BTD: Tensor, ids_BT: Tensor) -> Tensor:
        """What the model makes of hidden states that leave its last block: its own norm, head, scale and cap."""

        def give(*args: Any, **kwargs: Any) -> Any:
            return (hidden_BTD, None) if self.in_tuple else hidden_BTD

        for module in self.modules:
            module.forward = give
        try:
            logits_BTV: Tensor = self.model(input_ids=ids_BT, use_cache=False).logits
        finally:
            for module in self.modules:
                del module.forward  # the class's own again
        return logits_BTV


def least_missed(stack: Stack, layers: int, progress: Progress) -> tuple[list[int], list[dict[str, float]]]:
    """The `layers` layers that are left when the least missed one goes, time after time; and what each going cost."""
    kept, gone = list(range(len(stack.modules))), []
    rounds = range(len(kept), layers, -1)
    with progress.task("weigh layers", total=sum(rounds)) as task:
        while len(kept) > layers:
            losses, entering = {}, stack.entering
            for place, layer in enumerate(kept):
                losses[layer] = stack.loss(stack.through(entering, kept[place + 1 :]))
                entering = stack.through(entering, [layer])
                task.advance(note=f"without layer {layer}: loss {losses[layer]:.3f}")
            least = min(losses, key=losses.__getitem__)
            gone.append({"layer": least, "loss_before": stack.loss(entering), "loss_after": losses[least]})
            kept.remove(least)
    return kept, gone
