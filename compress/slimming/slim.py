"""Slimming: heads, neurons, hidden channels and whole layers go, and what is left is a plain smaller model.

    widths      `heads`, `kv_heads`, `ffn`, `hidden`, `layers`: an integer is the width, a fraction the share to keep
    target      {parameters: 0.5} or {decode_latency: 0.6}: the shape is found, `axes` says which axes may shrink

Every layer gets the same widths, so that a stock config holds the result: it loads in plain transformers, exports, and
runs faster, which zeros do not. First the layers that matter least go (`depth.py`), then the units that matter least in
the layers that stay (`importance.py`); what removed heads and neurons gave is taken over by the others as far as that
can be had without training (`repair.py`). Follow it with `distill`: a slimmed model needs training to be good again.

Width costs less quality than depth at the same number of weights, depth buys more decoding speed for one user.

Not covered: layers of unequal width, and families without a table in `axes.py`.
"""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, get_args

from pydantic import Field, model_validator

from compress.checkpoint import load_tokenizer, read_config, save_checkpoint
from compress.slimming.axes import Family, Shape, Size, config_for, family_of, shape_of
from compress.slimming.widths import Parameters, ShrinkAxis, Width, asked_shape, fit_latency, fit_parameters, path, thin
from compress.stage import Facts, Material, Stage, StageConfig, StageError, StageInput

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from compress.blockwise import BlockWalk
    from compress.checkpoint import DType

Goal = Literal["parameters", "decode_latency"]
WIDTHS: tuple[Size, ...] = ("layers", "heads", "kv_heads", "ffn", "hidden")
GENERATION = "generation_config.json"


class SlimConfig(StageConfig):
    """Remove heads, neurons, hidden channels or layers."""

    layers: Width | None = None
    """How many layers stay, or which share of them."""
    heads: Width | None = None
    """Query heads per layer, or the share to keep. GPT-2, OPT and GPT-NeoX lose `hidden` with them."""
    kv_heads: Width | None = None
    """Key-value heads per layer, or the share to keep; absent: as many as the heads allow."""
    ffn: Width | None = None
    """Neurons of each MLP, or the share to keep."""
    hidden: Width | None = None
    """Width of the residual stream, or the share to keep."""
    target: Mapping[Goal, float] | None = None
    """Instead of widths, {parameters: 0.5} or {decode_latency: 0.6}: a share of the source's weights, or of its time
    per decoded token in int8 on ONNX Runtime, as measured here.
    """
    axes: tuple[ShrinkAxis, ...] = ("ffn", "heads", "hidden")
    """What may shrink to meet `target`: ffn, heads, hidden, layers, each by about the same factor."""
    importance: Literal["activations", "weights", "random"] = "activations"
    """How heads, neurons and channels are ranked; activations reads calibration text."""
    depth_by: Literal["block_influence", "perplexity"] = "block_influence"
    """How layers are ranked; perplexity leaves each one out in turn, which is slow."""
    repair: bool = True
    """Refit what is left to what the removed heads and neurons gave on the calibration text."""
    rows: int = Field(default=32, ge=1)
    """Sequences of calibration text."""
    length: int = Field(default=512, ge=8)
    """Tokens per sequence of calibration text, no more than the model's context."""

    @model_validator(mode="after")
    def _one_wish(self) -> "SlimConfig":
        if bool(self.asked()) == (self.target is not None):
            raise ValueError(
                f"expected either widths ({', '.join(WIDTHS)}), such as {{ffn: 0.75}}, or `target`, such as "
                "{parameters: 0.5}"
            )
        for name, width in self.asked().items():
            if width < 1 if isinstance(width, int) else not 0 < width < 1:
                raise ValueError(f"{name}: expected an integer from 1, or a share between 0 and 1, got {width}")
        if self.target is not None and (len(self.target) != 1 or not 0 < next(iter(self.target.values())) < 1):
            raise ValueError(
                f"target: expected one of {', '.join(get_args(Goal))} with a share between 0 and 1, such as "
                f"{{parameters: 0.5}}, got {dict(self.target)}"
            )
        if self.target is None and "axes" in self.model_fields_set:
            raise ValueError("axes: expected only beside `target`; widths say by themselves what shrinks")
        if not self.axes or len(set(self.axes)) < len(self.axes):
            raise ValueError("axes: expected some of ffn, heads, hidden, layers, each once")
        return self

    def asked(self) -> dict[Size, Width]:
        """The widths that are given."""
        return {name: getattr(self, name) for name in WIDTHS if getattr(self, name) is not None}

    def may_change(self, size: Size) -> bool:
        """Whether these knobs can change a size, in some model."""
        return size in self.asked() or (self.target is not None and size in self.axes)


def materials(config: SlimConfig) -> frozenset[Material]:
    """Calibration text, where anything is measured on it."""
    scored = config.importance == "activations"
    wide = any(config.may_change(size) for size in ("hidden", "heads", "kv_heads", "ffn"))
    reads = config.may_change("layers") or (wide and (scored or config.repair))
    return frozenset({"calibration_text"}) if reads else frozenset()


def run(config: SlimConfig, given: StageInput) -> Facts:
    """Leaves a smaller dense checkpoint in the source's own precision."""
    from compress.blockwise import BlockWalk
    from compress.slimming.selection import choose
    from compress.slimming.slicing import sliced_model

    assert given.source is not None
    walk = BlockWalk(given.source)
    names = [name for name, _ in walk.model.named_parameters()]
    family = family_of(walk.model.config, names)
    source = shape_of(walk.model.config, family)
    parameters = _parameters(walk, family, source)
    wanted, found = _wanted(config, given, walk, family, parameters)
    if wanted == source:
        raise StageError(f"slim: nothing to remove: the model has these widths already: {source.sizes()}")
    choice = choose(config, given, family, (source, wanted), _calibration(config, given))
    model = sliced_model(walk.files, walk.model, family, (source, wanted), choice.kept, choice.changed)
    save_checkpoint(model, load_tokenizer(given.source), given.out, dtype=_own_dtype(given.source))
    if (given.source / GENERATION).is_file():
        shutil.copyfile(given.source / GENERATION, given.out / GENERATION)
    before, after = parameters.count(source), sum(parameter.numel() for parameter in model.parameters())
    return {
        "widths": {"before": source.sizes(), "after": wanted.sizes(), "head_dim": source.head_dim},
        "parameters": {"before": before, "after": after, "ratio": after / before},
        "kept_layers": list(choice.kept.layers),
        **found,
        **choice.facts,
    }


def _parameters(walk: "BlockWalk", family: Family, source: Shape) -> Parameters:
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
    config: SlimConfig, given: StageInput, walk: "BlockWalk", family: Family, parameters: Parameters
) -> tuple[Shape, Facts]:
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
def _random_checkpoint(given: StageInput, walk: "BlockWalk", family: Family, shape: Shape) -> "Iterator[Path]":
    """A checkpoint of a shape, while it is needed: random weights will do, time does not depend on them."""
    import torch
    from transformers import AutoModelForCausalLM

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


def _calibration(config: SlimConfig, given: StageInput) -> "NDArray[np.int64] | None":
    if not materials(config):
        return None
    from compress.calibration import rows_of_stage

    return rows_of_stage("slim", given, config.rows, config.length)


def _own_dtype(folder: "Path") -> "DType":
    config = read_config(folder)
    own = config.get("dtype") or config.get("torch_dtype")
    return own if own in {"float16", "bfloat16"} else "float32"


SLIM = Stage(
    kind="slim",
    summary="remove heads, neurons, hidden channels or layers: a plain smaller model that runs faster",
    version=1,
    config=SlimConfig,
    takes=frozenset({"dense"}),
    leaves="dense",
    run=run,
    materials=materials,
    libraries=("torch", "transformers", "tokenizers"),
)
