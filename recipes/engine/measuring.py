"""What there is to measure, measured: a row of the report for each artifact, the baseline first.

    [subject -> quality: each evaluation; footprint] ... -> all of them timed side by side

Each is a step of the engine, so the same measurement of the same artifact is taken once, whatever command asks for it;
each evaluation of a quality is one, too, and is there once it is finished.
A latency is only valid on the machine it was taken on: its identity holds the processor and the threads.
"""

import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compress.digests import digest_of
from compress.stage import FormatName
from evaluation.latency import Session
from evaluation.measurement import Measurement
from evaluation.report import Row
from export.runtime.gpu import gpus
from recipes.config.evaluations import Named
from recipes.config.metrics import register_metrics
from recipes.config.recipe import BenchmarkConfig, Recipe, short_benchmark
from recipes.engine.sequential import Patience
from recipes.engine.steps import Engine, Step
from recipes.formats import FORMATS
from recipes.formats.hidden_states import HiddenStates
from recipes.measure import footprint, latency, quality
from recipes.measure.harness_tasks import digest_of_evaluation
from recipes.measure.quality_details import findings
from recipes.runs.records import Artifact, measurements_of
from recipes.runs.store import versions


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Something that is measured."""

    name: str
    """Of its row."""
    kind: str
    key: str
    format: FormatName
    folder: Path


@dataclass(kw_only=True)
class Measuring:
    """Measurements under way, all against the first subject."""

    engine: Engine
    recipe: Recipe
    """What to measure, and how: `evaluate`, `benchmark`, the test text, the gates, the seed."""
    patience: Patience
    subjects: list[Subject] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    """Of the subjects, in the same order."""
    samples: dict[str, Path] = field(default_factory=dict)
    """Row -> the folder of its raw samples of quality."""
    seconds: dict[str, float] = field(default_factory=dict)
    """What was spent on "documents" and on "blocks"."""
    _read: dict[str, str] = field(default_factory=dict)  # digest of what each named evaluation reads
    _baseline: quality.Baseline | None = None
    _hidden: HiddenStates = field(default_factory=HiddenStates)
    _latencies: Path | None = None  # the folder of the raw ones, once they are taken

    def begin(self, recipe: Recipe) -> None:
        """Measure from the first subject on, as this recipe asks for."""
        self.recipe, self.subjects, self.rows, self.seconds = recipe, [], [], {"documents": 0.0}
        self._read = {named.name: digest_of_evaluation(named) for named in recipe.evaluate.named}

    @property
    def session(self) -> Session | None:
        """The raw latencies; None where nothing was timed."""
        return None if self._latencies is None else latency.kept_session(self._latencies)

    def measure(self, subject: Subject, *, last: bool = True, **made: Any) -> Row:
        """Quality and footprint of a subject; reused where both were known. `made` says how it came to be.

        Args:
            last: nothing comes after it; else its quality is left out where the recipe asks for the last one's only.
        """
        self.subjects.append(subject)
        scored = self._quality(subject) if last or not self.rows or self.recipe.evaluate.stages == "all" else None
        sized = self._footprint(subject)
        counted = measurements_of(sized)
        if self.rows:
            counted = [footprint.compared(measurement, self.rows[0]) for measurement in counted]
        measured = [] if scored is None else measurements_of(scored)
        samples = {"footprint": sized.folder.name}
        if scored is not None:
            self.samples[subject.name] = scored.files
            samples = {"quality": scored.folder.name, **samples}
        row = Row(
            name=subject.name,
            kind=subject.kind,
            format=subject.format,
            key=subject.key,
            reused=sized.reused and (scored is None or scored.reused),
            samples=samples,
            measurements=[*measured, *counted],
            weights=sized.metadata["weights"],
            **({} if scored is None else findings(scored.files)),
        ).model_copy(update=made)
        self.rows.append(row)
        return row

    def _quality(self, subject: Subject) -> Artifact:
        recipe, first = self.recipe, self.subjects[0]
        identity = self._identity(subject, recipe.evaluate.named) | {
            "evaluate": recipe.evaluate.identity(),
            "evaluations": self._read,
            "test": recipe.data.test.digest(),
        }

        def make(files: Path, scratch: Path) -> dict[str, Any]:
            seconds = 0.0  # of the text: more of it takes as much more
            parts: list[str] = []

            def keep(name: str, take: quality.Take, out: Path) -> str:
                nonlocal seconds
                one = self._evaluation(subject, name, take)
                parts.append(one.folder.name)
                seconds += 0.0 if name in self._read else one.seconds
                for file in one.files.iterdir():
                    shutil.copyfile(file, out / file.name)
                return str(one.metadata["method"])

            taken = quality.measure_quality(
                subject.folder,
                subject.format,
                baseline=None if subject is first else self._baseline,
                config=recipe.evaluate,
                test=recipe.data.test,
                out=files,
                progress=self.engine.progress,
                label=f"measure {subject.name}",
                seed=recipe.seed,
                hidden=self._hidden,
                keep=keep,
            )
            return {"measurements": _plain(taken), "seconds": seconds, "parts": parts}

        found = self.engine.obtain(Step(kind="quality", identity=identity, make=make, of=subject.name))
        for part in found.metadata["parts"]:  # which nobody asks for again while the whole is there
            self.engine.store.verify_if_there(part)
            self.engine.use(part)
        for protocol in dict.fromkeys(taken.method for taken in measurements_of(found)):
            self.engine.log(f"{subject.name}: measured by {protocol}")
        self.seconds["documents"] += found.metadata["seconds"]
        if subject is first:
            scores = found.files / quality.TOKENS_FILE
            self._baseline = quality.Baseline(folder=first.folder, format=first.format, scores=scores)
        return found

    def _identity(self, subject: Subject, asked: Sequence[Named]) -> dict[str, Any]:
        """What every measurement of quality depends on."""
        first = self.subjects[0]
        formats = {*FORMATS[subject.format].libraries, *FORMATS[first.format].libraries}
        libraries = formats | {library for named in asked for library in named.libraries}
        brought = register_metrics()
        return {
            "version": footprint.MEASURE_VERSION,
            "artifact": subject.key,
            "format": subject.format,
            "baseline": None if subject is first else first.key,
            "seed": self.recipe.seed,
            "libraries": versions(tuple(libraries)),
            **({"metrics": brought} if brought else {}),
        }

    def _evaluation(self, subject: Subject, name: str, take: quality.Take) -> Artifact:
        """One evaluation of a subject."""
        evaluate = self.recipe.evaluate
        asked = [named for named in evaluate.named if named.name == name]
        read = {"evaluation": self._read[name]} if asked else {"test": self.recipe.data.test.digest()}
        identity = self._identity(subject, asked) | {"evaluate": evaluate.identity_of(name), **read}

        def make(files: Path, scratch: Path) -> dict[str, Any]:
            return {"method": take(files)}

        what = f"{name or 'the test text'} on {subject.name}"
        return self.engine.obtain(Step(kind="evaluation", identity=identity, make=make, of=what))

    def _footprint(self, subject: Subject) -> Artifact:
        benchmark, timed = self.recipe.benchmark or short_benchmark(self.recipe.evaluate), self.recipe.benchmark
        identity = {
            "version": footprint.MEASURE_VERSION,
            "artifact": subject.key,
            "format": subject.format,
            "prompt": benchmark.prompt,
            "libraries": versions(("zstandard",)),
        }
        if FORMATS[subject.format].device(subject.folder) == "cuda":
            identity["gpus"] = [gpu.name for gpu in gpus()]
        if timed is None:  # a process of its own tells its memory, else those that are timed do
            libraries = versions((*FORMATS[subject.format].libraries, "zstandard"))
            identity |= {"threads": benchmark.threads, "platform": platform.platform(), "libraries": libraries}

        def make(files: Path, scratch: Path) -> dict[str, Any]:
            taken = footprint.measure_footprint(subject.folder, subject.format, prompt=benchmark.prompt)
            if timed is None:
                how = {"prompt": benchmark.prompt, "threads": benchmark.threads}
                taken.append(footprint.measure_memory(subject.folder, subject.format, **how))
            return {"measurements": _plain(taken), "weights": FORMATS[subject.format].components(subject.folder)}

        return self.engine.obtain(Step(kind="footprint", identity=identity, make=make, of=subject.name))

    def time(self) -> None:
        """Time all subjects side by side, where that is asked for; a row that was not asked for stays as it is."""
        recipe, config = self.recipe, self.recipe.benchmark
        if config is None:
            return

        def make(files: Path, scratch: Path) -> dict[str, Any]:
            fewer = None if self._latencies is None else self._latencies / latency.LATENCY_FILE
            if fewer is not None and fewer.is_file():  # blocks to go on from
                shutil.copy(fewer, scratch)
            taken = latency.measure_latency(
                [latency.target_of(subject.name, subject.folder, subject.format) for subject in self.subjects],
                config=config,
                test=recipe.data.test,
                seed=recipe.seed,
                progress=self.engine.progress,
                enough=self.patience.enough(config),
                out=files,
                scratch=scratch,
                log=self.engine.log,
            )
            return {name: _plain(found) for name, found in taken.items()}

        found = self.engine.obtain(Step(kind="latency", identity=self._latency_identity(config), make=make))
        self._latencies = found.files
        session = self.session
        each = found.seconds / config.blocks if session is None else latency.seconds_of_a_block(session)
        self.seconds["blocks"] = each * config.blocks
        self.rows = [_with(row, found) for row in self.rows]

    def _latency_identity(self, config: BenchmarkConfig) -> dict[str, Any]:
        """Of latencies that suffice, or yet to be taken; those that do not suffice are gone on with."""
        timed = [(subject.key, subject.format) for subject in self.subjects]
        of_timed = latency.latency_identity(timed, config=config, test=self.recipe.data.test, seed=self.recipe.seed)
        identity = {"version": footprint.MEASURE_VERSION, "attempt": 0, **of_timed}
        enough = self.patience.enough(config)
        while found := self.engine.store.find("latency", digest_of(identity)):
            wrong = latency.objection(found.files, enough)
            if not wrong:
                break
            self.engine.use(found.folder.name)
            self.engine.log(f"latency {found.folder.name} {wrong}")
            self._latencies = self._latencies if wrong == latency.INVALID else found.files
            identity["attempt"] += 1
        return identity


def _with(row: Row, timed: Artifact) -> Row:
    """The row with its latencies, if it has any."""
    if row.name not in timed.metadata:
        return row
    measured = [*row.measurements, *_measurements(timed.metadata[row.name])]
    return row.model_copy(update={"measurements": measured, "samples": row.samples | {"latency": timed.folder.name}})


def _plain(measurements: list[Measurement]) -> list[dict[str, Any]]:
    return [measurement.model_dump(mode="json") for measurement in measurements]


def _measurements(plain: list[Mapping[str, Any]]) -> list[Measurement]:
    return [Measurement.model_validate(values) for values in plain]
