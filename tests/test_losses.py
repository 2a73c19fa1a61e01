"""Losses over the vocabulary: closed forms, autograd in float64, and chunks that change nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compress.checkpoints.loading import load_model
from compress.training import losses
from compress.training.config import LOSSES
from compress.training.losses import WITHOUT_TEACHER, Chunk, DenseTarget, Head, Mix, SparseTarget, Target, chunked_loss
from compress.training.objective import Objective, ends_in_linear_head

N, V, D = 7, 19, 5
DIVERGENCES = sorted(set(LOSSES) - WITHOUT_TEACHER)


def written_out(name: str, student_NV: Tensor, teacher_NV: Tensor, next_N: Tensor, temperature: float) -> Tensor:
    """Each loss as its paper has it, by autograd alone."""
    p, q = (teacher_NV / temperature).softmax(-1), (student_NV / temperature).softmax(-1)
    middle, skewed = (p + q) / 2, 0.1 * p + 0.9 * q
    forms: dict[str, Callable[[], Tensor]] = {
        "forward_kl": lambda: (p * (p / q).log()).sum() * temperature**2,
        "reverse_kl": lambda: (q * (q / p).log()).sum() * temperature**2,
        "jensen_shannon": lambda: (
            ((p * (p / middle).log()).sum() + (q * (q / middle).log()).sum()) / 2 * temperature**2
        ),
        "skewed_kl": lambda: (p * (p / skewed).log()).sum() * temperature**2,
        "cross_entropy": lambda: functional.cross_entropy(student_NV, next_N, reduction="sum"),
    }
    return forms[name]()


class Case:
    """A student and a teacher of a few positions, in float64."""

    def __init__(self, *, biased: bool = False) -> None:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, dtype=torch.float64, generator=generator)

        self.hidden_ND = normal(N, D).requires_grad_()
        self.weight_VD = normal(V, D).requires_grad_()
        self.bias_V = normal(V).requires_grad_() if biased else None
        self.teacher = DenseTarget(normal(N, D), Head(normal(V, D)))
        self.next_N = torch.randint(0, V, (N,), generator=generator)

    @property
    def inputs(self) -> list[Tensor]:
        return [each for each in (self.hidden_ND, self.weight_VD, self.bias_V) if each is not None]

    def chunked(self, mix: Mix, target: Target | None = None) -> Tensor:
        total, _ = chunked_loss(
            self.hidden_ND, Head(self.weight_VD, self.bias_V), target or self.teacher, self.next_N, mix
        )
        return total

    def naive(self, mix: Mix) -> Tensor:
        student_NV = functional.linear(self.hidden_ND, self.weight_VD, self.bias_V)
        teacher_NV = self.teacher.head.logits(self.teacher.hidden_ND)
        terms = [
            weight * written_out(name, student_NV, teacher_NV, self.next_N, mix.temperature)
            for name, weight in mix.weights.items()
        ]
        return torch.stack(terms).sum()


def grads(loss: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss, inputs)]


@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_divergence_between_equal_distributions_is_zero_and_flat(name: str) -> None:
    log_p_NV = torch.randn(N, V, dtype=torch.float64).log_softmax(-1)
    value_N, slope_NV = LOSSES[name].function(
        Chunk(log_p_NV, log_p_NV.clone(), None, torch.zeros(N, dtype=torch.long), 0.1)
    )
    torch.testing.assert_close(value_N, torch.zeros(N, dtype=torch.float64), atol=1e-12, rtol=0)
    through_NV = slope_NV - log_p_NV.exp() * slope_NV.sum(-1, keepdim=True)
    torch.testing.assert_close(through_NV, torch.zeros_like(through_NV), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_divergence_is_positive_between_different_ones(name: str) -> None:
    log_q_NV, log_p_NV = (torch.randn(N, V, dtype=torch.float64).log_softmax(-1) for _ in range(2))
    value_N, _ = LOSSES[name].function(Chunk(log_q_NV, log_p_NV, None, torch.zeros(N, dtype=torch.long), 0.1))
    assert (value_N > 0.05).all()


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("name", sorted(LOSSES))
def test_values_and_gradients_equal_autograd_in_float64(name: str, temperature: float) -> None:
    case, mix = Case(biased=True), Mix(weights={name: 0.7}, temperature=temperature)
    for found, wanted in zip(grads(case.chunked(mix), case.inputs), grads(case.naive(mix), case.inputs), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    case, mix = Case(), Mix(weights={name: 1.0}, temperature=1.5)
    _, *gradients = grads(case.chunked(mix), case.inputs)
    for tensor, gradient in zip(case.inputs, gradients, strict=True):
        step, start = 1e-6 * torch.randn_like(tensor), tensor.detach().clone()
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                tensor.copy_(start + sign * step)
                ends.append(case.chunked(mix))
        tensor.data.copy_(start)
        torch.testing.assert_close((gradient * step).sum(), (ends[0] - ends[1]) / 2, rtol=1e-4, atol=1e-11)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_size_of_a_chunk_changes_nothing(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case()
    mix = Mix(weights={"forward_kl": 0.6, "cross_entropy": 0.3, "reverse_kl": 0.1}, temperature=temperature)
    wanted = grads(case.naive(mix), case.inputs)
    for positions in (1, 3, N, 10 * N):
        monkeypatch.setitem(losses.CHUNK_BYTES, "cpu", 8 * V * positions)
        for found, expected in zip(grads(case.chunked(mix), case.inputs), wanted, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_a_higher_temperature_keeps_the_size_of_the_gradient() -> None:
    """For small logits the gradient of T^2 KL(p_T, q_T) does not depend on T (Hinton et al., equation 4)."""
    case = Case()
    with torch.no_grad():
        for tensor in (case.hidden_ND, case.teacher.hidden_ND):
            tensor.mul_(1e-3)
    found = [
        grads(case.chunked(Mix(weights={"forward_kl": 1.0}, temperature=temperature)), [case.hidden_ND])[1]
        for temperature in (1.0, 4.0)
    ]
    torch.testing.assert_close(found[1], found[0], rtol=0.05, atol=1e-8)


def test_what_comes_in_scaled_goes_out_scaled() -> None:
    case, mix = Case(), Mix(weights={"forward_kl": 1.0})
    once, thrice = (grads(factor * case.chunked(mix), case.inputs) for factor in (1.0, 3.0))
    for one, three in zip(once, thrice, strict=True):
        torch.testing.assert_close(three, 3 * one)


def test_each_loss_is_told_by_itself() -> None:
    case, weights = Case(), {"cross_entropy": 0.25, "forward_kl": 0.5}
    mix = Mix(weights=weights, temperature=2.0)
    total, values_L = chunked_loss(case.hidden_ND, Head(case.weight_VD), case.teacher, case.next_N, mix)
    assert not values_L.requires_grad
    torch.testing.assert_close(total, 0.25 * values_L[0] + 0.5 * 4 * values_L[1])


def test_nothing_is_kept_where_no_gradient_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case()
    monkeypatch.setattr(torch.Tensor, "addmm_", None)
    with torch.no_grad():
        assert not case.chunked(Mix(weights={"forward_kl": 1.0})).requires_grad


def sparse(case: Case, k: int) -> SparseTarget:
    p_NV = case.teacher.log_p(1.0).exp()
    p_NK, ids_NK = p_NV.topk(k)
    return SparseTarget(ids_NK, p_NK, rest_N=(1 - p_NK.sum(-1)).clamp_min(0))


def test_a_head_takes_hidden_states_that_are_wider_than_itself() -> None:
    hidden_ND, weight_VD = torch.randn(3, 8), torch.randn(5, 8).to(torch.bfloat16)
    narrow = Head(weight_VD).logits(hidden_ND.to(torch.bfloat16))
    assert torch.equal(Head(weight_VD).logits(hidden_ND), narrow)
    assert narrow.dtype == torch.float32


def test_a_stored_teacher_of_all_tokens_is_the_teacher() -> None:
    case, mix = Case(), Mix(weights={"forward_kl": 0.9, "cross_entropy": 0.1})
    log_p_NV = case.teacher.log_p(1.0)
    ids_NK = torch.arange(V).expand(N, V)
    whole = SparseTarget(ids_NK, log_p_NV.exp(), entropy_N=-(log_p_NV.exp() * log_p_NV).sum(-1))
    for target in (whole, sparse(case, V - 1)):
        for found, wanted in zip(
            grads(case.chunked(mix, target), case.inputs), grads(case.chunked(mix), case.inputs), strict=True
        ):
            torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)


def test_a_top_k_is_the_divergence_over_k_and_the_rest() -> None:
    case, mix = Case(), Mix(weights={"forward_kl": 1.0})
    target = sparse(case, 4)
    assert target.rest_N is not None
    q_NV = functional.linear(case.hidden_ND, case.weight_VD).softmax(-1)
    q_NK = q_NV.gather(1, target.ids_NK)
    p_NJ = torch.cat([target.p_NK, target.rest_N[:, None]], 1)
    q_NJ = torch.cat([q_NK, 1 - q_NK.sum(-1, keepdim=True)], 1)
    wanted = grads((p_NJ * (p_NJ / q_NJ).log()).sum(), case.inputs)
    for found, expected in zip(grads(case.chunked(mix, target), case.inputs), wanted, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


def test_a_stored_teacher_does_not_give_what_it_does_not_know() -> None:
    case = Case()
    with pytest.raises(ValueError, match="expected some of cross_entropy, forward_kl, got reverse_kl"):
        case.chunked(Mix(weights={"reverse_kl": 1.0}), sparse(case, 3))
    with pytest.raises(ValueError, match="expected some of cross_entropy, got forward_kl"):
        chunked_loss(case.hidden_ND, Head(case.weight_VD), None, case.next_N, Mix(weights={"forward_kl": 1.0}))


def test_position_t_is_held_against_token_t_plus_1(gpt2: Path) -> None:
    model, ids_BT = load_model(gpt2), torch.arange(24).reshape(2, 12)
    logits_BTV = model(input_ids=ids_BT).logits
    expected = functional.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), ids_BT[:, 1:].flatten())
    torch.testing.assert_close(Objective(model)(ids_BT), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_models_gradients_are_those_of_its_own_loss(family: str, request: pytest.FixtureRequest) -> None:
    """Tied embeddings among them."""
    model, ids_BT = load_model(request.getfixturevalue(family)), torch.arange(24).reshape(2, 12)
    found = torch.autograd.grad(Objective(model)(ids_BT), list(model.parameters()))
    wanted = torch.autograd.grad(model(input_ids=ids_BT, labels=ids_BT).loss, list(model.parameters()))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_head_behind_soft_capping_is_noticed(gpt2: Path) -> None:
    model = load_model(gpt2)
    assert ends_in_linear_head(model)
    plain = model.forward

    def capped(*arguments: object, **named: object) -> object:
        answer = plain(*arguments, **named)
        answer.logits = torch.tanh(answer.logits)
        return answer

    model.forward = capped  # type: ignore[method-assign]  # a final soft cap, as Gemma has
    assert not ends_in_linear_head(model)
    ids_BT = torch.arange(12)[None]
    expected = functional.cross_entropy(model(input_ids=ids_BT).logits[0, :-1], ids_BT[0, 1:])
    torch.testing.assert_close(Objective(model)(ids_BT), expected)


def test_bf16_autocast_computes_the_head_in_bf16_and_gives_float32_gradients() -> None:
    head, hidden_ND = nn.Linear(16, 33, bias=False), torch.randn(6, 16, requires_grad=True)
    target, next_N = DenseTarget(torch.randn(6, 16), Head(torch.randn(33, 16))), torch.arange(6)
    mix = Mix(weights={"forward_kl": 1.0})
    plain = torch.autograd.grad(chunked_loss(hidden_ND, Head(head.weight), target, next_N, mix)[0], head.weight)[0]
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = chunked_loss(hidden_ND, Head(head.weight), target, next_N, mix)
    half = torch.autograd.grad(loss, head.weight)[0]
    assert half.dtype == torch.float32
    assert not torch.equal(half, plain)
    torch.testing.assert_close(half, plain, rtol=0.1, atol=0.05)
