"""The table of axes against torch-pruning, which finds by tracing what must go together when one unit goes."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_pruning as pruning
from slim_models import MODELS, anatomy
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from compress.checkpoints.loading import load_model
from compress.models.block_linears import blocks
from compress.models.families import Family, Shape
from compress.structured.extraction import all_units, positions

Make = Callable[..., Path]
Cell = tuple[str, int, int]
"""(parameter, dimension, index within it)."""
HEAD, NEURON, CHANNEL = 1, 5, 7
ROOTS = {
    "llama": ("self_attn.q_proj", "mlp.gate_proj", "mlp.down_proj"),
    "opt": ("self_attn.q_proj", "fc1", "fc2"),
    "gpt_neox": (None, "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
    "gpt2": ("attn.query", "mlp.c_fc", "mlp.c_proj"),
}
"""Linears of the first block whose outputs are a head's queries, neurons, and hidden channels. torch-pruning takes
GPT-NeoX's interleaved heads for stacked ones, so nothing can be learned from it there.
"""
CASES = [
    (name, axis)
    for name in ("gpt2", "gpt_neox", "llama no groups", "llama", "opt")
    for axis in ("heads", "ffn", "hidden")
    if axis != "heads" or name not in {"gpt_neox", "llama"}
]


class Separate(nn.Module):
    """GPT-2's packed projection as three linears, whose outputs stand side by side again."""

    def __init__(self, packed: Conv1D) -> None:
        super().__init__()
        width = packed.nf // 3
        self.parts = nn.ModuleList([nn.Linear(packed.nx, width) for _ in range(3)])
        for index, part in enumerate(self.parts):
            part.weight = nn.Parameter(packed.weight[:, index * width : (index + 1) * width].T.contiguous())
            part.bias = nn.Parameter(packed.bias[index * width : (index + 1) * width].clone())

    def forward(self, x_BTD: torch.Tensor) -> "Triple":
        return Triple(*(part(x_BTD) for part in self.parts))


class Triple(tuple[torch.Tensor, ...]):
    """Queries, keys and values, which GPT-2 asks to be split."""

    def __new__(cls, *parts: torch.Tensor) -> "Triple":
        return super().__new__(cls, parts)

    def split(self, size: int, dim: int) -> "Triple":
        return self


def traceable(model: PreTrainedModel) -> PreTrainedModel:
    """The same model of plain linears, which torch-pruning knows how to trace."""
    for _, block in blocks(model):
        for name, module in list(block.named_modules()):
            if isinstance(module, Conv1D):
                parent, _, last = name.rpartition(".")
                plain: nn.Module = Separate(module) if last == "c_attn" else linear_of(module)
                setattr(block.get_submodule(parent), last, plain)
    return model


def linear_of(module: Conv1D) -> nn.Linear:
    linear = nn.Linear(module.nx, module.nf)
    linear.weight, linear.bias = nn.Parameter(module.weight.T.contiguous()), nn.Parameter(module.bias.clone())
    return linear


def group(model: PreTrainedModel, linear: str, indices: list[int]) -> set[Cell]:
    """What torch-pruning would remove with these outputs of a linear."""
    graph = pruning.DependencyGraph()
    graph.build_dependency(
        model,
        example_inputs={"input_ids": torch.arange(5)[None], "use_cache": False},
        output_transform=lambda answer: answer.logits,
    )
    found = graph.get_pruning_group(model.get_submodule(linear), pruning.prune_linear_out_channels, idxs=indices)
    names = {module: name for name, module in model.named_modules()}
    parameters = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        cell
        for dependency, removed in found
        for cell in cells(dependency.target.module, dependency.handler.__name__, list(removed), names, parameters)
    }


def cells(
    module: Any, handler: str, indices: list[int], names: dict[nn.Module, str], parameters: dict[int, str]
) -> Iterator[Cell]:
    if isinstance(module, nn.Parameter):
        yield from ((parameters[id(module)], 0, index) for index in indices)
    elif isinstance(module, nn.Linear | nn.LayerNorm | nn.Embedding):
        outgoing = handler == "prune_out_channels"
        dimension = int(isinstance(module, nn.Embedding) or not outgoing)
        yield from ((f"{names[module]}.weight", dimension, index) for index in indices)
        if outgoing and getattr(module, "bias", None) is not None:
            yield from ((f"{names[module]}.bias", 0, index) for index in indices)


def in_our_names(found: set[Cell], model: PreTrainedModel, shape: Shape) -> set[Cell]:
    """torch-pruning's cells of the swapped model as cells of GPT-2's own parameters; a tied head is its embedding."""
    if model.config.model_type != "gpt2":
        tied = model.config.tie_word_embeddings
        embedding = next(
            name for name, parameter in model.named_parameters() if parameter is model.get_input_embeddings().weight
        )
        return {(embedding if tied and name == "lm_head.weight" else name, dim, index) for name, dim, index in found}
    renamed = set()
    for name, dimension, index in found:
        if ".parts." in name:
            module, _, rest = name.partition(".parts.")
            part, kind = rest.split(".")
            offset = int(part) * shape.heads * shape.head_dim if dimension == 0 else 0
            renamed.add((f"{module}.{kind}", 1 - dimension if kind == "weight" else 0, index + offset))
        elif ".h." in name and ".ln_" not in name and name.endswith("weight"):
            renamed.add((name, 1 - dimension, index))
        else:
            renamed.add(("transformer.wte.weight" if name == "lm_head.weight" else name, dimension, index))
    return renamed


def by_the_table(model: PreTrainedModel, family: Family, shape: Shape, axis: str) -> set[Cell]:
    """The same, as the table of axes says it."""
    units = all_units(shape)
    units.heads[:], units.kv_heads[:], units.ffn[:] = [HEAD], [HEAD], [NEURON]
    lies_on = {"heads": {"query", "key_value", "stacked", "interleaved"}, "ffn": {"ffn"}, "hidden": {"hidden"}}[axis]
    return {
        (name, dimension, index)
        for name, _ in model.named_parameters()
        if axis == "hidden" or name.startswith(f"{family.blocks}.0.")
        for dimension, found in enumerate(family.axes(name) or ())
        if found in lies_on
        for index in positions(found, units, [CHANNEL], shape).tolist()
    }


@pytest.mark.parametrize(("name", "axis"), CASES)
@pytest.mark.filterwarnings("ignore:Unwrapped parameters detected")
def test_what_goes_together_is_what_torch_pruning_finds(name: str, axis: str, make_checkpoint: Make) -> None:
    kind, changes = MODELS[name]
    folder = make_checkpoint(kind, **changes)
    model = load_model(folder)
    family, shape = anatomy(model)
    expected = by_the_table(model, family, shape, axis)
    model.set_attn_implementation("eager")
    root = dict(zip(("heads", "ffn", "hidden"), ROOTS[kind], strict=True))[axis]
    if root == "attn.query":
        root = "attn.c_attn.parts.0"
    columns = list(range(HEAD * shape.head_dim, (HEAD + 1) * shape.head_dim))
    indices = {"heads": columns, "ffn": [NEURON], "hidden": [CHANNEL]}[axis]
    swapped = traceable(model)
    found = in_our_names(group(swapped, f"{family.blocks}.0.{root}", indices), swapped, shape)
    assert len(expected) >= 3
    assert found == expected
