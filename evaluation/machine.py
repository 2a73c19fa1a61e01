"""The processors that this process may use."""

import os


def usable_processors() -> tuple[int, ...]:
    """Numbers of the logical processors that it may run on; empty where the system cannot pin."""
    return tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()


def available_cores() -> int:
    """How many processors it may use."""
    return len(usable_processors()) or os.cpu_count() or 1
