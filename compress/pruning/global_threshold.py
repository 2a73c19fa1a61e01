"""The exact threshold of a stream of scores that does not fit into memory: radix selection on the numbers' bits.

    count scores go: all below `value`, and the first `equal` of those that equal it, in the stream's order

Floats that are not negative sort as their bits do. One reading of the stream counts the scores by their upper 16 bits,
which tells the bucket that the threshold lies in; a second counts those of that bucket by their lower 16 bits.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

HALF = 16


@dataclass
class Threshold:
    """What goes; it is asked for one tensor's mask after the other, in the stream's order."""

    value: float
    equal: int

    def mask(self, score: Tensor) -> Tensor:
        """Mask (bool, the shape of `score`) of the scores that stay."""
        mask = score >= self.value
        if self.equal:
            equal = (score == self.value).flatten()
            gone = equal & (equal.cumsum(0) <= self.equal)
            self.equal -= int(gone.sum())
            mask &= ~gone.view(score.shape)
        return mask


def cut(scores: Callable[[], Iterator[Tensor]], count: int) -> Threshold:
    """The cut below which `count` scores lie, at least one.

    Args:
        scores: the stream of float32 tensors, none negative, from its beginning; called twice.
    """
    high, below = _bucket(scores, lambda bits: bits >> HALF, count)
    low, within = _bucket(scores, lambda bits: bits[bits >> HALF == high] & ((1 << HALF) - 1), count - below)
    value = torch.tensor([high << HALF | low], dtype=torch.int32).view(torch.float32)
    return Threshold(float(value), count - below - within)


def _bucket(scores: Callable[[], Iterator[Tensor]], key: Callable[[Tensor], Tensor], count: int) -> tuple[int, int]:
    """(the bucket that the count-th smallest lies in, how many lie in the buckets before it)."""
    filled = torch.zeros(1 << HALF, dtype=torch.int64)
    for score in scores():
        bits = score.float().flatten().view(torch.int32)
        filled += torch.bincount(key(bits), minlength=1 << HALF)
    reached = filled.cumsum(0)
    bucket = int(torch.searchsorted(reached, count))
    return bucket, int(reached[bucket] - filled[bucket])
