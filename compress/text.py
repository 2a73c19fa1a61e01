"""Text goes in, token ids come out: reading, tokenizing and packing of training, calibration and test text.

Formats: .txt (documents separated by a line that holds only `<|endoftext|>`; without one the file is one document),
.jsonl and .parquet (one document per row, in the column `field`), the first two also as .gz, or a data set of the
Hugging Face hub with a pinned revision.

Text is UTF-8, with or without a byte-order mark. A line ends at \\n or \\r\\n and nowhere else: a form feed, U+0085 or
U+2028 is text like any other, as it is to the tokenizer.

Not covered: chat templates, and streaming of text that does not fit into memory.
"""

import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from compress.checkpoints.json_file import PlainFileError, read_plain
from compress.digests import digest_file, digest_of
from compress.errors import DemitasseError
from compress.knobs import Knobs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SEPARATOR = "<|endoftext|>"
SUFFIXES = (".txt", ".jsonl", ".parquet", ".txt.gz", ".jsonl.gz")
READING = 2
"""Raised when the same file is read as another text."""
PROBE = "a"
"""A text of some token, in every tokenizer."""
MOST_TEXT = 2**30
"""Bytes of a text, unpacked: it is read as a whole."""
UTF16 = (b"\xff\xfe", b"\xfe\xff")


class TextError(DemitasseError):
    """A text cannot be used; the message names it, what was expected and the way out."""


class TextSource(Knobs):
    """Where a text is: a file, or a data set of the hub."""

    file: Path | None = None
    """A .txt, .jsonl or .parquet file; .txt.gz or .jsonl.gz."""
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
        if self.file is not None and not self.file.name.lower().endswith(SUFFIXES):
            raise ValueError(f"expected a file that ends in {', '.join(SUFFIXES)}, got {self.file.name!r}")
        return self

    def __str__(self) -> str:
        return (
            str(self.file)
            if self.file is not None
            else f"{self.dataset}/{self.name or ''}:{self.split}@{self.revision}"
        )

    @property
    def form(self) -> str:
        """How the file is read: .txt, .jsonl or .parquet."""
        name = "" if self.file is None else self.file.name.lower().removesuffix(".gz")
        return name[name.rfind(".") :]

    def digest(self) -> str:
        """sha256 (hex) of what identifies the text: a file's bytes, format and column; a data set's pinned address."""
        if self.file is not None:
            return digest_of([READING, digest_file(self.file), self.form, self.field])
        return digest_of(self.model_dump(mode="json"))


def read_documents(source: TextSource) -> list[str]:
    """The documents of a text, none empty.

    Raises:
        TextError: the file is missing, binary, empty, or has no column `source.field`.
    """
    try:
        documents = [text for text in map(str.strip, _documents(source)) if text]
    except UnicodeDecodeError as error:
        raise TextError(f"{source}: expected UTF-8 text, got {_other_encoding(error)}") from error
    except PlainFileError as error:
        raise TextError(f"{source}: {error}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise TextError(f"{source}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if not documents:
        raise TextError(f"{source}: expected text, got an empty file")
    for number, text in enumerate(documents, start=1):
        if wrong := no_text(text):
            raise TextError(f"{source}: document {number}: expected text, got {wrong}")
    return documents


def no_text(value: str) -> str:
    """What stands in a text that no text holds, with the way out; empty where there is nothing of the kind."""
    if "\x00" in value:
        return "binary data (a zero byte); give a text file"
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        found = f"\\u{ord(value[error.start]):04x}"
        return f"{found} at character {error.start}, half of a character (a lone surrogate); write the text again"
    return ""


def _other_encoding(error: UnicodeDecodeError) -> str:
    if error.object[:2] in UTF16:
        return "UTF-16 (by its byte-order mark); save it as UTF-8"
    return f"binary data at byte {error.start}; give a text file"


def _documents(source: TextSource) -> Iterator[str]:
    if source.file is None:
        return _rows_of_dataset(source)
    if source.form == ".txt":
        return iter(_split(decoded(source.file)))
    if source.form == ".jsonl":
        return _rows_of_jsonl(source, source.file)
    return _rows_of_parquet(source, source.file)


def decoded(file: Path) -> str:
    """The text of a file in UTF-8, unpacked if its name ends in .gz, without its byte-order mark.

    Raises:
        PlainFileError: it is missing, no plain file, or larger than a text may be.
        OSError, EOFError, zlib.error: it cannot be unpacked.
        UnicodeDecodeError: it is not in UTF-8.
    """
    content = read_plain(file, MOST_TEXT)
    if file.name.lower().endswith(".gz"):
        with gzip.open(io.BytesIO(content)) as stream:
            content = stream.read(MOST_TEXT + 1)
        if len(content) > MOST_TEXT:
            raise PlainFileError(f"expected at most {MOST_TEXT:,} bytes of text in it, got more")
    return content.decode("utf-8-sig")


def lines_of(text: str) -> list[str]:
    """The lines of a text, without their ends."""
    return text.replace("\r\n", "\n").split("\n")


def _split(text: str) -> list[str]:
    documents: list[list[str]] = [[]]
    for line in lines_of(text):
        if line.strip() == SEPARATOR:
            documents.append([])
        else:
            documents[-1].append(line)
    return ["\n".join(lines) for lines in documents]


def _rows_of_jsonl(source: TextSource, file: Path) -> Iterator[str]:
    for number, line in enumerate(lines_of(decoded(file)), start=1):
        if line.strip():
            try:
                yield _of_row(json.loads(line), source.field)
            except (ValueError, TypeError, RecursionError) as error:
                why = (
                    str(error)
                    if isinstance(error, TypeError)
                    else f"expected one JSON object a line, got {line[:60]!r}"
                )
                raise TextError(f"{file}:{number}: {why}") from error


def _of_row(row: object, field: str) -> str:
    if not isinstance(row, Mapping):
        raise TypeError(f'expected one JSON object a line, with "{field}", got {str(row)[:60]!r}')
    if field not in row:
        raise TypeError(f'expected a JSON object with "{field}", got {_columns(row)}')
    return _text(row[field])


def _columns(row: Mapping[str, object]) -> str:
    """What a row has instead, and the way out."""
    if any(_is_chat(value) for value in row.values()):
        return f"a chat ({', '.join(row)}); write each out as one text, with the model's chat template"
    if not row:
        return "an object without any column; leave such rows out"
    return f"{', '.join(map(repr, row))}; name the column that holds the text: field: {next(iter(row))}"


def _is_chat(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(turn, Mapping) and "role" in turn for turn in value)


def _rows_of_parquet(source: TextSource, file: Path) -> Iterator[str]:
    import pyarrow
    from pyarrow import parquet

    try:
        column = parquet.read_table(file, columns=[source.field]).column(source.field)
    except (pyarrow.ArrowException, KeyError) as error:
        way = "name the column that holds the text with `field`"
        raise TextError(f'{file}: expected a parquet file with a column "{source.field}" ({error}); {way}') from error
    return _texts(source, column.to_pylist())


def _rows_of_dataset(source: TextSource) -> Iterator[str]:
    import datasets

    try:
        rows = datasets.load_dataset(source.dataset, source.name, split=source.split, revision=source.revision)
    except Exception as error:  # the library raises a dozen kinds, some of them its dependencies'
        raise TextError(f"{source}: cannot be loaded from the hub ({error}); give a local file instead") from error
    if source.field not in rows.column_names:
        way = "name the column that holds the text with `field`"
        raise TextError(f"{source}: expected a column {source.field!r}, got {', '.join(rows.column_names)}; {way}")
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
    raise TypeError(f"expected text in every row, got {repr(value)[:60]}")


def beginning(encode: Callable[[str, bool], Sequence[int]]) -> list[int]:
    """The ids that a tokenizer itself puts before a text, such as Gemma's BOS; none for most of GPT-2's kind.

    Args:
        encode: a text, and whether the tokenizer adds its special tokens, to ids.
    """
    text_T, whole_T = list(encode(PROBE, False)), list(encode(PROBE, True))
    places = range(len(whole_T) - len(text_T) + 1)
    return whole_T[: next(place for place in places if whole_T[place : place + len(text_T)] == text_T)]


def before_text(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The ids that the tokenizer itself puts before a text: every sequence that a model reads here begins with them."""
    return beginning(lambda text, added: tokenizer(text, add_special_tokens=added, verbose=False)["input_ids"])


def end_of_text(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The id that ends a document: eos, else bos, else 0."""
    for candidate in (tokenizer.eos_token_id, tokenizer.bos_token_id):
        if isinstance(candidate, int):
            return candidate
    return 0


def tokenize(documents: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> list[NDArray[np.int64]]:
    """Token ids of each document, without special tokens: a list of int64 arrays, shape (tokens,) each."""
    encoded = tokenizer(list(documents), add_special_tokens=False, verbose=False)["input_ids"]
    return [np.asarray(ids, dtype=np.int64) for ids in encoded]


def check_ids(ids: NDArray[np.int64], tokenizer: "PreTrainedTokenizerBase", rows: int) -> None:
    """See that the model can read what a text became: a tokenizer may name tokens that the model was never given.

    Args:
        ids: of any shape.
        rows: of the model's embedding.

    Raises:
        TextError: a token has no row; the message names it.
    """
    largest = int(ids.max(initial=0))
    if largest >= rows:
        raise TextError(
            f"the text holds {tokenizer.convert_ids_to_tokens(largest)!r}, which is number {largest} of the tokenizer, "
            f"but the model's embedding has {rows} rows; leave it out of the text, or use the tokenizer that the model "
            "was trained with"
        )


def pack(
    documents: list[NDArray[np.int64]], length: int, end_of_text: int, before: Sequence[int] = ()
) -> NDArray[np.int64]:
    """Documents laid end to end, each followed by `end_of_text`, cut into rows: int64, shape (rows, length).

    The last partial row is left out.

    Args:
        before: stands at the beginning of every row, as one of its tokens or more: what the tokenizer itself puts
            before a text, without which some models (Gemma) are not themselves.

    Raises:
        TextError: the text is shorter than one row.
    """
    stream = np.concatenate([np.append(ids, end_of_text) for ids in documents])
    room = length - len(before)
    rows = len(stream) // room
    if rows == 0:
        raise TextError(f"the text has {len(stream)} tokens, fewer than one sequence of {length}; give more text")
    beginning = np.tile(np.asarray(before, dtype=np.int64), (rows, 1))
    return np.concatenate([beginning, stream[: rows * room].reshape(rows, room)], axis=1)
