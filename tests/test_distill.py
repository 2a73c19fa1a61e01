"""Distillation: losses against autograd and closed forms, students cut from their teacher."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from compress import DistillConfig, StageError, StageInput, TextSource
from compress.checkpoint import load_model, load_tokenizer
from compress.distillation import losses
from compress.distillation.distill import run, spread, with_layers
from compress.distillation.losses import LOSSES, chunked_loss, distillation_loss, ends_in_linear_head
from compress.linears import blocks


def given(source: Path, tmp_path: Path, text_file: Path) -> StageInput:
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    out.mkdir()
    scratch.mkdir()
    return StageInput(source=source, out=out, scratch=scratch, teacher=source, train_text=TextSource(file=text_file))


def test_kl_of_equal_distributions_is_zero() -> None:
    logits_NV = torch.randn(5, 11)
    shifted_NV = logits_NV + 3.0
    assert LOSSES["forward_kl"](logits_NV, shifted_NV, torch.zeros(5, dtype=torch.long), 2.0).item() == pytest.approx(
        0, abs=1e-5
    )


def test_forward_kl_matches_the_sum_and_scales_with_temperature_squared() -> None:
    student_NV, teacher_NV = torch.randn(4, 7, dtype=torch.float64), torch.randn(4, 7, dtype=torch.float64)
    p, q = torch.softmax(teacher_NV / 3, -1), torch.softmax(student_NV / 3, -1)
    expected = 9 * (p * (p.log() - q.log())).sum()
    assert LOSSES["forward_kl"](student_NV, teacher_NV, torch.zeros(4, dtype=torch.long), 3.0).item() == pytest.approx(
        expected.item()
    )


def test_cross_entropy_ignores_the_teacher() -> None:
    student_NV, next_N = torch.randn(4, 7), torch.tensor([0, 6, 3, 3])
    expected = -torch.log_softmax(student_NV, -1)[range(4), next_N].sum()
    assert LOSSES["cross_entropy"](student_NV, torch.randn(4, 7), next_N, 5.0).item() == pytest.approx(
        expected.item(), rel=1e-6
    )


def test_position_t_is_held_against_token_t_plus_1(gpt2: Path) -> None:
    model = load_model(gpt2)
    ids_BT = torch.arange(24).reshape(2, 12)
    loss = distillation_loss(model, model, ids_BT, {"cross_entropy": 1.0}, 1.0)
    logits_BTV = model(input_ids=ids_BT).logits
    expected = functional.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), ids_BT[:, 1:].flatten())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_chunked_loss_and_gradients_equal_the_naive_ones(
    gpt2: Path, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = {"forward_kl": 0.7, "cross_entropy": 0.3}
    for folder in (gpt2, llama):
        teacher, student = load_model(folder).double(), load_model(folder).double()
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.02)
        hidden_ND = torch.randn(20, 64, dtype=torch.float64, requires_grad=True)
        teacher_ND, next_N = torch.randn(20, 64, dtype=torch.float64), torch.randint(0, 320, (20,))
        gradients = []
        for chunk in (2**25, 320 * 6):
            monkeypatch.setattr(losses, "CHUNK_LOGITS", chunk)
            loss = chunked_loss(student, teacher, hidden_ND, teacher_ND, next_N, weights, 2.0)
            head = student.get_output_embeddings().weight
            gradients.append((loss.detach(), *torch.autograd.grad(loss, [hidden_ND, head])))
        for whole, pieces in zip(*gradients, strict=True):
            torch.testing.assert_close(pieces, whole, rtol=1e-6, atol=1e-6)


def test_spread_is_the_one_distilgpt2_uses() -> None:
    assert spread(12, 6) == [0, 2, 4, 7, 9, 11]
    assert spread(6, 6) == list(range(6))
    assert spread(6, 1) == [0]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_student_is_the_teacher_with_blocks_left_out(family: str, request: pytest.FixtureRequest) -> None:
    """Skipping a block's work in the teacher gives the student's logits."""
    teacher = load_model(request.getfixturevalue(family))
    student = with_layers(teacher, [0, 2])
    ids_BT = torch.arange(10)[None]
    expected = student(input_ids=ids_BT).logits
    skipped = blocks(teacher)[1][1]
    skipped.forward = lambda hidden, *rest, **named: hidden  # type: ignore[method-assign]  # the block becomes the identity
    torch.testing.assert_close(teacher(input_ids=ids_BT, use_cache=False).logits, expected, rtol=1e-5, atol=1e-5)


def test_a_head_behind_soft_capping_is_noticed(gpt2: Path) -> None:
    model, ids_BT = load_model(gpt2), torch.arange(6)[None]
    assert ends_in_linear_head(model, ids_BT)
    plain = model.forward

    def capped(*arguments: object, **named: object) -> object:
        answer = plain(*arguments, **named)
        answer.logits = torch.tanh(answer.logits)
        return answer

    model.forward = capped  # type: ignore[method-assign]  # a final soft cap, as Gemma has
    assert not ends_in_linear_head(model, ids_BT)


def test_distilling_brings_the_student_closer(
    make_checkpoint: Callable[..., Path], text_file: Path, tmp_path: Path
) -> None:
    opinionated = make_checkpoint("gpt2", initializer_range=0.2)
    config = DistillConfig(layers=2, tokens=16384, length=64, batch=8, learning_rate=3e-3, losses={"forward_kl": 1.0})
    stage = given(opinionated, tmp_path, text_file)
    facts = run(config, stage)
    assert facts["kept_layers"] == [0, 2]
    teacher, student = load_model(opinionated), load_model(stage.out)
    untrained = with_layers(teacher, [0, 2])
    ids_BT = torch.tensor([load_tokenizer(opinionated)(text_file.read_text())["input_ids"][:64]])
    with torch.no_grad():
        before, after = (
            distillation_loss(model, teacher, ids_BT, {"forward_kl": 1.0}, 1.0) for model in (untrained, student)
        )
    assert after < 0.8 * before


@pytest.mark.parametrize(
    ("knobs", "message"), [({"layers": 9}, "the source has 3 layers"), ({"keep": (0, 7)}, "expected layers below 3")]
)
def test_more_layers_than_there_are_is_an_error(
    knobs: dict[str, object], message: str, gpt2: Path, text_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(StageError, match=message):
        run(DistillConfig(**knobs), given(gpt2, tmp_path, text_file))


def test_a_teacher_with_another_vocabulary_of_the_same_size_is_refused(
    gpt2: Path, text_file: Path, tmp_path: Path
) -> None:
    teacher = Path(shutil.copytree(gpt2, tmp_path / "teacher"))
    tokenizer = json.loads((teacher / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = [token for token, number in vocabulary.items() if number in {300, 301}]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (teacher / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(StageError, match="must share one vocabulary"):
        run(
            DistillConfig(layers=2, tokens=1024), dataclasses.replace(given(gpt2, tmp_path, text_file), teacher=teacher)
        )
