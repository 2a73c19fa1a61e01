"""What the sections of the GPU's benchmark share: what was asked for, the time that is left, where results go.

A section runs in a process of its own and writes its part of the results down as it comes, so that a run that is
killed, or a section that crashes, leaves what was measured until then.
"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks.distillation_order import EMBEDDED, Part
from benchmarks.grid import Tell
from benchmarks.results import store

Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked for."""

    work: Path
    tell: Tell
    seconds: float
    """How long the section may take."""
    dry: bool = False
    """Everything at a tiny size up to the first kernel of the GPU, and the rest on the CPU."""
    models: tuple[str, ...] = ()
    """Shapes of shapes.py."""
    variants: tuple[str, ...] = ()
    """Of gpu_variants.py, for speed; none: all of them."""
    blocks: int = 5
    steps: int = 16
    threads: int = 2
    tokens: int = 50_000_000
    """Training tokens of the last student."""
    layers: int = 3
    """Layers of the students."""
    started: float = field(default_factory=time.monotonic)

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        return "cpu" if self.dry else "cuda"

    def left(self) -> float:
        """Seconds until the section's time is over."""
        return self.started + self.seconds - time.monotonic()

    @property
    def embedded(self) -> Path:
        """The trained model that the repository carries."""
        return EMBEDDED


class Results:
    """The results as they lie in a file; every change is written down at once, whole or not at all."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.content: Json = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {}

    def keep(self) -> None:
        """Write it down."""
        beside = self.out.with_suffix(".part")
        store(self.content, beside)
        os.replace(beside, self.out)

    def section(self, name: str, *, fresh: bool = False) -> Json:
        """A section's part; an empty one where there is none, or where it begins anew."""
        sections: Json = self.content.setdefault("sections", {})
        if fresh or name not in sections:
            sections[name] = {"error": "", "seconds": 0.0}
        found: Json = sections[name]
        return found

    def part(self, name: str) -> Part:
        """A section's part, as rows that are kept as they come."""
        return Part(self.section(name), self.keep)


def attempt(measure: Callable[[], Json]) -> Json:
    """What was measured, or the error that stands in its place: one row that fails does not end the others."""
    try:
        return measure() | {"error": ""}
    except Exception as error:  # whatever a library raises is this row's result
        return {"error": said_by(error)}


def said_by(error: BaseException) -> str:
    """An error in one line of bounded length."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:600]
