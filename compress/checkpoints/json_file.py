"""JSON from files that others wrote: a plain file of bounded size and depth, in UTF-8, or a line that says what came.

A name is opened without waiting and looked at before it is read, so that a pipe under a file's name does not hang and
a device does not fill memory. What is inside is checked for what Python's parser lets through and everything after it
trips over: a nesting that no recursion gets to the end of, half of a surrogate pair.

Not covered: what the values mean; who asks for a file knows that.
"""

import errno
import json
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

LIMIT = 16 * 2**20
"""Bytes of a file that describes something; who reads a vocabulary asks for more."""
DEPTH = 64
"""Levels of lists and objects in each other."""
KINDS = {dict: "an object", list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number"}
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
LFS_POINTER = b"version https://git-lfs"
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class JsonError(ValueError):
    """A file holds no JSON that can be used; the message names the file, what was expected and what came."""


def read_json(file: Path, *, limit: int = LIMIT) -> Any:
    """The value in a file of at most `limit` bytes.

    Raises:
        JsonError: it is missing, no plain file, too large, no UTF-8, no JSON, or nested too deeply.
    """
    return parse_json(_read(file, limit), str(file))


def read_object(file: Path, *, limit: int = LIMIT) -> dict[str, Any]:
    """The object in a file.

    Raises:
        JsonError: as `read_json`, or the value is none.
    """
    value = read_json(file, limit=limit)
    if not isinstance(value, dict):
        raise JsonError(f"{file}: expected a JSON object, got {kind_of(value)}")
    return value


def parse_json(raw: bytes, name: str) -> Any:
    """The value of a JSON text; `name` is what errors call it.

    Raises:
        JsonError: it is no UTF-8, no JSON, or nested too deeply.
    """
    if raw.startswith(BYTE_ORDER_MARK):
        raise JsonError(f"{name}: expected JSON, got a byte-order mark before it; save it as UTF-8 without one")
    if raw.startswith(LFS_POINTER):
        raise JsonError(f"{name}: expected JSON, got a pointer of git-lfs; fetch the file itself: git lfs pull")
    try:
        value = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise JsonError(f"{name}: expected JSON in UTF-8, got another byte at {error.start}") from error
    except RecursionError:
        raise JsonError(f"{name}: expected JSON of at most {DEPTH} levels, got more") from None
    except ValueError as error:
        raise JsonError(f"{name}: expected JSON ({error})") from error
    _check_depth(value, name)
    if SURROGATE.search(raw):
        _check_text(value, name)
    return value


def kind_of(value: object) -> str:
    """What a JSON value is, for messages: "null", "a list"."""
    return "null" if value is None else KINDS[type(value)]


def _read(file: Path, limit: int) -> bytes:
    try:
        return read_plain(file, limit)
    except PlainFileError as error:
        raise JsonError(f"{file}: {error}") from error


class PlainFileError(ValueError):
    """A file is none that can be read whole; the message says why, without its name."""


def read_plain(file: Path, limit: int) -> bytes:
    """The bytes of a plain file of at most `limit` bytes, whatever is in it.

    Raises:
        PlainFileError: it is missing, no plain file, or larger.
    """
    try:
        with open(file, "rb", opener=open_plain) as stream:
            raw = stream.read(limit + 1)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = getattr(error, "strerror", None) or error
        raise PlainFileError(f"expected a plain file, but it cannot be read ({reason})") from error
    if len(raw) > limit:
        raise PlainFileError(f"expected at most {limit:,} bytes, got more")
    return raw


def open_plain(name: str, flags: int) -> int:
    """An opener for `open`: of plain files alone, without waiting for anything else.

    Raises:
        OSError: it is something else.
    """
    descriptor = os.open(name, flags | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, "it is a folder, a pipe or a device", name)


def _check_depth(value: Any, name: str) -> None:
    level = [value]
    for _ in range(DEPTH + 1):
        level = [child for part in level for child in _children(part) if isinstance(child, dict | list)]
        if not level:
            return
    raise JsonError(f"{name}: expected JSON of at most {DEPTH} levels, got more")


def _children(part: Any) -> Iterable[Any]:
    if isinstance(part, dict):
        return part.values()
    return part if isinstance(part, list) else ()


def _check_text(value: Any, name: str) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise JsonError(f"{name}: expected text, got half of a surrogate pair (\\u{ord(half):04x})") from error
