"""Which weights to zero: scores, masks and their exact counts. Pure functions on tensors.

    score_OI  one number per weight, small = unimportant      (CRITERIA)
    mask_OI   True where the weight is kept                   (keep_share, keep_n_of_m)

Legend: O outputs, I inputs of a linear y = W x, W [out, in]. Counts are exact: of n weights, round(sparsity * n) are
zeroed, ties being broken by position.
Sources: magnitude pruning, Han et al. (arXiv 1506.02626); N:M sparsity, Mishra et al. (arXiv 2104.08378).

Not covered: criteria that look at activations.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def magnitude(weight_OI: Tensor) -> Tensor:
    """The weight's absolute value: cheap, blind to the inputs it meets."""
    return weight_OI.abs()


CRITERIA: dict[str, Callable[[Tensor], Tensor]] = {"magnitude": magnitude}


def keep_share(score: Tensor, sparsity: float) -> Tensor:
    """Mask (bool, the shape of `score`) that drops exactly round(sparsity * n) of the n smallest scores."""
    return keep_largest(score, score.numel() - round(sparsity * score.numel()))


def keep_largest(score: Tensor, count: int) -> Tensor:
    """Mask (bool, the shape of `score`) of the `count` largest scores; of equal ones the later are kept."""
    flat = score.flatten()
    drop = flat.numel() - count
    if drop <= 0:
        return torch.ones_like(score, dtype=torch.bool)
    threshold = flat.kthvalue(drop).values
    mask = flat >= threshold
    surplus = int(mask.sum()) - count
    if surplus > 0:
        mask[(flat == threshold).nonzero().flatten()[:surplus]] = False
    return mask.view(score.shape)


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
