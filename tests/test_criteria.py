"""Masks with exact counts, and criteria against loops that say the same slowly."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from compress.models.calibration import Inputs, gram, inputs_of
from compress.pruning.config import CRITERIA
from compress.pruning.criteria import pruned
from compress.pruning.global_threshold import cut
from compress.pruning.masks import choose, keep_largest, keep_n_of_m, keep_share
from compress.pruning.sparsity import Amount


def read(weight_OI: Tensor, tokens: int = 40, seed: int = 0) -> Inputs:
    """Inputs of unequal lengths that hang together."""
    generator = torch.Generator().manual_seed(seed)
    width = weight_OI.shape[1]
    mixing_II = torch.randn(width, width, generator=generator)
    x_TI = torch.randn(tokens, width, generator=generator) @ mixing_II * torch.linspace(0.1, 3, width)
    return inputs_of(x_TI, "gram")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.501, 0.99])
def test_keep_share_drops_exactly_the_rounded_count(share: float) -> None:
    score = torch.rand(7, 13)
    mask = keep_share(score, share)
    assert int((~mask).sum()) == round(share * 91)
    assert score[~mask].max() <= score[mask].min()


def test_of_equal_scores_the_earlier_go() -> None:
    mask_RN = keep_largest(torch.tensor([[1.0, 1.0, 1.0, 0.0], [2.0, 1.0, 1.0, 1.0]]), 2)
    assert mask_RN.tolist() == [[False, True, True, False], [True, False, False, True]]
    assert int(keep_largest(torch.ones(1, 100), 37).sum()) == 37


@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (1, 4), (3, 4)])
def test_n_of_m_matches_a_naive_loop(n: int, m: int) -> None:
    score_OI = torch.rand(6, 16)
    expected = np.zeros((6, 16), dtype=bool)
    for row in range(6):
        for start in range(0, 16, m):
            order = np.argsort(score_OI[row, start : start + m].numpy())
            expected[row, start + order[-n:]] = True
    assert np.array_equal(keep_n_of_m(score_OI, n, m).numpy(), expected)
    assert np.array_equal(choose(Amount(pattern=(n, m)))(score_OI).numpy(), expected)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.77])
def test_rows_and_layers_are_counted_exactly(share: float) -> None:
    score_OI = torch.rand(9, 23)
    by_row = choose(Amount(sparsity=share, scope="row"))(score_OI)
    by_layer = choose(Amount(sparsity=share, scope="layer"))(score_OI)
    assert (~by_row).sum(dim=1).tolist() == [round(share * 23)] * 9
    assert int((~by_layer).sum()) == round(share * 9 * 23)
    for row in range(9):
        assert score_OI[row][~by_row[row]].max() < score_OI[row][by_row[row]].min()


@pytest.mark.parametrize("scope", ["row", "layer"])
def test_counts_of_parts_add_up(scope: str) -> None:
    score_OI = torch.rand(5, 37)
    chosen = choose(Amount(sparsity=0.37, scope=scope))
    parts = [chosen(score_OI[:, start : start + 8], start) for start in range(0, 37, 8)]
    whole = chosen(score_OI)
    dropped_O = (~torch.cat(parts, dim=1)).sum(dim=1)
    assert int(dropped_O.sum()) == int((~whole).sum())
    if scope == "row":
        assert dropped_O.tolist() == [round(0.37 * 37)] * 5


def test_one_matrix_cannot_decide_for_the_whole_model() -> None:
    with pytest.raises(ValueError, match="scope: expected row or layer, got global"):
        choose(Amount(sparsity=0.5, scope="global"))


@pytest.mark.parametrize("count", [1, 2, 30, 59, 60])
def test_the_cut_of_a_stream_is_the_mask_of_the_whole(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    parts = [torch.rand(4, 5, generator=generator), torch.randint(0, 3, (40,), generator=generator) / 4]
    flat = torch.cat([part.flatten() for part in parts]).reshape(1, -1)

    def stream() -> Iterator[Tensor]:
        yield from parts

    found = cut(stream, count)
    mask = torch.cat([found.mask(part).flatten() for part in parts])
    assert torch.equal(mask, keep_largest(flat, 60 - count)[0])


@pytest.mark.parametrize("width", [5, 256, 300, 513])
def test_gram_by_tiles_is_the_product(width: int) -> None:
    x_TI = torch.randn(20, width)
    torch.testing.assert_close(gram(x_TI).double(), x_TI.double().T @ x_TI.double(), rtol=1e-4, atol=1e-4)


def test_inputs_are_sums_over_tokens() -> None:
    x_TI = torch.randn(30, 6)
    inputs = inputs_of(x_TI, "gram")
    squares = [sum(float(x_TI[token, i]) ** 2 for token in range(30)) for i in range(6)]
    assert inputs.count == 30
    torch.testing.assert_close(inputs.square_I, torch.tensor(squares))
    torch.testing.assert_close(inputs_of(x_TI, "norms").square_I, inputs.square_I)
    assert inputs_of(x_TI, "norms").gram_II is None


def naive_score(name: str, weight_OI: Tensor, x_TI: Tensor) -> Tensor:
    """Each criterion as its paper's one line says it, weight by weight."""
    rows, columns = weight_OI.shape
    gram_II = x_TI.double().T @ x_TI.double()
    damped_II = gram_II + 0.01 * gram_II.diagonal().mean() * torch.eye(columns)
    inverse_II = torch.linalg.inv(damped_II)
    score_OI = torch.zeros(rows, columns, dtype=torch.float64)
    for o in range(rows):
        for i in range(columns):
            w = float(weight_OI[o, i])
            length = sum(float(x) ** 2 for x in x_TI[:, i]) ** 0.5
            score_OI[o, i] = {
                "magnitude": abs(w),
                "wanda": abs(w) * length,
                "sparsegpt": w**2 / float(inverse_II[i, i]),
            }[name]
    return score_OI


@pytest.mark.parametrize("name", ["magnitude", "wanda", "sparsegpt"])
def test_scores_match_naive_loops(name: str) -> None:
    weight_OI, x_TI = torch.randn(5, 12), torch.randn(50, 12) * torch.linspace(0.1, 4, 12)
    score_OI = CRITERIA[name].score(weight_OI, inputs_of(x_TI, "gram"))
    torch.testing.assert_close(score_OI.double(), naive_score(name, weight_OI, x_TI), rtol=1e-3, atol=1e-6)


def test_lots_are_drawn_from_the_seed_alone() -> None:
    weight_OI = torch.randn(8, 8)
    scores = [CRITERIA["random"].score(weight_OI, Inputs(seed=seed)) for seed in (1, 1, 2)]
    assert torch.equal(scores[0], scores[1])
    assert not torch.equal(scores[0], scores[2])


@pytest.mark.parametrize("name", ["magnitude", "wanda", "random"])
def test_what_a_mask_keeps_is_unchanged(name: str) -> None:
    weight_OI = torch.randn(6, 16)
    inputs = read(weight_OI)
    pruned_OI = pruned(CRITERIA[name], weight_OI, inputs, choose(Amount(sparsity=0.5, scope="row")))
    mask_OI = choose(Amount(sparsity=0.5, scope="row"))(CRITERIA[name].score(weight_OI, inputs))
    assert torch.equal(pruned_OI, torch.where(mask_OI, weight_OI, 0.0))
    assert not torch.signbit(pruned_OI[~mask_OI]).any(), "a zero of either sign would compress worse"


@pytest.mark.parametrize("name", ["wanda", "sparsegpt"])
def test_a_calibrated_criterion_asks_for_inputs(name: str) -> None:
    for inputs in (None, Inputs()):
        with pytest.raises(ValueError, match="calibration text"):
            pruned(CRITERIA[name], torch.randn(4, 4), inputs, choose(Amount(sparsity=0.5)))
