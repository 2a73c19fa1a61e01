"""Zeros that stay while a model trains, and more of them.

    mask_OI   True where the weight is held free, False where it is held at zero

A weight that is held at zero has no gradient and no moments in the optimizer, so neither AdamW's update nor its weight
decay can move it. `drop` extends the masks by the smallest weights; a weight that is zero is smaller than any other, so
no weight comes back. With a pattern N:M only those are dropped that the pattern would drop, the smallest of them first,
so that every group of M keeps its N largest.

Legend: O outputs, I inputs of a linear y = W x, W [out, in].
Sources: Zhu and Gupta (arXiv 1710.01878); N:M sparsity, Mishra et al. (arXiv 2104.08378).

Where processes hold parts of the parameters, masks and moments lie in the same parts, and hooks on gradients never run:
the trainer calls `mask_gradients` instead. What to drop is chosen from whole weights, which every process then holds
for a moment.

Not covered: embeddings, the head.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from compress.models.block_linears import BlockLinear, block_linears
from compress.pruning.masks import choose, keep_n_of_m, keep_share
from compress.pruning.sparsity import LATENCY, Amount
from compress.stage import StageError, StageMetadata
from compress.training.distributed import is_first, shard_like, whole
from compress.training.pruning_schedule import GradualConfig, Ramp

if TYPE_CHECKING:
    from torch.optim import Optimizer

FILE = "masks.safetensors"


class SparsityMasks:
    """Where the block linears of a model in training are zero."""

    def __init__(self, model: nn.Module) -> None:
        """Every weight that is exactly zero now is held there.

        A matrix that is zero throughout counts as not yet trained rather than as pruned.
        """
        self.linears: list[BlockLinear] = list(block_linears(model))
        self._masks: list[Tensor] = [_nonzero(linear.parameter) for linear in self.linears]
        self._held: set[int] = set()
        self._hold()

    @property
    def masks_OI(self) -> list[Tensor]:
        """The mask of each linear, as a view on what is held."""
        return [mask.T if linear.transposed else mask for linear, mask in zip(self.linears, self._masks, strict=True)]

    @property
    def share(self) -> float:
        """Share of the block linears' weights that are held at zero."""
        return sum(_false(mask) for mask in self._masks) / max(1, sum(mask.numel() for mask in self._masks))

    def reach(self, amount: Amount) -> tuple[float, float]:
        """(share of the weights that `amount` would drop and that are zero already, share that it would drop).

        Raises:
            StageError: the pattern does not fit a linear, or everything that would be dropped is zero already.
        """
        self._check(amount)
        last = final_share(amount)
        chosen = smallest(amount, last, self._scores())
        total = sum(mask_OI.numel() for mask_OI in chosen)
        dropped = sum(_false(mask_OI) for mask_OI in chosen)
        done = sum(_false(whole(held) | mask_OI) for held, mask_OI in zip(self.masks_OI, chosen, strict=True))
        if done == dropped:
            raise StageError(
                f"prune: {done} of {total} weights are zero already, so {_asked(amount)} leaves nothing to prune; "
                "ask for more, or leave `prune` out: zeros stay zero in training"
            )
        return done / total, last

    @torch.no_grad()
    def drop(self, amount: Amount, share: float, optimizer: "Optimizer") -> None:
        """Extend the masks until `share` of the weights of each unit of `amount` are zero, smallest first."""
        chosen = smallest(amount, share, self._scores())
        for linear, mask, chosen_OI in zip(self.linears, self._masks, chosen, strict=True):
            mask &= shard_like(chosen_OI.T if linear.transposed else chosen_OI, mask)
            linear.parameter.masked_fill_(~mask, 0)  # a product would leave -0.0
            for moment in _moments(optimizer, linear.parameter):
                moment.mul_(mask)
        self._hold()

    def save(self, folder: Path) -> None:
        """Write the masks beside a checkpoint of the weights; every process calls this, and the first one writes."""
        named = {linear.name: whole(mask) for linear, mask in zip(self.linears, self._masks, strict=True)}
        if is_first():
            save_file(named, folder / FILE)

    def load(self, folder: Path) -> None:
        """Go on with the masks of a checkpoint whose weights are loaded too."""
        named = load_file(folder / FILE)
        for linear, mask in zip(self.linears, self._masks, strict=True):
            mask.copy_(shard_like(named[linear.name], mask))
        self._hold()

    def mask_gradients(self) -> None:
        """Once more or for the first time; before gradients are clipped, since all of them enter the norm."""
        for linear, mask in zip(self.linears, self._masks, strict=True):
            _Masked(mask)(linear.parameter)

    def _hold(self) -> None:
        """Mask the gradient of every linear that has zeros."""
        for index, (linear, mask) in enumerate(zip(self.linears, self._masks, strict=True)):
            if index not in self._held and _false(mask) and not isinstance(linear.parameter, DTensor):
                linear.parameter.register_post_accumulate_grad_hook(_Masked(mask))
                self._held.add(index)

    def _scores(self) -> list[Tensor]:
        """Magnitudes [out, in], below every one of them what is held at zero."""
        return [
            whole(linear.weight_OI()).abs().masked_fill_(~whole(mask_OI), -1)
            for linear, mask_OI in zip(self.linears, self.masks_OI, strict=True)
        ]

    def _check(self, amount: Amount) -> None:
        if not self.linears:
            raise StageError("prune: found no linear in the model's blocks, so nothing could be pruned")
        if amount.pattern is None:
            return
        unfit = [
            f"{linear.name} ({mask_OI.shape[1]} inputs)"
            for linear, mask_OI in zip(self.linears, self.masks_OI, strict=True)
            if mask_OI.shape[1] % amount.pattern[1]
        ]
        if unfit:
            raise StageError(
                f"prune: {_asked(amount)}: the inputs of {', '.join(unfit[:3])} are no multiple of "
                f"{amount.pattern[1]}; choose another pattern"
            )


class _Masked:
    """A hook that masks a gradient in place."""

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def __call__(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            parameter.grad.mul_(self.mask)


def final_share(amount: Amount) -> float:
    """The share of the weights that is dropped in the end."""
    if amount.pattern is not None:
        return 1 - amount.pattern[0] / amount.pattern[1]
    assert amount.sparsity is not None
    return amount.sparsity


def smallest(amount: Amount, share: float, scores: list[Tensor]) -> list[Tensor]:
    """Masks [out, in] without the smallest `share` of the scores, in the units that `amount` names.

    With a pattern only what the pattern drops may go, and at a share of 1 - N / M all of it does.
    """
    if amount.pattern is not None:
        n, m = amount.pattern
        free = [score_OI.masked_fill(keep_n_of_m(score_OI, n, m), torch.inf) for score_OI in scores]
        return [keep_share(score_OI, share) for score_OI in free]
    if amount.scope == "global":
        mask = keep_share(torch.cat([score_OI.flatten() for score_OI in scores]), share)
        parts = mask.split([score_OI.numel() for score_OI in scores])
        return [part.view(score_OI.shape) for part, score_OI in zip(parts, scores, strict=True)]
    return [choose(Amount(sparsity=share, scope=amount.scope))(score_OI) for score_OI in scores]


def _nonzero(parameter: nn.Parameter) -> Tensor:
    mask = parameter.detach() != 0
    return mask if _false(mask) < mask.numel() else torch.ones_like(mask)


def _moments(optimizer: "Optimizer", parameter: nn.Parameter) -> list[Tensor]:
    """What the optimizer remembers of each weight."""
    state = optimizer.state.get(parameter, {})
    return [value for value in state.values() if isinstance(value, Tensor) and value.shape == parameter.shape]


def _false(mask: Tensor) -> int:
    return mask.numel() - int(whole(mask.sum()))


def _asked(amount: Amount) -> str:
    return f"sparsity {amount.sparsity:g}" if amount.pattern is None else "pattern {}:{}".format(*amount.pattern)


def pruning_metadata(config: GradualConfig | None, steps: int, model: nn.Module) -> StageMetadata:
    """What a run of `steps` steps was asked to prune, and what it left, counted; empty where it was asked nothing."""
    if config is None:
        return {}
    amount, linears = config.amount(), list(block_linears(model))
    ramp = Ramp.of(config, steps, first=0.0, last=final_share(amount))
    zeros = {f"{linear.name}.weight": _false(linear.parameter.detach() != 0) for linear in linears}
    sizes = [linear.parameter.numel() for linear in linears]
    return {
        "asked": config.sparsity or config.pattern,
        "sparsity": sum(zeros.values()) / sum(sizes),
        "mask_updates": ramp.updates,
        "full_from_step": ramp.steps,
        "latency": LATENCY,
        "tensors": {
            name: {"asked": ramp.last, "sparsity": zero / size}
            for (name, zero), size in zip(zeros.items(), sizes, strict=True)
        },
    }
