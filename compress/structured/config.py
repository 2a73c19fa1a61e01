"""What slimming lets one choose: widths or a target, and how what goes is ranked.

The registry of importances is `IMPORTANCES`; their functions are in `importance.py`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from compress.models.families import Size
from compress.registry import OneOf, lazy
from compress.stage import PASSES, Stage, StageConfig, StageInputName

Goal = Literal["parameters", "decode_latency"]
ShrinkAxis = Literal["ffn", "heads", "hidden", "layers"]
Width = int | float
"""A width, or the share of one."""
WIDTHS: tuple[Size, ...] = ("layers", "heads", "kv_heads", "ffn", "hidden")


@dataclass(frozen=True)
class Importance:
    """A way to score units."""

    summary: str
    reads_text: bool
    score: Callable[..., Any]
    """ActivationStatistics -> score per unit [U], float32; small = unimportant."""


IMPORTANCES: dict[str, Importance] = {
    "activations": Importance(
        "what a unit puts out on calibration text", True, lazy("compress.structured.importance:by_activations")
    ),
    "weights": Importance(
        "the norm of the weights that go with a unit; needs no text",
        False,
        lazy("compress.structured.importance:by_weights"),
    ),
    "random": Importance("drawn by rng_key: the control", False, lazy("compress.structured.importance:by_rng_key")),
}


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
    importance: Annotated[str, OneOf(IMPORTANCES)] = "activations"
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
    def _one_request(self) -> "SlimConfig":
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


def inputs_read(config: SlimConfig) -> frozenset[StageInputName]:
    """Calibration text, where anything is measured on it."""
    scored = IMPORTANCES[config.importance].reads_text
    wide = any(config.may_change(size) for size in ("hidden", "heads", "kv_heads", "ffn"))
    reads = config.may_change("layers") or (wide and (scored or config.repair))
    return frozenset({"calibration_text"}) if reads else frozenset()


def tokens_run(config: SlimConfig, context: int, layers: int) -> float:
    """Of one survey, of what the repair is fitted to, and of each layer that is left out in turn."""
    if not inputs_read(config):
        return 0.0
    passes = PASSES["norms"] + (PASSES["gram"] if config.repair else 0.0)
    if config.depth_by == "perplexity" and config.may_change("layers"):
        asked = config.layers if config.layers is not None else 0.5
        gone = layers - asked if isinstance(asked, int) else layers * (1 - asked)
        passes += gone * layers / 2
    return config.rows * min(config.length, context) * passes


SLIM = Stage(
    kind="slim",
    summary="remove heads, neurons, hidden channels or layers: a plain smaller model that runs faster",
    version=2,
    config=SlimConfig,
    takes=frozenset({"dense"}),
    leaves="dense",
    run=lazy("compress.structured.stage:run"),
    inputs_read=inputs_read,
    tokens_run=tokens_run,
    times_decoding=lambda config: config.target is not None and "decode_latency" in config.target,
    libraries=("torch", "transformers", "tokenizers"),
)
