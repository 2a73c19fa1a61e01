"""What is measured, whatever is measured of it: where it lies, what runs it, and what it is held against."""

from dataclasses import dataclass
from pathlib import Path

from compress.stage import Form

RUNTIMES: dict[str, str] = {
    "dense": "PyTorch float32",
    "int8": "PyTorch with bitsandbytes (activations rounded to 8 bits per token)",
    "onnx": "ONNX Runtime",
}
"""What runs an artifact of each form."""


class MeasureError(Exception):
    """A measurement could not be taken; the message says of what and why."""


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """What an artifact is held against."""

    folder: Path
    form: Form
    scores: Path
    """Its own per-token scores, `tokens.npz`, from when it was measured itself."""
