"""Standard input, output and error as a command may find them: closed, full, or read by nobody any more.

    a descriptor is closed              it leads to nowhere, so that no file that is opened next gets its number
    standard output cannot be written   the command ends: 141 where the reader has gone (`| head`), else 2 with one line
    standard error cannot be written    nothing is said there any more; the exit code tells what came of the command

`ended` is the outermost frame of the command: whatever is raised becomes an exit code, and never 1, which is FAIL.
"""

import contextlib
import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from compress.errors import DemitasseError
from evaluation.escaping import visible
from recipes.runs.failures import exit_code, message

IN, OUT, ERR = 0, 1, 2


class ReaderGoneError(DemitasseError):
    """Nobody reads standard output any more."""

    exit_code = 128 + 13
    """As of a process that SIGPIPE ended."""


class OutputError(DemitasseError):
    """Standard output cannot be written."""


class Stream(io.TextIOWrapper):
    """Standard output or error as text; once writing fails it leads to nowhere, and fails no more."""

    def __init__(self, descriptor: int, like: TextIO | None, *, must_arrive: bool, closefd: bool = True) -> None:
        """Takes the encoding of `like`; what that cannot say is replaced."""
        binary = open(descriptor, "wb", closefd=closefd)  # noqa: SIM115 # closed with this
        encoding = getattr(like, "encoding", None) or "utf-8"
        super().__init__(binary, encoding=encoding, errors="replace", line_buffering=True)
        self.must_arrive = must_arrive

    def write(self, text: str, /) -> int:
        """Raises ReaderGoneError or OutputError where what is written must arrive and does not."""
        try:
            return super().write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        """Raises as `write`."""
        try:
            super().flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        _lead_nowhere(self.fileno(), os.O_WRONLY)
        if self.must_arrive and error.errno == errno.EPIPE:
            raise ReaderGoneError("nobody reads standard output any more") from error
        if self.must_arrive:
            raise OutputError(
                f"standard output: cannot be written ({error.strerror}); lead it to a place that can be"
            ) from error


def ended(command: Callable[[], object]) -> int:
    """Carry out a command: its exit code, whatever becomes of it and of its streams."""
    with _standard_streams():
        try:
            code = _left(command)
            if sys.stdout is not None:
                sys.stdout.flush()
            return code
        except ReaderGoneError as error:
            return error.exit_code
        except BaseException as error:
            # Also what no session saw: an interrupt before it opened, no folder for temporary files.
            with contextlib.suppress(OSError, ValueError):
                print(f"error: {visible(message(error))}", file=sys.stderr, flush=True)
            return exit_code(error)


def _left(command: Callable[[], object]) -> int:
    """The exit code that a command leaves with."""
    try:
        command()
    except SystemExit as left:
        if isinstance(left.code, str):
            print(left.code, file=sys.stderr)
            return 2
        return left.code or 0
    return 0


@contextmanager
def _standard_streams() -> Iterator[None]:
    """Every descriptor leads somewhere, and failing to write is told apart; a stream put in by others stays."""
    for descriptor, mode in ((IN, os.O_RDONLY), (OUT, os.O_WRONLY), (ERR, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            _lead_nowhere(descriptor, mode)
    out, err = sys.stdout, sys.stderr
    if out is sys.__stdout__:
        sys.stdout = Stream(OUT, out, must_arrive=True, closefd=False)
    if err is sys.__stderr__:
        sys.stderr = Stream(ERR, err, must_arrive=False, closefd=False)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = out, err


def _lead_nowhere(descriptor: int, mode: int) -> None:
    nowhere = os.open(os.devnull, mode)
    if nowhere != descriptor:
        os.dup2(nowhere, descriptor)
        os.close(nowhere)
