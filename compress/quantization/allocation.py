"""Which linears keep 8 bits, so that the whole model has the bits per weight that were asked for at the least loss.

    cost(W) = E[ <gradient of -log p(y | x), W - round(W)>^2 ] / 2T        nats per token, W alone in 4 bits

over rows x of T tokens of calibration text whose every next token y is drawn from the model's own distribution: the
second-order term of KL(model || model with W rounded), as the expected square of that gradient is the Fisher
information. One pass forth and back through the model for each row tells the cost of all linears at once. Those whose
cost for each weight is highest get 8 bits, as long as the budget holds.

Memory: the model in float32, its rounding errors in bfloat16, the activations of one row, one gradient.

Source: Martens, New insights on the natural gradient method (arXiv 1412.1193), section 9; Dong et al., HAWQ-V2
(arXiv 1911.03852). Not covered: how roundings add up; that gptq loses less than nearest rounding, which is what is
rounded here: only the order counts.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.checkpoints.loading import load_model
from compress.models.block_linears import BlockLinear, block_linears
from compress.quantization.config import COSTED
from compress.quantization.rounding import rtn
from compress.stage import Progress


def costs(folder: Path, ids_NT: NDArray[np.int64], group: int, seed: int, progress: Progress) -> dict[str, float]:
    """What rounding each block linear alone to 4 bits costs, in nats per token.

    Raises:
        CheckpointError: the folder holds no dense checkpoint.
    """
    model = load_model(folder).requires_grad_(False)
    random = torch.Generator().manual_seed(seed)
    squares = dict.fromkeys((linear.name for linear in block_linears(model)), 0.0)
    for linear in block_linears(model):
        linear.parameter.requires_grad_()
        linear.parameter.register_post_accumulate_grad_hook(_adder(linear, _error_of(linear, group), squares))
    rows_NT = torch.from_numpy(ids_NT[:, :COSTED])
    with progress.task("quantize: sensitivity", total=len(rows_NT)) as task:
        for row_T in rows_NT:
            logits_TV = model(input_ids=row_T[None]).logits[0]
            drawn_T = torch.multinomial(logits_TV.detach().softmax(dim=-1), 1, generator=random).squeeze(1)
            torch.nn.functional.cross_entropy(logits_TV, drawn_T, reduction="sum").backward()
            task.advance()
    return {name: square / (2 * rows_NT.numel()) for name, square in squares.items()}


def _error_of(linear: BlockLinear, group: int) -> Tensor:
    """What rounding to 4 bits takes off the parameter."""
    weight_OI = linear.weight_OI()
    error_OI = weight_OI - torch.from_numpy(rtn(weight_OI, None, group, 4).dequantize())
    return (error_OI.T if linear.transposed else error_OI).to(torch.bfloat16)


def _adder(linear: BlockLinear, error: Tensor, squares: dict[str, float]) -> Callable[[Tensor], None]:
    def add(parameter: Tensor) -> None:
        assert parameter.grad is not None
        squares[linear.name] += float((parameter.grad * error).sum()) ** 2
        parameter.grad = None

    return add


def bits_within(budget: float, cost: Mapping[str, float], sizes: Mapping[str, int]) -> dict[str, int]:
    """8 bits for those that cost most for each weight, 4 for the others; their mean over all weights is at most
    `budget`.
    """
    left = round((budget - 4) / 4 * sum(sizes.values()))
    bits = dict.fromkeys(sizes, 4)
    for name in sorted(sizes, key=lambda name: cost[name] / sizes[name], reverse=True):
        if sizes[name] <= left:
            bits[name], left = 8, left - sizes[name]
    return bits
