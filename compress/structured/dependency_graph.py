"""What goes together when a unit goes: torch-pruning's graph of a model, asked for the group of a layer's outputs.

    cells    (parameter, dimension) -> the indices on it that go with those outputs

torch-pruning records one forward pass through autograd and links the dimensions of all layers that it passes (DepGraph,
Fang et al., arXiv 2301.12900). Its own search of a group does not return where an index runs in a circle, as it does
between key-value heads and two query heads each, and where it runs out of all bounds; here every index is followed
once, as long as some dimension of the model has it.

Not covered: what autograd does not see, such as sizes that a forward pass computes with.
"""

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from compress.stage import StageError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Cells = dict[tuple[str, int], set[int]]
TOKENS = 5


class Index(NamedTuple):
    """A place on a dimension, in the form in which torch-pruning's index mappings take it."""

    idx: int
    root_idx: int | None


class DependencyGraph:
    """The dependency graph of a causal language model.

    Raises:
        StageError: torch-pruning cannot trace the model; the message has its reason.
    """

    def __init__(self, model: "PreTrainedModel") -> None:
        import torch_pruning

        self.model = model
        self.longest = max(max(parameter.shape) for parameter in model.parameters() if parameter.ndim)
        self._modules = {module: name for name, module in model.named_modules()}
        self._parameters = {id(parameter): name for name, parameter in model.named_parameters()}
        self._graph = torch_pruning.DependencyGraph()
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")  # it warns of every parameter outside of a layer that it knows
            self._attempt(
                lambda: self._graph.build_dependency(
                    model,
                    example_inputs={"input_ids": torch.arange(TOKENS)[None], "use_cache": False},
                    output_transform=lambda answer: answer.logits,
                    verbose=False,
                )
            )
        self._dimensions = {id(entry.parameters): entry.pruning_dim for entry in self._graph.unwrapped_parameters}

    def _attempt(self, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except Exception as error:  # a tracer fails in as many ways as there are architectures
            raise StageError(f"its forward pass cannot be traced by torch-pruning ({first_line(error)})") from error

    def group(self, layer: nn.Module, outputs: Iterable[int]) -> Cells:
        """What goes with these outputs of a linear or an embedding.

        Raises:
            StageError: the layer is not in the graph.
        """
        start = self._attempt(lambda: self._graph.module2node[layer])
        seen: dict[tuple[Any, Any], set[int]] = defaultdict(set)
        waiting = [(start, self._graph.get_pruner_of_module(layer).prune_out_channels, set(outputs))]
        while waiting:
            node, handler, indices = waiting.pop()
            new = indices - seen[node, handler]
            if not new:
                continue
            seen[node, handler] |= new
            edges = [edge for edge in node.dependencies if edge.is_triggered_by(handler)]
            waiting += [(edge.target, edge.handler, self._mapped(edge.index_mapping, new)) for edge in edges]
        return self._cells(seen)

    def _mapped(self, mappings: Iterable[Any], indices: set[int]) -> set[int]:
        """Indices of an edge's source as indices of its target."""
        found: list[Any] = [Index(index, index) for index in sorted(indices)]
        for mapping in mappings:
            if mapping is not None:
                found = mapping(found)
        return {index.idx for index in found if 0 <= index.idx < self.longest}

    def _cells(self, seen: dict[tuple[Any, Any], set[int]]) -> Cells:
        """The places on parameters alone, without those beyond a dimension's end: there lies what one parameter does to
        every head alike.
        """
        cells: Cells = defaultdict(set)
        for (node, handler), indices in seen.items():
            module = node.module
            if isinstance(module, nn.Parameter):
                cells[self._parameters[id(module)], self._dimensions[id(module)]] |= indices
            elif isinstance(module, nn.Linear | nn.LayerNorm | nn.Embedding):
                outgoing = handler.__name__ == "prune_out_channels"
                dimension = int(isinstance(module, nn.Embedding) or not outgoing)
                for name, parameter in module.named_parameters():
                    if parameter.ndim > dimension and (outgoing or name != "bias"):
                        cells[self._parameters[id(parameter)], dimension] |= indices
        shapes = {name: parameter.shape for name, parameter in self.model.named_parameters()}
        within = {cell: indices & set(range(shapes[cell[0]][cell[1]])) for cell, indices in cells.items()}
        return {cell: indices for cell, indices in within.items() if indices}
