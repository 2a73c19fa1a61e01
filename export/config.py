"""What `export` lets one choose."""

from typing import Literal

from pydantic import Field, model_validator

from compress.registry import lazy
from compress.stage import Stage, StageConfig

CACHE_ROWS, CACHE_TOKENS = 16, 512
"""Calibration text behind the scales of a cache of 8 bits."""
LIBRARIES = ("mobius-onnx", "onnx-ir", "onnx", "onnxruntime-gpu", "onnxruntime", "transformers", "torch")

BLOCKS = {"cpu": 64, "cuda": 32}
"""Columns per block where nothing is said, by provider."""


class ExportConfig(StageConfig):
    """The knobs of `export`."""

    layout: Literal["bundle", "triton", "transformers.js"] = "bundle"
    """bundle: the folder itself; triton: a model repository of NVIDIA Triton with the bundle inside; transformers.js: a
    folder as on the hub, with the bundle as onnx/.
    """
    provider: Literal["cpu", "cuda"] = "cpu"
    """Where the bundle will run: cpu (float32 activations) or cuda (float16)."""
    block_size: Literal["auto", 16, 32, 64, 128, 256] = "auto"
    """Columns per block of a quantized matrix, which is also the grain of activation rounding: larger is faster on the
    cpu, smaller is closer. auto: 64 on the cpu, and 32 on cuda, which is what its fast kernels take.
    """
    accuracy_level: Literal[0, 4] | None = None
    """4: activations are rounded to 8 bits per block, for speed; 0: they are not, which is far slower on the cpu.
    Without it: 4 on the cpu, 0 on cuda.
    """
    cache: Literal["float", "int8"] = "float"
    """Keys and values: float, or 8 bits with a scale for each channel, calibrated on the calibration text: the
    cache takes a quarter of the memory. On the cpu.
    """
    parity_tokens: int = Field(default=192, ge=8, le=4096)
    """Tokens in each of the rows of calibration text on which parity is checked; the model's context if that is
    shorter.
    """
    parity_context: int = Field(default=4096, ge=8)
    """Tokens to which one row is filled for the same; the model's context if that is shorter. A longer context is
    checked up to here only, and the manifest says so.
    """

    @model_validator(mode="after")
    def _int8_cache(self) -> "ExportConfig":
        if self.cache == "int8" and (self.provider, self.layout == "transformers.js") != ("cpu", False):
            raise ValueError(
                "cache: int8: expected provider cpu, where it is proven, and another layout than transformers.js, "
                "which makes float caches only"
            )
        return self

    def graphs(self, *, quantized: bool) -> int:
        """How many graphs parity runs: the float one, and one more for each thing that is rounded."""
        return 1 + (self.cache == "int8") + (quantized and self.level > 0)

    @property
    def columns(self) -> int:
        """Per block."""
        return BLOCKS[self.provider] if self.block_size == "auto" else self.block_size

    @property
    def level(self) -> int:
        return (4 if self.provider == "cpu" else 0) if self.accuracy_level is None else self.accuracy_level


def tokens_run(config: ExportConfig, context: int, layers: int) -> float:
    """Behind the scales of a cache of 8 bits; parity reads its own."""
    return CACHE_ROWS * min(CACHE_TOKENS, context) if config.cache == "int8" else 0.0


EXPORT: Stage[ExportConfig] = Stage(
    kind="export",
    summary="write an ONNX bundle for ONNX Runtime, its quantized weights bit for bit the checkpoint's, parity proven",
    version=4,
    config=ExportConfig,
    takes=frozenset({"dense", "quantized"}),
    leaves="onnx",
    run=lazy("export.stage:run"),
    inputs_read=lambda config: frozenset({"calibration_text"}),
    tokens_run=tokens_run,
    libraries=LIBRARIES,
)
