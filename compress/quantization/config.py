"""What quantization lets one choose. The registries are `SCHEMES`, the number formats, and `ROUNDING`, how a weight
becomes a code.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from compress.registry import OneOf, lazy
from compress.stage import PASSES, Stage, StageConfig, StageError, StageInputName

if TYPE_CHECKING:
    from compress.models.block_linears import BlockLinear
    from compress.models.calibration import Reads


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """How the weights are rounded, and the checkpoint format that they are written in."""

    summary: str
    run: Callable[..., Any]
    """(config, stage input) -> metadata."""
    bits: int = 8
    """Of a code, where no knob says otherwise."""
    grouped: bool = True
    """Whether a row has several scales, and `group`, `method`, `bits` mean something."""


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """One way from weights to codes."""

    summary: str
    reads: "Reads"
    """What it must know of a linear's inputs."""
    run: Callable[..., Any]
    """(weight_OI, inputs, group, bits) -> QuantizedMatrix."""


ROUNDING: dict[str, Rounding] = {
    "rtn": Rounding(
        summary="each weight to the nearest code; needs no text",
        reads="nothing",
        run=lazy("compress.quantization.rounding:rtn"),
    ),
    "gptq": Rounding(
        summary="column after column, those to come making up for the error on calibration text",
        reads="gram",
        run=lazy("compress.quantization.rounding:gptq"),
    ),
}
SCHEMES: dict[str, Scheme] = {
    "int8": Scheme(
        summary="int8 codes with one float32 scale per output row (bitsandbytes' format)",
        run=lazy("compress.quantization.stage:int8_rows"),
        grouped=False,
    ),
    "int8_group": Scheme(
        summary="int8 codes, a float32 scale for each `group` columns of a row (compressed-tensors' or GPTQ's format)",
        run=lazy("compress.quantization.grouped:run"),
    ),
    "int4": Scheme(
        summary="int4 codes, a float32 scale for each `group` columns of a row (compressed-tensors' or GPTQ's format)",
        run=lazy("compress.quantization.grouped:run"),
        bits=4,
    ),
}


MIXED_BITS = 4.75
"""On the average: a fifth of SmolLM2-135M's weights causes four fifths of what 4 bits cost."""
COSTED = 64
"""Tokens of each calibration row that costs are measured on: more rows tell more than longer ones."""
FORTH_AND_BACK = 3.0
"""Passes forth that one forth and back costs."""
ROWS_OF_A_WORD = 8
"""Zero points of 4 bits in an int32."""


class QuantizeConfig(StageConfig):
    """Round the block linears to 8 or 4 bits."""

    scheme: Annotated[str, OneOf(SCHEMES)] = "int8"
    """The number format: bits of a code, and how many weights share a scale."""
    group: Literal[32, 64, 128] = 32
    """int8_group, int4: columns of a row that share a scale."""
    method: Annotated[str, OneOf(ROUNDING)] = "rtn"
    """int8_group, int4: how weights become codes; gptq reads calibration text and loses less."""
    bits: dict[str, Literal[4, 8]] = Field(default_factory=dict)
    """int4: bits of some linears, glob over their names -> 4 or 8, such as {"*.down_proj": 8}; the last match holds."""
    average_bits: float | None = Field(default=None, ge=4, le=8)
    """int4: bits of a code, on the average over the block linears: those whose 4 bits would cost most, as measured on
    calibration text, keep 8. With gptq 4.75 unless `bits` says which do; else 4.
    """
    rows: int = Field(default=32, ge=1)
    """gptq, average_bits: sequences of calibration text."""
    length: int = Field(default=512, ge=8)
    """gptq: tokens per sequence of calibration text, no more than the model's context."""
    embeddings: bool = False
    """Round the token embedding (and a tied head) too, to 8 bits: a scale per row, or per group where the linears have
    groups.
    """
    threshold: float = Field(default=6.0, ge=0)
    """int8: activations above this go through float16 when bitsandbytes runs it; the codes do not depend on it."""

    @model_validator(mode="before")
    @classmethod
    def _bits_where_text_is_read(cls, value: Any) -> Any:
        mixed = isinstance(value, dict) and value.get("scheme") == "int4" and value.get("method") == "gptq"
        if mixed and not value.get("bits") and value.get("average_bits") is None:
            return {**value, "average_bits": MIXED_BITS}
        return value

    @model_validator(mode="after")
    def _knobs_of_the_scheme(self) -> "QuantizeConfig":
        if self.method != "rtn" and not SCHEMES[self.scheme].grouped:
            raise ValueError(f"method: {self.method}: expected scheme int8_group or int4 beside it, got {self.scheme}")
        mixes = [name for name, given in (("bits", self.bits), ("average_bits", self.average_bits)) if given]
        if mixes and SCHEMES[self.scheme].bits != 4:
            raise ValueError(f"{mixes[0]}: expected scheme int4 beside it, got {self.scheme}")
        if len(mixes) == 2:
            raise ValueError("expected either `bits` or `average_bits`: both say which linears keep 8 bits")
        return self

    def reads_text(self) -> bool:
        """Whether it runs the model on calibration text."""
        return self.average_bits is not None or ROUNDING[self.method].reads != "nothing"

    def bits_of(self, names: list[str]) -> dict[str, int]:
        """Bits of the codes of each of the linears of these names.

        Raises:
            StageError: a glob of `bits` names none.
        """
        for pattern in self.bits:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise StageError(f"quantize: bits: expected a glob over names such as {names[0]}, got {pattern!r}")
        chosen = {name: [width for glob, width in self.bits.items() if fnmatchcase(name, glob)] for name in names}
        return {name: widths[-1] if widths else SCHEMES[self.scheme].bits for name, widths in chosen.items()}

    def check_columns(self, linears: "Iterable[BlockLinear]", width: int | None = None) -> None:
        """Raise a StageError where a linear, or an embedding of this width, cannot be held in groups."""
        columns = {} if width is None else {"the embedding": width}
        for linear in linears:
            rows, columns[linear.name] = linear.weight_OI().shape
            if linear.transposed and rows % ROWS_OF_A_WORD:
                raise StageError(
                    f"quantize: {self.scheme}: {linear.name} has {rows} outputs, and GPTQ's format needs a multiple of "
                    f"{ROWS_OF_A_WORD}; choose scheme int8"
                )
        unfit = [name for name, held in columns.items() if held % self.group]
        if unfit:
            raise StageError(
                f"quantize: {self.scheme}: the columns of {unfit[-1]} ({columns[unfit[-1]]}) are no multiple of "
                f"{self.group}; choose another group"
            )


def inputs_read(config: QuantizeConfig) -> frozenset[StageInputName]:
    """Calibration text, where these knobs look at what the linears are fed."""
    return frozenset({"calibration_text"}) if config.reads_text() else frozenset()


def tokens_run(config: QuantizeConfig, context: int, layers: int) -> float:
    """Of the rounding, and of what 4 bits would cost, forth and back."""
    length = min(config.length, context)
    costed = 0.0 if config.average_bits is None else FORTH_AND_BACK * min(COSTED, length)
    return config.rows * (PASSES[ROUNDING[config.method].reads] * length + costed)


QUANTIZE = Stage(
    kind="quantize",
    summary="round the block linears (and the embedding) to 8 or 4 bits, one scale per row or group of columns",
    version=3,
    config=QuantizeConfig,
    takes=frozenset({"dense"}),
    leaves="quantized",
    run=lazy("compress.quantization.stage:run"),
    inputs_read=inputs_read,
    tokens_run=tokens_run,
    libraries=("torch", "transformers", "bitsandbytes"),
    left_out=lambda config: frozenset({"bitsandbytes"}) if SCHEMES[config.scheme].grouped else frozenset(),
)
