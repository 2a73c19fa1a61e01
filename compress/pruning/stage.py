"""Pruning: set the least important weights of the block linears to exactly zero, without training.

    criterion   magnitude | random   need no text
                wanda | sparsegpt    read the linears' inputs on `data.calibration`, in one pass through the model

The result is the same architecture with zeros in it: it stores smaller, it does not run faster in ONNX Runtime, and
later training stages keep the zeros (see `sparsity_masks.py`). Every other tensor stays byte for byte as it was.

Which criterion: `sparsegpt` if the model is to be used as it comes out (half of SmolLM2-135M's weights gone, WikiText-2
perplexity 25 -> 48; magnitude 25 -> 323). `magnitude` is the default because it is the only sensible one that needs no
text; beyond about 30 % follow it with `distill`, or prune while training (`distill: {prune: ...}`).
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compress.models.calibration import rows_of_stage
from compress.models.layerwise import BlockWalk
from compress.pruning.ablation import measure_sensitivity
from compress.pruning.allocation import allocate, levels
from compress.pruning.config import CRITERIA, TRIAL_LENGTH, PruneConfig, SensitivityConfig
from compress.pruning.sequential import prune_blocks, prune_matrix, prune_whole
from compress.pruning.sparsity import LATENCY, Amount
from compress.pruning.targets import Target, block_targets, extra_targets
from compress.stage import StageError, StageInput, StageMetadata


def run(config: PruneConfig, given: StageInput) -> StageMetadata:
    """Leaves a dense checkpoint in the source's own precision, with zeros."""
    assert given.source is not None
    ids_NT = _calibration(config, given)
    walk = BlockWalk(given.source, ids_NT if config.scored_on_text() else None)
    shares, measured = _shares(config, given, ids_NT)
    targets = block_targets(config, walk.model, shares)
    extras = extra_targets(config, walk.model)
    walk.files.copy_to(given.out)
    with given.progress.task("prune", total=len(walk) + len(extras)) as task:
        whole = config.sparsity is not None and config.scope == "global"
        (prune_whole if whole else prune_blocks)(walk, given.out, CRITERIA[config.criterion], targets, given.seed, task)
        for target in extras:
            prune_matrix(walk.files, given.out, config.criterion, target, given.seed)
            task.advance()
    tokens = {} if ids_NT is None else {"calibration_tokens": ids_NT.size}
    return {**_counted(config, walk, given.out, [*targets.values(), *extras]), **tokens, **measured, "latency": LATENCY}


def _calibration(config: PruneConfig, given: StageInput) -> NDArray[np.int64] | None:
    if not config.reads_text():
        return None
    return rows_of_stage("prune", given, config.rows, config.length)


def _shares(
    config: PruneConfig, given: StageInput, ids_NT: NDArray[np.int64] | None
) -> tuple[dict[str, float], StageMetadata]:
    """Block's name -> its sparsity, where the blocks' sensitivities decide, and what they are; else both empty.

    Every block is tried at two sparsities with the rest of the model behind it, so the rows are cut short.
    """
    if config.allocation == "uniform":
        return {}, {}
    assert given.source is not None
    assert ids_NT is not None
    assert config.sparsity is not None
    assert config.scope != "global"
    wanda = config.criterion == "sparsegpt"  # which would refit every matrix once for each trial
    ids_NT = ids_NT[:, :TRIAL_LENGTH]
    asked = SensitivityConfig(
        criterion="wanda" if wanda else config.criterion,
        sparsities=levels(config.sparsity),
        scope="row" if wanda else config.scope,
        rows=len(ids_NT) - config.held_out(),
        held_out=config.held_out(),
        length=ids_NT.shape[1],
        kinds=False,
    )
    notes = given.scratch / "sensitivity.json"
    measured = measure_sensitivity(given.source, ids_NT, asked, notes=notes, progress=given.progress)
    return allocate(measured, config.sparsity), {"sensitivity": measured.model_dump(mode="json")}


def _counted(config: PruneConfig, walk: BlockWalk, out: Path, targets: list[Target]) -> StageMetadata:
    """What was asked and what came, counted in the files that were written.

    Raises:
        StageError: nothing did.
    """
    sizes = {target.name: walk.model.get_parameter(target.name).numel() for target in targets}
    zeros = {name: size - walk.files.nonzero(out, name) for name, size in sizes.items()}
    if not sum(zeros.values()):
        raise StageError(
            f"prune: not one weight of {', '.join(list(sizes)[:4])} was set to zero; ask for a higher `sparsity`"
        )
    return {
        "criterion": config.criterion,
        "asked": config.sparsity or config.pattern,
        "sparsity": sum(zeros.values()) / sum(sizes.values()),
        "zeros": sum(zeros.values()),
        "tensors": {
            target.name: {"asked": _asked(target.amount), "sparsity": zeros[target.name] / sizes[target.name]}
            for target in targets
        },
    }


def _asked(amount: Amount) -> float | None:
    return amount.sparsity if amount.pattern is None else 1 - amount.pattern[0] / amount.pattern[1]
