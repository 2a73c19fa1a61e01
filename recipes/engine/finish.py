"""A run that ended with something pending, finished where it can be: `demitasse gate RUN --measure` on a GPU.

    report.json, pending latencies  ->  the bundle's proof on the GPU  ->  all timed side by side  ->  judged, reported

What was made and measured stays as it is, so neither the texts nor the libraries that made it need to be there; beside
the run's folder (and its store) only the model that it began with, for the baseline's turns, which must be that model
to the byte.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from compress.checkpoints.config import CheckpointError
from compress.digests import digest_of
from compress.stage import FormatName, Progress, Silent
from evaluation.formats import model_card
from evaluation.gate import judge, overall
from evaluation.measurement import Measurement
from evaluation.render import write_report
from evaluation.report import BASELINE, Report, Row
from evaluation.stopping_rule import StoppingRule, blocks_at_looks
from export.manifest import bundle_folder, read_manifest
from export.proof import prove_here
from export.runtime.gpu import gpus
from export.runtime.session import ProviderError, is_here
from recipes.engine.model_source import digest_folder
from recipes.engine.rejudge import RejudgeError, Stored
from recipes.engine.steps import Engine, Step
from recipes.formats import FORMATS
from recipes.measure import footprint
from recipes.measure.interleaving import BenchmarkTarget
from recipes.measure.latency import finish_latency, target_of
from recipes.runs.environment import processor
from recipes.runs.folder import add_card, writing
from recipes.runs.report_file import read_report
from recipes.runs.store import versions


def finish_run(
    folder: Path,
    *,
    model: Path | None = None,
    progress: Progress | None = None,
    log: Callable[[str], None] = lambda text: None,
) -> Report:
    """Take what is pending of a run, and return its report, which is also written anew.

    Args:
        model: the model that the run began with, where it does not lie where the run found it.

    Raises:
        RejudgeError: nothing is pending, or the model is not there.
        ProviderError: this machine has no GPU that CUDA can use.
        IntegrityError: a stored file is not what was stored.
        ParityError: the bundle computes something else here.
    """
    report = read_report(folder)
    run = Stored(report)
    run.verify()
    bundle = run.store.read(run.store.name(report.final.kind, report.final.key).name).files
    if report.final.format != "onnx" or FORMATS["onnx"].device(bundle) == "cpu":
        raise RejudgeError(f"{folder}: nothing of it is pending: --measure finishes a run whose bundle is for CUDA")
    if not is_here("cuda"):
        raise ProviderError(
            f"{folder}: expected a GPU that CUDA can use, got none; copy the run's folder to a machine that has one, "
            "and give the command there (`demitasse doctor` looks at what is here)"
        )
    place = bundle_folder(bundle)
    prove_here(place, "cuda", read_manifest(place)["parity"]["self_test"]["kl"])
    log(f"{report.final.name}: proven on {gpus()[0].name}")
    session = run.session
    if session is not None and session.pending is not None:
        engine = Engine(store=run.store, progress=progress or Silent(), log=log)
        report = _Finishing(report=report, run=run, engine=engine, model=model).report_with_latencies()
    with writing():
        write_report(report, folder)
        add_card(model_card(report), bundle, folder)
    return report


@dataclass(frozen=True, kw_only=True)
class _Finishing:
    """A run whose latencies are pending."""

    report: Report
    run: Stored
    engine: Engine
    model: Path | None

    def report_with_latencies(self) -> Report:
        """The report with latencies of this machine, judged anew."""
        report, session = self.report, self.run.session
        assert session is not None
        targets = [self._target(row) for row in report.rows if row.name in session.variants]
        gates = {result.metric: result.limit for result in report.gates}
        planned = session.planned or 1
        looks = report.looks.get("blocks", 1)
        enough = StoppingRule(gates=gates, blocks=blocks_at_looks(planned), looks=looks)

        def make(files: Path, scratch: Path) -> dict[str, Any]:
            taken = finish_latency(
                session,
                targets,
                enough=enough,
                progress=self.engine.progress,
                out=files,
                scratch=scratch,
                log=self.engine.log,
            )
            return {
                name: [measurement.model_dump(mode="json") for measurement in found] for name, found in taken.items()
            }

        found = self.engine.obtain(Step(kind="latency", identity=self._identity(targets), make=make))
        rows = [self._with(row, found.folder.name, found.metadata.get(row.name)) for row in report.rows]
        measured = {one.metric: one for one in rows[-1].measurements}
        results = judge(gates, measured, looks=report.looks, bandwidth=report.memory_bandwidth)
        update = {"rows": rows, "gates": results, "verdict": overall(results)}
        again = report.model_copy(update=update)
        again = again.model_copy(update={"session": Stored(again).session})
        return again.model_copy(update={"timing": again.session.describe() if again.session else ""})

    def _identity(self, targets: list[BenchmarkTarget]) -> dict[str, Any]:
        libraries = {library for target in targets for library in FORMATS[target.format].libraries}
        return {
            "version": footprint.MEASURE_VERSION,
            "finishes": self.report.final.samples["latency"],
            "artifact": self.report.final.key,
            "seed": digest_of([row.key for row in self.report.rows]),
            "processor": processor(),
            "gpu": gpus()[0].name,
            "libraries": versions(tuple(libraries)),
        }

    def _target(self, row: Row) -> BenchmarkTarget:
        return target_of(row.name, self._folder(row), cast(FormatName, row.format))

    def _folder(self, row: Row) -> Path:
        if row.kind != BASELINE:
            return self.run.store.read(self.run.store.name(row.kind, row.key).name).files
        named = next((source.name for source in self.report.sources if source.role == "model"), "")
        folder = self.model or Path(named)
        try:
            same = folder.is_dir() and row.key == digest_folder(folder)
        except CheckpointError:
            same = False
        if not same:
            raise RejudgeError(
                f"{folder}: expected the model that the run began with, to the byte, whose latency is the baseline; "
                "say where it lies with --model"
            )
        return folder.absolute()

    def _with(self, row: Row, name: str, timed: list[dict[str, Any]] | None) -> Row:
        """A row with the latencies of this machine in place of those that were pending."""
        if timed is None:
            return row
        fresh = {found.metric: found for found in map(Measurement.model_validate, timed)}
        kept = [found for found in row.measurements if found.metric not in fresh and not np.isnan(found.value)]
        update = {"measurements": [*kept, *fresh.values()], "samples": row.samples | {"latency": name}}
        return row.model_copy(update=update)
