"""Memory that a training step gives back and takes again at once.

glibc hands every large block back to the system as soon as it is free, and the system clears it page by page when it is
asked for again. A training step on the CPU frees and allocates its activations over and over; where page faults are
dear, as in most virtual machines, they cost a third of the step. While `kept_memory` lasts, the process keeps what it
freed, and gives it back at the end.

Not covered: other C libraries, where nothing is done; the GPU's allocator, which keeps its memory anyway.
"""

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # <malloc.h>
_KEEP = {_TRIM_THRESHOLD: 2**31 - 1, _MMAP_MAX: 0}
_DEFAULT = {_TRIM_THRESHOLD: 128 * 1024, _MMAP_MAX: 65536}


@contextmanager
def kept_memory() -> Iterator[None]:
    """Freed memory stays with the process until this ends."""
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    library = ctypes.CDLL(None)
    _set(library, _KEEP)
    try:
        yield
    finally:
        _set(library, _DEFAULT)
        library.malloc_trim(0)


def _set(library: ctypes.CDLL, options: dict[int, int]) -> None:
    for option, value in options.items():
        library.mallopt(option, value)
