"""A frozen value of arrays and strings as an .npz file, without pickled objects: what a folder of raw samples keeps."""

from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")


def save_arrays(value: Any, file: Path) -> None:
    """Write every field of a dataclass, compressed."""
    columns: dict[str, Any] = {field.name: np.asarray(getattr(value, field.name)) for field in fields(value)}
    with file.open("wb") as stream:
        np.savez_compressed(stream, **columns)


def load_arrays(kind: type[T], file: Path) -> T:
    """Read what `save_arrays` wrote of a value of this kind.

    Raises:
        ValueError: it holds pickled objects, or other columns, as those of an earlier version do.
    """
    with np.load(file, allow_pickle=False) as arrays:
        expected = [field.name for field in fields(kind)]  # type: ignore[arg-type] # callers give dataclasses
        if set(arrays.files) != set(expected):
            raise ValueError(
                f"{file}: expected the columns {', '.join(expected)}, got {', '.join(arrays.files)}: another "
                "version of demitasse wrote it; run the recipe again"
            )
        columns = {name: arrays[name] for name in expected}
    return kind(**{name: str(array) if array.ndim == 0 else array for name, array in columns.items()})
