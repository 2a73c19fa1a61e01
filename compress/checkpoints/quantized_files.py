"""The quantized matrices of a checkpoint's files, whatever format they are in."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from compress.checkpoints.config import CheckpointError, read_config
from compress.checkpoints.int8_rows import EMBEDDINGS_FILE, Int8Rows
from compress.checkpoints.matrix_format import MatrixFormat
from compress.checkpoints.quantized_formats import quantized_format
from compress.checkpoints.quantized_matrix import QuantizedMatrix
from compress.checkpoints.weight_files import open_weights, weight_files


class HeldMatrix:
    """The tensors of one matrix in open safetensors files; see `Tensors`."""

    def __init__(self, held: Mapping[str, Any], module: str) -> None:
        self._held, self._module = held, module

    def __getitem__(self, end: str) -> NDArray[Any]:
        tensor = self._held[self._module + end].get_tensor(self._module + end)
        if tensor.dtype.is_floating_point:
            tensor = tensor.float()  # numpy has no bfloat16
        array: NDArray[Any] = tensor.numpy()
        return array

    def __contains__(self, end: str) -> bool:
        return self._module + end in self._held

    def shape(self, end: str) -> tuple[int, ...]:
        """Without reading it."""
        return tuple(self._held[self._module + end].get_slice(self._module + end).get_shape())


def read_quantized_matrices(folder: Path) -> dict[str, QuantizedMatrix]:
    """Every matrix of a quantized checkpoint, embeddings too, by its module's name ("transformer.h.0.attn.c_attn").

    Raises:
        CheckpointError: a matrix's tensors do not fit each other, or one is missing.
    """
    return dict(quantized_matrices(folder, read_config(folder)))


def quantized_matrices(folder: Path, config: Mapping[str, Any]) -> Iterator[tuple[str, QuantizedMatrix]]:
    """The same, one after the other, of a checkpoint whose config.json is known."""
    embeddings: MatrixFormat = Int8Rows({})
    for files, format in (
        (weight_files(folder), quantized_format(config)),
        ([*folder.glob(EMBEDDINGS_FILE)], embeddings),  # which holds tensors of the same names
    ):
        if format is not None:
            for module, tensors in _held(folder, files, format):
                with _told(folder, module):
                    matrix = format.read(tensors)
                if matrix.zero_OG is not None and not matrix.zero_OG.any():
                    matrix = replace(matrix, zero_OG=None)
                yield module, matrix


def modules_with_zeros(folder: Path, format: MatrixFormat | None) -> frozenset[str]:
    """Modules of the weight files whose matrix has zero points other than 0; codes are not read.

    Raises:
        CheckpointError: a matrix is held in a way that is not covered.
    """
    found = set()
    if format is not None:
        for module, tensors in _held(folder, weight_files(folder), format):
            with _told(folder, module):
                if format.has_zeros(tensors):
                    found.add(module)
    return frozenset(found)


def _held(folder: Path, files: list[Path], format: MatrixFormat) -> Iterator[tuple[str, HeldMatrix]]:
    """(module, its tensors) for each matrix."""
    with ExitStack() as stack:
        opened = [stack.enter_context(open_weights(file, "pt")) for file in files]
        held = {name: tensors for tensors in opened for name in tensors.keys()}  # noqa: SIM118 (not iterable)
        for module in dict.fromkeys(part.module for part in format.parts(held).values()):
            yield module, HeldMatrix(held, module)


@contextmanager
def _told(folder: Path, module: str) -> Iterator[None]:
    """What is wrong with a matrix, said with its name."""
    try:
        yield
    except (KeyError, ValueError) as error:
        raise CheckpointError(
            f"{folder}: a quantized matrix cannot be read ({module}: {error}); "
            "download or quantize the checkpoint again"
        ) from error
