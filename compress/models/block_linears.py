"""The linears of a transformer's blocks, whatever the library calls them, as matrices W [out, in].

GPT-2 holds its linears as Conv1D, whose weight is [in, out]; every other family uses nn.Linear, whose weight is [out,
in]. Code that prunes along the input dimension must see one orientation, so a `BlockLinear` gives W [out, in] as a
view on the live parameter: writing into the view writes into the model.

Embeddings, the head, norms and biases are no block linears.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True, eq=False)
class BlockLinear:
    """One linear: its name in the checkpoint and its parameter."""

    name: str
    parameter: nn.Parameter
    transposed: bool
    """Whether the parameter is held as [in, out]."""

    def weight_OI(self) -> Tensor:
        """The weight as [out, in], detached, sharing memory with the parameter."""
        weight: Tensor = self.parameter.detach()
        return weight.T if self.transposed else weight


def block_linears(model: nn.Module) -> Iterator[BlockLinear]:
    """Every linear inside the model's blocks, in the model's order."""
    for prefix, block in blocks(model):
        yield from linears_of(prefix, block)


def linears_of(prefix: str, block: nn.Module) -> Iterator[BlockLinear]:
    """Every linear inside one block, whose name in the model is `prefix`."""
    for name, module in block.named_modules():
        if isinstance(module, nn.Linear | Conv1D):
            weight = module.weight
            assert isinstance(weight, nn.Parameter)
            yield BlockLinear(f"{prefix}.{name}", weight, isinstance(module, Conv1D))


def blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """(name, module) of each transformer block, first to last."""
    name, layers = block_list(model)
    return [(f"{name}.{index}", layer) for index, layer in enumerate(layers)]


def block_list(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """(name, list) of the transformer blocks: the one ModuleList as long as the config says the model is deep.

    Raises:
        ValueError: there is none, so the architecture is not one of stacked blocks.
    """
    config = model.config
    assert isinstance(config, PreTrainedConfig)
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers:
            return name, module
    raise ValueError(
        f"{config.model_type}: expected a list of {config.num_hidden_layers} blocks in the model, found none"
    )


@torch.no_grad()
def sparsity(model: nn.Module) -> float:
    """Share of the block linears' weights that are exactly zero, counted."""
    counts = [(int((linear.parameter == 0).sum()), linear.parameter.numel()) for linear in block_linears(model)]
    return sum(zeros for zeros, _ in counts) / max(1, sum(total for _, total in counts))
