"""What is left of a layer is refitted: the output that the removed inputs gave is taken over by the kept ones.

    minimize over W'   sum over t of | W x_t - W' x_t[S] |^2 / |x_t|^2  +  damping * | W' - W[:, S] |^2

    W'[:, S] = W[:, S] + W[:, R] G[R, S] (G[S, S] + damping)^-1         G = sum over t of x_t x_t^T / |x_t|^2

S are the kept inputs of a linear, R the removed ones, of which W' has exact zeros. Every token weighs the same, however
long its inputs are, because the few tokens with giant activations would decide alone otherwise. The damping is a share
OVERFIT * I / T of G's mean diagonal: with I inputs fitted on T tokens that are not many times I, less of it makes the
layer worse on other text than no repair at all. Where the linear has a bias, inputs are taken about their means and
the bias takes over the mean of what went: a removed neuron that is constant costs nothing then.
Sources: Optimal Brain Surgeon for structures (ZipLM, arXiv 2302.04089); the bias alone is FLAP's (arXiv 2312.11983).

    x_TI inputs of T tokens    O outputs
"""

import torch
from torch import Tensor

from compress.models.calibration import gram

OVERFIT = 2.0
"""Measured on held-out text at 4,096 and 12,288 tokens: the best damping shrinks with the number of tokens."""
SHORTEST = 1e-6
"""Of the mean square length of the tokens' inputs: no token counts as shorter than that."""


def refit(weight_OI: Tensor, bias_O: Tensor | None, x_TI: Tensor, kept_S: Tensor) -> tuple[Tensor, Tensor | None]:
    """New weight [O, I], zero where an input is removed, and new bias [O] where there is one.

    Args:
        kept_S: positions of the kept inputs, int64, rising.
    """
    removed = torch.ones(weight_OI.shape[1], dtype=torch.bool)
    removed[kept_S] = False
    refitted_OI = weight_OI.masked_fill(removed, 0.0)
    if not removed.any():
        return refitted_OI, bias_O
    x_TI = x_TI.float()
    square_T = x_TI.square().sum(dim=1)
    weight_T = 1 / square_T.clamp_min(max(SHORTEST * float(square_T.mean()), torch.finfo(torch.float32).tiny))
    mean_I = (weight_T @ x_TI) / weight_T.sum() if bias_O is not None else torch.zeros(x_TI.shape[1])
    gram_II = gram((x_TI - mean_I) * weight_T.sqrt()[:, None])
    damped_SS = gram_II[kept_S][:, kept_S]
    damped_SS.diagonal().add_(OVERFIT * x_TI.shape[1] / len(x_TI) * float(gram_II.diagonal().mean()) or 1.0)
    missing_OS = weight_OI[:, removed] @ gram_II[removed][:, kept_S]
    refitted_OI[:, kept_S] += torch.cholesky_solve(missing_OS.T, torch.linalg.cholesky(damped_SS)).T
    if bias_O is None:
        return refitted_OI, None
    return refitted_OI, bias_O + (weight_OI - refitted_OI) @ mean_I
