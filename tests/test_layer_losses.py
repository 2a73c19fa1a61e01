"""Losses between layers: closed forms on tiny tensors, and hooks that see what a model's layers give, and only that."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from compress.checkpoints.loading import load_model
from compress.distillation import layer_losses
from compress.distillation.config import LAYER_LOSSES
from compress.distillation.layer_losses import (
    FLOOR,
    Bridge,
    LayerLosses,
    attention_relations,
    channel_units,
    hidden_states,
    layer_pairs,
    relation_divergence,
    relation_heads,
)
from compress.models.activations import QKV, Seen, Taps, projection_widths
from compress.models.block_linears import blocks
from compress.models.families import PROJECTIONS
from compress.stage import StageError

Make = Callable[..., Path]
IDS_BT = torch.arange(24).reshape(2, 12) * 7 % 300
BOTH = {"hidden_states": 1.0, "attention_relations": 1.0}


def hidden(x_BTD: Tensor) -> Seen:
    return {"hidden": x_BTD}


def error(student_BTD: Tensor, teacher_BTD: Tensor) -> float:
    return float(hidden_states(hidden(student_BTD), hidden(teacher_BTD), Bridge()))


def noisy(model: PreTrainedModel, seed: int = 3) -> PreTrainedModel:
    """The same model a little off, in double precision."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.double().parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.05)
    return model


def run(losses: LayerLosses, student: PreTrainedModel, teacher: PreTrainedModel) -> dict[str, Tensor]:
    student.base_model(input_ids=IDS_BT, use_cache=False)
    with torch.no_grad():
        teacher.base_model(input_ids=IDS_BT, use_cache=False)
    return losses()


# --- the losses themselves


def test_every_loss_is_told_in_a_line_and_says_what_it_reads() -> None:
    assert len(LAYER_LOSSES) == 2
    assert all(loss.summary and loss.parts for loss in LAYER_LOSSES.values())


def test_hidden_error_by_hand() -> None:
    """Two channels of root mean square 5 and 1; errors of 5 and of 0, of 0 and of 1: (25/25 + 0 + 0 + 1/1) / 4."""
    teacher_BTD = torch.tensor([[[7.0, 1.0], [1.0, 1.0]]])
    student_BTD = torch.tensor([[[2.0, 1.0], [1.0, 0.0]]])
    assert error(student_BTD, teacher_BTD) == pytest.approx(0.5)
    assert error(teacher_BTD, teacher_BTD) == 0


def test_hidden_error_of_zeros_is_one_whatever_the_width_and_the_scale() -> None:
    for width, scale in ((4, 1.0), (64, 1.0), (64, 1000.0), (64, 1e-3)):
        teacher_BTD = scale * torch.randn(3, 50, width)
        assert error(torch.zeros(3, 50, width), teacher_BTD) == pytest.approx(1, rel=1e-5)


def test_an_outlier_channel_weighs_as_much_as_any_other() -> None:
    """A channel a thousand times as large, wholly missed, costs 1 / D; so does a plain channel."""
    teacher_BTD = torch.randn(2, 30, 16)
    teacher_BTD[..., 5] *= 1000
    for channel in (5, 6):
        student_BTD = teacher_BTD.clone()
        student_BTD[..., channel] = 0
        assert error(student_BTD, teacher_BTD) == pytest.approx(1 / 16, rel=1e-5)
    plain = (student_BTD - teacher_BTD).square().mean() / teacher_BTD.square().mean()
    assert plain < 1e-4  # what a plain relative error would say of a channel that is wholly missed


def test_a_dead_channel_asks_for_no_precision() -> None:
    teacher_BTD = torch.ones(1, 8, 5)
    teacher_BTD[..., 0] = 0
    torch.testing.assert_close(channel_units(teacher_BTD)[0, 0], torch.tensor([FLOOR**0.5, 1, 1, 1, 1]))
    student_BTD = teacher_BTD.clone()
    student_BTD[..., 0] = 0.01
    assert error(student_BTD, teacher_BTD) == pytest.approx(0.01**2 / FLOOR / 5, rel=1e-4)


def test_a_row_does_not_depend_on_its_batch_mates() -> None:
    student_BTD, teacher_BTD = torch.randn(4, 9, 6), torch.randn(4, 9, 6) * torch.arange(1, 5)[:, None, None]
    alone = [error(student_BTD[row : row + 1], teacher_BTD[row : row + 1]) for row in range(4)]
    assert error(student_BTD, teacher_BTD) == pytest.approx(sum(alone) / 4, rel=1e-5)


def test_relations_by_hand() -> None:
    """One head of one channel, two positions: position 0 has no choice, position 1 scores 1 and 2, or 1 and 1."""
    teacher_BTC = torch.tensor([[[0.5], [1.0]]]) * 2**0.5
    student_BTC = torch.tensor([[[1.0], [1.0]]])
    p = math.exp(1) / (math.exp(1) + math.exp(2))
    expected = p * math.log(p / 0.5) + (1 - p) * math.log((1 - p) / 0.5)
    assert relation_divergence(student_BTC, teacher_BTC, 1).item() == pytest.approx(expected / 2, rel=1e-5)


def test_relations_equal_a_loop_over_heads_and_positions() -> None:
    student_BTC, teacher_BTC = (
        torch.randn(2, 5, 6, dtype=torch.float64),
        torch.randn(2, 5, 12, dtype=torch.float64),
    )
    total = 0.0
    for row in range(2):
        for head in range(3):
            s_TC = student_BTC[row, :, 2 * head : 2 * head + 2]
            t_TC = teacher_BTC[row, :, 4 * head : 4 * head + 4]
            for t in range(5):
                p = torch.softmax(t_TC[: t + 1] @ t_TC[t] / 2, -1)
                q = torch.softmax(s_TC[: t + 1] @ s_TC[t] / 2**0.5, -1)
                total += float((p * (p.log() - q.log())).sum())
    assert relation_divergence(student_BTC, teacher_BTC, 3).item() == pytest.approx(total / 30)


def test_relations_do_not_see_a_rotation_of_a_heads_channels() -> None:
    x_BTC = torch.randn(2, 7, 12, dtype=torch.float64)
    turned = torch.block_diag(*(torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))[0] for _ in range(3)))
    assert relation_divergence(x_BTC @ turned, x_BTC, 3).item() == pytest.approx(0, abs=1e-12)
    mixed = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64))[0]
    assert relation_divergence(x_BTC @ mixed, x_BTC, 3).item() > 0.01


def test_relations_are_causal() -> None:
    """A change at the last position changes nothing of the positions before it."""
    x_BTC, teacher_BTC = torch.randn(1, 6, 4), torch.randn(1, 6, 4)
    before = relation_divergence(x_BTC[:, :5], teacher_BTC[:, :5], 2)
    x_BTC[:, 5] = teacher_BTC[:, 5] = 0.0  # scores of zero: the last position itself is equal in both
    assert before > 0
    assert relation_divergence(x_BTC, teacher_BTC, 2).item() * 6 == pytest.approx(before.item() * 5, rel=1e-4)


def test_relations_in_pieces_equal_those_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    student_BTC = torch.randn(3, 8, 12, dtype=torch.float64, requires_grad=True)
    teacher_BTC = torch.randn(3, 8, 24, dtype=torch.float64)
    answers: list[tuple[Tensor, ...]] = []
    for chunk in (2**22, 8 * 8 * 5, 1):
        monkeypatch.setattr(layer_losses, "CHUNK_RELATIONS", chunk)
        loss = relation_divergence(student_BTC, teacher_BTC, 4)
        answers.append((loss.detach(), *torch.autograd.grad(loss, student_BTC)))
    for answer in answers[1:]:
        torch.testing.assert_close(answer, answers[0], rtol=1e-12, atol=1e-12)


def test_gradients() -> None:
    s_BTD, t_BTD = torch.randn(2, 4, 6, dtype=torch.float64, requires_grad=True), torch.randn(2, 4, 6).double()
    wide_BTD, linear = torch.randn(2, 4, 9).double(), nn.Linear(6, 9, bias=False).double()
    assert torch.autograd.gradcheck(lambda s: hidden_states(hidden(s), hidden(t_BTD), Bridge()), s_BTD)
    assert torch.autograd.gradcheck(
        lambda s, w: hidden_states(hidden(s), hidden(wide_BTD), Bridge(lambda x: x @ w.T)),  # type: ignore[arg-type]
        (s_BTD, linear.weight),
    )
    teacher: Seen = {part: torch.randn(2, 4, 4).double() for part in QKV}
    assert torch.autograd.gradcheck(
        lambda s: attention_relations(dict.fromkeys(QKV, s), teacher, Bridge(heads=2)), s_BTD
    )


# --- which layers and heads


def test_pairs_of_layers() -> None:
    assert layer_pairs(3, 12, kept=[0, 5, 11]) == [(0, 0), (1, 5), (2, 11)]
    assert layer_pairs(4, 12) == [(0, 2), (1, 5), (2, 8), (3, 11)]
    assert layer_pairs(12, 12) == [(layer, layer) for layer in range(12)]
    assert layer_pairs(1, 12) == [(0, 11)]
    assert layer_pairs(4, 2) == [(0, 0), (1, 0), (2, 1), (3, 1)]
    assert layer_pairs(4, 12, listed=[(3, 10), (0, 1)]) == [(0, 1), (3, 10)]


@pytest.mark.parametrize("listed", [[(4, 0)], [(0, 12)], [(-1, 0)], [(0, 1), (0, 2)], []])
def test_pairs_that_do_not_exist_are_refused(listed: list[tuple[int, int]]) -> None:
    with pytest.raises(StageError, match="layer pairs: expected"):
        layer_pairs(4, 12, listed=listed)


def test_relation_heads_divide_all_widths() -> None:
    assert relation_heads((768, 768, 768), (768, 768, 768), 12) == 12
    assert relation_heads((512, 128, 128), (768, 256, 256), 12) == 8
    assert relation_heads((576, 192, 192), (576, 192, 192), 9) == 8
    assert relation_heads((576, 192, 192), (576, 192, 192), 9, wanted=3) == 3
    with pytest.raises(StageError, match="expected a divisor of 192"):
        relation_heads((576, 192, 192), (576, 192, 192), 9, wanted=9)


# --- what the hooks see


def seen_by_attention(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(query, key, value) of every layer as the attention itself is given them, [B, heads, T, head_dim]."""
    noted: list[tuple[Tensor, Tensor, Tensor]] = []
    plain, own = ALL_ATTENTION_FUNCTIONS["sdpa"], model.config._attn_implementation

    def note(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **named: Any) -> Any:
        noted.append((query, key, value))
        named.pop("softcap", None)  # Gemma 2's, which this attention does not know; both sides go without it
        return plain(module, query, key, value, *rest, **named)

    with monkeypatch.context() as patched, torch.no_grad():
        patched.setitem(ALL_ATTENTION_FUNCTIONS, own, note)  # type: ignore[arg-type]  # a mapping, if not a dict
        model.base_model(input_ids=IDS_BT, use_cache=False)
    return noted


@pytest.mark.parametrize("family", sorted(set(PROJECTIONS) - {"gpt_neo"}))
def test_queries_keys_and_values_are_those_of_the_attention(
    family: str, make_checkpoint: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values as they are; and q_t . k_t, which a rotation by position leaves alone, where no norm follows."""
    model = load_model(make_checkpoint(family))
    taps = Taps(model, {1: QKV})
    query, key, value = seen_by_attention(model, monkeypatch)[1]
    seen = taps.take()[1]
    assert projection_widths(model, 1) == tuple(seen[part].shape[-1] for part in QKV)
    torch.testing.assert_close(seen["value"], value.transpose(1, 2).flatten(2))
    if family in {"gemma3_text", "qwen3"}:
        return
    heads, groups = query.shape[1], query.shape[1] // key.shape[1]
    own_query = seen["query"].unflatten(-1, (heads, -1)).transpose(1, 2)
    own_key = seen["key"].unflatten(-1, (heads // groups, -1)).transpose(1, 2).repeat_interleave(groups, dim=1)
    expected = (query * key.repeat_interleave(groups, dim=1)).sum(-1)
    if family == "opt":
        expected = expected * query.shape[-1] ** 0.5  # OPT scales its queries itself
    torch.testing.assert_close((own_query * own_key).sum(-1), expected, rtol=1e-4, atol=1e-6)


def test_values_of_gpt_neo_are_those_of_its_cache(make_checkpoint: Make) -> None:
    model = load_model(make_checkpoint("gpt_neo", attention_types=[[["global", "local"], 1]]))
    taps = Taps(model, {1: QKV})
    with torch.no_grad():
        cache = model(input_ids=IDS_BT, use_cache=True).past_key_values
    seen = taps.take()[1]
    torch.testing.assert_close(seen["value"], cache.layers[1].values.transpose(1, 2).flatten(2))
    torch.testing.assert_close(seen["key"], cache.layers[1].keys.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "opt", "qwen3"])
def test_hidden_states_are_those_that_the_model_gives(family: str, make_checkpoint: Make) -> None:
    model = load_model(make_checkpoint(family))
    taps = Taps(model, {0: ["hidden"]})
    with torch.no_grad():
        given = model(input_ids=IDS_BT, output_hidden_states=True, use_cache=False).hidden_states
    torch.testing.assert_close(taps.take()[0]["hidden"], given[1])


def test_what_is_taken_is_gone_and_hooks_can_be_removed(gpt2: Path) -> None:
    model = load_model(gpt2)
    before = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    taps = Taps(model, {0: ["hidden"], 2: ["hidden", *QKV]})
    assert [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()] != before
    with pytest.raises(RuntimeError, match="expected a forward pass"):
        taps.take()
    model.base_model(input_ids=IDS_BT)
    assert {layer: set(seen) for layer, seen in taps.take().items()} == {0: {"hidden"}, 2: {"hidden", *QKV}}
    with pytest.raises(RuntimeError, match=r"missing: .* of layer"):
        taps.take()
    taps.remove()
    assert [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()] == before


def test_no_graph_outlives_its_step(gpt2: Path) -> None:
    """The graph of a pass that nobody took is let go as the next one begins, or when it is asked for."""
    import gc
    import weakref

    student, teacher = load_model(gpt2), load_model(gpt2)
    losses = LayerLosses(student, teacher, BOTH, layer_pairs(3, 3))
    student.base_model(input_ids=IDS_BT, use_cache=False)
    graph = weakref.ref(losses._student._seen[0]["hidden"])
    assert graph() is not None
    student.base_model(input_ids=IDS_BT, use_cache=False)
    assert graph() is None
    graph = weakref.ref(losses._student._seen[0]["hidden"])
    losses.clear()
    assert graph() is None
    run(losses, student, teacher)["hidden_states"].backward()
    gc.collect()
    assert not losses._student._seen
    assert not losses._teacher._seen


def test_a_family_without_a_table_is_refused_for_relations_alone(make_checkpoint: Make) -> None:
    model = load_model(make_checkpoint("bloom"))
    with pytest.raises(StageError, match=r"attention_relations: model_type: expected one of gemma, .* got 'bloom'"):
        LayerLosses(model, model, BOTH, layer_pairs(2, 2))
    assert run(LayerLosses(model, model, {"hidden_states": 1.0}, [(1, 1)]), model, model)["hidden_states"].item() == 0


# --- both together


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "opt", "qwen3"])
def test_equal_models_lose_nothing_and_others_do(family: str, make_checkpoint: Make) -> None:
    student, teacher = load_model(make_checkpoint(family)).double(), load_model(make_checkpoint(family)).double()
    depth = len(blocks(student))
    losses = LayerLosses(student, teacher, BOTH, layer_pairs(depth, depth))
    found = run(losses, student, teacher)
    assert list(found) == list(BOTH)
    assert all(loss.item() == pytest.approx(0, abs=1e-12) for loss in found.values())
    assert not list(losses.parameters())
    noisy(student)
    found = run(losses, student, teacher)
    assert all(loss.item() > 1e-3 for loss in found.values())
    torch.stack(list(found.values())).sum().backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    touched = {name for name, parameter in student.named_parameters() if parameter.grad is not None}
    assert any(name.startswith(blocks(student)[-1][0]) for name in touched)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama"])
def test_gradient_checkpointing_changes_nothing(family: str, make_checkpoint: Make) -> None:
    student, teacher = load_model(make_checkpoint(family)), load_model(make_checkpoint(family)).double()
    noisy(student).train()
    for module in student.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    losses = LayerLosses(student, teacher, BOTH, layer_pairs(2, len(blocks(teacher)), listed=[(0, 0), (1, 1)]))
    answers = []
    for checkpointing in (False, True):
        if checkpointing:
            student.activation_checkpointing_enable()
        student.zero_grad()
        found = run(losses, student, teacher)
        loss = found["hidden_states"] + found["attention_relations"]
        loss.backward()
        answers.append((loss.detach(), {n: p.grad for n, p in student.named_parameters() if p.grad is not None}))
        assert not losses._student._seen
    assert any("attn" in name or "attention" in name for name in answers[0][1])
    torch.testing.assert_close(answers[1], answers[0], rtol=1e-10, atol=1e-12)


def test_checkpointing_that_loses_the_graph_is_refused(gpt2: Path) -> None:
    student, teacher = load_model(gpt2).train(), load_model(gpt2)
    student.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": True})
    student.enable_input_require_grads()
    losses = LayerLosses(student, teacher, {"attention_relations": 1.0}, layer_pairs(3, 3))
    with pytest.raises(StageError, match="use_reentrant"):
        run(losses, student, teacher)


def test_a_narrower_student_learns_projections(make_checkpoint: Make, gpt2: Path) -> None:
    """Projections stand only where widths differ, get a gradient, and are all that the losses add to a checkpoint."""
    torch.manual_seed(0)
    teacher, student = load_model(gpt2), load_model(make_checkpoint("gpt2", n_embd=32, n_head=4, n_layer=2))
    losses = LayerLosses(student, teacher, BOTH, layer_pairs(2, 3))
    assert sorted(losses.state_dict()) == ["projections.0.weight", "projections.1.weight"]
    torch.testing.assert_close(losses.projections["0"].weight.mT @ losses.projections["0"].weight, torch.eye(32))
    again = LayerLosses(student, teacher, BOTH, layer_pairs(2, 3))
    assert torch.equal(again.projections["1"].weight, losses.projections["1"].weight)
    again.remove()
    found = run(losses, student, teacher)
    torch.stack(list(found.values())).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in losses.parameters())
    optimizer = torch.optim.AdamW([*losses.parameters(), *student.parameters()], lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        loss = run(losses, student, teacher)["hidden_states"]
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5 * found["hidden_states"].item()


def test_fitted_projections_are_the_least_squares_ones(make_checkpoint: Make, gpt2: Path) -> None:
    """No other map does better at once: after the fit, only the damping is left in the projections' gradient."""
    teacher, student = load_model(gpt2).double(), load_model(make_checkpoint("gpt2", n_embd=16, n_head=2)).double()
    losses = LayerLosses(student, teacher, {"hidden_states": 1.0}, layer_pairs(3, 3)).double()
    before = run(losses, student, teacher)["hidden_states"]
    before.backward()
    steep = sum(float(parameter.grad.norm()) for parameter in losses.parameters() if parameter.grad is not None)
    student.base_model(input_ids=IDS_BT)
    with torch.inference_mode():
        teacher.base_model(input_ids=IDS_BT)
    losses.fit_projections()
    losses.zero_grad()
    after = run(losses, student, teacher)["hidden_states"]
    after.backward()
    flat = sum(float(parameter.grad.norm()) for parameter in losses.parameters() if parameter.grad is not None)
    assert after < 0.8 and after < 0.6 * before  # noqa: PT018 (one claim)
    assert flat < 0.05 * steep


def test_heads_and_widths_and_families_may_differ(make_checkpoint: Make, llama: Path) -> None:
    """Twelve queries' worth of channels against eight, grouped keys and values against packed ones; under autocast."""
    teacher, student = load_model(llama), load_model(make_checkpoint("gpt2", n_embd=96, n_head=3))
    losses = LayerLosses(student, teacher, BOTH, layer_pairs(3, 3))
    assert relation_heads((96, 96, 96), (64, 32, 32), 3) == 2
    plain = run(losses, student, teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        student.base_model(input_ids=IDS_BT, use_cache=False)
        with torch.inference_mode():
            teacher.base_model(input_ids=IDS_BT, use_cache=False)
        half = losses()
    for name in BOTH:
        assert half[name].dtype == torch.float32
        assert half[name].item() == pytest.approx(plain[name].item(), rel=0.05)
    with pytest.raises(StageError, match="expected a divisor of 32"):
        LayerLosses(student, teacher, BOTH, layer_pairs(3, 3), heads=3)


def test_an_unknown_loss_is_refused(gpt2: Path) -> None:
    model = load_model(gpt2)
    with pytest.raises(StageError, match=r"expected some of hidden_states, attention_relations, got \['cosine'\]"):
        LayerLosses(model, model, {"cosine": 1.0}, layer_pairs(3, 3))
