"""The machine and the versions that a result was made with: what a reader needs to judge an absolute figure."""

import platform
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from evaluation.machine import available_cores
from recipes.runs.store import versions


def environment(libraries: Iterable[str], threads: int | None) -> dict[str, str]:
    """The machine and the versions that a report was made with."""
    import psutil

    found = {name: version for name, version in versions(tuple(libraries)).items() if version != "absent"}
    return {
        "processor": processor(),
        "cores": str(available_cores()),
        "threads": "library default" if threads is None else str(threads),
        "memory": f"{psutil.virtual_memory().total / 2**30:.1f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    } | found


def processor() -> str:
    """The processor's model name, as well as it can be told."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()} ({platform.machine()})"
    return f"{platform.processor() or 'unknown'} ({platform.machine()})"
