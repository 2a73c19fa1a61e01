"""A recipe is carried out: every stage made or reused, measured, at the end timed, judged and reported.

    source -> check -> measure baseline -> [stage -> measure] ... -> time all side by side -> judge -> report

Everything that takes long is a result in the store, the measurements too, so that the same recipe again takes seconds,
imports no PyTorch, and ends in the same verdict.

Baseline: the source checkpoint, or, where a recipe starts from nothing, its first artifact.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from compress.checkpoints.weight_files import passed_over
from compress.stage import Progress, Silent
from evaluation.formats import model_card
from evaluation.gate import GateResult, overall
from evaluation.render import write_report
from evaluation.report import BASELINE, Report, Row
from export.manifest import bundle_folder, read_manifest
from export.proof import pending, prove_here
from export.runtime.gpu import gpus
from export.runtime.session import is_here
from recipes.config.recipe import Recipe, Stages, short_benchmark
from recipes.engine.launcher import Launcher
from recipes.engine.measuring import Measuring, Subject
from recipes.engine.model_source import Source
from recipes.engine.output import CURVES
from recipes.engine.preflight import check
from recipes.engine.provenance import recipe_text, sources_of
from recipes.engine.sequential import Patience
from recipes.engine.stages import TEACHES, StageStep, obtain_stage
from recipes.engine.steps import Engine
from recipes.formats import FORMATS, LIBRARIES
from recipes.formats.text_generation import FINAL
from recipes.runs.environment import environment
from recipes.runs.folder import Log, add_card, make_writable, point_at, run_folder, store_of, writing

LOG = "log.txt"


def run(
    recipe: Recipe,
    *,
    out: str | Path | None = None,
    store: str | Path | None = None,
    progress: Progress | None = None,
    on_row: Callable[[Row], None] = lambda row: None,
    stages: Stages | None = None,
    launcher: str | None = None,
    until_decided: float = 0.0,
) -> Report:
    """Carry out a recipe in the folder `out` (default: runs/<name>) and return its report, which is also written there.

    Args:
        store: where results are kept and found (default: in `out`); several runs may share one.
        on_row: told of every artifact as soon as it is made (or found again) and measured; latencies come at the end.
        stages: the kinds of stages (default: all of demitasse's).
        launcher: the command that starts the processes of a training stage (default: the recipe's own, or none).
        until_decided: minutes for which to measure on while a gate is inconclusive.

    Raises:
        RecipeError: something that is known before anything runs is wrong: all of it in one message.
        IntegrityError: a stored result is not what was stored.
        StoreError: the folder or the store cannot be written.
        LauncherError: the launcher does not work, or a process that it started failed.
    """
    folder = run_folder(recipe.name, out).absolute()
    make_writable(folder)
    log = Log(folder / LOG)
    log(f"run {recipe.path or recipe.name}, seed {recipe.seed}")
    with log.told():
        engine = Engine(store=store_of(folder, store), progress=progress or Silent(), log=log, run=folder)
        command = launcher or recipe.launcher
        workers = None if command is None else Launcher(command=command, place=folder)
        patience = Patience(recipe=recipe, minutes=until_decided, log=log)
        report = _carried_out(
            Measuring(engine=engine, recipe=recipe, patience=patience), folder, stages, workers, on_row
        )
        log(f"verdict {report.verdict or 'none: nothing is gated'}")
    return report


def _carried_out(
    measuring: Measuring,
    folder: Path,
    stages: Stages | None,
    launcher: Launcher | None,
    on_row: Callable[[Row], None],
) -> Report:
    """The report, written, once everything that can be known before has been looked at."""
    engine = measuring.engine
    source, steps = check(measuring.recipe, engine, stages, launcher)
    note = None if source.folder is None else passed_over(source.folder)
    if note is not None:
        engine.log(note)
    under_way = _Run(folder=folder, source=source, steps=steps, launcher=launcher, measuring=measuring)
    with engine.store.in_use():
        report = under_way.report(on_row)
        with writing():
            write_report(report, folder)
            shipped = measuring.subjects[-1]
            point_at(folder / FINAL, shipped.folder)
            if FORMATS[shipped.format].released:
                add_card(model_card(report), shipped.folder, folder)
        engine.settle()
    return report


@dataclass(kw_only=True)
class _Run:
    """A run under way."""

    folder: Path
    source: Source
    steps: tuple[StageStep, ...]
    launcher: Launcher | None
    measuring: Measuring

    def report(self, on_row: Callable[[Row], None]) -> Report:
        """The report: gates are about the last row, and looked at again as long as that is worth it."""
        measuring, patience = self.measuring, self.measuring.patience
        gates = self._judged(measuring.recipe, on_row)
        while (recipe := patience.more(measuring.recipe, measuring.rows[-1], gates, measuring.seconds)) is not None:
            gates = self._judged(recipe, lambda row: None)
        recipe, session = measuring.recipe, measuring.session
        return Report(
            recipe=recipe.path.name if recipe.path else recipe.name,
            recipe_text=recipe_text(recipe),
            name=recipe.name,
            rows=measuring.rows,
            sources=sources_of(recipe, self.source),
            gates=gates,
            looks=patience.looks,
            timing="" if session is None else session.describe(),
            verdict=overall(gates),
            environment=environment(LIBRARIES, recipe.benchmark.threads if recipe.benchmark else None),
            created=datetime.now(UTC),
            store=measuring.engine.store.seen_from(self.folder),
            folder=self.folder,
            session=session,
        )

    def _judged(self, recipe: Recipe, on_row: Callable[[Row], None]) -> list[GateResult]:
        """Every stage made and measured as the recipe asks for, and the gates on the last of them."""
        measuring, source = self.measuring, self.source
        measuring.begin(recipe)
        if source.folder is not None:
            first = Subject(name=BASELINE, kind=BASELINE, key=source.key, format=source.format, folder=source.folder)
            on_row(measuring.measure(first))
        for step in self.steps:
            on_row(self._stage(step))
        self._prove_shipped()
        measuring.time()
        return measuring.patience.judge(recipe, measuring.rows[-1])

    def _prove_shipped(self) -> None:
        """A bundle for a GPU that was made where none was, and is judged where one is, is proven first."""
        last = self.measuring.subjects[-1]
        if FORMATS[last.format].device(last.folder) == "cpu":
            return
        bundle, log = bundle_folder(last.folder), self.measuring.engine.log
        if not pending(bundle):
            return
        if not is_here("cuda"):
            log(f"{last.name}: what it computes on CUDA is pending: run `demitasse verify` on a GPU")
            return
        prove_here(bundle, "cuda", read_manifest(bundle)["parity"]["self_test"]["kl"])
        log(f"{last.name}: proven on {gpus()[0].name}")

    def _stage(self, step: StageStep) -> Row:
        """A stage made, or found, and measured."""
        recipe, subjects = self.measuring.recipe, self.measuring.subjects
        benchmark = recipe.benchmark or short_benchmark(recipe.evaluate)
        artifact = obtain_stage(
            self.measuring.engine,
            step,
            source=subjects[-1].folder if subjects else None,
            teacher=subjects[0].folder if subjects and subjects[0].format in TEACHES else None,
            logs=self.folder / CURVES / f"{step.name.replace(' ', '-')}-{step.key[:8]}",
            threads=benchmark.threads,
            launcher=self.launcher,
        )
        subject = Subject(
            name=step.name,
            kind=step.stage.kind,
            key=artifact.key,
            format=step.stage.leaves,
            folder=artifact.files,
        )
        made = {name: getattr(artifact, name) for name in ("reused", "metadata", "seconds", "hashes")}
        last = step is self.steps[-1]
        return self.measuring.measure(subject, last=last, knobs=step.config.model_dump(mode="json"), **made)
