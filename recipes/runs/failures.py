"""What a failure looks like to its user: one clear message and an exit code; a traceback only with `--debug`.

    0 PASS            1 FAIL       2 recipe, usage or bad input
    3 INCONCLUSIVE    4 INVALID    5 broken integrity    130/143 interrupted

A `DemitasseError` carries a message for the user and its own code. Any other error is 4: nothing was proven, and that
must read neither as a regression (1) nor as a release (0).
"""

import errno
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from compress.errors import DemitasseError

BAD_INPUT, INVALID, INTERRUPTED, TERMINATED = 2, 4, 130, 143
GOES_ON = "what is finished is kept: run the same command again and it goes on from there"
ERROR_HINTS: dict[int, str] = {
    errno.ENOSPC: "the disk is full; free some space, or name another folder with --out",
    errno.EDQUOT: "the disk quota is used up; free some space, or name another folder with --out",
    errno.EROFS: "the file system is read-only; name another folder with --out",
    errno.EACCES: "permission denied; name a folder that you may write with --out, or a file that you may read",
    errno.ENOENT: "no such file or folder",
    errno.ENOMEM: "out of memory; close other programs, or lower `batch`, the sequence length or the model's sizes",
}

ERROR_PATTERNS: dict[str, int] = {
    "No space left on device": errno.ENOSPC,
    "code: 28": errno.ENOSPC,
    "PytorchStreamWriter failed writing file": errno.ENOSPC,
    "Read-only file system": errno.EROFS,
    "code: 30": errno.EROFS,
    "can't allocate memory": errno.ENOMEM,
    "bad_alloc": errno.ENOMEM,
    "CUDA out of memory": errno.ENOMEM,
}
"""How libraries that wrap the system's errors in their own put them (safetensors: "IoError(Os { code: 28 ... })")."""
NO_TEMPORARY = "No usable temporary directory"
"""How Python's tempfile begins what it says where no folder for temporary files can be written."""


class Terminated(BaseException):
    """SIGTERM came: unwinds like KeyboardInterrupt, so that nothing is left half-written."""


def is_ours(error: BaseException) -> bool:
    """Whether its message is for the user."""
    return isinstance(error, DemitasseError)


def exit_code(error: BaseException) -> int:
    """The exit code that an error ends in."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, Terminated):
        return TERMINATED
    if isinstance(error, DemitasseError):
        return error.exit_code
    return BAD_INPUT if of_the_system(error) else INVALID


def message(error: BaseException, *, goes_on: bool = False, log: Path | None = None) -> str:
    """What to tell the user; `goes_on` where the same command takes up its work again."""
    if isinstance(error, KeyboardInterrupt | Terminated):
        what = "interrupted" if isinstance(error, KeyboardInterrupt) else "terminated"
        return f"{what}; {GOES_ON}" if goes_on else what
    if is_ours(error):
        return str(error)
    reason = of_the_system(error)
    if reason:
        return reason + (f"; {GOES_ON}" if goes_on else "")
    where = f"; the libraries' own messages are in {log}" if log else ""
    return f"unexpected {type(error).__name__}: {error}{where}; run again with --debug for the traceback"


def of_the_system(error: BaseException) -> str:
    """What the operating system refused, and the way out; empty where it refused nothing."""
    if NO_TEMPORARY in str(error):
        return "no folder for temporary files can be written; name one that can be in the environment variable TMPDIR"
    if isinstance(error, MemoryError):
        return ERROR_HINTS[errno.ENOMEM]
    if isinstance(error, OSError):
        reason = ERROR_HINTS.get(error.errno or 0, error.strerror or str(error))
        return f"{error.filename}: {reason}" if error.filename is not None else reason
    return next((ERROR_HINTS[number] for sign, number in ERROR_PATTERNS.items() if sign in str(error)), "")


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM raises `Terminated`, where signals can be caught at all (in the main thread)."""

    def terminate(number: int, frame: FrameType | None) -> NoReturn:
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, terminate)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
