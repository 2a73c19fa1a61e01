"""Gradual pruning: the ramp, exact counts after every dropping, zeros that never move, and resumption within it."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from killing import KillAt, KilledError
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from compress import DistillConfig, StageError, StageInput, TextSource, TrainConfig
from compress.checkpoints.loading import load_model
from compress.distillation.stage import run as distill
from compress.models.block_linears import BlockLinear, block_linears
from compress.pruning.sparsity import Amount
from compress.stage import Silent
from compress.training.loop import Schedule, fit
from compress.training.objective import Objective
from compress.training.pruning_schedule import GradualConfig, Ramp
from compress.training.sparsity_masks import FILE, SparsityMasks, smallest
from compress.training.stage import run as train

KNOBS: dict[str, Any] = {
    "tokens": 20 * 4 * 16,
    "length": 16,
    "batch": 4,
    "checkpoints": 4,
    "learning_rate": 3e-3,
    "report_to": (),
}
"""20 steps; a ramp of 0.6 ends after step 12."""


def given(source: Path, folder: Path, short_text: Path, **rest: Any) -> StageInput:
    out, scratch = folder / "out", folder / "scratch"
    out.mkdir(parents=True, exist_ok=True)
    scratch.mkdir(exist_ok=True)
    text = TextSource(file=short_text)
    return StageInput(source=source, out=out, scratch=scratch, teacher=source, train_text=text, **rest)


def adamw(model: PreTrainedModel) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.5)


def train_step(model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> None:
    Objective(model).next_token_loss(torch.randint(0, 300, (4, 16))).backward()
    optimizer.step()
    optimizer.zero_grad()


def zeros_of(linear: BlockLinear) -> Tensor:
    return linear.weight_OI() == 0


def groups_of(linear: BlockLinear, m: int) -> Tensor:
    """How many weights of each `m` consecutive inputs are not zero."""
    outputs, inputs = linear.weight_OI().shape
    return (linear.weight_OI() != 0).reshape(outputs, inputs // m, m).sum(dim=-1)


def test_the_ramp_is_the_cubic_of_its_closed_form() -> None:
    ramp = Ramp(first=0.1, last=0.9, steps=40, every=3)
    assert ramp.share(0) == pytest.approx(0.1)
    assert ramp.share(20) == pytest.approx(0.9 - 0.8 / 8)
    assert ramp.share(10) == pytest.approx(0.9 - 0.8 * 27 / 64)
    assert ramp.share(40) == ramp.share(1000) == 0.9


@pytest.mark.parametrize("every", [1, 3, 7, 40, 100])
def test_droppings_are_counted_and_the_last_one_is_at_the_end_of_the_ramp(every: int) -> None:
    ramp = Ramp(first=0.0, last=0.5, steps=40, every=every)
    due = [step for step in range(60) if ramp.due(step)]
    assert len(due) == ramp.updates
    assert due[-1] == 40
    assert all(step % every == 0 for step in due[:-1])


@pytest.mark.parametrize("steps", [10, 300, 20_000])
def test_by_default_there_are_about_75_droppings_if_there_are_steps_enough(steps: int) -> None:
    ramp = Ramp.of(GradualConfig(sparsity=0.5), steps, first=0.0, last=0.5)
    assert ramp.steps == 0.6 * steps
    assert ramp.updates == 6 or 50 <= ramp.updates <= 100


@pytest.mark.parametrize("scope", ["layer", "row", "global"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_after_every_dropping_the_counts_are_exact_and_no_zero_comes_back(
    family: str, scope: Any, request: pytest.FixtureRequest
) -> None:
    model = load_model(request.getfixturevalue(family)).train()
    optimizer, zeros, amount = adamw(model), SparsityMasks(model), Amount(sparsity=0.6, scope=scope)
    earlier = [zeros_of(linear) for linear in zeros.linears]
    for share in (0.11, 0.35, 0.501, 0.6):
        train_step(model, optimizer)
        zeros.drop(amount, share, optimizer)
        now = [zeros_of(linear) for linear in zeros.linears]
        units = {
            "layer": [zero.flatten() for zero in now],
            "row": [row for zero in now for row in zero],
            "global": [torch.cat([zero.flatten() for zero in now])],
        }[scope]
        assert [int(unit.sum()) for unit in units] == [round(share * len(unit)) for unit in units]
        assert all(bool((new | ~old).all()) for old, new in zip(earlier, now, strict=True))
        assert zeros.share == pytest.approx(share, abs=0.01)
        earlier = now


def test_the_smallest_weights_are_dropped(gpt2: Path) -> None:
    model = load_model(gpt2)
    before = [linear.weight_OI().clone() for linear in block_linears(model)]
    zeros = SparsityMasks(model)
    zeros.drop(Amount(sparsity=0.5), 0.3, adamw(model))
    for old_OI, linear in zip(before, zeros.linears, strict=True):
        zero_OI = zeros_of(linear)
        assert old_OI[zero_OI].abs().max() <= old_OI[~zero_OI].abs().min()
        assert torch.equal(old_OI[~zero_OI], linear.weight_OI()[~zero_OI])
        assert not torch.signbit(linear.weight_OI()[zero_OI]).any()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_pattern_is_reached_by_dropping_the_smallest_of_what_it_drops(
    family: str, request: pytest.FixtureRequest
) -> None:
    """GPT-2 stores [in, out]: a pattern along the wrong axis would fail here."""
    model = load_model(request.getfixturevalue(family)).train()
    optimizer, zeros, amount = adamw(model), SparsityMasks(model), Amount(pattern=(2, 4))
    for share in (0.1, 0.4, 0.5):
        train_step(model, optimizer)
        zeros.drop(amount, share, optimizer)
        for linear in zeros.linears:
            assert int(zeros_of(linear).sum()) == round(share * linear.parameter.numel()), linear.name
            assert groups_of(linear, 4).min() == 2, linear.name
    train_step(model, optimizer)
    assert all(bool((groups_of(linear, 4) == 2).all()) for linear in zeros.linears)


def test_a_group_of_a_pattern_loses_its_smallest_weights_and_the_smallest_of_all_go_first() -> None:
    score_OI = torch.tensor([[4.0, 3.0, 2.0, 1.0, 40.0, 30.0, 20.0, 10.0]])
    (half_OI,) = smallest(Amount(pattern=(2, 4)), 0.25, [score_OI])
    (whole_OI,) = smallest(Amount(pattern=(2, 4)), 0.5, [score_OI])
    assert half_OI.int().tolist() == [[1, 1, 0, 0, 1, 1, 1, 1]]
    assert whole_OI.int().tolist() == [[1, 1, 0, 0, 1, 1, 0, 0]]


def test_zeros_and_their_moments_stay_exactly_zero_under_weight_decay(gpt2: Path) -> None:
    model = load_model(gpt2).train()
    optimizer, zeros = adamw(model), SparsityMasks(model)
    for _ in range(2):
        train_step(model, optimizer)
    zeros.drop(Amount(sparsity=0.5), 0.5, optimizer)
    for _ in range(3):
        for linear, mask_OI in zip(zeros.linears, zeros.masks_OI, strict=True):
            mask = mask_OI.T if linear.transposed else mask_OI
            state = optimizer.state[linear.parameter]
            for tensor in (linear.parameter, state["exp_avg"], state["exp_avg_sq"]):
                assert not tensor[~mask].any(), linear.name
                assert tensor[mask].count_nonzero() > 0.99 * mask.sum(), linear.name
        train_step(model, optimizer)


def test_training_follows_the_ramp_and_changes_no_mask_after_it(gpt2: Path, tmp_path: Path) -> None:
    """What every step is computed with: the masks of the step before it."""
    model, seen = load_model(gpt2), list[list[Tensor]]()

    class Watched(Objective):
        def loss(self, ids_BT: Tensor, row_B: Tensor | None) -> Tensor:
            seen.append([zeros_of(linear) for linear in block_linears(self.model)])
            return super().loss(ids_BT, row_B)

    schedule = Schedule.of(TrainConfig(**KNOBS, prune=GradualConfig(sparsity=0.5, every=4)))
    rows_NT = np.random.default_rng(0).integers(0, 300, (40, 16))
    history = fit(Watched(model), rows_NT, schedule, scratch=tmp_path, seed=0, progress=Silent(), label="train")
    ramp = Ramp(first=0.0, last=0.5, steps=12, every=4)
    shares = [0.0] * 4 + [ramp.share(4)] * 4 + [ramp.share(8)] * 4 + [0.5] * 8
    for step, zeros in enumerate(seen):
        assert [int(zero.sum()) for zero in zeros] == [round(shares[step] * zero.numel()) for zero in zeros], step
    assert all(torch.equal(first, last) for first, last in zip(seen[12], seen[19], strict=True))
    drawn = {int(row["step"]): row["sparsity"] for row in history}
    assert drawn == pytest.approx({step: ([*shares, 0.5])[step] for step in range(1, 21)}, abs=1e-4)


@pytest.mark.parametrize(
    ("killed_at", "amount"),
    [
        (3, {"sparsity": 0.5}),
        (7, {"pattern": "2:4"}),
        pytest.param(9, {"sparsity": 0.7, "scope": "global"}, marks=pytest.mark.thorough),
        (14, {"sparsity": 0.5}),
    ],
)
def test_killed_within_the_ramp_and_resumed_it_ends_in_the_same_bits(
    killed_at: int,
    amount: dict[str, Any],
    gpt2: Path,
    short_text: Path,
    tmp_path: Path,
    folder_digest: Callable[[Path], dict[str, str]],
) -> None:
    config = DistillConfig(**KNOBS | {"checkpoints": 9}, prune=GradualConfig(**amount))
    whole = given(gpt2, tmp_path / "whole", short_text)
    metadata = distill(config, whole)
    with pytest.raises(KilledError):
        distill(config, given(gpt2, tmp_path / "killed", short_text, progress=KillAt(killed_at)))
    masks = sorted((tmp_path / "killed" / "scratch").glob(f"checkpoint-*/{FILE}"))
    assert masks
    held = torch.cat([mask.flatten() for mask in load_file(masks[-1]).values()])
    assert 0 < 1 - held.float().mean() <= metadata["sparsity"]
    resumed = given(gpt2, tmp_path / "killed", short_text)
    assert distill(config, resumed) == metadata
    assert folder_digest(resumed.out) == folder_digest(whole.out)


def test_what_was_pruned_is_counted_and_a_later_stage_keeps_it(gpt2: Path, short_text: Path, tmp_path: Path) -> None:
    pattern = given(gpt2, tmp_path / "pattern", short_text)
    metadata = distill(DistillConfig(**KNOBS, prune=GradualConfig(pattern="2:4", every=5)), pattern)
    linears = list(block_linears(load_model(pattern.out)))
    assert metadata["asked"] == "2:4"
    assert metadata["sparsity"] == 0.5
    assert metadata["mask_updates"] == 3
    assert metadata["tensors"] == {f"{linear.name}.weight": {"asked": 0.5, "sparsity": 0.5} for linear in linears}
    later = given(pattern.out, tmp_path / "later", short_text)
    train(TrainConfig(**KNOBS, weight_decay=0.5), later)
    for old, new in zip(linears, block_linears(load_model(later.out)), strict=True):
        assert torch.equal(zeros_of(old), zeros_of(new)), new.name
        assert not torch.equal(old.parameter, new.parameter), "training changed nothing"


def test_a_sparse_source_goes_on_from_where_it_is(gpt2: Path, short_text: Path, tmp_path: Path) -> None:
    first = given(gpt2, tmp_path / "first", short_text)
    train(TrainConfig(**KNOBS, prune=GradualConfig(sparsity=0.4)), first)
    second = given(first.out, tmp_path / "second", short_text)
    metadata = train(TrainConfig(**KNOBS, prune=GradualConfig(sparsity=0.6, every=1)), second)
    assert metadata["history"][0]["sparsity"] == pytest.approx(0.6 - 0.2 * (11 / 12) ** 3, abs=1e-3)
    for old, new in zip(block_linears(load_model(first.out)), block_linears(load_model(second.out)), strict=True):
        assert bool((zeros_of(new) | ~zeros_of(old)).all()), new.name
        assert int(zeros_of(new).sum()) == round(0.6 * new.parameter.numel()), new.name
    with pytest.raises(StageError, match=r"zero already, so sparsity 0\.6 leaves nothing to prune"):
        train(
            TrainConfig(**KNOBS, prune=GradualConfig(sparsity=0.6)), given(second.out, tmp_path / "third", short_text)
        )


def test_a_matrix_that_is_zero_throughout_is_trained(gpt2: Path) -> None:
    model = load_model(gpt2)
    linear = next(block_linears(model))
    with torch.no_grad():
        linear.parameter.zero_()
    assert SparsityMasks(model).share == 0.0


def test_a_pattern_that_does_not_fit_names_the_tensors(gpt2: Path, short_text: Path, tmp_path: Path) -> None:
    config = TrainConfig(**KNOBS, prune=GradualConfig(pattern="2:7"))
    with pytest.raises(StageError, match=r"pattern 2:7.*transformer\.h\.0\.attn\.c_attn \(64 inputs\)"):
        train(config, given(gpt2, tmp_path, short_text))


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({}, "either `sparsity`, such as 0.5, or `pattern`"),
        ({"sparsity": 0.5, "pattern": "2:4"}, "either `sparsity`, such as 0.5, or `pattern`"),
        ({"pattern": "4:2"}, 'expected "N:M"'),
        ({"sparsity": 0.5, "ramp": 1.0}, "ramp"),
        ({"sparsity": 0.5, "ramp": 0.0}, "ramp"),
        ({"sparsity": 0.5, "every": 0}, "every"),
        ({"sparsity": 0.5, "until": 0.7}, "until"),
    ],
)
def test_wrong_knobs_are_refused(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DistillConfig.model_validate({"prune": knobs})


def test_dense_training_has_no_masks_in_its_checkpoints_and_no_facts_of_pruning(
    gpt2: Path, short_text: Path, tmp_path: Path
) -> None:
    stage = given(gpt2, tmp_path, short_text)
    metadata = train(TrainConfig(**KNOBS), dataclasses.replace(stage, teacher=None))
    assert list(stage.scratch.glob("checkpoint-*"))
    assert not list(stage.scratch.glob(f"checkpoint-*/{FILE}"))
    assert metadata.keys() == {"text_tokens", "history"}
    assert all("sparsity" not in row for row in metadata["history"])
