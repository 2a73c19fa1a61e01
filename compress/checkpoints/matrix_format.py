"""What a format of quantized matrices must tell: a class for each method of quantization (`quantized_formats.py`).

A matrix of the module `model.layers.0.mlp.up_proj` is stored as several tensors, whose names are the module's with an
end of the format's own, such as `.qweight` and `.scales`. What each of them holds is told by its end, and how codes are
packed by its shape and by `quantization_config`; whoever reads a checkpoint asks here and knows no format by name.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from numpy.typing import NDArray

from compress.checkpoints.quantized_matrix import QuantizedMatrix

WHOLE_ROW = -1
"""A `group_size`: one scale for a row."""
Role = Literal["codes", "scales", "zeros", "storage"]
"""What a tensor of a matrix holds; storage only says how to read the others."""


class Tensors(Protocol):
    """The tensors of one matrix by the ends of their names, each read when it is asked for; floats as float32."""

    def __getitem__(self, end: str) -> NDArray[Any]: ...

    def __contains__(self, end: str) -> bool: ...

    def shape(self, end: str) -> tuple[int, ...]:
        """Without reading it."""
        ...


@dataclass(frozen=True)
class Part:
    """A tensor's place in a quantized matrix."""

    module: str
    """As the files name it."""
    role: Role


class MatrixFormat(ABC):
    """How a method's checkpoints hold a matrix, and what of the method is covered."""

    title: ClassVar[str]
    """Whose format it is."""
    roles: ClassVar[Mapping[str, Role]]
    """End of a tensor's name -> what it holds."""
    mark: ClassVar[str]
    """The end that no tensor of a float matrix has."""
    library: ClassVar[str | None] = None
    """What runs such a checkpoint in PyTorch, activations rounded; None: its matrices are multiplied out."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings
        """`quantization_config` of config.json."""

    @abstractmethod
    def faults(self) -> list[str]:
        """What in the settings is not covered, each as "key: expected, got"."""

    @abstractmethod
    def bits(self, stored: tuple[int, ...], rows: int, columns: int) -> int | None:
        """Bits of the codes of a matrix [rows, columns] that are stored in this shape; None: they do not fit it."""

    @abstractmethod
    def has_zeros(self, tensors: Tensors) -> bool:
        """Whether a zero point of the matrix is another than 0; reads no codes.

        Raises:
            ValueError: the matrix is held in a way that is not covered; the message says what and the way out.
        """

    @abstractmethod
    def read(self, tensors: Tensors) -> QuantizedMatrix:
        """The matrix.

        Raises:
            ValueError: as `has_zeros`; or its tensors do not fit each other.
            KeyError: one is missing.
        """

    @classmethod
    def parts(cls, names: Collection[str]) -> dict[str, Part]:
        """Which of the tensors of these names are parts of quantized matrices, and of which."""
        modules = [name.removesuffix(cls.mark) for name in names if name.endswith(cls.mark)]
        held = set(names)
        return {
            module + end: Part(module, role)
            for module in modules
            for end, role in cls.roles.items()
            if module + end in held
        }


def choice_faults(settings: Mapping[str, Any], covered: Mapping[str, tuple[Any, ...]], place: str = "") -> list[str]:
    """The keys whose value is none of the covered ones; a missing key has the value None."""
    return [
        f"`{place}{key}`: expected {' or '.join(map(repr, values))}, got {settings.get(key)!r}"
        for key, values in covered.items()
        if settings.get(key) not in values
    ]


def grid_faults(settings: Mapping[str, Any], widths: tuple[int, ...]) -> list[str]:
    """What is wrong with `bits` and `group_size`."""
    bits, size = settings.get("bits"), settings.get("group_size")
    faults = []
    if type(bits) is not int or bits not in widths:
        faults.append(f"`bits`: expected {' or '.join(map(str, widths))}, got {bits!r}")
    if type(size) is not int or not (size == WHOLE_ROW or size > 0):
        faults.append(f"`group_size`: expected a number of columns, or {WHOLE_ROW} for all of a row, got {size!r}")
    return faults


def group_size(settings: Mapping[str, Any]) -> int | None:
    """Columns that share a scale; None: all of a row."""
    size: int = settings["group_size"]
    return None if size == WHOLE_ROW else size


def group_of(scales: tuple[int, ...], rows: int, columns: int, sizes: Collection[int | None]) -> int:
    """Columns that share a scale, of a matrix whose scales have a shape that should be [rows, groups].

    Args:
        sizes: what the settings say that it may be; None: all of a row.

    Raises:
        ValueError: the shape is another, or such a group is in none of the sizes.
    """
    if len(scales) != 2 or scales[0] != rows or not scales[1] or columns % scales[1]:
        raise ValueError(f"expected scales of {rows} rows of equal groups of {columns} columns, got {scales}")
    group = columns // scales[1]
    if group not in sizes and not (group == columns and None in sizes):
        raise ValueError(f"{scales[1]} scales for {columns} columns do not fit config.json")
    return group
