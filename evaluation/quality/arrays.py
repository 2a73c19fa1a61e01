"""Values of arrays and strings as .npz files, without pickled objects: what a folder of raw samples keeps."""

from dataclasses import fields
from pathlib import Path
from typing import Any, Self

import numpy as np


class ArrayFile:
    """A dataclass whose fields are arrays or strings."""

    def save(self, file: Path) -> None:
        """Write every field, compressed."""
        names = [field.name for field in fields(self)]  # type: ignore[arg-type] # subclasses are dataclasses
        columns: dict[str, Any] = {name: np.asarray(getattr(self, name)) for name in names}
        with file.open("wb") as stream:
            np.savez_compressed(stream, **columns)

    @classmethod
    def load(cls, file: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            ValueError: it holds pickled objects, or other columns, as those of an earlier version do.
        """
        with np.load(file, allow_pickle=False) as arrays:
            expected = [field.name for field in fields(cls)]  # type: ignore[arg-type] # subclasses are dataclasses
            if set(arrays.files) != set(expected):
                raise ValueError(
                    f"{file}: expected the columns {', '.join(expected)}, got {', '.join(arrays.files)}: another "
                    "version of demitasse wrote it; run the recipe again"
                )
            columns = {name: arrays[name] for name in expected}
        return cls(**{name: str(array) if array.ndim == 0 else array for name, array in columns.items()})
