"""The libraries' chatter goes to a log, at the level of file descriptors; the terminal is kept for what we say.

transformers, bitsandbytes and ONNX Runtime write to standard output and standard error from Python, from C++ and from
child processes. While a `Chatter` is open, descriptors 1 and 2 lead into a log file and duplicates of the real ones are
held as `out` and `err`. The log is a nameless temporary file until `move_to` says where the run's folder is.
"""

import contextlib
import ctypes
import os
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, TextIO

OUT, ERR = 1, 2


class Chatter:
    """A context in which nothing reaches the terminal but what is written to `out` and `err`."""

    out: TextIO
    """The real standard output."""
    err: TextIO
    """The real standard error."""
    file: Path | None = None
    """The log, once it has a place."""

    def __enter__(self) -> "Chatter":
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
            with contextlib.suppress(BrokenPipeError):
                stream.flush()
            os.dup2(stream.fileno(), descriptor)
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        self._log.close()

    def move_to(self, file: Path) -> None:
        """Go on in `file`, which is made if need be and appended to, after what was logged so far.

        Raises:
            OSError: the file cannot be written.
        """
        file.parent.mkdir(parents=True, exist_ok=True)
        log = file.open("ab")
        flush_all()
        self._log.seek(0)
        log.write(self._log.read())
        log.flush()
        self._log.close()
        self._log, self.file = log, file
        self._redirect()

    def _redirect(self) -> None:
        for descriptor in (OUT, ERR):
            os.dup2(self._log.fileno(), descriptor)


def flush_all() -> None:
    """Empty Python's and the C library's buffers, so that no text lands behind a later redirection."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(ValueError, OSError):  # closed, or a pipe without a reader
            stream.flush()
    with contextlib.suppress(OSError, AttributeError):  # no C library to be found: then there are no such buffers
        ctypes.CDLL(None).fflush(None)


def _duplicate(descriptor: int) -> TextIO:
    encoding = (sys.stdout if descriptor == OUT else sys.stderr).encoding or "utf-8"
    return os.fdopen(os.dup(descriptor), "w", encoding=encoding, errors="replace", buffering=1)
