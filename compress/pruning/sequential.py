"""Pruning on the way through a checkpoint: one block in memory, one forward pass over the calibration text.

    block 0: x --> q, k, v (same x) --> o --> ... --> block 1: x' --> ...
                   |                    |
                 prune               prune          each linear when its input arrives, before it computes

A calibrated criterion looks at a linear's input at the moment the linear is called, prunes it there and then, and the
pass goes on with the pruned weight: every later linear sees what it will be fed in the pruned model. The statistics of
an input that several linears share are taken once.

Over the whole model (`scope: global`) no linear can be decided on before all have been scored: the scores come from a
pass through the unpruned model, and the threshold from two readings of them (`global_threshold.py`), so that no more
than one matrix is held at a time.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from compress.checkpoints.safetensors_files import TensorFiles
from compress.digests import seed_of
from compress.models.block_linears import BlockLinear
from compress.models.calibration import InputCollector, Inputs, Reads
from compress.models.layerwise import Block, BlockWalk
from compress.pruning.config import CRITERIA, Criterion
from compress.pruning.criteria import pruned
from compress.pruning.global_threshold import cut
from compress.pruning.masks import choose
from compress.pruning.targets import Target
from compress.stage import StageError, Task

Found = Callable[[BlockLinear, Inputs], None]
"""What to do with a block linear once its inputs are known."""


def prune_blocks(
    walk: BlockWalk, out: Path, criterion: Criterion, targets: Mapping[str, Target], seed: int, task: Task
) -> None:
    """Prune every target, front to back, and write it into the copy of the checkpoint in `out`."""

    def prune(linear: BlockLinear, inputs: Inputs) -> None:
        weight_OI = linear.weight_OI()
        weight_OI.copy_(pruned(criterion, weight_OI, inputs, choose(targets[linear.name].amount)))
        walk.files.write(out, f"{linear.name}.weight", linear.parameter)

    callback(walk, criterion.reads, targets, prune, seed, task)


def prune_whole(
    walk: BlockWalk, out: Path, criterion: Criterion, targets: Mapping[str, Target], seed: int, task: Task
) -> None:
    """Prune all targets by one threshold, and write them into the copy of the checkpoint in `out`."""
    seen = dict[str, Inputs]()
    callback(walk, criterion.reads, targets, lambda linear, inputs: seen.update({linear.name: inputs}), seed, task)
    files = walk.files

    def weights() -> Iterator[tuple[Target, Tensor]]:
        yield from ((target, _read_OI(files, target)) for target in targets.values())

    def scores() -> Iterator[Tensor]:
        yield from (criterion.score(weight_OI, seen[target.linear]) for target, weight_OI in weights())

    sparsity = next(iter(targets.values())).amount.sparsity
    assert sparsity is not None
    count = round(sparsity * sum(walk.model.get_parameter(target.name).numel() for target in targets.values()))
    if count == 0:
        return
    threshold = cut(scores, count)
    for target, weight_OI in weights():
        mask_OI = threshold.mask(criterion.score(weight_OI, seen[target.linear]))
        pruned_OI = weight_OI.masked_fill(~mask_OI, 0)
        files.write(out, target.name, pruned_OI.T if target.transposed else pruned_OI)


def prune_matrix(files: TensorFiles, out: Path, criterion: str, target: Target, seed: int) -> None:
    """Prune a matrix outside the blocks: by lots where the criterion is lots, else by magnitude."""
    chosen = CRITERIA[criterion if criterion == "random" else "magnitude"]
    inputs = Inputs(seed=seed_of(f"{seed}:{target.name}"))
    files.write(out, target.name, pruned(chosen, files.read(target.name), inputs, choose(target.amount)))


def callback(walk: BlockWalk, reads: Reads, targets: Mapping[str, Target], found: Found, seed: int, task: Task) -> None:
    """Call `found` for each target among the block linears, with its inputs where the criterion reads them."""
    left = set(targets)
    for block in walk:
        linears = [linear for linear in block.linears() if linear.name in left]
        if reads == "nothing":
            for linear in linears:
                found(linear, Inputs(seed=seed_of(f"{seed}:{linear.name}")))
        else:
            _run(block, linears, reads, found)
        left -= {linear.name for linear in linears}
        task.advance()
        if not left:
            return


def _run(block: Block, linears: list[BlockLinear], reads: Reads, found: Found) -> None:
    """Run a block; each of `linears` is handed to `found` when its input arrives, before it computes."""
    waiting = {linear.name: linear for linear in linears}
    inputs = InputCollector(reads)

    def arrived(linear: BlockLinear, module: nn.Module, args: tuple[Any, ...]) -> None:
        if waiting.pop(linear.name, None) is None:
            return
        try:
            found(linear, inputs(args[0]))
        except ValueError as error:
            raise StageError(f"prune: {linear.name}: {error}") from error

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
            f"prune: {', '.join(waiting)}: never called on the calibration text, so nothing is known of its inputs; "
            "leave it out with `linears`, or choose a criterion that reads none, such as magnitude"
        )


def _read_OI(files: TensorFiles, target: Target) -> Tensor:
    tensor = files.read(target.name)
    return tensor.T if target.transposed else tensor
