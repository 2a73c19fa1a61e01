"""A finished run judged again from its raw samples, without any model: `demitasse gate RUN`.

    report.json --rows and gates-->  raw samples in the store, every file verified  -->  measurements  -->  verdict

    quality      per-token scores and the items of named evaluations, of the artifact and of the baseline (`quality/`)
    latency      latency.json, every time of every block
    footprint    what was counted; it stands in the result's record, which is sealed like the files

The statistics draw their resamples by the recipe's seed, so the same samples give the same figures to the last digit:
any difference means that report.json was changed, or that another version of demitasse wrote it, and is told. Other
gates than the run's own may be put to the same figures.

The report and the records are sealed (`compress.digests`), so an edit of either is told before anything is judged.

Not covered: whether the samples are true. Their hashes tell of a changed file, not of a measurement that was staged.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from compress.errors import DemitasseError
from evaluation.gate import Limit, Verdict, judge, overall
from evaluation.latency import Session, latency_measurements
from evaluation.measurement import Measurement
from evaluation.report import BASELINE, Report, Row
from recipes.measure.footprint import compared
from recipes.measure.latency import LATENCY_FILE, read_session
from recipes.measure.quality import figures_of
from recipes.runs.records import Artifact, IntegrityError, measurements_of
from recipes.runs.report_file import read_report
from recipes.runs.store import Store

NO_SAMPLES = "no raw samples of it were kept"


class RejudgeError(DemitasseError):
    """A run cannot be judged again; the message says what is missing and the way out."""


class ChangedError(IntegrityError):
    """The samples do not say what the report says."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A run, judged again."""

    report: Report
    """As it was, with the measurements of its last artifact computed again, and the gates judged on them."""
    differences: tuple[str, ...]
    """Figures that the report has otherwise; the verdict is the same all the same."""
    notes: tuple[str, ...]
    """What could not be computed again."""

    @property
    def verdict(self) -> Verdict | None:
        """The overall verdict; None where nothing is gated."""
        return self.report.verdict

    @property
    def exit_code(self) -> int:
        return self.report.exit_code


def judge_run(folder: Path, gates: Mapping[str, Limit] | None = None, *, bandwidth: float | None = None) -> Judged:
    """Judge a run's last artifact again, by its own gates or by others.

    Args:
        gates: None: the run's own.
        bandwidth: bytes per second that the memory gives; None: what the report says.

    Raises:
        ReportError: there is no report.
        RejudgeError: the raw samples are not there.
        IntegrityError: a stored file is not what was stored, or the samples give another verdict than the report has.
    """
    report = read_report(folder)
    limits = {result.metric: result.limit for result in report.gates} if gates is None else gates
    runs = Stored(report)
    runs.verify()
    measured, notes = runs.measure_final()
    bandwidth = report.memory_bandwidth if bandwidth is None else bandwidth
    results = judge(limits, {found.metric: found for found in measured}, looks=report.looks, bandwidth=bandwidth)
    others = [runs.timed_again(row) for row in report.rows[:-1]]
    rows = [*others, report.final.model_copy(update={"measurements": measured})]
    again = report.model_copy(
        update={
            "rows": rows,
            "gates": results,
            "verdict": overall(results),
            "memory_bandwidth": bandwidth,
            "session": runs.session,
        }
    )
    if gates is None and again.verdict != report.verdict:
        raise ChangedError(
            f"{folder}: the report says {report.verdict}, but its samples give {again.verdict}: report.json was "
            "changed, or another version of demitasse wrote it; run the recipe again to have it written anew"
        )
    pairs = zip(report.rows, again.rows, strict=True)
    differences = tuple(difference for old, new in pairs for difference in _differences(old, new))
    return Judged(report=again, differences=differences, notes=notes)


def _differences(old: Row, new: Row) -> list[str]:
    """Where the report's figures are not those of the samples."""
    found = []
    for measurement in new.measurements:
        before = old.measurement(measurement.metric)
        if before is None or _figures(before) != _figures(measurement):
            was = "nothing" if before is None else f"{before.value:g}"
            what = f"{measurement.metric} of {new.name}"
            found.append(f"{what}: the report has {was}, the samples give {measurement.value:g}")
    return found


def _figures(measurement: Measurement) -> str:
    """Every number of it as text, to the digits that two builds of the same library agree on."""
    values = measurement.model_dump(mode="json", exclude={"method"})
    return json.dumps(_rounded(values), sort_keys=True)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.9g}"
    return {name: _rounded(inner) for name, inner in value.items()} if isinstance(value, dict) else value


@dataclass(frozen=True)
class Stored:
    """A run's results in its store."""

    report: Report
    _verified: dict[str, Artifact] = field(default_factory=dict)
    """Name -> result, every byte of it read."""

    @property
    def folder(self) -> Path:
        assert self.report.folder is not None  # `read_report` sets it
        return self.report.folder

    @property
    def store(self) -> Store:
        return Store(self.folder / self.report.store)

    @property
    def baseline(self) -> Row:
        return self.report.rows[0]

    def artifact(self, row: Row) -> Artifact:
        """What a stage left, verified.

        Raises:
            IntegrityError: it is not there, or not what was stored.
        """
        return self.store.read(self.store.name(row.kind, row.key).name)

    def verify(self) -> None:
        """Every stage's artifact and every raw sample is there, and every byte of it is what was stored.

        Raises:
            RejudgeError: samples are not there.
            IntegrityError: something is not what was stored.
        """
        for row in self.report.rows:
            if row.kind != BASELINE and self.store.find(row.kind, row.key) is None:
                raise IntegrityError(
                    f"{self.store.name(row.kind, row.key)}: expected the artifact {row.name!r} that the report names, "
                    "got nothing; run the recipe again to make it anew"
                )
        for row in self.report.rows:
            for kind in row.samples:
                for part in self.result(kind, row).metadata.get("parts", ()):
                    self.store.verify_if_there(part)

    @cached_property
    def session(self) -> Session | None:
        """The raw latencies; None where nothing was timed."""
        if "latency" not in self.report.final.samples:
            return None
        return read_session(self.result("latency", self.report.final).files / LATENCY_FILE)

    def measure_final(self) -> tuple[list[Measurement], tuple[str, ...]]:
        """The measurements of the last artifact, computed again, in the report's order; and what could not be.

        What has no raw samples is invalid, whatever the report says of it.
        """
        row = self.report.final
        found = {measurement.metric: measurement for measurement in [*self._quality(row), *self._footprint(row)]}
        notes: tuple[str, ...] = ()
        found |= self._latencies(row)
        for measurement in row.measurements:
            if measurement.metric not in found:
                found[measurement.metric] = measurement.model_copy(update={"invalid": NO_SAMPLES})
                notes += (f"{measurement.metric}: {NO_SAMPLES}",)
        order = [measurement.metric for measurement in row.measurements]
        ordered = sorted(found.values(), key=lambda one: order.index(one.metric) if one.metric in order else len(order))
        return ordered, notes

    def timed_again(self, row: Row) -> Row:
        """The row with its latencies computed again, where it has any."""
        again = self._latencies(row)
        return row.model_copy(update={"measurements": [again.get(found.metric, found) for found in row.measurements]})

    def _latencies(self, row: Row) -> dict[str, Measurement]:
        session = self.session
        if session is None:
            return {}
        return {found.metric: found for found in latency_measurements(session).get(row.name, [])}

    def _quality(self, row: Row) -> list[Measurement]:
        result = self.result("quality", row)
        against = None if row is self.baseline else self.result("quality", self.baseline).files
        methods = {found.metric: found.method for found in row.measurements}
        taken = figures_of(result.files, against, seed=result.identity["seed"])
        return [found.model_copy(update={"method": methods.get(found.metric, found.method)}) for found in taken]

    def _footprint(self, row: Row) -> list[Measurement]:
        counted = measurements_of(self.result("footprint", row))
        return counted if row is self.baseline else [compared(found, self.baseline) for found in counted]

    def result(self, kind: str, row: Row) -> Artifact:
        """The stored measurement of this kind that the report's row came of, verified.

        Raises:
            RejudgeError: there is none.
            IntegrityError: it is not what was stored, or belongs to another artifact.
        """
        name = row.samples.get(kind, "")
        if name not in self._verified:
            if not name or not (self.store.root / name).is_dir():
                raise RejudgeError(
                    f"{self.folder}: expected the raw {kind} samples of {row.name!r}, got nothing; run the recipe "
                    "again in the same folder: what is stored is reused"
                )
            self._verified[name] = self.store.read(name)
        found = self._verified[name]
        about = self.report.final if kind == "latency" else row  # all rows are timed beside the last
        if found.kind != kind or found.identity.get("artifact") != about.key:
            raise IntegrityError(
                f"{found.folder}: holds samples of another artifact than {row.name!r}, for which the report names it; "
                "run the recipe again to have the report written anew"
            )
        return found
