"""A recipe is carried out: every stage made or reused, measured, at the end timed, judged and reported.

    source -> check -> measure baseline -> [stage -> measure] ... -> time all side by side -> judge -> report

Everything that takes long is a result in the run store (`store.py`), the measurements too, so that the same recipe
again takes seconds, imports no PyTorch, and ends in the same verdict. A latency is only valid on the machine it was
taken on: its key holds the processor and the threads.

Baseline: the source checkpoint, or, where a recipe starts from nothing, its first artifact.
"""

import platform
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from compress import Form, Progress, Silent, StageInput
from evaluation.formats import model_card
from evaluation.gate import overall
from evaluation.measurement import Measurement
from evaluation.render import write_report
from evaluation.report import Report, Row
from recipes import measure
from recipes.errors import Problem, RecipeError, raise_problems
from recipes.generating import FINAL
from recipes.machine import LIBRARIES, environment
from recipes.parts import weights_by_part
from recipes.planning import Step, chain, estimates, run_folder
from recipes.preflight import check_evaluations, check_model, check_overlaps, check_room
from recipes.processes import Alone, alone, unfit_batches
from recipes.provenance import recipe_text, sources_of
from recipes.quality.findings import findings
from recipes.quality.hidden_states import HiddenStates
from recipes.run_folder import Log, add_card, make_writable, point_at, writing
from recipes.schema import BenchmarkConfig, Recipe, Stages, short_benchmark
from recipes.source import NOTHING, Source, resolve
from recipes.store import Artifact, Store, digest_of, versions
from recipes.timing import latency
from recipes.timing.decoding import DecodeTimer
from recipes.until_decided import Patience

LOG = "log.txt"
CURVES = "tensorboard"
"""Where training stages write their curves, a folder each."""


@dataclass(frozen=True, kw_only=True)
class Meter:
    """How artifacts are measured; see `measure.py`, whose functions are the default."""

    version: int = measure.MEASURE_VERSION
    quality: Callable[..., list[Measurement]] = measure.measure_quality
    footprint: Callable[..., list[Measurement]] = measure.measure_footprint
    memory: Callable[..., Measurement] = measure.measure_memory
    latency: Callable[..., dict[str, list[Measurement]]] = measure.measure_latency
    weights: Callable[[Path, Form], dict[str, dict[str, int]]] = weights_by_part


def run(
    recipe: Recipe,
    *,
    out: Path | None = None,
    progress: Progress | None = None,
    on_row: Callable[[Row], None] = lambda row: None,
    stages: Stages | None = None,
    meter: Meter | None = None,
    crew: Alone | None = None,
    until_decided: float = 0.0,
) -> Report:
    """Carry out a recipe in the folder `out` (default: runs/<name>) and return its report, which is also written there.

    Args:
        on_row: told of every artifact as soon as it is made (or found again) and measured; latencies come at the end.
        stages: the kinds of stages (default: all of demitasse's).
        meter: how to measure (default: `measure.py`).
        crew: the processes that help (default: none).
        until_decided: minutes for which to measure on while a gate is inconclusive.

    Raises:
        RecipeError: something that is known before anything runs is wrong: all of it in one message.
        IntegrityError: a stored result is not what was stored.
        StoreError: the folder cannot be written.
    """
    folder = run_folder(recipe, out).absolute()
    make_writable(folder)
    log, store = Log(folder / LOG), Store(folder / "artifacts")
    log(f"run {recipe.path or recipe.name}, seed {recipe.seed}")
    crew = crew or alone()
    crew.meet(folder)
    source, steps = _checked(recipe, store, stages, crew.launch.world)
    engine = _Engine(
        recipe=recipe,
        source=source,
        steps=steps,
        store=store,
        progress=progress or Silent(),
        meter=meter or Meter(),
        crew=crew,
        log=log,
        patience=Patience(recipe=recipe, minutes=until_decided, log=log),
    )
    report = _judged(engine, on_row, folder)
    with writing():
        write_report(report, folder)
        shipped = engine.subjects[-1]
        point_at(folder / FINAL, shipped.folder)
        if shipped.form == "onnx":
            add_card(model_card(report), shipped.folder, folder)
    log(f"verdict {report.verdict or 'none: nothing is gated'}")
    return report


def _checked(recipe: Recipe, store: Store, stages: Stages | None, world: int) -> tuple[Source, tuple[Step, ...]]:
    """The source and the stages, once everything that is wrong before anything runs has been raised in one message."""
    errors: list[str] = []
    source, steps = NOTHING, tuple[Step, ...]()
    try:
        source = resolve(recipe)
        steps = tuple(chain(recipe, source, stages))
        fits = [*check_model(recipe, source, steps), *unfit_batches(recipe, steps, world)]
        raise_problems([*fits, *_check_room(recipe, source, steps, store)])
    except RecipeError as error:
        errors += error.errors
    errors += [*check_evaluations(recipe.evaluate, store), *check_overlaps(recipe, store)]
    if errors:
        raise RecipeError(errors)
    return source, steps


def _check_room(recipe: Recipe, source: Source, steps: tuple[Step, ...], store: Store) -> list[Problem]:
    """Disk and memory, for the stages that are not in the store."""
    each = zip(steps, estimates(steps, source), strict=True)
    missing = [(step, estimate) for step, estimate in each if not store.has(step.stage.kind, step.key)]
    return check_room(recipe, store.root, missing)


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """Something that is measured: the source, or what a stage left."""

    key: str
    form: Form
    folder: Path


@dataclass(kw_only=True)
class _Engine:
    """A run under way."""

    recipe: Recipe
    source: Source
    steps: tuple[Step, ...]
    store: Store
    progress: Progress
    meter: Meter
    crew: Alone
    log: Log
    patience: Patience
    subjects: list[_Subject] = field(default_factory=list)
    """What is measured, the baseline first."""
    baseline: measure.Baseline | None = None
    """The first of them with its scores, once it is measured."""
    hidden: HiddenStates = field(default_factory=HiddenStates)
    latencies: Path | None = None  # the folder of the raw ones, once they are taken
    seconds: dict[str, float] = field(default_factory=dict)
    """What was spent on "documents" and on "blocks"."""

    def carry_out(self, on_row: Callable[[Row], None]) -> list[Row]:
        """Every stage, measured: a row each, the baseline first."""
        rows: list[Row] = []
        self.seconds["documents"] = 0.0
        if self.source.folder is not None:
            self.subjects.append(_Subject(key=self.source.key, form=self.source.form, folder=self.source.folder))
            rows.append(self._measure("baseline", "baseline", self.subjects[0], None))
            on_row(rows[0])
        for step in self.steps:
            artifact = self._make(step)
            self.subjects.append(_Subject(key=artifact.key, form=step.stage.leaves, folder=artifact.files))
            row = self._measure(step.name, step.stage.kind, self.subjects[-1], rows[0] if rows else None)
            made = {name: getattr(artifact, name) for name in ("reused", "facts", "seconds", "hashes")}
            rows.append(row.model_copy(update={"knobs": step.config.model_dump(mode="json"), **made}))
            on_row(rows[-1])
        return self._timed(rows)

    def _make(self, step: Step) -> Artifact:
        """The artifact of a stage."""
        before = self.subjects[-1].folder if self.subjects else None
        first = self.subjects[0] if self.subjects else None
        data = self.recipe.data

        def make(files: Path, scratch: Path) -> dict[str, Any]:
            given = StageInput(
                source=before,
                out=files,
                scratch=scratch,
                seed=self.recipe.seed,
                teacher=first.folder if first is not None and first.form == "dense" else None,
                train_text=data.train,
                calibration_text=data.calibration,
                decode_seconds=DecodeTimer(scratch, threads=self._benchmark().threads),
                logs=self.store.root.parent / CURVES / f"{step.name.replace(' ', '-')}-{step.key[:8]}",
                lineage=self._lineage(step),
                progress=self.progress,
            )
            if not step.stage.parallel or self.crew.launch.world == 1:
                return step.stage.run(step.config, given)
            with self.crew.share(step.index, given):
                return {**step.stage.run(step.config, given), "processes": self.crew.launch.world}

        return self._obtain(step.stage.kind, step.identity, make)

    def _lineage(self, step: Step) -> tuple[dict[str, Any], ...]:
        """What came before a stage; all of it is in the keys of its parents already."""
        earlier = self.steps[: step.index]
        stages = [{"kind": one.stage.kind, "knobs": one.config.model_dump(mode="json")} for one in earlier]
        return ({"source": self.source.key}, *stages)

    def _measure(self, name: str, kind: str, subject: _Subject, baseline: Row | None) -> Row:
        """Quality and footprint of an artifact; reused where both were known."""
        quality, footprint = self._quality(name, subject), self._footprint(subject)
        counted = _measurements(footprint.facts["measurements"])
        if baseline is not None:
            counted = [measure.compared(measurement, baseline) for measurement in counted]
        return Row(
            name=name,
            kind=kind,
            form=subject.form,
            key=subject.key,
            reused=quality.reused and footprint.reused,
            samples={"quality": quality.folder.name, "footprint": footprint.folder.name},
            measurements=[*_measurements(quality.facts["measurements"]), *counted],
            weights=footprint.facts.get("weights", {}),
            **findings(quality.files),
        )

    def _quality(self, name: str, subject: _Subject) -> Artifact:
        recipe, first = self.recipe, self.subjects[0]
        asked = {library for named in recipe.evaluate.named for library in named.libraries}
        identity = {
            "version": self.meter.version,
            "artifact": subject.key,
            "form": subject.form,
            "baseline": None if subject is first else first.key,
            "evaluate": recipe.evaluate.identity(),
            "evaluations": {named.name: named.digest() for named in recipe.evaluate.named},
            "test": recipe.data.test.digest(),
            "seed": recipe.seed,
            "libraries": versions(tuple({*LIBRARIES[subject.form], *LIBRARIES[first.form], *asked})),
        }

        def make(files: Path, scratch: Path) -> dict[str, Any]:
            taken = self.meter.quality(
                subject.folder,
                subject.form,
                baseline=None if subject is first else self.baseline,
                config=recipe.evaluate,
                test=recipe.data.test,
                out=files,
                progress=self.progress,
                label=f"measure {name}",
                seed=recipe.seed,
                hidden=self.hidden,
            )
            return {"measurements": _plain(taken)}

        found = self._obtain("quality", identity, make)
        self.seconds["documents"] += found.seconds
        if subject is first:
            self.baseline = measure.Baseline(
                folder=first.folder, form=first.form, scores=found.files / measure.TOKENS_FILE
            )
        return found

    def _footprint(self, subject: _Subject) -> Artifact:
        benchmark, timed = self._benchmark(), self.recipe.benchmark is not None
        identity = {
            "version": self.meter.version,
            "artifact": subject.key,
            "form": subject.form,
            "prompt": benchmark.prompt,
            "libraries": versions(("zstandard",)),
        }
        if not timed:  # a process of its own tells its memory, else those that are timed do
            libraries = versions((*LIBRARIES[subject.form], "zstandard"))
            identity |= {"threads": benchmark.threads, "platform": platform.platform(), "libraries": libraries}

        def make(files: Path, scratch: Path) -> dict[str, Any]:
            taken = self.meter.footprint(subject.folder, subject.form, prompt=benchmark.prompt)
            if not timed:
                how = {"prompt": benchmark.prompt, "threads": benchmark.threads}
                taken.append(self.meter.memory(subject.folder, subject.form, **how))
            return {"measurements": _plain(taken), "weights": self.meter.weights(subject.folder, subject.form)}

        return self._obtain("footprint", identity, make)

    def _benchmark(self) -> BenchmarkConfig:
        return self.recipe.benchmark or short_benchmark(self.recipe.evaluate)

    def _timed(self, rows: list[Row]) -> list[Row]:
        """The rows with their latencies; a row that was not asked for stays as it is."""
        recipe, config = self.recipe, self.recipe.benchmark
        if config is None:
            return rows

        def make(files: Path, scratch: Path) -> dict[str, Any]:
            fewer = None if self.latencies is None else self.latencies / latency.LATENCY_FILE
            if fewer is not None and fewer.is_file():  # blocks to go on from
                shutil.copy(fewer, scratch)
            subjects = zip(rows, self.subjects, strict=True)
            taken = self.meter.latency(
                [latency.entrant_of(row.name, subject.folder, subject.form) for row, subject in subjects],
                config=config,
                test=recipe.data.test,
                seed=recipe.seed,
                progress=self.progress,
                enough=self.patience.enough(config),
                out=files,
                scratch=scratch,
                log=self.log,
            )
            return {name: _plain(found) for name, found in taken.items()}

        found = self._obtain("latency", self._latency_identity(config), make)
        self.latencies, session = found.files, latency.kept_session(found.files)
        each = found.seconds / config.blocks if session is None else latency.seconds_of_a_block(session)
        self.seconds["blocks"] = each * config.blocks
        return [_with(row, found) for row in rows]

    def _latency_identity(self, config: BenchmarkConfig) -> dict[str, Any]:
        """Of latencies that suffice, or yet to be taken; those that do not suffice are gone on with."""
        timed = [(subject.key, subject.form) for subject in self.subjects]
        of_timed = latency.latency_identity(timed, config=config, test=self.recipe.data.test, seed=self.recipe.seed)
        identity = {"version": self.meter.version, "attempt": 0, **of_timed}
        enough = self.patience.enough(config)
        while found := self.store.find("latency", digest_of(identity)):
            wrong = latency.objection(found.files, enough)
            if not wrong:
                break
            self.log(f"latency {found.folder.name} {wrong}")
            self.latencies = self.latencies if wrong == latency.INVALID else found.files
            identity["attempt"] += 1
        return identity

    def _obtain(self, kind: str, identity: Mapping[str, Any], make: Callable[[Path, Path], dict[str, Any]]) -> Artifact:
        found = self.store.obtain(kind, identity, make, waiting=lambda holder: self._waiting(kind, holder))
        what = "reused" if found.reused else f"made in {found.seconds:.1f} s"
        self.log(f"{kind} {found.folder.name} {what}")
        return found

    def _waiting(self, kind: str, holder: str) -> AbstractContextManager[Any]:
        self.log(f"{kind}: waiting for process {holder}, which is making it")
        return self.progress.task(f"{kind}: waiting for process {holder}", total=1)


def _with(row: Row, timed: Artifact) -> Row:
    """The row with its latencies, if it has any."""
    if row.name not in timed.facts:
        return row
    measured = [*row.measurements, *_measurements(timed.facts[row.name])]
    return row.model_copy(update={"measurements": measured, "samples": row.samples | {"latency": timed.folder.name}})


def _plain(measurements: list[Measurement]) -> list[dict[str, Any]]:
    return [measurement.model_dump(mode="json") for measurement in measurements]


def _measurements(plain: list[Any]) -> list[Measurement]:
    return [Measurement.model_validate(values) for values in plain]


def _judged(engine: _Engine, on_row: Callable[[Row], None], folder: Path) -> Report:
    """The report: gates are about the last row, and looked at again as long as that is worth it."""
    patience = engine.patience
    rows = engine.carry_out(on_row)
    gates = patience.judge(engine.recipe, rows[-1])
    while (recipe := patience.more(engine.recipe, rows[-1], gates, engine.seconds)) is not None:
        engine.recipe, engine.subjects = recipe, []
        rows = engine.carry_out(lambda row: None)
        gates = patience.judge(recipe, rows[-1])
    recipe = engine.recipe
    session = None if engine.latencies is None else latency.kept_session(engine.latencies)
    return Report(
        recipe=recipe.path.name if recipe.path else recipe.name,
        recipe_text=recipe_text(recipe),
        name=recipe.name,
        rows=rows,
        sources=sources_of(recipe, engine.source),
        gates=gates,
        looks=patience.looks,
        timing="" if session is None else session.describe(),
        verdict=overall(gates),
        environment=environment(recipe.benchmark),
        created=datetime.now(UTC),
        folder=folder,
        session=session,
    )
