"""A kind of attempts, drawn by a seed, carried out side by side, counted; what fails is shrunk and saved to be
replayed.

    draw(Random(seed/kind/number)) -> case (plain JSON)        attempt(case, empty folder) -> findings

A case's "ops" are what was done to the input, one after the other; shrinking leaves out those without which the same
is still found.
"""

import json
import multiprocessing
import os
import re
import shutil
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Protocol

from attempt import Finding, emptied

Case = dict[str, Any]
SHRINKS = 40
"""Attempts that may be spent on making one case smaller."""
SAVED = 3
"""Cases that are saved of those that fail alike."""
WHATS = {
    "wrong": "wrong",
    "unexpected": "unexpected",
    "traceback": "tracebacks",
    "hang": "hangs over 20 s",
    "memory": "above 2 GB",
}


class Kind(Protocol):
    """A kind of attempts."""

    name: str
    count: int
    """How many a release makes."""
    unit: str
    """What is counted: "runs", "flips"."""
    alone: bool
    """Whether attempts share the machine so badly that they go one after the other."""

    def prepare(self, place: Path) -> None:
        """Make what every attempt starts from."""

    def draw(self, random: Random) -> Case:
        """A case."""

    def attempt(self, case: Case, place: Path) -> list[Finding]:
        """Carry a case out in an empty folder; may note what it counted in case["counted"]."""


@dataclass
class Tally:
    """What came of a kind."""

    kind: str
    seed: int
    first: int
    """The number of its first attempt."""
    unit: str
    tried: int = 0
    seconds: float = 0.0
    found: Counter[str] = field(default_factory=Counter)
    counted: Counter[str] = field(default_factory=Counter)
    saved: list[Path] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return self.tried > 0 and not self.found

    def line(self) -> str:
        """The summary."""
        faults = ", ".join(f"{self.found[what]} {name}" for what, name in WHATS.items())
        more = "".join(f", {count} {name}" for name, count in sorted(self.counted.items()))
        which = f"seed {self.seed}" + (f" from {self.first} on" if self.first else "")
        return f"{self.kind:<12} {self.tried:>5} {self.unit}{more} in {self.seconds:.0f} s, {which}: {faults}"


_kind: Kind
_place: Path


def carry_out(
    kind: Kind, *, place: Path, out: Path, count: int, seed: int, workers: int, seconds: float, first: int = 0
) -> Tally:
    """Make `count` attempts from number `first` on, or as many as the time allows."""
    global _kind, _place
    _kind, _place = kind, place / "attempts"
    tally = Tally(kind=kind.name, seed=seed, first=first, unit=kind.unit)
    began = time.monotonic()
    kind.prepare(emptied(place / "given"))
    until, seen = time.monotonic() + seconds, Counter[str]()
    with multiprocessing.get_context("fork").Pool(1 if kind.alone else workers) as pool:
        told = time.monotonic()
        numbers = ((seed, number, until) for number in range(first, first + count))
        for done in pool.imap_unordered(_attempt, numbers):
            if done is None:
                continue
            number, case, findings = done
            tally.tried += 1
            tally.counted.update(case.pop("counted", {}))
            tally.found.update({finding.what for finding in findings})
            for finding in findings[:1]:
                seen[_alike(finding)] += 1
                if seen[_alike(finding)] <= SAVED:
                    tally.saved.append(_save(out, kind, seed, number, case, findings))
            if time.monotonic() - told > 30:
                told = time.monotonic()
                print(f"{kind.name}: {tally.tried} of {count}", file=sys.stderr, flush=True)
    tally.seconds = time.monotonic() - began
    return tally


def _attempt(which: tuple[int, int, float]) -> tuple[int, Case, list[Finding]] | None:
    """Its number, its case and what was found; None where the time is over."""
    seed, number, until = which
    if time.monotonic() > until:
        return None
    case = _kind.draw(Random(f"{seed}/{_kind.name}/{number}"))
    place = _place / str(os.getpid())
    try:
        findings = _kind.attempt(case, emptied(place))
    except (Exception, SystemExit) as error:  # the campaign's own fault, which must not end it
        return number, case, [Finding(what="unexpected", text=f"the campaign itself: {type(error).__name__}: {error}")]
    if findings:
        counted = case.pop("counted", {})
        case = shrunk(_kind, case, findings, place) | {"counted": counted}
    shutil.rmtree(place, ignore_errors=True)
    return number, case, findings


def shrunk(kind: Kind, case: Case, findings: list[Finding], place: Path) -> Case:
    """The case with as few ops as still do the same."""
    wanted, tries = _alike(findings[0]), 0
    index = 0
    while index < len(case.get("ops", ())) and len(case["ops"]) > 1 and tries < SHRINKS:
        fewer = case | {"ops": case["ops"][:index] + case["ops"][index + 1 :]}
        tries += 1
        if any(_alike(finding) == wanted for finding in kind.attempt(fewer, emptied(place))):
            case = fewer
        else:
            index += 1
    case.pop("counted", None)
    return case


def _alike(finding: Finding) -> str:
    """What findings have in common that are the same but for names and numbers."""
    return finding.what + re.sub(r"'[^']*'|\"[^\"]*\"|/\S+|\d+", "~", finding.text)[:120]


def _save(out: Path, kind: Kind, seed: int, number: int, case: Case, findings: list[Finding]) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"{kind.name}-{seed}-{number}.json"
    told = [f"{finding.what}: {finding.text}" for finding in findings]
    content = {"kind": kind.name, "seed": seed, "number": number, "case": case, "findings": told}
    file.write_text(json.dumps(content, indent=1, ensure_ascii=True) + "\n", encoding="utf-8")
    return file


def replay(kind: Kind, file: Path, place: Path) -> list[Finding]:
    """Carry out a saved case."""
    case: Case = json.loads(file.read_text(encoding="utf-8"))["case"]
    kind.prepare(emptied(place / "given"))
    return kind.attempt(case, emptied(place / "attempts" / "replay"))
