"""SparseGPT against the paper's updates written out, and against what cheaper criteria leave of the output."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from compress.models.calibration import DAMPING, Inputs, inputs_of
from compress.pruning import sparsegpt
from compress.pruning.config import CRITERIA
from compress.pruning.criteria import pruned
from compress.pruning.masks import choose
from compress.pruning.sparsity import Amount

AMOUNTS = {
    "layer": Amount(sparsity=0.5, scope="layer"),
    "row": Amount(sparsity=0.375, scope="row"),
    "2:4": Amount(pattern=(2, 4)),
    "4:8": Amount(pattern=(4, 8)),
}


def correlated(tokens: int, width: int, seed: int = 0) -> Tensor:
    """Inputs x_TI that hang together, some ten times as long as others."""
    generator = torch.Generator().manual_seed(seed)
    few_TF = torch.randn(tokens, width // 4, generator=generator)
    x_TI = few_TF @ torch.randn(width // 4, width, generator=generator)
    lengths_I = torch.logspace(-0.5, 0.5, width)[torch.randperm(width, generator=generator)]
    return (x_TI + 0.5 * torch.randn(tokens, width, generator=generator)) * lengths_I


def literal(weight_OI: Tensor, x_TI: Tensor, amount: Amount, block: int) -> Tensor:
    """The paper's algorithm in float64: for each column the inverse Hessian of the columns still free, anew."""
    weight_OI, size = weight_OI.double().clone(), weight_OI.shape[1]
    gram_II = x_TI.double().T @ x_TI.double()
    hessian_II = gram_II + DAMPING * gram_II.diagonal().mean() * torch.eye(size, dtype=torch.float64)
    inverses = [torch.linalg.inv(hessian_II[column:, column:]) for column in range(size)]
    width = block if amount.pattern is None else amount.pattern[1]
    mask_OI = torch.ones_like(weight_OI, dtype=torch.bool)
    for column in range(size):
        if column % width == 0:
            stop = min(column + width, size)
            scale = torch.stack([inverses[later][0, 0] for later in range(column, stop)])
            mask_OI[:, column:stop] = choose(amount)(weight_OI[:, column:stop] ** 2 / scale, column)
        inverse = inverses[column]
        for row in range(len(weight_OI)):
            if not mask_OI[row, column]:
                weight_OI[row, column:] -= weight_OI[row, column] / inverse[0, 0] * inverse[0]
                weight_OI[row, column] = 0
    return weight_OI


@pytest.mark.parametrize("name", AMOUNTS)
@pytest.mark.parametrize("block", [4, 8, 128])
def test_equals_the_papers_updates_written_out(name: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparsegpt, "BLOCK", block)
    weight_OI, x_TI = torch.randn(8, 16, generator=torch.Generator().manual_seed(1)), correlated(60, 16)
    pruned_OI = sparsegpt.sweep(weight_OI, inputs_of(x_TI, "gram").factor_II, choose(AMOUNTS[name]))
    expected_OI = literal(weight_OI, x_TI, AMOUNTS[name], block)
    assert torch.equal(pruned_OI == 0, expected_OI == 0)
    torch.testing.assert_close(pruned_OI.double(), expected_OI, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", AMOUNTS)
def test_the_refit_ends_in_the_least_squares_answer_of_every_row(name: str) -> None:
    weight_OI, x_TI = torch.randn(8, 16, generator=torch.Generator().manual_seed(3)), correlated(60, 16)
    inputs = inputs_of(x_TI, "gram")
    hessian_II = inputs.damped_II.double()
    pruned_OI = sparsegpt.sweep(weight_OI, inputs.factor_II, choose(AMOUNTS[name])).double()
    fitted_OI = sparsegpt.refit(weight_OI.double(), pruned_OI, hessian_II, steps=40)
    for row in range(8):
        kept = pruned_OI[row] != 0
        within = hessian_II[kept][:, kept]
        expected = torch.linalg.solve(within, hessian_II[kept] @ weight_OI[row].double())
        torch.testing.assert_close(fitted_OI[row, kept], expected, rtol=1e-6, atol=1e-8)
        assert not fitted_OI[row, ~kept].any()


@pytest.mark.parametrize("name", AMOUNTS)
def test_every_step_of_the_refit_takes_off_some_of_the_error(name: str) -> None:
    weight_OI, inputs = torch.randn(32, 64), inputs_of(correlated(200, 64), "gram")
    pruned_OI = sparsegpt.sweep(weight_OI, inputs.factor_II, choose(AMOUNTS[name]))
    errors = []
    for steps in range(sparsegpt.STEPS + 1):
        left_OI = weight_OI - sparsegpt.refit(weight_OI, pruned_OI, inputs.damped_II, steps)
        errors.append(float(((left_OI @ inputs.damped_II) * left_OI).sum()))
    assert all(after < before for before, after in pairwise(errors))
    assert errors[-1] < 0.9 * errors[0]


def test_factor_is_the_upper_root_of_the_damped_inverse() -> None:
    x_TI = correlated(80, 24)
    inputs = inputs_of(x_TI, "gram")
    gram_II = x_TI.double().T @ x_TI.double()
    damped_II = gram_II + DAMPING * gram_II.diagonal().mean() * torch.eye(24, dtype=torch.float64)
    factor_II = inputs.factor_II.double()
    assert torch.equal(factor_II, factor_II.triu())
    torch.testing.assert_close(
        factor_II.T @ factor_II @ damped_II, torch.eye(24, dtype=torch.float64), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("name", AMOUNTS)
def test_leaves_more_of_the_output_than_magnitude_and_wanda(name: str) -> None:
    weight_OI, x_TI = torch.randn(48, 64, generator=torch.Generator().manual_seed(2)), correlated(400, 64)
    inputs = inputs_of(x_TI, "gram")
    error = {
        criterion: float(
            (x_TI @ (pruned(CRITERIA[criterion], weight_OI, inputs, choose(AMOUNTS[name])) - weight_OI).T).norm()
        )
        for criterion in ("magnitude", "wanda", "sparsegpt", "random")
    }
    assert error["sparsegpt"] < 0.9 * error["wanda"]
    assert error["wanda"] < 0.9 * error["magnitude"] < 0.9 * error["random"]


@pytest.mark.parametrize("name", AMOUNTS)
@pytest.mark.parametrize("width", [64, 200, 264])
def test_counts_are_exact_over_several_blocks(name: str, width: int) -> None:
    weight_OI = torch.randn(10, width)
    amount = AMOUNTS[name]
    zero_OI = sparsegpt.prune(weight_OI, inputs_of(correlated(500, width), "gram"), choose(amount)) == 0
    if amount.pattern is not None:
        n, m = amount.pattern
        assert zero_OI.reshape(10, -1, m).sum(dim=-1).unique().tolist() == [m - n]
    elif amount.scope == "row":
        assert zero_OI.sum(dim=1).unique().tolist() == [round(amount.sparsity * width)]
    else:
        assert int(zero_OI.sum()) == round(amount.sparsity * 10 * width)


def test_independent_inputs_need_no_making_up() -> None:
    """With orthogonal inputs of equal length it is magnitude pruning."""
    weight_OI, x_TI = torch.randn(6, 32), torch.eye(32) * 5
    pruned_OI = sparsegpt.prune(weight_OI, inputs_of(x_TI, "gram"), choose(Amount(sparsity=0.5)))
    expected_OI = pruned(CRITERIA["magnitude"], weight_OI, None, choose(Amount(sparsity=0.5)))
    torch.testing.assert_close(pruned_OI, expected_OI)


def test_weights_of_dead_inputs_go_first_and_change_nothing_else() -> None:
    dead_I = (torch.arange(16) == 3) | (torch.arange(16) == 9)
    x_TI = torch.randn(100, 16).masked_fill(dead_I, 0)
    weight_OI = torch.rand(8, 16) + 0.5
    pruned_OI = sparsegpt.prune(weight_OI, inputs_of(x_TI, "gram"), choose(Amount(sparsity=2 / 16, scope="row")))
    assert torch.equal(pruned_OI, weight_OI.masked_fill(dead_I, 0))


def test_inputs_that_are_all_zero_leave_magnitude() -> None:
    weight_OI = torch.randn(6, 16)
    pruned_OI = sparsegpt.prune(weight_OI, inputs_of(torch.zeros(10, 16), "gram"), choose(Amount(sparsity=0.5)))
    assert torch.equal(pruned_OI, pruned(CRITERIA["magnitude"], weight_OI, None, choose(Amount(sparsity=0.5))))


def test_inputs_that_overflow_are_an_error() -> None:
    x_TI = torch.ones(4, 8)
    x_TI[0, 0] = float("inf")
    with pytest.raises(ValueError, match="overflows"):
        sparsegpt.prune(torch.randn(4, 8), inputs_of(x_TI, "gram"), choose(Amount(sparsity=0.5)))


def test_the_factor_is_computed_once_for_linears_that_share_inputs() -> None:
    inputs: Inputs = inputs_of(correlated(40, 8), "gram")
    assert inputs.factor_II is inputs.factor_II
