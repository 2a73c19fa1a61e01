"""What libraries print goes to a file of its own, at the level of file descriptors; the terminal is kept for us.

transformers, bitsandbytes and ONNX Runtime write to standard output and standard error from Python, from C++ and from
child processes. While a `LibraryOutput` is open, descriptors 1 and 2 lead into that file and duplicates of the real
ones are held as `out` and `err`. It is a nameless temporary file until `move_to` says where the run's folder is. The
run's own log (log.txt) is another file: a library may quote any text of others, and none of it can pass for ours there.

Some libraries say the same line hundreds of times. Nothing stands between them and the file, so that no line is lost
when a process is killed; once it is left, and before another command goes on with it, it is folded: what was said
again stays at its first place, with its count. The lock on it says that a command writes to it. One that ends without a
chance to fold (a kill, another command at the same file) leaves that to the next. Each command begins with a line.
"""

import contextlib
import ctypes
import fcntl
import io
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, TextIO

from recipes.cli.streams import ERR, OUT, OutputError, ReaderGoneError, Stream

LIBRARIES = "libraries.txt"
"""The file's name in the folder of a run."""
HEADING = re.compile(rb"== \d{4}-\d\d-\d\d \d\d:\d\d:\d\d \[\d+\] ==\n")
"""The line that a command begins with: when, and its process."""
WHEN = re.compile(rb"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d[.,]?\d*")
"""When a library said it, which makes no other line of it."""
TIMES = re.compile(rb" \((\d+) times\)$")
TRACEBACK = b"Traceback (most recent call last)"


class LibraryOutput:
    """A context in which nothing reaches the terminal but what is written to `out` and `err`."""

    out: TextIO
    """The real standard output."""
    err: TextIO
    """The real standard error."""
    file: Path | None = None
    """Where it goes, once it has a place."""

    def __enter__(self) -> "LibraryOutput":
        flush_all()
        self.out, self.err = _duplicate(OUT), _duplicate(ERR)
        self._log: BinaryIO = tempfile.TemporaryFile("w+b")
        self._redirect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        flush_all()
        for stream, descriptor in ((self.out, OUT), (self.err, ERR)):
            with contextlib.suppress(OutputError, ReaderGoneError):  # told already, or something else went wrong before
                stream.flush()
            os.dup2(stream.fileno(), descriptor)
            stream.close()
        self._log.close()
        if self.file is not None:
            self._lock.close()
            fold(self.file)

    def move_to(self, file: Path) -> None:
        """Go on in `file`, which is made if need be and appended to, after what was said so far.

        Raises:
            OSError: the file cannot be written.
        """
        file.parent.mkdir(parents=True, exist_ok=True)
        fold(file)
        log = file.open("ab")
        self._lock = file.open("rb")  # a file of its own, because children inherit the log's and may outlive us
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(self._lock, fcntl.LOCK_SH)
        flush_all()
        self._log.seek(0)
        heading = f"== {datetime.now(UTC):%Y-%m-%d %H:%M:%S} [{os.getpid()}] ==\n"
        log.write(heading.encode() + self._log.read())
        log.flush()
        self._log.close()
        self._log, self.file = log, file
        self._redirect()

    def _redirect(self) -> None:
        for descriptor in (OUT, ERR):
            os.dup2(self._log.fileno(), descriptor)


def fold(file: Path) -> None:
    """Shorten a file to `folded`, in its place, unless it is missing or somebody else writes to it."""
    with contextlib.suppress(OSError), file.open("r+b") as log:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        said = log.read()
        text = folded(said)
        if len(text) < len(said):
            log.seek(0)
            log.write(text)
            log.seek(len(said))
            late = log.read()  # from a child that outlived its command
            log.seek(len(text))
            log.write(late)
            log.truncate()


def folded(said: bytes) -> bytes:
    """Text in which no command says anything twice: "...", "..." is "... (2 times)" where it was said first.

    Lines without a letter stay, which are parts of tables, and everything from a traceback to the next command, which
    cannot be read in pieces.
    """
    kept: list[bytes] = []
    counts: list[int] = []
    places: dict[bytes, int] = {}
    in_traceback = False
    for entry in _entries(said):
        heading = HEADING.match(entry)
        if heading:
            places = {}
        in_traceback = not heading and (in_traceback or entry.startswith(TRACEBACK))
        plain, count = _counted(entry)
        what = WHEN.sub(b"", plain)
        again = not heading and not in_traceback and entry.endswith(b"\n") and re.search(rb"[A-Za-z]", what)
        if again and what in places:
            counts[places[what]] += count
            continue
        if again:
            places[what] = len(kept)
        kept.append(plain if again else entry)
        counts.append(count if again else 1)
    return b"".join(map(_with_count, kept, counts))


def _entries(said: bytes) -> Iterator[bytes]:
    """Lines, each with the indented ones below it, which belong to it."""
    entry = b""
    for line in io.BytesIO(said):
        if entry and not line.startswith((b" ", b"\t")):
            yield entry
            entry = b""
        entry += line
    if entry:
        yield entry


def _counted(entry: bytes) -> tuple[bytes, int]:
    """An entry without the count that an earlier folding gave it, and the count."""
    line, end, rest = entry.partition(b"\n")
    found = TIMES.search(line)
    return (entry, 1) if found is None else (line[: found.start()] + end + rest, int(found[1]))


def _with_count(entry: bytes, count: int) -> bytes:
    line, end, rest = entry.partition(b"\n")
    return entry if count == 1 else line + b" (%d times)" % count + end + rest


def flush_all() -> None:
    """Empty Python's and the C library's buffers, so that no text lands behind a later redirection."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with contextlib.suppress(ValueError, OSError):  # closed, or a pipe without a reader
                stream.flush()
    with contextlib.suppress(OSError, AttributeError):  # no C library to be found: then there are no such buffers
        ctypes.CDLL(None).fflush(None)


def _duplicate(descriptor: int) -> TextIO:
    like = sys.stdout if descriptor == OUT else sys.stderr
    return Stream(os.dup(descriptor), like, must_arrive=descriptor == OUT)
