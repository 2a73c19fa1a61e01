"""Sparsity per block from sensitivity curves: the fit, and a search over every allocation of a small grid."""

from itertools import product

import numpy as np
import pytest

from compress.pruning.allocation import allocate, bounds, fit, levels, spend
from compress.pruning.sensitivity import Curve, Point, Sensitivity

GRID = (0.25, 0.5, 0.75)
SIZES = (100, 100, 200, 400)


def sensitivity_of(curves: dict[str, tuple[int, dict[float | str, float]]], error: float = 0.0) -> Sensitivity:
    def point(level: float | str, increase: float) -> Point:
        return Point(level=level, loss=3 + increase, increase=increase, error=error)

    blocks = tuple(
        Curve(name=name, parameters=size, points=tuple(point(level, more) for level, more in points.items()))
        for name, (size, points) in curves.items()
    )
    return Sensitivity(
        criterion="wanda", scope="row", calibration_tokens=1, held_out_tokens=1, dense=3.0, blocks=blocks
    )


def power_curves(scales: np.ndarray, power: float, noise: float = 0.0, seed: int = 0) -> Sensitivity:
    random = np.random.default_rng(seed)
    return sensitivity_of(
        {
            f"block.{index}": (size, {s: float(scale * s**power + noise * random.normal()) for s in GRID})
            for index, (scale, size) in enumerate(zip(scales, SIZES, strict=True))
        },
        error=noise,
    )


@pytest.mark.parametrize("seed", range(10))
def test_no_allocation_of_a_grid_is_better(seed: int) -> None:
    random = np.random.default_rng(seed)
    scales, power = random.uniform(0.05, 2.0, len(SIZES)), float(random.choice([1.5, 3.0, 4.5]))
    given = allocate(power_curves(scales, power), 0.5)
    assert list(given) == ["block.0", "block.1", "block.2", "block.3"]
    found = np.array(list(given.values()))
    assert float(np.average(found, weights=SIZES)) == pytest.approx(0.5, abs=1e-12)
    assert ((found >= 0.25) & (found <= 0.75)).all()
    rivals = np.array(list(product(np.linspace(0.25, 0.75, 17), repeat=4)))
    rivals = rivals[np.abs(rivals @ np.array(SIZES) / sum(SIZES) - 0.5) < 1e-9]
    assert len(rivals) > 1000
    cost = (scales * found**power).sum()
    assert cost <= (scales * rivals**power).sum(axis=1).min() + 1e-9
    assert cost < (scales * 0.5**power).sum()  # which is uniform


def test_the_fit_finds_the_shape_that_curves_share_through_their_noise() -> None:
    scales = np.array([0.2, 0.5, 1.0, 3.0] * 8)
    random = np.random.default_rng(0)
    shares = np.array(GRID)
    errors = np.full((len(scales), 3), 0.01)
    power, found = fit(shares, scales[:, None] * shares**4 + errors * random.normal(size=errors.shape), errors)
    assert power == pytest.approx(4.0, abs=0.3)
    assert found == pytest.approx(scales, rel=0.3)


def test_a_block_that_seems_to_gain_is_not_pruned_beyond_the_bound() -> None:
    given = allocate(power_curves(np.array([-0.2, 0.5, 0.5, 0.5]), 3.0), 0.5)
    assert given["block.0"] == 0.75
    assert given["block.1"] < given["block.2"] < given["block.3"]  # a weight of a larger block costs less
    assert given["block.2"] == pytest.approx(given["block.1"] * 2 ** (1 / 2))


def test_blocks_that_bear_the_same_get_the_same() -> None:
    curve: dict[float | str, float] = {0.25: 0.01, 0.5: 0.05, 0.75: 0.4}
    assert allocate(sensitivity_of({"a": (10, curve), "b": (10, curve)}), 0.5) == pytest.approx({"a": 0.5, "b": 0.5})


def test_patterns_are_no_part_of_a_curve() -> None:
    with_pattern = sensitivity_of(
        {"a": (10, {0.5: 0.1, 0.7: 0.3, "2:4": 9.0}), "b": (10, {0.5: 0.2, 0.7: 0.6, "2:4": 0})}
    )
    without = sensitivity_of({"a": (10, {0.5: 0.1, 0.7: 0.3}), "b": (10, {0.5: 0.2, 0.7: 0.6})})
    assert allocate(with_pattern, 0.4) == allocate(without, 0.4)
    assert allocate(without, 0.4)["a"] > 0.4


def test_curves_that_say_too_little_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a sparsity of 0\.8, got some that end at 0\.5; measure"):
        allocate(sensitivity_of({"a": (10, {0.25: 0.1, 0.5: 0.1})}), 0.8)
    with pytest.raises(ValueError, match=r"at least two sparsities, got \[0\.5\]"):
        allocate(sensitivity_of({"a": (10, {0.5: 0.1})}), 0.5)


@pytest.mark.parametrize("sparsity", [0.05, 0.3, 0.5, 0.9])
def test_the_budget_is_spent_whatever_the_scales(sparsity: float) -> None:
    random = np.random.default_rng(1)
    scales, sizes = 10 ** random.uniform(-6, 3, 24), random.uniform(1e3, 1e8, 24)
    low, high = bounds(sparsity)
    shares = spend(scales, 4.0, sizes, sparsity, low, high)
    assert np.average(shares, weights=sizes) == pytest.approx(sparsity, abs=1e-9)
    assert low <= shares.min() <= shares.max() <= high


@pytest.mark.parametrize(
    ("sparsity", "spread", "expected"),
    [(0.5, 0.25, (0.25, 0.75)), (0.1, 0.25, (0.0, 0.35)), (0.9, 0.25, (0.65, 0.95)), (0.97, 0.1, (0.87, 0.97))],
)
def test_bounds_stay_within_what_makes_sense(sparsity: float, spread: float, expected: tuple[float, float]) -> None:
    assert bounds(sparsity, spread) == pytest.approx(expected)
    assert len(set(levels(sparsity, spread))) == 2
    assert sparsity in levels(sparsity, spread)
    assert max(levels(sparsity, spread)) == pytest.approx(expected[1])
    assert min(levels(sparsity, spread)) > 0
