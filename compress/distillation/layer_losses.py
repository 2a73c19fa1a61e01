"""Losses between layers: a student's hidden states and attention relations against its teacher's, layer by layer.

    hidden_states         mean over B, T, D of ((s - t) / c)^2,   c_BD = root of the mean over T of t^2
    attention_relations   mean over A in {Q, K, V}, B, R, T of KL(teacher || student) of
                          softmax over u <= t of (a_t . a_u) / sqrt(channels of a relation head)

**Hidden states** are the residual stream after a block. In a model that norms what each block reads, the stream grows
from layer to layer and a few channels are hundreds of times as large as the rest, so a plain squared error, or a cosine
(DistilBERT, arXiv 1910.01108), says of those few channels how well they are met and little else. Here each channel is
measured in units of its own root mean square over a row of text: a channel adds its relative error over D, however
large it is, and 1.0 in all is what hidden states of zero would get. No unit is less than a tenth of the median
channel's, so that a dead channel asks for no precision. A row's loss depends on that row alone, so it does not matter
how rows are dealt out to batches or processes. Where widths differ, a learned linear map, as TinyBERT has (arXiv
1909.10351), leads from the student's channels, in their own units, to the teacher's; equal widths need none.

**Attention relations** (MiniLMv2, arXiv 2012.15828) say how alike a layer finds two positions: by their queries, by
their keys, by their values. They are split into R relation heads, whose number divides the channels of both models, so
heads and widths may differ and nothing is learned beside the student. A position relates to itself and to earlier ones.
`activations.py` says what is taken for queries, keys and values.

    B rows    T tokens    D hidden width    C channels of queries, keys or values    R relation heads    G = B * R

Not covered: losses on attention weights; relations where GPT-2's queries were rescaled as their layer moved.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compress.distillation.config import LAYER_LOSSES
from compress.models.activations import QKV, Seen, Taps, projection_widths
from compress.models.families import Part
from compress.stage import StageError

Pair = tuple[int, int]
"""A student's layer and the teacher's layer that it is held against, from 0."""
FLOOR = 0.01
"""Share of the median channel's mean square below which no channel's unit falls."""
DAMPING = 0.01
"""Share of the mean square that a least-squares fit adds to every channel's."""
CHUNK_RELATIONS = 2**22
"""Relations of one model that are held at once."""


@dataclass(frozen=True, eq=False)
class Bridge:
    """What stands between a layer of the student and one of the teacher."""

    projection: nn.Module | None = None
    """From the student's width to the teacher's; None where they are equal."""
    heads: int = 1
    """Relation heads."""


def hidden_states(student: Seen, teacher: Seen, bridge: Bridge) -> Tensor:
    """Mean squared error of the residual stream after each mapped layer, each channel in units of its own size."""
    student_BTD, teacher_BTD = _wide(student["hidden"]), _wide(teacher["hidden"])
    unit_BD = channel_units(teacher_BTD)
    if bridge.projection is None:
        return ((student_BTD - teacher_BTD) / unit_BD).square().mean()
    projected_BTD: Tensor = bridge.projection(student_BTD / channel_units(student_BTD))
    return (projected_BTD - teacher_BTD / unit_BD).square().mean()


def attention_relations(student: Seen, teacher: Seen, bridge: Bridge) -> Tensor:
    """KL between how alike the queries, keys and values of two positions are, in the last mapped layer (MiniLMv2)."""
    terms = [relation_divergence(_wide(student[part]), _wide(teacher[part]), bridge.heads) for part in QKV]
    return torch.stack(terms).mean()


def channel_units(hidden_BTD: Tensor) -> Tensor:
    """Root mean square of each channel over a row, at least a tenth of the row's median channel's: [B, 1, D]."""
    square_BD = hidden_BTD.square().mean(dim=1, keepdim=True)
    least_B = FLOOR * square_BD.median(dim=-1, keepdim=True).values
    return square_BD.maximum(least_B).clamp_min(torch.finfo(square_BD.dtype).tiny).sqrt()


def relation_divergence(student_BTC: Tensor, teacher_BTC: Tensor, heads: int) -> Tensor:
    """KL(teacher || student) of causal self-relations, averaged over rows, heads and positions, in nats."""
    student_GTC, teacher_GTC = _split(student_BTC, heads), _split(teacher_BTC, heads)
    total: Tensor = _Divergence.apply(student_GTC, teacher_GTC)
    return total / (student_GTC.shape[0] * student_GTC.shape[1])


class _Divergence(torch.autograd.Function):
    """Sum of the divergences. The gradient comes with it, so that no relations are kept: with S = A A^T / sqrt(C),
    dS = q - p, and dA = (dS + dS^T) A / sqrt(C).
    """

    @staticmethod
    def forward(ctx: Any, student_GTC: Tensor, teacher_GTC: Tensor) -> Tensor:
        size = max(1, CHUNK_RELATIONS // student_GTC.shape[1] ** 2)
        total, gradient_GTC = student_GTC.new_zeros(()), torch.zeros_like(student_GTC)
        pieces = (tensor_GTC.split(size) for tensor_GTC in (student_GTC, teacher_GTC, gradient_GTC))
        for own_GTC, other_GTC, into_GTC in zip(*pieces, strict=True):
            log_q_GTT, log_p_GTT = _log_relations(own_GTC), _log_relations(other_GTC)
            total += nn.functional.kl_div(log_q_GTT, log_p_GTT, reduction="sum", log_target=True)
            if ctx.needs_input_grad[0]:
                slope_GTT = log_q_GTT.exp_() - log_p_GTT.exp_()
                into_GTC.copy_((slope_GTT + slope_GTT.mT) @ own_GTC / own_GTC.shape[-1] ** 0.5)
        ctx.save_for_backward(gradient_GTC)
        return total

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        (gradient_GTC,) = ctx.saved_tensors
        return slope * gradient_GTC, None


def _log_relations(x_GTC: Tensor) -> Tensor:
    """Log-softmax over a position and those before it; 0 for those after it, which is the same in both models."""
    scores_GTT: Tensor = x_GTC @ x_GTC.mT / x_GTC.shape[-1] ** 0.5
    later_TT = torch.ones(scores_GTT.shape[-2:], dtype=torch.bool, device=x_GTC.device).triu(1)
    log_p_GTT: Tensor = scores_GTT.masked_fill(later_TT, float("-inf")).log_softmax(dim=-1)
    return log_p_GTT.masked_fill(later_TT, 0.0)


def _split(x_BTC: Tensor, heads: int) -> Tensor:
    """[B, T, C] -> [B * heads, T, C / heads]."""
    x_BTGC: Tensor = x_BTC.unflatten(-1, (heads, -1))
    return x_BTGC.transpose(1, 2).flatten(0, 1)


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in {torch.float16, torch.bfloat16} else x


def layer_pairs(
    student_depth: int, teacher_depth: int, *, kept: Sequence[int] | None = None, listed: Sequence[Pair] | None = None
) -> list[Pair]:
    """Which layer of the teacher each layer of the student is held against, in the order of the student's layers.

    Args:
        kept: the teacher's layers that the student's came from, where it was cut from the teacher.
        listed: pairs (student's layer, teacher's layer) that are wanted instead, from 0; some layers or all.

    Without either, evenly spaced so that the last layer meets the last: 4 of 12 gives 2, 5, 8, 11 (TinyBERT).

    Raises:
        StageError: there is no such layer, a layer of the student comes twice, or there is no pair.
    """
    if listed is None:
        origins = kept if kept is not None else _evenly(student_depth, teacher_depth)
        return list(enumerate(origins))
    pairs = sorted(listed)
    students = [student for student, _ in pairs]
    inside = all(0 <= student < student_depth and 0 <= teacher < teacher_depth for student, teacher in pairs)
    if not pairs or not inside or len(set(students)) < len(students):
        raise StageError(
            f"distill: layer pairs: expected [student, teacher] pairs, each layer of the student once, below "
            f"{student_depth} and {teacher_depth}, got {[list(pair) for pair in pairs]}"
        )
    return pairs


def _evenly(student_depth: int, teacher_depth: int) -> list[int]:
    return [max(0, round((layer + 1) * teacher_depth / student_depth) - 1) for layer in range(student_depth)]


def relation_heads(student: Sequence[int], teacher: Sequence[int], most: int, wanted: int | None = None) -> int:
    """The number of relation heads: `wanted`, or the largest up to `most` that divides every width.

    Raises:
        StageError: `wanted` does not divide every width.
    """
    common = gcd(*student, *teacher)
    if wanted is None:
        return next(heads for heads in range(most, 0, -1) if common % heads == 0)
    if wanted < 1 or common % wanted:
        raise StageError(
            f"distill: relation heads: expected a divisor of {common}, so that it divides the channels of queries, "
            f"keys and values of the student {tuple(student)} and of the teacher {tuple(teacher)}, got {wanted}"
        )
    return wanted


class LayerLosses(nn.Module):
    """Losses between layers of two models; its parameters are the projections that are learned with the student.

    The models themselves are no submodules: they are watched.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel,
        weights: Mapping[str, float],
        mapping: Sequence[Pair],
        *,
        heads: int | None = None,
        seed: int = 0,
    ) -> None:
        """
        Args:
            weights: the losses that are wanted, all in LAYER_LOSSES; how much they weigh is the caller's.
            mapping: pairs of layers, as `layer_pairs` gives them; attention relations are those of the last pair.
            heads: relation heads; absent: as many as the model with fewer heads has, or the next smaller number that
                divides all channels.
            seed: of the projections' first weights.

        Raises:
            StageError: a loss is unknown, relations cannot be read of a family, or `heads` does not divide.
        """
        super().__init__()
        unknown = sorted(set(weights) - set(LAYER_LOSSES))
        if unknown or not weights:
            raise StageError(
                f"distill: layer losses: expected some of {', '.join(LAYER_LOSSES)}, got {sorted(weights)}"
            )
        self.places: dict[str, list[Pair]] = {
            name: list(mapping) if LAYER_LOSSES[name].everywhere else [max(mapping)] for name in weights
        }
        self._heads = self._relation_heads(student, teacher, heads) if "attention_relations" in weights else 1
        self.projections = nn.ModuleDict()
        widths = int(student.config.hidden_size), int(teacher.config.hidden_size)
        if "hidden_states" in weights and widths[0] != widths[1]:
            generator = torch.Generator().manual_seed(seed)
            for layer, _ in mapping:
                self.projections[str(layer)] = _projection(*widths, generator)
        self._student = Taps(student, self._wanted(0))
        self._teacher = Taps(teacher, self._wanted(1))

    def _relation_heads(self, student: PreTrainedModel, teacher: PreTrainedModel, wanted: int | None) -> int:
        last, other = self.places["attention_relations"][0]
        most = min(int(model.config.num_attention_heads) for model in (student, teacher))
        return relation_heads(projection_widths(student, last), projection_widths(teacher, other), most, wanted)

    def _wanted(self, side: Literal[0, 1]) -> dict[int, set[Part]]:
        wanted: dict[int, set[Part]] = {}
        for name, pairs in self.places.items():
            for pair in pairs:
                wanted.setdefault(pair[side], set()).update(LAYER_LOSSES[name].parts)
        return wanted

    def forward(self) -> dict[str, Tensor]:
        """Each loss of what both models gave in their last forward pass, averaged over its layers; not weighted."""
        student, teacher = self._student.take(), self._teacher.take()
        return {
            name: torch.stack([self._loss(name, pair, student, teacher) for pair in pairs]).mean()
            for name, pairs in self.places.items()
        }

    def _loss(self, name: str, pair: Pair, student: Mapping[int, Seen], teacher: Mapping[int, Seen]) -> Tensor:
        layer, other = pair
        mine, theirs = student[layer], teacher[other]
        own = str(layer)
        projection = self.projections[own] if own in self.projections else None  # noqa: SIM401 (no `get`)
        device = next(iter(mine.values())).device.type
        with torch.autocast(device, enabled=False):  # a divergence of half precision scores is mostly rounding
            loss: Tensor = LAYER_LOSSES[name].function(mine, theirs, Bridge(projection, self._heads))
        return loss

    @torch.no_grad()
    def fit_projections(self) -> None:
        """Begin with the best linear maps for what both models gave in their last forward pass, which this takes.

        Least squares with a damping: a student that already has weights is not pulled toward an arbitrary rotation of
        its channels. Before the parameters are shared out to processes.
        """
        student, teacher = self._student.take(), self._teacher.take()
        for layer, other in self.places.get("hidden_states", []):
            if str(layer) in self.projections:
                x_ND, y_ND = (_in_units(seen["hidden"]) for seen in (student[layer], teacher[other]))
                gram_DD = x_ND.mT @ x_ND
                gram_DD.diagonal().add_(DAMPING * gram_DD.diagonal().mean())
                weight_DD = torch.linalg.solve(gram_DD, x_ND.mT @ y_ND).mT
                self.projections[str(layer)].weight.copy_(weight_DD)  # type: ignore[operator]  # nn.Linear

    def clear(self) -> None:
        """Let go of what the models gave, where it is not wanted (a forward pass on held-out text)."""
        for taps in (self._student, self._teacher):
            taps.forget()

    def remove(self) -> None:
        """Take all hooks off the models."""
        for taps in (self._student, self._teacher):
            taps.remove()


def _in_units(hidden_BTD: Tensor) -> Tensor:
    """[B * T, D] in the units of `channel_units`."""
    wide_BTD = _wide(hidden_BTD)
    return (wide_BTD / channel_units(wide_BTD)).flatten(0, 1)


def _projection(student: int, teacher: int, generator: torch.Generator) -> nn.Linear:
    """A linear map that keeps lengths, as far as the widths allow."""
    linear = nn.Linear(student, teacher, bias=False)
    nn.init.orthogonal_(linear.weight, generator=generator)
    return linear
