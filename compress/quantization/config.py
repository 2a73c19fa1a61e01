"""What quantization lets one choose. The registry is `SCHEMES`: how weights are rounded, and to which format."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from compress.registry import OneOf, lazy
from compress.stage import Stage, StageConfig


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """How the weights are rounded, and the checkpoint format that they are written in."""

    summary: str
    run: Callable[..., Any]
    """(config, stage input) -> metadata."""


SCHEMES: dict[str, Scheme] = {
    "int8": Scheme(
        summary="int8 codes with one float32 scale per output row (bitsandbytes' format)",
        run=lazy("compress.quantization.stage:int8_rows"),
    ),
    "int8_group": Scheme(
        summary="int8 codes with one float32 scale for each `group` columns of a row (compressed-tensors' format)",
        run=lazy("compress.quantization.grouped:int8_group"),
    ),
}


class QuantizeConfig(StageConfig):
    """Round the block linears to 8 bits."""

    scheme: Annotated[str, OneOf(SCHEMES)] = "int8"
    """The number format: int8 codes with one float32 scale per output row."""
    group: Literal[32, 64, 128] = 128
    """int8_group: columns of a row that share a scale."""
    embeddings: bool = False
    """Round the token embedding (and a tied head) too."""
    threshold: float = Field(default=6.0, ge=0)
    """Activations above this go through float16 when bitsandbytes runs it; the codes do not depend on it."""


QUANTIZE = Stage(
    kind="quantize",
    summary="round the block linears (and the embedding) to 8 bits, one scale per output row",
    version=1,
    config=QuantizeConfig,
    takes=frozenset({"dense"}),
    leaves="quantized",
    run=lazy("compress.quantization.stage:run"),
    libraries=("torch", "transformers", "bitsandbytes"),
)
