"""When the parts of a piece of work were done, and how much memory it had taken by then.

    marks = Marks(); marks.imports("torch"); ...; marks.done("loaded"); ...; marks.parts

It is also the `Progress` that a stage reports to: each note of a stage is a part.
"""

import importlib
import time
from contextlib import AbstractContextManager, nullcontext

from recipes.measure.peak_memory import peak_memory

Parts = dict[str, dict[str, float]]


class Marks:
    """Parts by name, in order: {"seconds": of this part, "peak": bytes at its end, highest so far}."""

    def __init__(self) -> None:
        self.parts: Parts = {}
        self._since = time.perf_counter()

    def done(self, name: str) -> None:
        """A part ended."""
        now = time.perf_counter()
        self.parts[name] = {"seconds": now - self._since, "peak": float(peak_memory())}
        self._since = time.perf_counter()

    def imports(self, *modules: str) -> None:
        """Import libraries as a part of its own, so that what follows is the work alone."""
        for module in modules:
            importlib.import_module(module)
        self.done("imported")

    def task(
        self, label: str, total: float, done: float = 0.0, *, steady: float = 0.0
    ) -> AbstractContextManager["Marks"]:
        """As `compress.stage.Progress`."""
        return nullcontext(self)

    def advance(self, amount: float = 1.0, note: str = "") -> None:
        """As `compress.stage.Task`; a step without a note belongs to the part after it."""
        if note:
            self.done(note)


def seconds_until(parts: Parts, last: str = "") -> float:
    """Seconds of the work up to the end of a part (of all of it), imports aside."""
    total = 0.0
    for name, part in parts.items():
        total += part["seconds"] if name != "imported" else 0.0
        if name == last:
            break
    return total


def peak_until(parts: Parts, last: str = "") -> float:
    """Bytes of peak memory by the end of a part (of all of it)."""
    return parts[last]["peak"] if last else max(part["peak"] for part in parts.values())
