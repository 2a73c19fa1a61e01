"""Criteria: which weights of a linear matter least, and the linear without them. Pure functions on tensors.

    magnitude  |W|                     blind to the inputs
    wanda      |W_oi| * ||x_i||_2      the weight and the length of the input that it meets
    sparsegpt  W^2 / [H^-1]_ii         and the weights that stay make up for those that go (`sparsegpt.py`)
    random     lots                    the control that every criterion must beat

Legend: O outputs, I inputs of a linear y = W x, W [out, in].
Sources: magnitude pruning, Han et al. (arXiv 1506.02626); Wanda, Sun et al. (arXiv 2306.11695).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.calibration import Inputs as Inputs
from compress.calibration import Reads
from compress.pruning import sparsegpt
from compress.pruning.amount import Amount as Amount
from compress.pruning.masks import Choose as Choose
from compress.pruning.masks import choose as choose

Score = Callable[[Tensor, Inputs | None], Tensor]
Prune = Callable[[Tensor, Inputs | None, Choose], Tensor]


@dataclass(frozen=True)
class Criterion:
    """One way to choose the weights that go."""

    summary: str
    """One line for `demitasse methods`."""
    reads: Reads
    """What it must know of the linear's inputs."""
    score: Score
    """(weight_OI, inputs) -> score_OI, small = unimportant."""
    prune: Prune
    """(weight_OI, inputs, choose) -> a new weight_OI with exact zeros."""


def magnitude(weight_OI: Tensor, inputs: Inputs | None = None) -> Tensor:
    """The weight's absolute value: cheap, blind to the inputs it meets."""
    return weight_OI.abs()


def wanda(weight_OI: Tensor, inputs: Inputs | None) -> Tensor:
    """The weight's absolute value times the length of its input over the calibration text."""
    if inputs is None:
        raise ValueError("expected the inputs' sums of squares, got none: run the model on calibration text")
    return weight_OI.abs() * inputs.norm_I


def random(weight_OI: Tensor, inputs: Inputs | None = None) -> Tensor:
    """Uniform numbers from the seed that comes with the inputs (0 without them)."""
    generator = torch.Generator().manual_seed(0 if inputs is None else inputs.seed)
    return torch.rand(weight_OI.shape, generator=generator)


def by_mask(score: Score) -> Prune:
    """The linear whose weights are dropped by `score`, those that stay being unchanged."""

    def prune(weight_OI: Tensor, inputs: Inputs | None, choose: Choose) -> Tensor:
        return weight_OI.masked_fill(~choose(score(weight_OI, inputs)), 0)

    return prune


CRITERIA: dict[str, Criterion] = {
    "magnitude": Criterion(
        "the weight's absolute value, blind to its inputs", "nothing", magnitude, by_mask(magnitude)
    ),
    "wanda": Criterion("the weight times the length of its input on calibration text", "norms", wanda, by_mask(wanda)),
    "sparsegpt": Criterion(
        "the error that the other weights cannot make up for; they do make up for the rest",
        "gram",
        sparsegpt.score,
        sparsegpt.prune,
    ),
    "random": Criterion("lots from the seed: the control", "nothing", random, by_mask(random)),
}
