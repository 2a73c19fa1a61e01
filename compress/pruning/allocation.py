"""How much to prune in each block, so that the whole model has the sparsity that was asked for at the least loss.

    fit        increase_b(s) = a_b s^p        a scale for each block b, one power p for all of them
    minimize   sum_b a_b s_b^p                subject to  sum_b w_b s_b = S sum_b w_b,    low <= s_b <= high
    answer     s_b = (lambda w_b / a_b)^(1 / (p - 1)), clipped to the bounds; lambda is what spends the budget

for blocks of w_b weights. Single curves (`sensitivity.py`) are as noisy as the little text that they are taken on, but
they are alike in shape; so the shape is fitted to all of them together, by least squares weighted with their errors.
Taking the measured points themselves, joined by straight lines, drives every block to a corner of its curve and
profits far less: on SmolLM2-135M at 50 % (Wanda; WikiText-2) uniform gives perplexity 57.5, corners 55.9, this 51.2.
The objective assumes that increases add up, which holds the less the further a block goes: hence the bounds.

Not covered: kinds of linears, patterns, and what a later training stage mends.
"""

import numpy as np
from numpy.typing import NDArray

from compress.pruning.sensitivity import Curve, Sensitivity

SPREAD = 0.25
"""How far a block's sparsity may lie from the whole model's."""
LARGEST = 0.95
POWERS = np.arange(1.2, 12.0, 0.05)
"""Among these the power is looked for."""
SMALLEST = 1e-3
"""Least scale of a block, as a share of the mean: one that seems to cost nothing, or to gain, is within its noise."""
FLAT = 1e-9
"""Nats: the mean scale counts as no less, so that a model that pruning does not harm is pruned evenly."""
HALVINGS = 200
Floats = NDArray[np.float64]


def allocate(sensitivity: Sensitivity, sparsity: float, *, spread: float = SPREAD) -> dict[str, float]:
    """The sparsity of every block, whose mean weighted by parameters is `sparsity`.

    Args:
        spread: bounds of each block's sparsity, on either side of `sparsity`; never above what was measured.

    Raises:
        ValueError: the curves end below `sparsity`, or have fewer than two points to be fitted to.
    """
    low, high = bounds(sparsity, spread)
    shares_P, increase_BP, error_BP = points(sensitivity.blocks)
    high = min(high, float(shares_P[-1]))
    if high < sparsity:
        raise ValueError(
            f"allocation: expected curves that reach a sparsity of {sparsity:g}, got some that end at {high:g}; "
            f"measure the sensitivity at {sparsity:g} and above"
        )
    power, scale_B = fit(shares_P, increase_BP, error_BP)
    size_B = np.array([curve.parameters for curve in sensitivity.blocks], dtype=np.float64)
    share_B = spend(scale_B, power, size_B, sparsity, low, high)
    return {curve.name: float(share) for curve, share in zip(sensitivity.blocks, share_B, strict=True)}


def bounds(sparsity: float, spread: float = SPREAD) -> tuple[float, float]:
    """The least and the largest sparsity that a block may get."""
    return max(sparsity - spread, 0.0), max(min(sparsity + spread, LARGEST), sparsity)


def levels(sparsity: float, spread: float = SPREAD) -> tuple[float, float]:
    """Where curves are best measured for `allocate`: at the mean and at the upper bound, where they stand out most."""
    low, high = bounds(sparsity, spread)
    found = (sparsity, high) if high > sparsity else (low, sparsity)
    return round(found[0], 4), round(found[1], 4)


def points(curves: tuple[Curve, ...]) -> tuple[Floats, Floats, Floats]:
    """(shares_P, increase_BP, error_BP) of the curves at the sparsities that they have in common; no patterns.

    Raises:
        ValueError: there are fewer than two.
    """
    shares = sorted({point.level for point in curves[0].points if isinstance(point.level, float)})
    if len(shares) < 2:
        raise ValueError(f"allocation: expected curves of at least two sparsities, got {shares}; measure at more")
    by_level = [{point.level: point for point in curve.points} for curve in curves]
    increase_BP = np.array([[found[share].increase for share in shares] for found in by_level])
    error_BP = np.array([[found[share].error for share in shares] for found in by_level])
    return np.array(shares), increase_BP, error_BP


def fit(shares_P: Floats, increase_BP: Floats, error_BP: Floats) -> tuple[float, Floats]:
    """(power, scale_B) of the curves scale * share^power that come closest, in units of the points' errors."""
    typical = float(np.median(error_BP)) or float(np.abs(increase_BP).mean()) or 1.0
    weight_BP = 1 / (error_BP**2 + typical**2)  # an error of a few rows may be small by luck

    def fitted(power: float) -> tuple[float, Floats]:
        shape_P = shares_P**power
        scale_B = (weight_BP * increase_BP * shape_P).sum(axis=1) / (weight_BP * shape_P**2).sum(axis=1)
        missed_BP = increase_BP - scale_B[:, None] * shape_P
        return float((weight_BP * missed_BP**2).sum()), scale_B

    power = min(map(float, POWERS), key=lambda power: fitted(power)[0])
    scale_B = fitted(power)[1]
    return power, np.maximum(scale_B, SMALLEST * max(float(scale_B.mean()), FLAT))


def spend(scale_B: Floats, power: float, size_B: Floats, sparsity: float, low: float, high: float) -> Floats:
    """The shares between `low` and `high` whose mean weighted by size is `sparsity`, at the least sum of costs."""

    def shares(price: float) -> Floats:
        clipped: Floats = np.clip(np.exp((price + np.log(size_B / scale_B)) / (power - 1)), low, high)
        return clipped

    # of the price's logarithm: at the lower end every block is at its least, at the upper end at its most
    offset_B = np.log(scale_B / size_B)
    least = float(offset_B.min()) + (power - 1) * np.log(max(low, 1e-9))
    most = float(offset_B.max()) + (power - 1) * np.log(high)
    for _ in range(HALVINGS):
        middle = (least + most) / 2
        least, most = (middle, most) if np.average(shares(middle), weights=size_B) < sparsity else (least, middle)
    return shares(most)
