"""How much a head, a neuron or a hidden channel matters, and which of them to keep. Functions on tensors.

    activations  a_u = || mean over t of |y_ntu| ||_2 over n     what the unit puts out on calibration text (Minitron):
                 a neuron its activation, a head the length of its output, a channel what every norm makes of it
    weights      || W_u ||_2                                     the weights that would go with it
    random       drawn by rng_key                                    the control that a criterion has to beat

    N rows    T tokens    U units    [q, k] grouped heads: q query heads share each of k key-value heads

Uniform widths leave only the ranking within a layer to decide, so scores of different layers are never compared.
Source: Minitron, Muralidharan et al. (arXiv 2407.14679), whose best aggregation this is: mean over the sequence, then
the L2 norm over the batch.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.digests import seed_of


@dataclass(frozen=True, eq=False)
class ActivationStatistics:
    """What an importance may look at."""

    fed_NTI: Tensor | None = None
    """What the units put out; a unit is `unit` consecutive columns of it."""
    unit: int = 1
    slices: Iterable[Tensor] = ()
    """The weights that would go with each unit: tensors [U, any]."""
    count: int = 0
    """U."""
    rng_key: str = ""
    """What a drawing of lots is seeded with."""


def by_activations(statistics: ActivationStatistics) -> Tensor:
    """Mean over the sequence of each unit's L2 norm, then the L2 norm over the rows."""
    if statistics.fed_NTI is None:
        raise ValueError("expected what the units put out, got none: run the model on calibration text")
    rows = [
        torch.linalg.vector_norm(row_TI.float().unflatten(-1, (-1, statistics.unit)), dim=-1).mean(dim=0)
        for row_TI in statistics.fed_NTI
    ]
    score_U: Tensor = torch.linalg.vector_norm(torch.stack(rows), dim=0)
    return score_U


def by_weights(statistics: ActivationStatistics) -> Tensor:
    """L2 norm of everything that would go with each unit."""
    squares = torch.zeros(statistics.count)
    for weights in statistics.slices:
        squares += weights.float().square().sum(dim=1)
    return squares.sqrt()


def by_rng_key(statistics: ActivationStatistics) -> Tensor:
    """Uniform random numbers, the same for the same rng_key."""
    return torch.rand(statistics.count, generator=torch.Generator().manual_seed(seed_of(statistics.rng_key)))


def most_important(score_U: Tensor, count: int) -> list[int]:
    """The `count` units with the largest scores, in rising order; of equal ones the earlier are kept."""
    return sorted(score_U.argsort(descending=True, stable=True)[:count].tolist())


def most_important_heads(score_H: Tensor, kv_heads: int, heads: int, groups: int) -> tuple[list[int], list[int]]:
    """`heads` query heads in `groups` groups, and the groups' key-value heads, both in rising order.

    In each of the source's `kv_heads` groups the best query heads stand for it, as many as every group will have; the
    groups with the largest sums are kept. Heads of one group so stay with the key-value head they were trained with.
    """
    queries = heads // groups
    score_KQ = score_H.view(kv_heads, -1)
    best_KQ = score_KQ.argsort(dim=1, descending=True, stable=True)[:, :queries]
    kept = most_important(score_KQ.gather(1, best_KQ).sum(dim=1), groups)
    width = score_KQ.shape[1]
    return [group * width + query for group in kept for query in sorted(best_KQ[group].tolist())], kept
