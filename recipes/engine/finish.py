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

from compress.checkpoints.config import CheckpointError
from compress.checkpoints.folder import Checkpoint
from compress.digests import digest_file, digest_of
from compress.stage import FormatName, Progress, Silent
from evaluation.formats import model_card
from evaluation.gate import judge, overall
from evaluation.latency import Session
from evaluation.measurement import Measurement
from evaluation.render import write_report
from evaluation.report import BASELINE, Report, Row, Source
from evaluation.stopping_rule import StoppingRule, blocks_at_looks
from export.manifest import bundle_folder, read_manifest
from export.proof import prove_here
from export.runtime.gpu import gpus
from export.runtime.session import ProviderError, is_here
from recipes.engine.model_source import digest_folder
from recipes.engine.rejudge import RejudgeError, Stored
from recipes.engine.steps import Engine, Step
from recipes.formats import FORMATS, LIBRARIES
from recipes.formats.text_generation import FINAL
from recipes.measure import footprint
from recipes.measure.interleaving import BenchmarkTarget
from recipes.measure.latency import finish_latency, is_invalid, kept_session, target_of
from recipes.runs.environment import environment, processor
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

    Latencies that came to nothing, as on a busy machine, are taken again.

    Args:
        model: the model that the run began with, where it does not lie where the run found it.

    Raises:
        RejudgeError: its bundle is not for CUDA, or the model is not there.
        ProviderError: this machine has no GPU that CUDA, or PyTorch, can use.
        IntegrityError: a stored file is not what was stored.
        ParityError: the bundle computes something else here.
    """
    run = Stored(read_report(folder))
    run.verify()
    report, final = run.report, run.report.final
    bundle = run.artifact(final).files if final.kind != BASELINE else run.folder / FINAL
    if final.format != "onnx" or FORMATS["onnx"].device(bundle) == "cpu":
        raise RejudgeError(f"{folder}: nothing of it is pending: --measure finishes a run whose bundle is for CUDA")
    if not is_here("cuda"):
        raise ProviderError(
            f"{folder}: expected a GPU that CUDA can use, got none; copy the run's folder to a machine that has one, "
            "and give the command there (`demitasse doctor` looks at what is here)"
        )
    with run.store.in_use():
        place = bundle_folder(bundle)
        prove_here(place, "cuda", read_manifest(place)["parity"]["self_test"]["kl"])
        log(f"{final.name}: proven on {gpus()[0].name}")
        session = _to_take(run)
        if session is not None:
            engine = Engine(store=run.store, progress=progress or Silent(), log=log, run=run.folder)
            finishing = _Finishing(report=report, run=run, engine=engine, model=model, session=session)
            report = finishing.report_with_latencies()
        else:
            report = report.model_copy(update={"session": run.session})
        with writing():
            write_report(report, run.folder)
            add_card(model_card(report), bundle, run.folder)
    return report


def _to_take(run: Stored) -> Session | None:
    """The latencies that are pending, or were when those were taken here that came to nothing; None: there are none."""
    session = run.session
    if session is None or session.pending is not None:
        return session
    before = run.result("latency", run.report.final).identity.get(FINISHES)
    if before is None or not is_invalid(session):
        return None
    return kept_session(run.store.read(before).files)


FINISHES = "finishes"
"""The entry of an identity that names the latencies that were pending."""


@dataclass(frozen=True, kw_only=True)
class _Finishing:
    """A run whose latencies are pending."""

    report: Report
    run: Stored
    engine: Engine
    model: Path | None
    session: Session
    """What is to be taken."""

    def report_with_latencies(self) -> Report:
        """The report with latencies of this machine, judged anew."""
        report, session = self.report, self.session
        targets = [self._target(row) for row in report.rows if row.name in session.variants]
        _check_torch(targets)
        gates = {result.metric: result.limit for result in report.gates}
        blocks, looks = blocks_at_looks(session.planned or 1), report.looks.get("blocks", 1)
        enough = StoppingRule(gates=gates, blocks=blocks, looks=looks)

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

        self._note_all()
        found = self.engine.obtain(Step(kind="latency", identity=self._identity(targets), make=make))
        rows = [self._with(row, found.folder.name, found.metadata.get(row.name)) for row in report.rows]
        measured = {one.metric: one for one in rows[-1].measurements}
        results = judge(gates, measured, looks=report.looks, bandwidth=report.memory_bandwidth)
        here = environment(LIBRARIES, session.protocol.threads) | {"gpu": gpus()[0].name}
        update = {"rows": rows, "gates": results, "verdict": overall(results), "environment": here}
        again = Stored(report.model_copy(update=update))
        taken = again.session
        told = "" if taken is None else taken.describe()
        return again.report.model_copy(update={"session": taken, "timing": told})

    def _note_all(self) -> None:
        """Everything that the report is about stays in the store."""
        for row in self.report.rows:
            if row.kind != BASELINE:
                self.engine.use(self.run.artifact(row).folder.name)
            for kind, name in row.samples.items():
                self.engine.use(name)
                for part in self.run.result(kind, row).metadata.get("parts", ()):
                    self.engine.use(part)

    def _identity(self, targets: list[BenchmarkTarget]) -> dict[str, Any]:
        """Of latencies that are yet to be taken; those of this machine that came to nothing are counted."""
        libraries = {library for target in targets for library in FORMATS[target.format].libraries}
        first = self.report.final.samples["latency"]
        identity = {
            "version": footprint.MEASURE_VERSION,
            FINISHES: self.run.result("latency", self.report.final).identity.get(FINISHES, first),
            "attempt": 0,
            "artifact": self.report.final.key,
            "rows": [row.key for row in self.report.rows],
            "processor": processor(),
            "gpu": gpus()[0].name,
            "libraries": versions(tuple(libraries)),
        }
        while found := self.engine.store.find("latency", digest_of(identity)):
            session = kept_session(found.files)
            if session is not None and not is_invalid(session):
                break
            identity["attempt"] += 1
        return identity

    def _target(self, row: Row) -> BenchmarkTarget:
        folder = self._baseline(row) if row.kind == BASELINE else self.run.artifact(row).files
        return target_of(row.name, folder, cast(FormatName, row.format))

    def _baseline(self, row: Row) -> Path:
        """The model that the run began with, to the byte; one of the hub is known by the hash of its weights."""
        source = next((source for source in self.report.sources if source.role == "model"), None)
        folder = self.model or Path("" if source is None else source.name)
        try:
            same = folder.is_dir() and (row.key == digest_folder(folder) or _is_hub_model(folder, row.key, source))
        except (CheckpointError, OSError):
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
        kept = [found for found in row.measurements if found.metric not in fresh]
        update = {"measurements": [*kept, *fresh.values()], "samples": row.samples | {"latency": name}}
        return row.model_copy(update=update)


def _is_hub_model(folder: Path, key: str, source: Source | None) -> bool:
    """Whether a folder is the model of the hub that a key stands for: its weights have the hash that was read."""
    if source is None or not source.digest:
        return False
    hub, _, revision = source.name.rpartition("@")
    weights = Checkpoint(folder).files
    of_hub = key == digest_of({"hub": hub, "revision": revision})
    return of_hub and len(weights) == 1 and digest_file(weights[0]) == source.digest


def _check_torch(targets: list[BenchmarkTarget]) -> None:
    """Raise a ProviderError where a checkpoint is to be timed and PyTorch has no GPU."""
    if all(FORMATS[target.format].released for target in targets):
        return
    import torch

    if not torch.cuda.is_available():
        raise ProviderError(
            "expected a PyTorch that can use the GPU, which the baseline is timed in, got none; install its CUDA build "
            "(`demitasse doctor` says how)"
        )
