"""A few tokens of a next-token distribution that stand for all of it.

    p_NV = exp(log_p_NV)    the teacher's distribution at N positions over V tokens
    sampled(draws = M)      p_v >= 1/M: kept, as p_v.    p_v < 1/M: kept with probability M p_v, then as 1/M
    top_k(k)                the k likeliest, and rest_N = 1 - sum of their p

`sampled` is unbiased: E[kept p_v] = p_v for every token, so that any loss that is linear in p (the forward KL, but for
the entropy, which is stored whole) has the right value and the right gradient in expectation. Raw top-k is not: what is
cut off is missing in every pass, and the student grows overconfident (sparse logit sampling, arXiv 2503.16870). That
paper draws M tokens from p; here the large ones are certain and only the tail is drawn, each token at most once with
the inclusion probability of Horvitz and Thompson, which of all unbiased ways to keep as many has the least sum of
variances (Fearnhead and Clifford, J. R. Statist. Soc. B 65, 2003). Per token the variance is p (1/M - p) or 0;
multinomial draws have p (1 - p) / M.

The tail is drawn systematically: points 1, 2, 3 ..., less one uniform offset per position, are laid over the running
sum of M p_v, and a token is hit where a point falls into its span. A span is shorter than 1, so no token is hit twice;
the number of hits is the tail's M-fold mass rounded up or down. So at most M tokens are kept (M + 1 by rounding), and
their mass is 1 within 1/M.

    N positions    V vocabulary    J tokens kept, of all positions, one position after the other
    C blocks of B tokens           Q blocks in which something is kept, of all positions

Not covered: proposals other than p itself, joint samples of several positions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

BLOCK = 64
"""Tokens whose mass is added up before a point is looked for among them: nearly all blocks are passed over whole."""


@dataclass(frozen=True, eq=False)
class SampledLogits:
    """What is left of N distributions."""

    ids_J: Tensor
    """int64; within a position each token once."""
    p_J: Tensor
    """The probability that each stands for, in the type of log_p_NV."""
    counts_N: Tensor
    """int64: how many of J belong to each position."""
    aside_N: Tensor
    """What is known of the whole distribution besides: `Method.aside` says what."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to keep a few tokens."""

    keep: Callable[[Tensor, int, Tensor], SampledLogits]
    """(log_p_NV, amount, offsets_N) -> what is kept."""
    aside: Literal["entropy", "rest"]
    """What `SampledLogits.aside_N` is."""
    bias: str
    """What a report says of it."""
    draws: bool
    """Whether chance has a part in it."""


def sampled(log_p_NV: Tensor, draws: int, offsets_N: Tensor) -> SampledLogits:
    """An unbiased sample of about `draws` tokens at most; aside, the entropy of the whole distribution.

    Args:
        log_p_NV: log-probabilities, float32 or float64.
        draws: M.
        offsets_N: float64, uniform in [0, 1), one per position.
    """
    p_NCB, share = _in_blocks(log_p_NV), 1 / draws
    # float64: a running sum near M in float32 moves in steps of up to M / 2^23, and much of the tail of a vocabulary
    # of 150k is smaller than that, so that its tokens would be hit too often or never.
    spans_NC = p_NCB.sum(-1, dtype=torch.float64).mul_(draws)
    heavy_NC = p_NCB.amax(-1) >= share
    spans_NC[heavy_NC] = _spans(p_NCB[heavy_NC], draws).sum(-1)
    ends_NC = spans_NC.cumsum_(-1).add_(offsets_N.to(spans_NC.device)[:, None])
    starts_NC = torch.cat([offsets_N.to(ends_NC)[:, None], ends_NC[:, :-1]], -1)
    touched_NC = heavy_NC | (ends_NC.floor() > starts_NC.floor())
    positions_Q, blocks_Q = touched_NC.nonzero(as_tuple=True)
    p_QB, start_Q1 = p_NCB[touched_NC], starts_NC[touched_NC][:, None]
    points_QB = torch.cat([start_Q1, _spans(p_QB, draws).cumsum_(-1).add_(start_Q1)], -1).floor_()
    kept_QB = (p_QB >= share) | (points_QB[:, 1:] > points_QB[:, :-1])
    touched_J, within_J = kept_QB.nonzero(as_tuple=True)
    p_J = p_QB[touched_J, within_J].clamp_min_(share)  # what is below is of the tail
    counts_N = positions_Q[touched_J].bincount(minlength=len(log_p_NV))
    return SampledLogits(blocks_Q[touched_J] * BLOCK + within_J, p_J, counts_N, entropy(log_p_NV))


def _in_blocks(log_p_NV: Tensor) -> Tensor:
    """p_NCB: C blocks of BLOCK tokens, the last one filled up with zeros."""
    positions, vocabulary = log_p_NV.shape
    p_NCB = log_p_NV.new_zeros(positions, -(-vocabulary // BLOCK), BLOCK)
    torch.exp(log_p_NV, out=p_NCB.view(positions, -1)[:, :vocabulary])
    return p_NCB


def _spans(p_QB: Tensor, draws: int) -> Tensor:
    """float64 M p of the tokens of the tail, 0 for the large ones."""
    return p_QB.to(torch.float64, copy=True).masked_fill_(p_QB >= 1 / draws, 0).mul_(draws)


def top_k(log_p_NV: Tensor, k: int, offsets_N: Tensor) -> SampledLogits:
    """The k likeliest tokens, likeliest first; aside, the probability of all others. Nothing is drawn: no offsets."""
    log_p_NK, ids_NK = log_p_NV.topk(min(k, log_p_NV.shape[-1]), dim=-1)
    p_NK = log_p_NK.exp()
    rest_N = (1 - p_NK.double().sum(-1)).clamp_min_(0).to(p_NK.dtype)
    counts_N = torch.full_like(rest_N, ids_NK.shape[-1], dtype=torch.int64)
    return SampledLogits(ids_NK.flatten(), p_NK.flatten(), counts_N, rest_N)


def entropy(log_p_NV: Tensor) -> Tensor:
    """-sum p log p of each position, in nats; a token of probability 0 adds nothing."""
    finite_NV = log_p_NV.clamp_min(torch.finfo(log_p_NV.dtype).min)
    entropy_N: Tensor = -torch.linalg.vecdot(finite_NV.exp(), finite_NV)
    return entropy_N


METHODS: dict[str, Method] = {
    "sampled": Method(
        keep=sampled, aside="entropy", draws=True, bias="unbiased: on average over the draws, the teacher's own"
    ),
    "top_k": Method(
        keep=top_k,
        aside="rest",
        draws=False,
        bias="biased: what is not among the k likeliest tokens is learned as one lump",
    ),
}
