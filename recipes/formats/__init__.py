"""Every format that an artifact may have, with its adapter; a new one is a file and a line here."""

from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from compress.checkpoints.folder import outline
from compress.stage import FormatName
from export.manifest import is_bundle
from recipes.formats.base import Device, Format, LoadedModel
from recipes.formats.bundle import BundleFormat
from recipes.formats.checkpoint import CheckpointFormat

PYTORCH = ("torch", "transformers", "tokenizers", "numpy", "scipy")
FORMATS: dict[FormatName, Format] = {
    "dense": CheckpointFormat(libraries=PYTORCH, bytes_per_weight=4),
    "quantized": CheckpointFormat(
        libraries=(*PYTORCH, "bitsandbytes"),
        bytes_per_weight=2,
    ),
    "onnx": BundleFormat(),
}


LIBRARIES = frozenset(library for adapter in FORMATS.values() for library in adapter.libraries)
"""What computes a measurement of anything."""


class Opener(Protocol):
    """What opens an artifact to be timed."""

    def __call__(self, folder: Path, format: FormatName, *, threads: int, device: Device) -> LoadedModel:
        """Open it in this process, on this device."""


def format_of(folder: Path) -> FormatName:
    """The format of what a folder holds.

    Raises:
        CheckpointError: it holds no checkpoint.
    """
    return "onnx" if is_bundle(folder) else outline(folder).format


def open_model(folder: Path, format: FormatName, *, threads: int, device: Device) -> LoadedModel:
    """Open what a folder holds; see `Format.open`."""
    return FORMATS[format].open(folder, threads=threads, device=device)


OPENER = f"{__name__}:{open_model.__name__}"
"""Who opens what is timed, as "module:function"."""


def opener_of(name: str) -> Opener:
    """ "module:function" -> the function."""
    module, _, function = name.partition(":")
    return cast(Opener, getattr(import_module(module), function))
