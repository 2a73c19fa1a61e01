"""Which weights stay, given a score for each: masks with exact counts. Pure functions on tensors.

    score_OI -> mask_OI   small score = unimportant;   True = kept

Of n weights that are counted together, exactly round(sparsity * n) are dropped; of equal scores the earlier ones are.
A method that decides on a matrix part by part, left to right, says how many columns it has `before` each part: the
parts' counts then add up to the same number.

Legend: O outputs, I inputs of a linear y = W x, W [out, in].
Source: N:M sparsity, Mishra et al. (arXiv 2104.08378).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from compress.pruning.sparsity import Amount


@dataclass(frozen=True)
class MaskSelector:
    """score_OI -> mask_OI, for one amount."""

    amount: Amount

    @property
    def group(self) -> int | None:
        """Consecutive columns that are decided on together, where the amount says so."""
        return None if self.amount.pattern is None else self.amount.pattern[1]

    def __call__(self, score_OI: Tensor, before: int = 0) -> Tensor:
        """Mask (bool [out, in]) of the weights that stay, in these columns, which have `before` others to their left.

        Raises:
            ValueError: the columns are no multiple of the pattern's m.
        """
        if self.amount.pattern is not None:
            return keep_n_of_m(score_OI, *self.amount.pattern)
        assert self.amount.sparsity is not None
        rows, columns = score_OI.shape
        together = score_OI if self.amount.scope == "row" else score_OI.reshape(1, -1)
        each = 1 if self.amount.scope == "row" else rows
        dropped = round(self.amount.sparsity * each * (before + columns)) - round(self.amount.sparsity * each * before)
        return keep_largest(together, together.shape[1] - dropped).view(rows, columns)


def choose(amount: Amount) -> MaskSelector:
    """The masks of one amount, whose scope is a row, a layer or a pattern.

    Raises:
        ValueError: the scope is the whole model, which one matrix cannot show.
    """
    if amount.sparsity is not None and amount.scope == "global":
        raise ValueError("scope: expected row or layer, got global, which no single matrix can decide on")
    return MaskSelector(amount)


def keep_share(score: Tensor, sparsity: float) -> Tensor:
    """Mask (bool, the shape of `score`) that drops exactly round(sparsity * n) of the n smallest scores."""
    return keep_largest(score.reshape(1, -1), score.numel() - round(sparsity * score.numel())).view(score.shape)


def keep_largest(score_RN: Tensor, count: int) -> Tensor:
    """Mask (bool [R, N]) of the `count` largest scores of each row; of equal ones the later are kept."""
    drop = score_RN.shape[1] - count
    if drop <= 0:
        return torch.ones_like(score_RN, dtype=torch.bool)
    threshold_R1 = score_RN.kthvalue(drop, dim=1, keepdim=True).values
    mask_RN = score_RN > threshold_R1
    missing_R1 = count - mask_RN.sum(dim=1, keepdim=True)
    if bool(missing_R1.any()):
        equal_RN = score_RN == threshold_R1
        mask_RN |= equal_RN & (equal_RN.flip(1).cumsum(dim=1).flip(1) <= missing_R1)
    return mask_RN


def keep_n_of_m(score_OI: Tensor, n: int, m: int) -> Tensor:
    """Mask (bool [out, in]) that keeps the `n` largest scores of every `m` consecutive inputs.

    Raises:
        ValueError: the input dimension is no multiple of `m`.
    """
    outputs, inputs = score_OI.shape
    if inputs % m:
        raise ValueError(f"expected an input dimension that is a multiple of {m}, got {inputs}")
    groups = score_OI.reshape(outputs, inputs // m, m)
    dropped = groups.argsort(dim=-1, stable=True)[..., : m - n]
    return torch.ones_like(groups, dtype=torch.bool).scatter_(-1, dropped, False).view(outputs, inputs)
