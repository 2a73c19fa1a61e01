"""The distill stage: students of every kind, trained by every loss, resumed exactly."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from killing import KillAt, KilledError
from safetensors.torch import load_file

from compress import DistillConfig, QuantizeConfig, StageError, StageInput, TextSource
from compress.checkpoints.folder import load_tokenizer
from compress.checkpoints.loading import load_model
from compress.checkpoints.quantized_files import read_quantized_matrices
from compress.distillation.config import LAYER_LOSSES
from compress.distillation.objective import weight_at
from compress.distillation.stage import run
from compress.distillation.students import with_layers
from compress.quantization.stage import run as quantize
from compress.training.config import LOSSES
from compress.training.losses import DenseTarget, Head, Mix, chunked_loss
from compress.training.objective import last_hidden
from recipes.config.errors import RecipeError

STEP = 4 * 16
"""Tokens."""
KNOBS: dict[str, Any] = {
    "layers": 2,
    "tokens": 16 * STEP,
    "length": 16,
    "batch": 4,
    "learning_rate": 3e-3,
    "checkpoints": 3,
    "choose": "spread",
    "report_to": (),
}
"""16 steps, a checkpoint after every fourth."""


@pytest.fixture(autouse=True)
def _few_held_out_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compress.training.stage.HELD_OUT_ROWS", 16)


@pytest.fixture(scope="module")
def opinionated(make_checkpoint: Callable[..., Path]) -> Path:
    """A teacher whose predictions differ from position to position."""
    return make_checkpoint("gpt2", initializer_range=0.2)


def given(source: Path, folder: Path, short_text: Path, **rest: Any) -> StageInput:
    out, scratch = folder / "out", folder / "scratch"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    scratch.mkdir(exist_ok=True)
    text = TextSource(file=short_text)
    return StageInput(
        source=source,
        out=out,
        scratch=scratch,
        **{"teacher": source, "train_text": text, "calibration_text": text} | rest,
    )


def divergence(student: Path | Any, teacher: Path, short_text: Path) -> float:
    """Forward KL on some text, in nats per token."""
    models = [load_model(each) if isinstance(each, Path) else each for each in (student, teacher)]
    ids_BT = torch.tensor([load_tokenizer(teacher)(short_text.read_text())["input_ids"][:64]])
    with torch.no_grad():
        hidden_ND, teacher_ND = (last_hidden(model, ids_BT) for model in models)
        target, mix = DenseTarget(teacher_ND, Head.of(models[1])), Mix(weights={"forward_kl": 1.0})
        total, _ = chunked_loss(hidden_ND, Head.of(models[0]), target, ids_BT[0, 1:], mix)
    return float(total) / len(hidden_ND)


def test_distilling_brings_the_student_closer(opinionated: Path, short_text: Path, tmp_path: Path) -> None:
    stage = given(opinionated, tmp_path, short_text)
    metadata = run(DistillConfig(**KNOBS | {"tokens": 64 * STEP, "losses": {"forward_kl": 1.0}}), stage)
    assert metadata["kept_layers"] == [0, 2]
    untrained = with_layers(load_model(opinionated), [0, 2])
    assert divergence(stage.out, opinionated, short_text) < 0.8 * divergence(untrained, opinionated, short_text)


@pytest.mark.parametrize("name", sorted({*LOSSES, *LAYER_LOSSES}))
def test_every_loss_falls(name: str, opinionated: Path, short_text: Path, tmp_path: Path) -> None:
    metadata = run(
        DistillConfig(**KNOBS | {"tokens": 64 * STEP, "losses": {name: 1.0}}), given(opinionated, tmp_path, short_text)
    )
    losses = [row["loss"] for row in metadata["history"]]
    assert sum(losses[-8:]) < 0.97 * sum(losses[:8])


def test_mixed_losses_are_told_one_by_one_and_add_up(opinionated: Path, short_text: Path, tmp_path: Path) -> None:
    losses = {"forward_kl": {"start": 1.0, "end": 0.5}, "cross_entropy": 0.25, "hidden_states": 0.1}
    metadata = run(DistillConfig.model_validate(KNOBS | {"losses": losses}), given(opinionated, tmp_path, short_text))
    for row in metadata["history"]:
        faded = 1.0 - 0.5 * (row["step"] - 1) / 16
        parts = faded * row["forward_kl"] + 0.25 * row["cross_entropy"] + 0.1 * row["hidden_states"]
        assert row["loss"] == pytest.approx(parts, abs=2e-4)


def test_a_weight_changes_along_a_line_and_stays_at_its_end() -> None:
    fade = DistillConfig.model_validate(
        {"losses": {"forward_kl": 1, "hidden_states": {"start": 2, "end": 0, "over": 0.5}}}
    ).losses["hidden_states"]
    assert [weight_at(fade, progress) for progress in (0, 0.25, 0.5, 0.9)] == [2, 1, 0, 0]


@pytest.mark.parametrize("choose", ["spread", "block_influence", "perplexity"])
def test_layers_are_chosen_as_asked(choose: str, opinionated: Path, short_text: Path, tmp_path: Path) -> None:
    stage = given(opinionated, tmp_path, short_text)
    metadata = run(DistillConfig(**KNOBS | {"choose": choose, "tokens": STEP}), stage)
    assert len(metadata["kept_layers"]) == load_model(stage.out).config.num_hidden_layers == 2
    assert metadata.get("depth", {}).get("by") == (None if choose == "spread" else choose)


def test_a_student_may_be_another_checkpoint(
    opinionated: Path, make_checkpoint: Callable[..., Path], short_text: Path, tmp_path: Path
) -> None:
    narrow = make_checkpoint("gpt2", seed=3, n_embd=32, n_layer=2)
    losses = {"forward_kl": 1.0, "hidden_states": 0.1, "attention_relations": 0.1}
    config = DistillConfig(**KNOBS | {"layers": None, "student": narrow, "losses": losses, "tokens": 32 * STEP})
    stage = given(opinionated, tmp_path, short_text)
    run(config, stage)
    assert load_model(stage.out).config.n_embd == 32
    assert not [name for name in load_file(stage.out / "model.safetensors") if "projection" in name]
    assert divergence(stage.out, opinionated, short_text) < divergence(narrow, opinionated, short_text)


def test_a_student_may_be_made_from_a_config(opinionated: Path, short_text: Path, tmp_path: Path) -> None:
    stage = given(opinionated, tmp_path, short_text)
    metadata = run(DistillConfig(**KNOBS | {"layers": None, "architecture": {"n_layer": 1}, "tokens": STEP}), stage)
    student, teacher = load_model(stage.out), load_model(opinionated)
    assert student.config.n_layer == 1
    assert student.config.vocab_size == teacher.config.vocab_size
    assert "history" in metadata


def test_what_a_student_was_is_a_part_of_the_results_key(
    opinionated: Path, make_checkpoint: Callable[..., Path], short_text: Path, tmp_path: Path
) -> None:
    """The folder may stay where it is and hold another student."""
    from recipes import load_recipe
    from recipes.engine.plan import plan

    student = Path(shutil.copytree(make_checkpoint("gpt2", seed=3, n_layer=1), tmp_path / "student"))
    (tmp_path / "recipe.yaml").write_text(
        f"model: {opinionated}\ndata: {{train: {short_text}, test: {short_text}}}\n"
        "stages:\n  - distill: {student: student}\nevaluate: {window: 32}\n"
    )
    keys = [plan(load_recipe(tmp_path / "recipe.yaml")).steps[0].key]
    shutil.copytree(make_checkpoint("gpt2", seed=4, n_layer=1), student, dirs_exist_ok=True)
    keys.append(plan(load_recipe(tmp_path / "recipe.yaml")).steps[0].key)
    assert keys[0] != keys[1]
    shutil.rmtree(student)
    with pytest.raises(RecipeError, match=r"distill.student: expected an existing checkpoint folder"):
        load_recipe(tmp_path / "recipe.yaml")


@pytest.mark.parametrize("method", [{"draws": 32}, {"top_k": 16}])
def test_a_teacher_is_run_once_and_used_again(
    method: dict[str, int], opinionated: Path, short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DistillConfig.model_validate(
        KNOBS | {"stored": method | {"folder": str(tmp_path / "teachers")}, "losses": {"forward_kl": 1.0}}
    )
    first = given(opinionated, tmp_path / "first", short_text)
    metadata = run(config, first)
    assert not metadata["stored_teacher"]["reused"]
    assert metadata["stored_teacher"]["bias"].startswith("biased" if "top_k" in method else "unbiased")
    assert divergence(first.out, opinionated, short_text) < divergence(
        with_layers(load_model(opinionated), [0, 2]), opinionated, short_text
    )
    again = run(
        config.model_copy(update={"layers": 1, "tokens": 4 * STEP}), given(opinionated, tmp_path / "second", short_text)
    )
    assert again["stored_teacher"]["reused"]
    assert again["stored_teacher"]["key"] == metadata["stored_teacher"]["key"]


def test_a_quantization_aware_student_is_what_quantize_makes_of_it(
    opinionated: Path, short_text: Path, tmp_path: Path
) -> None:
    """Its loss is already that of the rounded weights: rounding them for good changes nothing."""
    config = DistillConfig(**KNOBS | {"quantization_aware": True, "losses": {"forward_kl": 1.0}, "held_out": True})
    stage = given(opinionated, tmp_path / "student", short_text)
    metadata = run(config, stage)
    small = given(stage.out, tmp_path / "small", short_text)
    quantize(QuantizeConfig(embeddings=True), small)
    model, matrices = load_model(stage.out), read_quantized_matrices(small.out)
    assert len(matrices) == 2 * 4 + 1
    with torch.no_grad():
        for name, matrix in matrices.items():
            weight = model.get_submodule(name).weight
            rounded = torch.from_numpy(matrix.dequantize())
            assert not torch.equal(weight, rounded.T if rounded.shape != weight.shape else rounded)
            weight.copy_(rounded.T if weight.shape != rounded.shape or "mlp" in name or "attn" in name else rounded)
    held_out = min(row["held_out_loss"] for row in metadata["history"] if "held_out_loss" in row)
    assert _held_out_loss(model, stage, short_text) == pytest.approx(held_out, abs=1e-4)


def _held_out_loss(model: Any, stage: StageInput, short_text: Path) -> float:
    from compress.training.objective import Objective
    from compress.training.stage import held_out_rows

    rows_NT = held_out_rows(DistillConfig(**KNOBS | {"held_out": True}), stage, load_tokenizer(stage.out))
    assert rows_NT is not None
    with torch.no_grad():
        return float(Objective(model).next_token_loss(torch.from_numpy(rows_NT)))


@pytest.mark.parametrize(
    ("killed_at", "knobs"),
    [
        (6, {"losses": {"forward_kl": {"start": 1, "end": 0.5}, "hidden_states": 0.1}, "held_out": True}),
        (13, {"accumulate": 2, "gradient_checkpointing": True, "losses": {"skewed_kl": 1, "cross_entropy": 0.1}}),
    ],
)
def test_killed_and_resumed_it_ends_in_the_same_bits(
    killed_at: int, knobs: dict[str, Any], opinionated: Path, short_text: Path, tmp_path: Path
) -> None:
    """After the first checkpoint and after the last."""
    config = DistillConfig.model_validate(KNOBS | knobs)
    whole = given(opinionated, tmp_path / "whole", short_text)
    uninterrupted = run(config, whole)
    with pytest.raises(KilledError):
        run(config, given(opinionated, tmp_path / "killed", short_text, progress=KillAt(killed_at)))
    assert list((tmp_path / "killed" / "scratch").glob("checkpoint-*"))
    resumed = given(opinionated, tmp_path / "killed", short_text)
    assert run(config, resumed)["history"] == uninterrupted["history"]
    assert (resumed.out / "model.safetensors").read_bytes() == (whole.out / "model.safetensors").read_bytes()


def test_parts_of_a_batch_one_after_the_other_are_the_same_step(
    opinionated: Path, short_text: Path, tmp_path: Path
) -> None:
    losses = []
    for knobs in ({}, {"accumulate": 4}, {"accumulate": 4, "gradient_checkpointing": True}):
        stage = given(opinionated, tmp_path / str(len(losses)), short_text)
        losses.append([row["loss"] for row in run(DistillConfig(**KNOBS | knobs), stage)["history"]])
    assert losses[1] == pytest.approx(losses[0], abs=1e-3)
    assert losses[2] == pytest.approx(losses[1], abs=1e-3)


def test_the_best_weights_are_kept_and_patience_ends_the_training(
    opinionated: Path, short_text: Path, tmp_path: Path
) -> None:
    """Trained far too fast, a student is best early on."""
    knobs = {"held_out": True, "patience": 2, "learning_rate": 0.3, "checkpoints": 15, "warmup": 0.0}
    stage = given(opinionated, tmp_path, short_text)
    history = run(DistillConfig(**KNOBS | knobs), stage)["history"]
    held_out = [row["held_out_loss"] for row in history if "held_out_loss" in row]
    assert 3 <= len(held_out) < 16
    assert min(held_out) == held_out[-3]
    assert _held_out_loss(load_model(stage.out), stage, short_text) == pytest.approx(min(held_out), abs=1e-4)


def test_the_best_weights_are_found_again_where_the_run_was_moved(
    opinionated: Path, short_text: Path, tmp_path: Path
) -> None:
    config = DistillConfig(**KNOBS | {"held_out": True, "learning_rate": 0.3, "warmup": 0.0, "checkpoints": 15})
    whole = given(opinionated, tmp_path / "whole", short_text)
    run(config, whole)
    with pytest.raises(KilledError):
        run(config, given(opinionated, tmp_path / "killed", short_text, progress=KillAt(15)))
    (tmp_path / "killed").rename(tmp_path / "moved")
    moved = given(opinionated, tmp_path / "moved", short_text)
    run(config, moved)
    assert (moved.out / "model.safetensors").read_bytes() == (whole.out / "model.safetensors").read_bytes()


def test_a_loss_that_is_no_number_ends_it_with_the_step_and_the_way_out(
    opinionated: Path, short_text: Path, tmp_path: Path
) -> None:
    config = DistillConfig(**KNOBS | {"learning_rate": 1e30, "warmup": 0.0})
    with pytest.raises(StageError, match=r"the loss became nan at step \d+ of 16; lower `learning_rate` \(1e\+30\)"):
        run(config, given(opinionated, tmp_path, short_text))


def test_curves_are_written_for_tensorboard(opinionated: Path, short_text: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    stage = given(opinionated, tmp_path, short_text, logs=tmp_path / "curves")
    metadata = run(DistillConfig(**KNOBS | {"report_to": ("tensorboard",)}), stage)
    events = EventAccumulator(str(tmp_path / "curves"))
    events.Reload()
    drawn = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert drawn == [(row["step"], pytest.approx(row["loss"])) for row in metadata["history"]]


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"layers": 9}, "the source has 3 layers"),
        ({"layers": None, "keep": (0, 7)}, "expected layers below 3"),
        ({"batch": 8, "accumulate": 3}, "batch: expected a multiple of 3"),
        ({"patience": 2}, "held_out: true"),
        ({"report_to": ("wandb",)}, "wandb is not installed; pip install wandb"),
    ],
)
def test_what_cannot_be_is_an_error(
    knobs: dict[str, Any], message: str, gpt2: Path, short_text: Path, tmp_path: Path
) -> None:
    with pytest.raises(StageError, match=message):
        run(DistillConfig(**KNOBS | knobs), given(gpt2, tmp_path, short_text))


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"layers": 2, "keep": [0]}, "expected one of layers, keep"),
        ({"keep": [2, 1]}, "expected layer numbers from 0, rising"),
        ({"losses": {"forward_kl": 0}}, "at least one weight above 0"),
        ({"stored": {"draws": 4}, "losses": {"reverse_kl": 1}}, "suffices for forward_kl"),
        ({"stored": {"draws": 4}, "losses": {"hidden_states": 1}}, "no hidden states"),
        ({"stored": {"draws": 4, "top_k": 4}}, "expected either `draws`"),
        ({"quantization_aware": True}, "expected divergences alone"),
        ({"quantization_aware": True, "losses": {"forward_kl": 1}, "save_dtype": "bfloat16"}, "expected float32"),
        (
            {"quantization_aware": {"scheme": "int4", "method": "gptq"}, "losses": {"forward_kl": 1}},
            "method: expected rtn",
        ),
        (
            {"quantization_aware": {"scheme": "int4", "average_bits": 5}, "losses": {"forward_kl": 1}},
            "average_bits: expected `bits`",
        ),
    ],
)
def test_knobs_that_contradict_each_other_are_refused(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DistillConfig.model_validate(knobs)


def test_a_teacher_with_another_vocabulary_of_the_same_size_is_refused(
    gpt2: Path, short_text: Path, tmp_path: Path
) -> None:
    teacher = Path(shutil.copytree(gpt2, tmp_path / "teacher"))
    tokenizer = json.loads((teacher / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = [token for token, number in vocabulary.items() if number in {300, 301}]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (teacher / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(StageError, match="tokenizer"):
        run(DistillConfig(**KNOBS), dataclasses.replace(given(gpt2, tmp_path, short_text), teacher=teacher))
