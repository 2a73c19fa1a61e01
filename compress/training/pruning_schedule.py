"""Gradual pruning: how many weights are zero after each step of a training run, and the knobs that say so.

    s_t = s_f + (s_0 - s_f) (1 - t / R)^3        t steps done, R steps of the ramp;  s_t = s_f after it

A model that loses its weights a few at a time, the smallest first and most of them early, can make up for each loss
before the next; what it loses at once it wins back only in part. `sparsity_masks.py` chooses the weights and holds
them at zero.

s_0 is the share that is zero already, so a model that was pruned before goes on from there. With a pattern N:M, s_f is
1 - N / M, and the pattern holds at the end of the ramp.
Source: Zhu and Gupta (arXiv 1710.01878).

Not covered: weights that come back. A dense copy behind the mask, through which a dropped weight goes on learning and
may return while the ramp lasts, ended no better on the model that the repository carries: after 150,000 tokens 1.027
times the teacher's perplexity against 1.026 at half the weights, and 1.039 against 1.035 at 2:4.
"""

from dataclasses import dataclass

from pydantic import Field

from compress.pruning.sparsity import AmountConfig

UPDATES = 75
"""About how many times the masks are extended unless `every` says otherwise."""


class GradualConfig(AmountConfig):
    """Prune while training: the smallest weights become zero a few at a time, and stay zero."""

    ramp: float = Field(default=0.6, gt=0, lt=1)
    """Share of the steps over which weights are dropped; the rest trains what is left."""
    every: int | None = Field(default=None, gt=0)
    """Steps between two droppings; absent: so that there are about 75 of them."""


@dataclass(frozen=True, kw_only=True)
class Ramp:
    """The share of zeros after each step."""

    first: float
    """s_0."""
    last: float
    """s_f."""
    steps: int
    """R."""
    every: int

    @classmethod
    def of(cls, config: GradualConfig, steps: int, *, first: float, last: float) -> "Ramp":
        """The ramp that the knobs ask for in a run of `steps` steps."""
        length = max(1, round(config.ramp * steps))
        return cls(first=first, last=last, steps=length, every=config.every or max(1, length // UPDATES))

    def share(self, step: int) -> float:
        """s_t after `step` steps."""
        left = max(0.0, 1 - step / self.steps)
        return self.last + (self.first - self.last) * left**3

    def due(self, step: int) -> bool:
        """Whether weights are dropped after `step` steps; at the ramp's end they always are."""
        return 0 < step <= self.steps and (step % self.every == 0 or step == self.steps)

    @property
    def updates(self) -> int:
        """How many times weights are dropped."""
        return -(-self.steps // self.every)
