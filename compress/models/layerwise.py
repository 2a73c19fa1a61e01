"""Block by block through a dense checkpoint: one transformer block in memory at a time, and what flows into it.

    ids_NT --embedding--> hidden_NTD --block 0--> hidden_NTD --block 1--> ... --last block--> hidden_NTD

Calibrated methods look at what a layer is fed. The model's own forward pass prepares it (embeddings, masks, rotations,
whatever its family needs), with every block replaced by one that notes its arguments and hands its input on; then the
blocks run one after the other on all rows at once, each filled from the files when its turn comes and emptied after
it. Memory is the embeddings once, one block, and the activations of N * T tokens within it, however deep the model is.

    N rows    T tokens    D hidden width

Not covered: models whose blocks exchange more than hidden states (encoders, shared key-value caches).
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from compress.checkpoints.loading import empty_model
from compress.checkpoints.safetensors_files import TensorFiles
from compress.models.block_linears import BlockLinear, blocks, linears_of
from compress.models.calibration import InputCollector, Inputs, Reads
from compress.stage import StageError, Task

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and named arguments of a block."""


@dataclass(frozen=True, eq=False)
class Block:
    """A block whose weights are in memory until the next one's turn."""

    index: int
    name: str
    """Its name in the model, such as "model.layers.3"."""
    module: nn.Module
    forward: Callable[[], Tensor]
    """Run it on what the block before it left: hidden_NTD, which is also what the next block will get."""

    def linears(self) -> list[BlockLinear]:
        """Its linears, in the module's order, their weights [out, in] in float32."""
        return list(linears_of(self.name, self.module))


class BlockWalk:
    """A checkpoint that is walked through once, front to back.

    Raises:
        CheckpointError: the folder holds no dense checkpoint whose tensors are its model's.
    """

    def __init__(self, folder: Path, ids_NT: NDArray[np.int64] | None = None) -> None:
        """
        Args:
            ids_NT: what flows through; without it the blocks can be looked at, not run.
        """
        self.model: PreTrainedModel = empty_model(folder)
        self.files = TensorFiles(folder, self.model)
        self.ids_NT = ids_NT
        self.hidden_NTD: Tensor | None = None
        """What flows into the block whose turn it is."""

    def __len__(self) -> int:
        return len(blocks(self.model))

    def __iter__(self) -> Iterator[Block]:
        calls = None if self.ids_NT is None else self._calls(torch.from_numpy(self.ids_NT))
        for index, (name, module) in enumerate(blocks(self.model)):
            self.files.fill(module, name)
            yield Block(index, name, module, partial(self._run, module, None if calls is None else calls[index]))
            _empty(module)

    @torch.inference_mode()
    def _run(self, module: nn.Module, call: Call | None) -> Tensor:
        if self.hidden_NTD is None or call is None:
            raise ValueError("expected token ids to run a block on, got none")
        args, kwargs = call
        self.hidden_NTD = hidden_of(module(self.hidden_NTD, *args, **kwargs))
        return self.hidden_NTD

    @torch.inference_mode()
    def _calls(self, ids_NT: Tensor) -> list[Call]:
        """What each block is called with beside the hidden states; the first block's are noted on the way."""
        self._fill_embeddings()
        modules = [module for _, module in blocks(self.model)]
        args, kwargs = self._noted(ids_NT[:1], modules[:1], in_tuple=False)[0]
        self.files.fill(modules[0], blocks(self.model)[0][0])
        in_tuple = isinstance(modules[0](*args, **kwargs), tuple)
        noted = self._noted(ids_NT, modules, in_tuple=in_tuple)
        self.hidden_NTD = noted[0][0][0]
        return [(args[1:], kwargs) for args, kwargs in noted]

    def _fill_embeddings(self) -> None:
        """Everything of the base model that is no block's."""
        inside = tuple(f"{name}." for name, _ in blocks(self.model))
        prefix = self.model.base_model_prefix
        for name, parameter in self.model.base_model.named_parameters(prefix=prefix):
            if not name.startswith(inside):
                parameter.copy_(self.files.read(name))

    def _noted(self, ids_NT: Tensor, modules: list[nn.Module], *, in_tuple: bool) -> list[Call]:
        """(args, kwargs) of each block's call in a forward pass in which no block computes anything."""
        noted: list[Call] = []

        def note(hidden_NTD: Tensor, *args: Any, **kwargs: Any) -> Any:
            noted.append(((hidden_NTD, *args), kwargs))
            if len(noted) == len(modules):
                raise _AllNotedError
            return (hidden_NTD, None) if in_tuple else hidden_NTD

        for module in modules:
            module.forward = note
        try:
            self.model.base_model(input_ids=ids_NT, use_cache=False)
        except _AllNotedError:
            return noted
        finally:
            for module in modules:
                del module.forward  # the class's own again
        raise ValueError(f"{self.model.config.model_type}: expected {len(modules)} blocks to run, got {len(noted)}")


Found = Callable[[BlockLinear, Inputs], None]
"""What to do with a block linear once its inputs are known."""


def layerwise_pass(walk: BlockWalk, reads: Reads, names: Collection[str], found: Found, stage: str, task: Task) -> None:
    """Call `found` for each of the named block linears, front to back, with what `reads` asks of its inputs.

    It is called when the input arrives, before the linear computes, so that whatever it does to the weight is in what
    later linears are fed.

    Raises:
        StageError: a linear is never called on the text, or `found` raises a ValueError.
    """
    left = set(names)
    for block in walk:
        linears = [linear for linear in block.linears() if linear.name in left]
        if reads == "nothing":
            for linear in linears:
                found(linear, Inputs())
        else:
            _run_block(block, linears, reads, found, stage)
        left -= {linear.name for linear in linears}
        task.advance()
        if not left:
            return


def _run_block(block: Block, linears: list[BlockLinear], reads: Reads, found: Found, stage: str) -> None:
    waiting = {linear.name: linear for linear in linears}
    inputs = InputCollector(reads)

    def arrived(linear: BlockLinear, module: nn.Module, args: tuple[Any, ...]) -> None:
        if waiting.pop(linear.name, None) is None:
            return
        try:
            found(linear, inputs(args[0]))
        except ValueError as error:
            raise StageError(f"{stage}: {linear.name}: {error}") from error

    hooks = [
        block.module.get_submodule(name.removeprefix(f"{block.name}.")).register_forward_pre_hook(
            partial(arrived, linear)
        )
        for name, linear in waiting.items()
    ]
    try:
        block.forward()
    finally:
        for hook in hooks:
            hook.remove()
    if waiting:
        raise StageError(
            f"{stage}: {', '.join(waiting)}: never called on the calibration text, so nothing is known of its inputs; "
            "leave it out, or choose a method that reads none, such as magnitude or rtn"
        )


class _AllNotedError(Exception):
    """Ends a forward pass whose rest is of no interest."""


def hidden_of(output: Any) -> Tensor:
    """The hidden states in what a block returns; some families put them first in a tuple."""
    hidden_NTD: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden_NTD


@torch.no_grad()
def _empty(module: nn.Module) -> None:
    """Let go of a module's weights."""
    for parameter in module.parameters():
        parameter.data = torch.empty_like(parameter)
