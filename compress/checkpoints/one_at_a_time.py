"""Loading, one model at a time in a process: transformers replaces functions of PyTorch while it loads, and puts back
what it found, which with two threads may be what the other one had replaced.
"""

from collections.abc import Callable
from functools import wraps
from threading import RLock
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
_LOADING = RLock()


def one_at_a_time(load: Callable[P, T]) -> Callable[P, T]:
    """A function that loads, and waits for what other threads load."""

    @wraps(load)
    def locked(*args: P.args, **kwargs: P.kwargs) -> T:
        with _LOADING:
            return load(*args, **kwargs)

    return locked
