"""Pruning: exact counts, the right axis, and zeros that stay."""

from pathlib import Path

import numpy as np
import pytest
import torch

from compress import PruneConfig, StageError, StageInput, TextSource
from compress.checkpoint import load_model
from compress.distill import DistillConfig
from compress.distill import run as distill
from compress.linears import block_linears, sparsity
from compress.prune import run as prune
from compress.sparsify import CRITERIA, keep_largest, keep_n_of_m, keep_share


def pruned(source: Path, tmp_path: Path, **knobs: object) -> Path:
    out = tmp_path / "pruned"
    out.mkdir()
    prune(PruneConfig(**knobs), StageInput(source=source, out=out, scratch=tmp_path))
    return out


@pytest.mark.parametrize("share", [0.1, 0.5, 0.501, 0.99])
def test_keep_share_drops_exactly_the_rounded_count(share: float) -> None:
    score = torch.rand(7, 13)
    mask = keep_share(score, share)
    assert int((~mask).sum()) == round(share * 91)
    assert score[~mask].max() <= score[mask].min()


def test_keep_largest_is_exact_among_ties() -> None:
    assert int(keep_largest(torch.ones(10, 10), 37).sum()) == 37


def test_two_of_four_matches_a_naive_loop() -> None:
    score_OI = torch.rand(6, 16)
    expected = np.zeros((6, 16), dtype=bool)
    for row in range(6):
        for start in range(0, 16, 4):
            order = np.argsort(score_OI[row, start : start + 4].numpy())
            expected[row, start + order[-2:]] = True
    assert np.array_equal(keep_n_of_m(score_OI, 2, 4).numpy(), expected)


def test_magnitude_is_the_absolute_value() -> None:
    assert torch.equal(CRITERIA["magnitude"](torch.tensor([[-2.0, 1.0]])), torch.tensor([[2.0, 1.0]]))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_pattern_holds_along_the_inputs_of_every_linear(
    family: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """GPT-2 stores [in, out]: a pattern along the wrong axis would fail here."""
    model = load_model(pruned(request.getfixturevalue(family), tmp_path, pattern="2:4"))
    linears = list(block_linears(model))
    assert linears
    for linear in linears:
        outputs, inputs = linear.weight_OI().shape
        counts = (linear.weight_OI() != 0).reshape(outputs, inputs // 4, 4).sum(dim=-1)
        assert counts.max() == 2, linear.name
        assert counts.min() == 2, linear.name


def test_layer_scope_prunes_every_layer_alike_and_leaves_the_rest(gpt2: Path, tmp_path: Path) -> None:
    before, after = load_model(gpt2), load_model(pruned(gpt2, tmp_path, sparsity=0.3))
    for linear in block_linears(after):
        zeros = int((linear.parameter == 0).sum())
        assert zeros == round(0.3 * linear.parameter.numel()), linear.name
    touched = {f"{linear.name}.weight" for linear in block_linears(after)}
    rest = [name for name in before.state_dict() if name not in touched]
    assert "transformer.wte.weight" in rest
    assert all(torch.equal(before.state_dict()[name], after.state_dict()[name]) for name in rest)


def test_global_scope_is_exact_over_the_whole_model(gpt2: Path, tmp_path: Path) -> None:
    model = load_model(pruned(gpt2, tmp_path, sparsity=0.4, scope="global"))
    total = sum(linear.parameter.numel() for linear in block_linears(model))
    assert sum(int((linear.parameter == 0).sum()) for linear in block_linears(model)) == round(0.4 * total)


def test_row_scope_prunes_every_row_alike(llama: Path, tmp_path: Path) -> None:
    model = load_model(pruned(llama, tmp_path, sparsity=0.25, scope="row"))
    for linear in block_linears(model):
        zeros_O = (linear.weight_OI() == 0).sum(dim=1)
        assert zeros_O.unique().tolist() == [round(0.25 * linear.weight_OI().shape[1])], linear.name


def test_what_is_kept_is_unchanged(gpt2: Path, tmp_path: Path) -> None:
    before, after = load_model(gpt2), load_model(pruned(gpt2, tmp_path, sparsity=0.5))
    for old, new in zip(block_linears(before), block_linears(after), strict=True):
        kept = new.parameter != 0
        assert torch.equal(old.parameter[kept], new.parameter[kept])
        assert old.parameter[~kept].abs().max() <= old.parameter[kept].abs().min()


def test_a_pattern_that_does_not_fit_names_the_tensors(gpt2: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"pattern 2:7.*transformer\.h\.0\.attn\.c_attn \(64 inputs\)"):
        pruned(gpt2, tmp_path, pattern="2:7")


@pytest.mark.parametrize(
    "knobs", [{}, {"sparsity": 0.5, "pattern": "2:4"}, {"pattern": "4:2"}, {"pattern": 124}, {"sparsity": 1.0}]
)
def test_contradictory_knobs_are_refused(knobs: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"sparsity|pattern"):
        PruneConfig(**knobs)


def test_zeros_survive_training_with_weight_decay(gpt2: Path, text_file: Path, tmp_path: Path) -> None:
    source = pruned(gpt2, tmp_path, pattern="2:4")
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    out.mkdir()
    scratch.mkdir()
    config = DistillConfig(tokens=2048, length=64, batch=4, learning_rate=1e-2, weight_decay=0.5)
    facts = distill(
        config, StageInput(source=source, out=out, scratch=scratch, teacher=gpt2, train_text=TextSource(file=text_file))
    )
    before, after = load_model(source), load_model(out)
    for old, new in zip(block_linears(before), block_linears(after), strict=True):
        assert torch.equal(old.parameter == 0, new.parameter == 0), new.name
        assert not torch.equal(old.parameter, new.parameter), "training changed nothing"
    assert sparsity(after) == facts["sparsity"] == 0.5
