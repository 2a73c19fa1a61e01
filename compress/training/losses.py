"""Losses over the vocabulary: how far a student's next-token distribution is from a teacher's, or from the text.

    p = softmax(teacher / T)    q = softmax(student / T)    a = skew
    forward_kl       sum p (log p - log q)                                          (arXiv 1503.02531, 2407.14679)
    reverse_kl       sum q (log q - log p)                                          (MiniLLM, arXiv 2306.08543)
    jensen_shannon   (sum p (log p - log m) + sum q (log q - log m)) / 2,  m = (p + q) / 2          (arXiv 2306.13649)
    skewed_kl        sum p (log p - log m),                                m = a p + (1 - a) q      (arXiv 2402.03898)
    cross_entropy    -log q_next at T = 1

Divergences are multiplied by T^2, which keeps their gradients comparable between temperatures. All are in nats.

`chunked_loss` goes from hidden states to the loss through a few positions at a time: their logits, their loss and the
gradient of their logits, which is multiplied out at once into the gradients of the hidden states and the head. No
logits are kept or computed again, so a vocabulary of 50k costs no more memory than the chunk, and no more time than the
loss written out naively (Liger Kernel, arXiv 2410.10989, does the same for the cross-entropy).

What a loss gives to the gradient is its slope with respect to log q; through the softmax it becomes
    d loss / d student = (slope - q sum slope) / T
so that every loss is one function of log q and log p, and they are mixed by adding slopes.

    N positions    V vocabulary    D hidden width    K tokens of which something is stored

Not covered: losses between layers (`compress/distillation/layer_losses.py`), soft caps between the head and the logits.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compress.quantization.fake_quantize import effective_weight
from compress.training.config import LOSSES

CHUNK_BYTES = {"cpu": 24 * 2**20, "cuda": 2**28}
"""Bytes of a chunk's logits: on a CPU what is this small is used again and again, and costs no page faults."""


@dataclass(frozen=True, eq=False)
class Chunk:
    """What a loss sees of some positions."""

    log_q_NV: Tensor
    """The student's log-probabilities."""
    log_p_NV: Tensor | None
    """The teacher's, where it is at hand."""
    stored: "SparseTarget | None"
    """What is known of the teacher where it is not."""
    next_N: Tensor
    """The tokens that came."""
    skew: float

    @property
    def log_p(self) -> Tensor:
        """The teacher's log-probabilities; whoever mixes the losses has seen to it that they are there."""
        assert self.log_p_NV is not None
        return self.log_p_NV


def forward_kl(at: Chunk) -> tuple[Tensor, Tensor]:
    """KL(teacher || student): the student covers all that the teacher finds likely."""
    if at.stored is not None:
        return at.stored.forward_kl(at.log_q_NV)
    p_NV = at.log_p.exp()
    value_N = torch.linalg.vecdot(p_NV, at.log_p) - torch.linalg.vecdot(p_NV, at.log_q_NV)
    return value_N, p_NV.neg_()


def reverse_kl(at: Chunk) -> tuple[Tensor, Tensor]:
    """KL(student || teacher): the student keeps to what the teacher finds likely."""
    q_NV, distance_NV = at.log_q_NV.exp(), at.log_q_NV - at.log_p
    return torch.linalg.vecdot(q_NV, distance_NV), distance_NV.add_(1).mul_(q_NV)


def jensen_shannon(at: Chunk) -> tuple[Tensor, Tensor]:
    """The mean of both directions, each towards the mixture: bounded."""
    p_NV, q_NV = at.log_p.exp(), at.log_q_NV.exp()
    log_m_NV = torch.lerp(p_NV, q_NV, 0.5).log_()
    slope_NV = (at.log_q_NV - log_m_NV).mul_(q_NV).div_(2)
    return slope_NV.sum(-1) + torch.linalg.vecdot(p_NV, at.log_p - log_m_NV) / 2, slope_NV


def skewed_kl(at: Chunk) -> tuple[Tensor, Tensor]:
    """KL(teacher || the student with some of the teacher in it): forward KL with a bounded gradient."""
    p_NV, q_NV = at.log_p.exp(), at.log_q_NV.exp()
    m_NV = torch.lerp(q_NV, p_NV, at.skew)
    slope_NV = q_NV.div_(m_NV).mul_(p_NV).mul_(at.skew - 1)
    return torch.linalg.vecdot(p_NV, at.log_p - m_NV.log_()), slope_NV


def cross_entropy(at: Chunk) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of the text itself, at T = 1."""
    here_N1 = at.next_N[:, None]
    return -at.log_q_NV.gather(1, here_N1)[:, 0], torch.zeros_like(at.log_q_NV).scatter_(1, here_N1, -1)


WITHOUT_TEACHER = frozenset(name for name, loss in LOSSES.items() if not loss.teacher)
"""Losses that see the text alone; they are taken at T = 1."""
WITH_STORED_TEACHER = frozenset(name for name, loss in LOSSES.items() if loss.stored)
"""Losses that a few tokens of the teacher's distribution suffice for."""


@dataclass(frozen=True, kw_only=True)
class Mix:
    """Which losses, and how much of each."""

    weights: Mapping[str, float]
    """By name in LOSSES."""
    temperature: float = 1.0
    skew: float = 0.1
    """Share of the teacher in the mixture of `skewed_kl`."""


@dataclass(frozen=True, eq=False)
class Head:
    """What makes logits of hidden states: hidden_ND @ weight_VD.T + bias_V."""

    weight_VD: Tensor
    bias_V: Tensor | None = None

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Head":
        """The output embeddings of a model."""
        module = model.get_output_embeddings()
        assert isinstance(module, nn.Linear)
        return cls(effective_weight(module), module.bias)

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """float32 (or float64) logits [N, V]. Hidden states may be wider than the head: autocast leaves a norm's result
        in float32 on a GPU.
        """
        logits_NV = nn.functional.linear(hidden_ND.to(self.weight_VD.dtype), self.weight_VD, self.bias_V)
        return logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()


@dataclass(frozen=True, eq=False)
class DenseTarget:
    """A teacher at hand: its last hidden states, and its head."""

    hidden_ND: Tensor
    head: Head

    def __getitem__(self, positions: slice) -> "DenseTarget":
        return replace(self, hidden_ND=self.hidden_ND[positions])

    def log_p(self, temperature: float) -> Tensor:
        """The log-probabilities [N, V] at a temperature."""
        return _log_softmax(self.head.logits(self.hidden_ND), temperature)


@dataclass(frozen=True, eq=False)
class SparseTarget:
    """A teacher that was written down: of each position a few tokens, padded with probability 0.

    Sampled, E[p_NK] is the teacher's distribution, and the loss is an unbiased estimate of the forward KL whose
    gradient is unbiased too. Of a top k, the rest is one class more, and the loss is the KL over k + 1 classes.
    """

    ids_NK: Tensor
    """int64."""
    p_NK: Tensor
    """float32, at the temperature at which it was stored."""
    rest_N: Tensor | None = None
    """The probability of everything else, of a top k."""
    entropy_N: Tensor | None = None
    """Nats, of the whole distribution, where it was sampled."""

    def __getitem__(self, positions: slice) -> "SparseTarget":
        return self._each(lambda tensor: tensor[positions])

    def to(self, device: torch.device) -> "SparseTarget":
        """The same on another device."""
        return self._each(lambda tensor: tensor.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "SparseTarget":
        rest_N, entropy_N = (None if each is None else change(each) for each in (self.rest_N, self.entropy_N))
        return SparseTarget(change(self.ids_NK), change(self.p_NK), rest_N, entropy_N)

    def forward_kl(self, log_q_NV: Tensor) -> tuple[Tensor, Tensor]:
        """As the loss of that name."""
        p_NK, log_q_NK = self.p_NK.to(log_q_NV.dtype), log_q_NV.gather(1, self.ids_NK)
        slope_NV, told_N = torch.zeros_like(log_q_NV), -(p_NK * log_q_NK).sum(-1)
        if self.rest_N is None:
            assert self.entropy_N is not None
            return told_N - self.entropy_N, slope_NV.scatter_add_(1, self.ids_NK, -p_NK)
        rest_N, q_NK = self.rest_N.to(log_q_NV.dtype), log_q_NK.exp() * (p_NK > 0)
        other_N = (1 - q_NK.sum(-1)).clamp_min(torch.finfo(q_NK.dtype).eps)
        value_N = told_N + torch.special.xlogy(p_NK, p_NK).sum(-1) + torch.special.xlogy(rest_N, rest_N / other_N)
        return value_N, slope_NV.scatter_add_(1, self.ids_NK, q_NK * (rest_N / other_N)[:, None] - p_NK)


Target = DenseTarget | SparseTarget


def chunked_loss(
    hidden_ND: Tensor, head: Head, target: Target | None, next_N: Tensor, mix: Mix
) -> tuple[Tensor, Tensor]:
    """The weighted sum of the losses over N positions, and each loss by itself in the order of `mix`, in nats.

    The gradient goes through the first, a scalar.

    Args:
        hidden_ND: the student's last hidden states.
        head: the student's; its weight and bias get gradients where they ask for them.
        target: what the teacher says at these positions; None where `mix` names the cross-entropy alone.
        next_N: the tokens that came, int64.

    Raises:
        ValueError: the target cannot give a loss that `mix` names.
    """
    able = WITHOUT_TEACHER if target is None else WITH_STORED_TEACHER if isinstance(target, SparseTarget) else LOSSES
    unable = [name for name in mix.weights if name not in able]
    if unable:
        raise ValueError(f"losses: expected some of {', '.join(sorted(able))}, got {', '.join(unable)}")
    learned: tuple[Tensor | None, ...] = (hidden_ND, head.weight_VD, head.bias_V)
    if not torch.is_grad_enabled():
        learned = tuple(None if each is None else each.detach() for each in learned)
    total, values_L = _Chunked.apply(*learned, target, next_N, mix)
    return total, values_L


class _Chunked(torch.autograd.Function):
    """Loss and gradients in one pass over the positions."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        target: Target | None,
        next_N: Tensor,
        mix: Mix,
    ) -> tuple[Tensor, Tensor]:
        device = hidden_ND.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight_VD.dtype
        with torch.autocast(device, enabled=False):
            head = Head(weight_VD.to(dtype), None if bias_V is None else bias_V.to(dtype))
            gradients = _Gradients(hidden_ND, weight_VD, bias_V, ctx.needs_input_grad)
            wide = torch.promote_types(dtype, torch.float32)
            values_L = torch.zeros(len(mix.weights), dtype=wide, device=hidden_ND.device)
            size = max(1, CHUNK_BYTES.get(device, CHUNK_BYTES["cuda"]) // (wide.itemsize * len(weight_VD)))
            for start in range(0, len(hidden_ND), size):
                positions = slice(start, start + size)
                piece_ND = hidden_ND[positions].to(dtype)
                there = None if target is None else target[positions]
                more_L, gradient_NV = _values_and_gradient(head.logits(piece_ND), there, next_N[positions], mix)
                values_L += more_L
                gradients.add(positions, gradient_NV.to(dtype), piece_ND, head)
        ctx.save_for_backward(*gradients.found())
        ctx.mark_non_differentiable(values_L)
        return sum_of(values_L, mix), values_L

    @staticmethod
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        found = [None if each is None else each.mul_(scale) for each in ctx.saved_tensors]
        return *found, None, None, None


class _Gradients:
    """What the pieces add to, for those inputs that ask for it."""

    def __init__(self, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, wanted: tuple[bool, ...]) -> None:
        self.hidden_ND = torch.empty_like(hidden_ND) if wanted[0] else None
        self.weight_VD = torch.zeros_like(weight_VD) if wanted[1] else None
        self.bias_V = torch.zeros_like(bias_V) if bias_V is not None and wanted[2] else None

    def add(self, positions: slice, logits_NV: Tensor, piece_ND: Tensor, head: Head) -> None:
        """Multiply out the gradient of a piece's logits."""
        if self.hidden_ND is not None:
            self.hidden_ND[positions] = logits_NV @ head.weight_VD
        if self.weight_VD is not None and self.weight_VD.dtype == logits_NV.dtype:
            self.weight_VD.addmm_(logits_NV.T, piece_ND)
        elif self.weight_VD is not None:
            self.weight_VD += logits_NV.T @ piece_ND
        if self.bias_V is not None:
            self.bias_V += logits_NV.sum(0)

    def found(self) -> tuple[Tensor | None, ...]:
        return self.hidden_ND, self.weight_VD, self.bias_V


def sum_of(values_L: Tensor, mix: Mix) -> Tensor:
    """The weighted sum of the losses."""
    scales = [weight * _temperature(name, mix) ** 2 for name, weight in mix.weights.items()]
    return values_L @ values_L.new_tensor(scales)


def _values_and_gradient(logits_NV: Tensor, target: Target | None, next_N: Tensor, mix: Mix) -> tuple[Tensor, Tensor]:
    """(the sum of each loss over a chunk, the gradient of their weighted sum with respect to the logits)."""
    values: dict[str, Tensor] = {}
    gradient_NV: Tensor | None = None
    for temperature in dict.fromkeys(_temperature(name, mix) for name in mix.weights):
        names = [name for name in mix.weights if _temperature(name, mix) == temperature]
        at = _chunk(logits_NV, target, next_N, temperature, mix.skew, with_teacher=bool(set(names) - WITHOUT_TEACHER))
        slope_NV: Tensor | None = None
        for name in names:
            value_N, more_NV = LOSSES[name].function(at)
            values[name], weight = value_N.sum(), mix.weights[name] * temperature**2
            slope_NV = more_NV.mul_(weight) if slope_NV is None else slope_NV.add_(more_NV, alpha=weight)
        assert slope_NV is not None
        slope_NV.sub_(at.log_q_NV.exp_().mul_(slope_NV.sum(-1, keepdim=True))).div_(temperature)
        gradient_NV = slope_NV if gradient_NV is None else gradient_NV.add_(slope_NV)
    assert gradient_NV is not None
    return torch.stack([values[name] for name in mix.weights]), gradient_NV


def _temperature(name: str, mix: Mix) -> float:
    return 1.0 if name in WITHOUT_TEACHER else mix.temperature


def _chunk(
    logits_NV: Tensor, target: Target | None, next_N: Tensor, temperature: float, skew: float, *, with_teacher: bool
) -> Chunk:
    log_p_NV = target.log_p(temperature) if isinstance(target, DenseTarget) and with_teacher else None
    stored = target if isinstance(target, SparseTarget) else None
    return Chunk(_log_softmax(logits_NV, temperature), log_p_NV, stored, next_N, skew)


def _log_softmax(logits_NV: Tensor, temperature: float) -> Tensor:
    return torch.log_softmax(logits_NV if temperature == 1 else logits_NV / temperature, -1)
