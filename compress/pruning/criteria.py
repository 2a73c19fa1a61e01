"""Criteria: which weights of a linear matter least, and the linear without them. Pure functions on tensors.

    magnitude  |W|                     blind to the inputs
    wanda      |W_oi| * ||x_i||_2      the weight and the length of the input that it meets
    sparsegpt  W^2 / [H^-1]_ii         and the weights that stay make up for those that go (`sparsegpt.py`)
    random     lots                    the control that every criterion must beat

Legend: O outputs, I inputs of a linear y = W x, W [out, in].
Sources: magnitude pruning, Han et al. (arXiv 1506.02626); Wanda, Sun et al. (arXiv 2306.11695).
"""

import torch
from torch import Tensor

from compress.models.calibration import Inputs
from compress.pruning.config import Criterion
from compress.pruning.masks import MaskSelector


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


def pruned(criterion: Criterion, weight_OI: Tensor, inputs: Inputs | None, choose: MaskSelector) -> Tensor:
    """The linear without the weights that the criterion finds least important: a new weight_OI with exact zeros."""
    if criterion.refit is not None:
        refitted_OI: Tensor = criterion.refit(weight_OI, inputs, choose)
        return refitted_OI
    return weight_OI.masked_fill(~choose(criterion.score(weight_OI, inputs)), 0)
