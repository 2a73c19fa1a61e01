"""What a run found: a row per artifact with everything measured on it, the gates, the verdict, and where it was run.

A `Report` is a plain value that reads and writes as JSON; `render.write_report` writes it down for people and for other
programs too. Its JSON Schema ships as `templates/report.schema.json`; `SCHEMA_VERSION` is raised when a reader of the
former one would misread it. `seal` is the sha256 of the whole text with that entry empty: a report that was damaged or
edited by hand is found, whatever the change is.
"""

import hashlib
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from evaluation.gate import GateResult, Verdict, exit_code
from evaluation.latency import Session
from evaluation.measurement import Measurement, Ratio, Value
from evaluation.plausibility import sanity_warnings

BASELINE = "baseline"
REPORT = "report.json"
SCHEMA_VERSION: Literal[7] = 7
UNSEALED = '"seal": ""'
"""Stands before everything that others can write, so the first one is the report's own."""


class Row(Value):
    """One artifact: the baseline, or what a stage left."""

    name: str
    """Unique within the report: "baseline", "prune", "distill" ..."""
    kind: str
    """The stage that made it; "baseline" for the first row."""
    format: str
    key: str = ""
    """Its key in the run store."""
    knobs: dict[str, Any] = Field(default_factory=dict)
    metadata: dict[str, Any] = Field(default_factory=dict)
    """What the stage said about its work."""
    seconds: float | None = None
    """How long the stage took when it ran; None for the baseline."""
    reused: bool = False
    hashes: dict[str, str] = Field(default_factory=dict)
    """sha256 (hex) of every file of the artifact, by its path inside."""
    samples: dict[str, str] = Field(default_factory=dict)
    """Folders in the run store that hold the raw samples: {"quality": "quality-8793e5b217e0d687", ...}."""
    measurements: list[Measurement] = Field(default_factory=list)
    weights: dict[str, dict[str, int]] = Field(default_factory=dict)
    """Bytes by part of the model and kind of number: {"mlp": {"int8": ..., "scales": ..., "float": ...}, ...}."""
    evaluations: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """What each named evaluation says beside its figures: protocol, confusion matrix, texts."""
    worst_tokens: dict[str, Any] = Field(default_factory=dict)
    """The tokens, places and documents that lost most against the baseline."""

    def __repr__(self) -> str:
        measured = ", ".join(found.metric for found in self.measurements)
        return f"Row({self.name}, {self.format}: {measured or 'unmeasured'})"

    __str__ = __repr__

    def measurement(self, metric: str) -> Measurement | None:
        """What was measured under this metric, if it was."""
        return next((found for found in self.measurements if found.metric == metric), None)


class Source(Value):
    """Something that the run read: the model that it began with, or a text."""

    role: Literal["model", "train", "calibration", "test"]
    name: str
    """A path, or an id on a hub with its revision."""
    digest: str = ""
    """sha256 (hex) of what was read."""
    license: str = ""
    """SPDX id, such as "Apache-2.0"; empty where it is not stated."""


class Report(Value):
    """Everything that a run found."""

    schema_version: Literal[7] = SCHEMA_VERSION
    seal: str = ""
    """sha256 (hex) of the report's text while this is empty."""
    recipe: str
    """The recipe's file."""
    recipe_text: str = ""
    """What stands in it, with the overrides of the command line applied."""
    name: str
    rows: list[Row]
    """The baseline first, the final artifact last."""
    sources: list[Source] = Field(default_factory=list)
    """What the run read."""
    store: str = "artifacts"
    """Where the artifacts and the raw samples are; from the run's folder, or absolute."""
    gates: list[GateResult] = Field(default_factory=list)
    looks: dict[str, int] = Field(default_factory=dict)
    """How often at most the gates were looked at while samples of a kind ("documents", "blocks") were added; the bounds
    of what those decide are widened for it.
    """
    timing: str = ""
    """How many blocks of latencies were planned and taken, and why no more, in a sentence; empty: nothing was timed."""
    verdict: Verdict | None = None
    """None where the recipe has no gates."""
    environment: dict[str, str] = Field(default_factory=dict)
    """Machine, operating system, versions, threads."""
    memory_bandwidth: float | None = None
    """Bytes per second that the machine's memory gives, where it was measured or stated."""
    created: datetime
    folder: Path | None = Field(default=None, exclude=True)
    """Where its files are; not written into them, so that a run folder can be moved."""
    session: Session | None = Field(default=None, exclude=True)
    """The raw latencies, for the plots; they are kept in the run store."""

    def __repr__(self) -> str:
        made = " -> ".join(row.name for row in self.rows)
        return f"Report({self.name}: {self.verdict or 'not gated'}, {gate_counts(self.gates)}; {made})"

    __str__ = __repr__

    @property
    def exit_code(self) -> int:
        return exit_code(self.verdict)

    @property
    def final(self) -> Row:
        """The last artifact: what ships, and what the gates judged."""
        return self.rows[-1]

    @property
    def sanity_warnings(self) -> dict[str, str]:
        """What ships is too good under these metrics, gated or not, with the reason."""
        return sanity_warnings({found.metric: found for found in self.final.measurements}, self.memory_bandwidth)

    def row(self, name: str) -> Row:
        """The row of that name.

        Raises:
            KeyError: there is none.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"expected one of {', '.join(row.name for row in self.rows)}, got {name!r}")

    def measurement(self, row: str, metric: str) -> Measurement | None:
        """What was measured on that row under that metric, if it was."""
        return self.row(row).measurement(metric)

    def ratio(self, row: str, metric: str) -> Ratio:
        """What was measured there, divided by the baseline's.

        Raises:
            KeyError: there is no such row, or nothing that was measured on it under that metric has a ratio.
        """
        found = self.measurement(row, metric)
        if found is None or found.ratio is None:
            those = ", ".join(one.metric for one in self.row(row).measurements if one.ratio is not None)
            raise KeyError(f"expected one of {those or 'none'}, which {row!r} has a ratio of, got {metric!r}")
        return found.ratio

    def metrics(self) -> list[str]:
        """Every metric that any row has, in the order in which they first appear."""
        return list(dict.fromkeys(found.metric for row in self.rows for found in row.measurements))

    def as_json(self) -> str:
        """Its text, sealed."""
        text = self.model_copy(update={"seal": ""}).model_dump_json(indent=2) + "\n"
        return text.replace(UNSEALED, f'"seal": "{seal_of(text)}"', 1)


def seal_of(text: str) -> str:
    """The seal of a report's text in which that is still empty."""
    return hashlib.sha256(text.encode()).hexdigest()


HEADLINES: dict[Verdict | None, str] = {
    "PASS": "Every gate holds: release it.",
    "FAIL": "It got worse than the recipe allows: do not release it.",
    "INCONCLUSIVE": "The measurements cannot decide yet: measure more before releasing it.",
    "INVALID": "It was not measured as asked: this is no verdict on the model.",
    None: "The recipe sets no gates: nothing was judged.",
}


def headline(verdict: Verdict | None, suspicious: int = 0) -> str:
    """The verdict in a sentence, and what to do; `suspicious` figures too good to be believed are told of."""
    if not suspicious:
        return HEADLINES[verdict]
    figures = "One figure is" if suspicious == 1 else f"{suspicious} figures are"
    if verdict == "PASS":
        return f"Every gate holds, but {figures.lower()} too good: look at that before releasing it."
    return f"{HEADLINES[verdict]} {figures} too good: look at that, too."


def gate_counts(gates: Sequence[GateResult]) -> str:
    """Such as "2 of 3 gates hold"."""
    held = sum(result.verdict == "PASS" for result in gates)
    return f"{held} of {len(gates)} gates {'holds' if held == 1 else 'hold'}" if gates else "no gates"
