"""Text goes in, token ids come out: reading, tokenizing and packing of training, calibration and test text.

Formats: .txt (documents separated by a line that holds only `<|endoftext|>`; without one the file is one document),
.jsonl and .parquet (one document per row, in the column `field`), or a data set of the Hugging Face hub with a pinned
revision.

Not covered: chat templates, and streaming of text that does not fit into memory.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, model_validator

from compress.digests import digest_file, digest_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SEPARATOR = "<|endoftext|>"
SUFFIXES = (".txt", ".jsonl", ".parquet")


class TextError(Exception):
    """A text cannot be used; the message names it, what was expected and the way out."""


class TextSource(BaseModel):
    """Where a text is: a file, or a data set of the hub."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    file: Path | None = None
    """A .txt, .jsonl or .parquet file."""
    dataset: str | None = None
    """A data set's id on the Hugging Face hub, such as "Salesforce/wikitext"."""
    name: str | None = None
    """The data set's configuration, such as "wikitext-2-raw-v1"."""
    split: str = "train"
    """The data set's split."""
    revision: str | None = None
    """The data set's commit hash: required with `dataset`, so that the text cannot change under a recipe."""
    field: str = "text"
    """The column that holds the text in .jsonl, .parquet and data sets."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"file": value} if isinstance(value, str | Path) else value

    @model_validator(mode="after")
    def _one_place(self) -> "TextSource":
        if (self.file is None) == (self.dataset is None):
            raise ValueError("expected either `file` or `dataset`")
        if self.dataset is not None and self.revision is None:
            raise ValueError("`dataset` needs `revision`: a commit hash that pins the text")
        if self.file is not None and self.file.suffix not in SUFFIXES:
            raise ValueError(f"expected a file that ends in {', '.join(SUFFIXES)}, got {self.file.name!r}")
        return self

    def __str__(self) -> str:
        return (
            str(self.file)
            if self.file is not None
            else f"{self.dataset}/{self.name or ''}:{self.split}@{self.revision}"
        )

    def digest(self) -> str:
        """sha256 (hex) of what identifies the text: a file's bytes, format and column; a data set's pinned address."""
        if self.file is not None:
            return digest_of([digest_file(self.file), self.file.suffix, self.field])
        return digest_of(self.model_dump(mode="json"))


def read_documents(source: TextSource) -> list[str]:
    """The documents of a text, none empty.

    Raises:
        TextError: the file is missing, binary, empty, or has no column `source.field`.
    """
    try:
        documents = [text for text in map(str.strip, _documents(source)) if text]
    except UnicodeDecodeError as error:
        raise TextError(
            f"{source}: expected UTF-8 text, got binary data at byte {error.start}; give a text file"
        ) from error
    except OSError as error:
        raise TextError(f"{source}: cannot be read ({error.strerror or error})") from error
    if not documents:
        raise TextError(f"{source}: expected text, got an empty file")
    if any("\x00" in text for text in documents):
        raise TextError(f"{source}: expected text, got binary data (a zero byte); give a text file")
    return documents


def _documents(source: TextSource) -> Iterator[str]:
    if source.file is None:
        return _rows_of_dataset(source)
    if source.file.suffix == ".txt":
        return iter(_split(source.file.read_text(encoding="utf-8")))
    if source.file.suffix == ".jsonl":
        return _rows_of_jsonl(source, source.file)
    return _rows_of_parquet(source, source.file)


def _split(text: str) -> list[str]:
    documents: list[list[str]] = [[]]
    for line in text.splitlines():
        if line.strip() == SEPARATOR:
            documents.append([])
        else:
            documents[-1].append(line)
    return ["\n".join(lines) for lines in documents]


def _rows_of_jsonl(source: TextSource, file: Path) -> Iterator[str]:
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield _text(json.loads(line)[source.field])
        except (ValueError, KeyError, TypeError) as error:
            raise TextError(
                f'{file}:{number}: expected a JSON object with "{source.field}", got {line[:60]!r}'
            ) from error


def _rows_of_parquet(source: TextSource, file: Path) -> Iterator[str]:
    import pyarrow
    from pyarrow import parquet

    try:
        column = parquet.read_table(file, columns=[source.field]).column(source.field)
    except (pyarrow.ArrowException, KeyError) as error:
        raise TextError(f'{file}: expected a parquet file with a column "{source.field}" ({error})') from error
    return _texts(source, column.to_pylist())


def _rows_of_dataset(source: TextSource) -> Iterator[str]:
    import datasets

    try:
        rows = datasets.load_dataset(source.dataset, source.name, split=source.split, revision=source.revision)
    except Exception as error:  # the library raises a dozen kinds, some of them its dependencies'
        raise TextError(f"{source}: cannot be loaded from the hub ({error}); give a local file instead") from error
    if source.field not in rows.column_names:
        raise TextError(f"{source}: expected a column {source.field!r}, got {', '.join(rows.column_names)}")
    return _texts(source, rows[source.field])


def _texts(source: TextSource, values: Iterable[object]) -> Iterator[str]:
    try:
        yield from map(_text, values)
    except TypeError as error:
        raise TextError(f"{source}: {error}") from error


def _text(value: object) -> str:
    """The text of a row; a null is an empty one."""
    if value is None or isinstance(value, str):
        return value or ""
    raise TypeError(f"expected text in every row, got {value!r}")


def tokenize(documents: list[str], tokenizer: "PreTrainedTokenizerBase") -> list[NDArray[np.int64]]:
    """Token ids of each document, without special tokens: a list of int64 arrays, shape (tokens,) each."""
    encoded = tokenizer(documents, add_special_tokens=False, verbose=False)["input_ids"]
    return [np.asarray(ids, dtype=np.int64) for ids in encoded]


def pack(documents: list[NDArray[np.int64]], length: int, end_of_text: int) -> NDArray[np.int64]:
    """Documents laid end to end, each followed by `end_of_text`, cut into rows: int64, shape (rows, length).

    The last partial row is left out.

    Raises:
        TextError: the text is shorter than one row.
    """
    stream = np.concatenate([np.append(ids, end_of_text) for ids in documents])
    rows = len(stream) // length
    if rows == 0:
        raise TextError(f"the text has {len(stream)} tokens, fewer than one sequence of {length}; give more text")
    return stream[: rows * length].reshape(rows, length)
