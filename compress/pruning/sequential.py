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

from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from compress.checkpoints.safetensors_files import TensorFiles
from compress.digests import seed_of
from compress.models.block_linears import BlockLinear
from compress.models.calibration import Inputs
from compress.models.layerwise import BlockWalk, layerwise_pass
from compress.pruning.config import CRITERIA, Criterion
from compress.pruning.criteria import pruned
from compress.pruning.global_threshold import cut
from compress.pruning.masks import choose
from compress.pruning.targets import Target
from compress.stage import Task


def prune_blocks(
    walk: BlockWalk, out: Path, criterion: Criterion, targets: Mapping[str, Target], seed: int, task: Task
) -> None:
    """Prune every target, front to back, and write it into the copy of the checkpoint in `out`."""

    def prune(linear: BlockLinear, inputs: Inputs) -> None:
        if criterion.reads == "nothing":
            inputs = Inputs(seed=seed_of(f"{seed}:{linear.name}"))
        weight_OI = linear.weight_OI()
        weight_OI.copy_(pruned(criterion, weight_OI, inputs, choose(targets[linear.name].amount)))
        walk.files.write(out, f"{linear.name}.weight", linear.parameter)

    layerwise_pass(walk, criterion.reads, targets, prune, "prune", task)


def prune_whole(
    walk: BlockWalk, out: Path, criterion: Criterion, targets: Mapping[str, Target], seed: int, task: Task
) -> None:
    """Prune all targets by one threshold, and write them into the copy of the checkpoint in `out`."""
    seen = {name: Inputs(seed=seed_of(f"{seed}:{name}")) for name in targets}

    def keep(linear: BlockLinear, inputs: Inputs) -> None:
        if criterion.reads != "nothing":
            seen[linear.name] = inputs

    layerwise_pass(walk, criterion.reads, targets, keep, "prune", task)
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


def _read_OI(files: TensorFiles, target: Target) -> Tensor:
    tensor = files.read(target.name)
    return tensor.T if target.transposed else tensor
