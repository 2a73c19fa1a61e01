"""The methods of quantization that a checkpoint's config.json may name: those that are read, and why others are not.

A bundle holds codes of 4 or 8 bits on a grid: W = (code - zero point) * scale, zero points whole numbers. A method
whose weights are something else has no such codes to carry, and is refused by its name before any work.
"""

from collections.abc import Mapping
from typing import Any

from compress.checkpoints.awq import Awq
from compress.checkpoints.compressed_tensors import PackQuantized
from compress.checkpoints.gptq import Gptq
from compress.checkpoints.int8_rows import Int8Rows
from compress.checkpoints.matrix_format import MatrixFormat

QUANTIZED_FORMATS: dict[str, type[MatrixFormat]] = {
    "awq": Awq,
    "bitsandbytes": Int8Rows,
    "compressed-tensors": PackQuantized,
    "gptq": Gptq,
}
"""`quant_method` -> how its folders are read."""
NOT_READ = {
    "aqlm": "codebooks",
    "auto-round": "its own export; AutoRound's format auto_gptq or auto_awq is read",
    "bitnet": "ternary weights, activations rounded",
    "eetq": "8 bits in the order of a GPU's kernel",
    "exl3": "codebooks",
    "fbgemm_fp8": "floats of 8 bits",
    "fouroversix": "floats of 4 bits",
    "fp8": "floats of 8 bits",
    "fp_quant": "floats of 4 bits",
    "gemma": "packed tensors of its own",
    "gguf": "blocks with minima, which are float zero points",
    "higgs": "codebooks",
    "hqq": "float zero points",
    "metal": "packed tensors of its own, with float zero points",
    "mxfp4": "floats of 4 bits",
    "mxfp8": "floats of 8 bits",
    "nvfp4": "floats of 4 bits",
    "paroquant": "rotated weights",
    "qqq": "activations rounded",
    "quanto": "packed tensors of its own",
    "quark": "packed tensors of its own",
    "sinq": "scales of rows and of columns, float zero points",
    "spqr": "3 bits with outliers apart",
    "torchao": "float zero points, or packed tensors of its own",
    "vptq": "codebooks",
}
"""Methods that are refused, and what their weights are instead of codes on a grid."""


def quantization_method(config: Mapping[str, Any]) -> str | None:
    """What a checkpoint was quantized with, as its config.json says; None: it holds floats."""
    settings = config.get("quantization_config")
    if settings is None:
        return None
    in_8_bits = settings.get("load_in_8bit") and not settings.get("quant_method")  # as bitsandbytes once wrote it
    return "bitsandbytes" if in_8_bits else settings.get("quant_method")


def quantized_format(config: Mapping[str, Any]) -> MatrixFormat | None:
    """How a checkpoint's quantized matrices are read; None: it has none. `quantization_faults` found nothing in it."""
    method = quantization_method(config)
    return None if method is None else QUANTIZED_FORMATS[method](config["quantization_config"])


def quantization_faults(config: Mapping[str, Any]) -> list[str]:
    """What in a checkpoint's `quantization_config` is not covered, each as "key: expected, got"."""
    settings = config.get("quantization_config")
    if settings is None:
        return []
    method = quantization_method(config)
    if isinstance(method, str) and method in QUANTIZED_FORMATS:
        return QUANTIZED_FORMATS[method](settings).faults()
    reason = NOT_READ.get(method, "") if isinstance(method, str) else ""
    told = f"{method!r} ({reason})" if reason else repr(method)
    return [f"`quant_method`: expected {', '.join(map(repr, QUANTIZED_FORMATS))}, got {told}"]
