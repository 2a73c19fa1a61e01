"""Slimming: heads, neurons, hidden channels and whole layers go, and what is left is a plain smaller model.

    widths      `heads`, `kv_heads`, `ffn`, `hidden`, `layers`: an integer is the width, a fraction the share to keep
    target      {parameters: 0.5} or {decode_latency: 0.6}: the shape is found, `axes` says which axes may shrink

Every layer gets the same widths, so that a stock config holds the result: it loads in plain transformers, exports, and
runs faster, which zeros do not. First the layers that matter least go (`depth.py`), then the units that matter least in
the layers that stay (`importance.py`); what removed heads and neurons gave is taken over by the others as far as that
can be had without training (`reconstruction.py`). Follow it with `distill`: a slimmed model needs training to be good
again.

Width costs less quality than depth at the same number of weights, depth buys more decoding speed for one user.

A family that `families.py` has no table of is traced (`unknown_family.py`).

Not covered: layers of unequal width.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from compress.checkpoints.config import read_config
from compress.checkpoints.folder import DType, load_tokenizer, save_checkpoint
from compress.checkpoints.loading import empty_model
from compress.models.calibration import rows_of_stage
from compress.models.families import FAMILIES, Family, Shape, config_for, shape_of
from compress.models.layerwise import BlockWalk
from compress.stage import StageError, StageInput, StageMetadata
from compress.structured.config import SlimConfig, inputs_read
from compress.structured.extraction import sliced_model
from compress.structured.selection import choose
from compress.structured.shapes import Parameters, asked_shape, fit_latency, fit_parameters, path, thin
from compress.structured.unknown_family import family_of

GENERATION = "generation_config.json"


def run(config: SlimConfig, given: StageInput) -> StageMetadata:
    """Leaves a smaller dense checkpoint in the source's own precision."""
    assert given.source is not None
    model = empty_model(given.source)
    family = family_of(model.config, [name for name, _ in model.named_parameters()])
    walk = BlockWalk(given.source)
    source = shape_of(walk.model.config, family)
    parameters = _parameters(walk, family, source)
    wanted, found = _wanted(config, given, walk, family, parameters)
    if wanted == source:
        raise StageError(f"slim: nothing to remove: the model has these widths already: {source.sizes()}")
    choice = choose(config, given, family, (source, wanted), _calibration(config, given))
    model = sliced_model(walk.files.read, walk.model, family, (source, wanted), choice.kept, choice.changed)
    save_checkpoint(model, load_tokenizer(given.source), given.out, dtype=_own_dtype(given.source))
    if (given.source / GENERATION).is_file():
        shutil.copyfile(given.source / GENERATION, given.out / GENERATION)
    before, after = parameters.count(source), sum(parameter.numel() for parameter in model.parameters())
    return {
        "widths": {
            "before": _told(source, family),
            "after": _told(wanted, family),
            "head_dim": source.head_dim,
        },
        "parameters": {"before": before, "after": after, "ratio": after / before},
        "kept_layers": list(choice.kept.layers),
        **({} if walk.model.config.model_type in FAMILIES else {"traced": {"frozen": dict(family.frozen)}}),
        **found,
        **choice.metadata,
    }


def _told(shape: Shape, family: Family) -> dict[str, int]:
    """The sizes that the family's table is sure of."""
    unsure = {*family.frozen, *(("kv_heads",) if "heads" in family.frozen else ())}
    return {size: width for size, width in shape.sizes().items() if size not in unsure}


def _parameters(walk: BlockWalk, family: Family, source: Shape) -> Parameters:
    """What the counts of weights are taken from; checks that every dimension is as long as its axis says."""
    inside, outside = [], []
    for name, parameter in walk.model.named_parameters():
        axes = family.axes(name)
        assert axes is not None, name
        dimensions = tuple(parameter.shape)
        for axis, size in zip(axes, dimensions, strict=True):
            if axis != "fixed" and size != source.width(axis):
                raise StageError(f"slim: {name}: expected {source.width(axis)} on the axis {axis!r}, got {size}")
        if not name.startswith(f"{family.blocks}."):
            outside.append((axes, dimensions))
        elif name.startswith(f"{family.blocks}.0."):
            inside.append((axes, dimensions))
    return Parameters(tuple(inside), tuple(outside))


def _wanted(
    config: SlimConfig, given: StageInput, walk: BlockWalk, family: Family, parameters: Parameters
) -> tuple[Shape, StageMetadata]:
    """The shape to reach, and how it was found."""
    source = shape_of(walk.model.config, family)
    if config.target is None:
        return asked_shape(source, family, config.asked()), {}
    goal, ratio = next(iter(config.target.items()))
    if goal == "parameters":
        return fit_parameters(source, family, config.axes, ratio, parameters.count), {"target": {goal: ratio}}
    if given.decode_seconds is None:
        raise StageError(
            "slim: target: decode_latency is measured on the runtime, which is not at hand here; run it in a recipe "
            "or as `demitasse slim`, or choose `parameters`"
        )
    shapes = path(source, family, config.axes, parameters.count)
    with given.progress.task("measure shapes", total=len(thin(shapes, parameters.count)).bit_length() + 1) as task:

        def seconds(shape: Shape) -> float:
            with _random_checkpoint(given, walk, family, shape) as folder:
                assert given.decode_seconds is not None
                measured = given.decode_seconds(folder)
            task.advance(note=f"{parameters.count(shape):,} weights: {1000 * measured:.2f} ms")
            return measured

        wanted, table = fit_latency(shapes, ratio, seconds, parameters.count)
    rows = [{**shape.sizes(), "parameters": parameters.count(shape), "seconds": took} for shape, took in table]
    return wanted, {"target": {goal: ratio}, "latency_table": rows}


@contextmanager
def _random_checkpoint(given: StageInput, walk: BlockWalk, family: Family, shape: Shape) -> Iterator[Path]:
    """A checkpoint of a shape, while it is needed: random weights will do, time does not depend on them."""
    assert given.source is not None
    folder = given.scratch / "shape"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    config = config_for(walk.model.config, family, shape, range(shape.layers))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(given.seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    save_checkpoint(model, load_tokenizer(given.source), folder, dtype=_own_dtype(given.source))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _calibration(config: SlimConfig, given: StageInput) -> NDArray[np.int64] | None:
    if not inputs_read(config):
        return None
    return rows_of_stage("slim", given, config.rows, config.length)


def _own_dtype(folder: Path) -> DType:
    config = read_config(folder)
    own = config.get("dtype") or config.get("torch_dtype")
    return own if own in {"float16", "bfloat16"} else "float32"
