"""Artifacts of any form timed side by side, outside of a recipe: what `demitasse benchmark A [B ...]` does.

    folders --check--> targets --take turns (`interleaving.py`)--> session --figures--> FILE.json

The first folder is the baseline. The file holds every raw time. They are noted after every trial, so the same command
goes on where it was stopped, and with more blocks it adds to a file those that are missing; on another machine or with
other libraries it does not. Prompts are random token ids below the smallest vocabulary: a dense decoder takes as long
for one token as for another.

With a margin, every other variant is judged like a gate of a recipe: time to first token and time per token at most so
many times the baseline's.

Not covered: PyTorch on a GPU; checkpoints are timed on the CPU, bundles where they were exported for.
"""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from pydantic import Field

from compress.checkpoints.json_file import read_plain
from compress.digests import SEALED_LIMIT
from compress.errors import DemitasseError
from compress.stage import Progress
from evaluation.gate import GateResult, Limit, Verdict, exit_code, judge, overall
from evaluation.latency import (
    SAMPLES_FOR_PERCENTILE,
    Protocol,
    Session,
    Workload,
    percentiles,
    process_measurements,
    workload_measurements,
)
from evaluation.latency.figures import single_steps
from evaluation.machine import available_cores
from evaluation.measurement import Measurement, Ratio, Value
from export.external_data import BundleIntegrityError
from export.manifest import is_bundle
from recipes.engine.output import engine_for
from recipes.engine.steps import Step
from recipes.formats import FORMATS, LIBRARIES, format_of
from recipes.formats.text_generation import FINAL
from recipes.measure.interleaving import BenchmarkTarget, new_session, pinned_cpus, resumed, run_trials
from recipes.measure.latency import target_of
from recipes.runs.environment import environment

RESULT = "latency.json"
JUDGED_METRICS = ("prefill_latency", "decode_latency")


class BenchmarkError(DemitasseError):
    """It cannot be timed as asked; one line per reason."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkRequest:
    """What was asked for."""

    folders: tuple[Path, ...]
    """Checkpoints, bundles, or the folders of runs, whose last artifact is meant; the first is the baseline."""
    workloads: tuple[Workload, ...]
    blocks: int
    threads: int
    seed: int = 0
    out: Path | None = None
    margin: float | None = None
    """At most so many times the baseline's latency; None: nothing is judged."""


class VariantGates(Value):
    """What a variant was judged by, on one workload."""

    variant: str
    workload: Workload
    gates: list[GateResult]


class Steps(Value):
    """A variant's single decode steps on one workload: how many count, and their percentiles."""

    samples: int
    percentiles: dict[str, float | None]
    """Such as "p99": seconds; null where there are too few samples for it."""
    needs: dict[str, int]
    """How many samples each percentile needs."""


class Result(Value):
    """What the file holds."""

    targets: dict[str, Any]
    """Of every variant its folder, format, and the name, size and time of change of its files."""
    session: Session
    workloads: tuple[dict[str, list[Measurement]], ...] = ()
    """For each workload of the protocol, by variant: latencies and throughput."""
    steps: tuple[dict[str, Steps], ...] = ()
    """For each workload of the protocol, by variant; empty where a single new token needs no step."""
    processes: dict[str, list[Measurement]] = Field(default_factory=dict)
    """By variant: cold start, memory, bytes and multiply-accumulates."""
    gates: tuple[VariantGates, ...] = ()
    environment: dict[str, str] = Field(default_factory=dict)

    def __repr__(self) -> str:
        grid = ", ".join(map(str, self.session.protocol.workloads))
        trials = f"{len(self.session.trials)} trials, {grid}"
        return f"Result({', '.join(self.targets)}: {self.verdict or 'not judged'}, {trials})"

    __str__ = __repr__

    @property
    def invalid(self) -> dict[str, str]:
        """Why a variant has no figures, by variant."""
        found: dict[str, str] = {}
        for measured in (*self.workloads, self.processes):
            for variant, measurements in measured.items():
                reasons = [one.invalid for one in measurements if one.invalid]
                if reasons:
                    found.setdefault(variant, reasons[0])
        return found

    @property
    def verdict(self) -> Verdict | None:
        """The worst of the gates; INVALID without any where a variant has no figures; else None."""
        judged = overall([gate for of_variant in self.gates for gate in of_variant.gates])
        return "INVALID" if self.invalid else judged

    @property
    def exit_code(self) -> int:
        """That of the verdict; 5 where a variant is a bundle that ONNX Runtime refuses or cannot run."""
        broken = BundleIntegrityError.exit_code
        return broken if any(trial.exit_code == broken for trial in self.session.trials) else exit_code(self.verdict)


def benchmark(request: BenchmarkRequest, progress: Progress) -> Result:
    """Time the variants, and keep everything in `request.out`.

    Raises:
        BenchmarkError: it cannot be done as asked, one line per reason.
        CheckpointError, BundleError: a folder holds no artifact.
    """
    if request.out is not None:
        return _benchmark(request, request.out, progress)
    with TemporaryDirectory(prefix="demitasse-") as place:
        return _benchmark(request, Path(place) / RESULT, progress)


def _benchmark(request: BenchmarkRequest, out: Path, progress: Progress) -> Result:
    targets = targets_of(request.folders)
    protocol = Protocol(
        workloads=request.workloads, threads=request.threads, cpus=pinned_cpus(request.threads), seed=request.seed
    )
    ids = _ids(_check(request, targets), protocol)
    counted = _counts(request, targets)  # reads every graph, so that a broken one is found before anything is timed
    empty = Result(
        targets=_looks(targets),
        session=new_session(targets, protocol),
        environment=environment(LIBRARIES, request.threads),
    )
    begun = _begin(out, empty)

    def make(files: Path, scratch: Path) -> dict[str, Any]:
        left = scratch / RESULT
        session = resumed(_read(left).session if left.is_file() else begun.session, targets)
        total = request.blocks * len(targets)
        done = min(len(session.trials), total)
        with progress.task("benchmark", total=total, done=done, steady=len(targets)) as task:

            def keep(session: Session) -> None:
                task.advance(1, note=session.trials[-1].variant)
                _write(left, empty.model_copy(update={"session": session}))

            session = run_trials(session, targets, ids, blocks=request.blocks, on_trial=keep)
        _write(files / RESULT, _result(request, targets, session, counted))
        return {}

    identity = {"blocks": request.blocks, "margin": request.margin, **begun.model_dump(mode="json")}
    with engine_for(out, progress) as (engine, _):
        result = _read(engine.obtain(Step(kind="benchmark", identity=identity, make=make)).files / RESULT)
        _write(out, result)
    return result


def targets_of(folders: tuple[Path, ...]) -> list[BenchmarkTarget]:
    """The variants, each with a name of its own.

    Raises:
        BenchmarkError: with every folder that holds nothing to time, one line each.
        CheckpointError, MeasureError: what a folder holds is broken.
    """

    problems = [f"{folder}: {problem}" for folder in dict.fromkeys(folders) if (problem := _nothing_in(folder))]
    if problems:
        raise BenchmarkError("\n".join(problems))
    artifacts = [_artifact(folder).absolute() for folder in folders]
    return [
        target_of(name, artifact, format_of(artifact))
        for name, artifact in zip(_names(folders), artifacts, strict=True)
    ]


def _names(folders: tuple[Path, ...]) -> list[str]:
    """As much of each folder's path, from its end, as tells it from the others; numbered where it comes again."""
    paths = [folder.resolve().parts for folder in folders]
    names: list[str] = []
    for index, path in enumerate(paths):
        others = [other for other in paths if other != path]
        parts = next(n for n in range(1, len(path) + 1) if all(other[-n:] != path[-n:] for other in others))
        earlier = paths[:index].count(path)
        names.append("/".join(path[-parts:]) + (f" #{earlier + 1}" if earlier else ""))
    return names


def _artifact(folder: Path) -> Path:
    """The folder itself, or the last artifact of the run that it holds."""
    final = folder / FINAL
    return final if final.is_dir() and not (folder / "config.json").exists() else folder


def _nothing_in(folder: Path) -> str:
    """Why there is nothing to time in a folder; empty where there is."""
    if not folder.is_dir():
        return "expected a folder, got a file" if folder.exists() else "no such folder"
    artifact = _artifact(folder)
    if is_bundle(artifact) or (artifact / "config.json").is_file():
        return ""
    if (artifact / "model.onnx").is_file():
        return "has a model.onnx but no manifest.json; expected a bundle that `demitasse export` wrote"
    return "expected a checkpoint (config.json), a bundle (manifest.json) or the folder of a finished run, got neither"


def _check(request: BenchmarkRequest, targets: list[BenchmarkTarget]) -> int:
    """Refuse what cannot work, all at once; the smallest vocabulary."""
    sizes = {target.name: FORMATS[target.format].sizes(target.folder) for target in targets}
    problems = []
    for workload in request.workloads:
        needed = workload.prompt + workload.tokens - 1
        problems += [
            f"{name}: its context holds {size.context} tokens, but the {workload} needs {needed}; lower --prompt or "
            "--tokens"
            for name, size in sizes.items()
            if size.context is not None and needed > size.context
        ]
    if request.out is not None and not request.out.parent.is_dir():
        problems.append(f"--out {request.out}: expected a file in an existing folder, but {request.out.parent} is none")
    if request.out is not None and request.out.is_dir():
        problems.append(f"--out {request.out}: expected a file such as latency.json, got a folder")
    if request.threads > available_cores():
        problems.append(f"--threads: expected at most {available_cores()}, the cores there are, got {request.threads}")
    if request.margin is not None and len(targets) < 2:
        problems.append("--max-ratio: expected a second folder to hold against the first one")
    if problems:
        raise BenchmarkError("\n".join(problems))
    return min(size.vocabulary for size in sizes.values())


def _looks(targets: list[BenchmarkTarget]) -> dict[str, Any]:
    return {
        target.name: {
            "folder": str(target.folder),
            "format": target.format,
            "files": [list(look) for look in look_of(target.folder.resolve())],
        }
        for target in targets
    }


def look_of(folder: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of change of every file: quick, and different after every change."""
    states = ((file, file.stat()) for file in sorted(folder.rglob("*")) if file.is_file())
    return [(str(file.relative_to(folder)), state.st_size, state.st_mtime_ns) for file, state in states]


def _begin(out: Path, empty: Result) -> Result:
    """What the file holds of the same benchmark on the same machine with the same libraries, or nothing yet.

    Raises:
        BenchmarkError: it holds something else.
    """
    if not out.exists():
        return empty
    way_out = "name a new file, or remove this one"
    try:
        left = _read(out)
    except ValueError as error:
        raise BenchmarkError(f"--out {out}: expected what a benchmark wrote, got something else; {way_out}") from error
    pairs = {
        "other folders, in another request, or with changed files": (
            list(left.targets.items()),
            list(empty.targets.items()),
        ),
        "another machine, or other versions of libraries": (
            left.environment | {"threads": ""},  # of which the protocol tells
            empty.environment | {"threads": ""},
        ),
        **{
            f"other {name}": (getattr(left.session.protocol, name), getattr(empty.session.protocol, name))
            for name in Protocol.model_fields
        },
    }
    differing = [what for what, (theirs, ours) in pairs.items() if theirs != ours]
    if differing:
        raise BenchmarkError(f"--out {out}: holds a benchmark with {', '.join(differing)}; {way_out}")
    return empty.model_copy(update={"session": left.session})


def _ids(vocabulary: int, protocol: Protocol) -> tuple[int, ...]:
    length = max(workload.prompt * workload.batch for workload in protocol.workloads)
    return tuple(int(token) for token in np.random.default_rng(protocol.seed).integers(vocabulary, size=length))


def _result(
    request: BenchmarkRequest, targets: list[BenchmarkTarget], session: Session, counted: list[list[Measurement]]
) -> Result:
    workloads = tuple(workload_measurements(session, workload) for workload in request.workloads)
    processes = process_measurements(session)
    for target, found in zip(targets, counted, strict=True):
        processes[target.name] += found
    gates: tuple[VariantGates, ...] = ()
    if request.margin is not None:
        limits = {metric: Limit(max_ratio=request.margin) for metric in JUDGED_METRICS}
        gates = tuple(
            VariantGates(
                variant=variant,
                workload=workload,
                gates=judge(_measured(limits, workload), {one.metric: one for one in of_workload[variant]}),
            )
            for workload, of_workload in zip(request.workloads, workloads, strict=True)
            for variant in session.variants[1:]
        )
    return Result(
        targets=_looks(targets),
        session=session,
        workloads=workloads,
        steps=tuple(
            {variant: _steps(session, variant, workload) for variant in session.variants if workload.tokens > 1}
            for workload in request.workloads
        ),
        processes=processes,
        gates=gates,
        environment=environment(LIBRARIES, request.threads),
    )


def _steps(session: Session, variant: str, workload: Workload) -> Steps:
    times = single_steps(session, variant, workload)
    found = {f"p{percent:g}": value for percent, value in percentiles(times).items()}
    needs = {f"p{percent:g}": count for percent, count in SAMPLES_FOR_PERCENTILE.items()}
    return Steps(samples=len(times), percentiles=found, needs=needs)


def _measured(limits: dict[str, Limit], workload: Workload) -> dict[str, Limit]:
    """The limits that make sense for a workload: with a single new token nothing is decoded."""
    return {metric: limit for metric, limit in limits.items() if metric != "decode_latency" or workload.tokens > 1}


def _counts(request: BenchmarkRequest, targets: list[BenchmarkTarget]) -> list[list[Measurement]]:
    """Bytes and multiply-accumulates of every variant, held against the first one's.

    Raises:
        BundleError: a bundle's graph or its weights cannot be read.
    """
    first, *others = (_counted(target, request.workloads[0].prompt) for target in targets)
    return [
        [_exact(metric, value, None) for metric, value in first.items()],
        *([_exact(metric, value, first[metric]) for metric, value in other.items()] for other in others),
    ]


def _counted(target: BenchmarkTarget, context: int) -> dict[str, int]:
    adapter = FORMATS[target.format]
    return {"weight_bytes": adapter.weight_bytes(target.folder), "macs": adapter.macs(target.folder, context=context)}


def _exact(metric: str, value: int, against: int | None) -> Measurement:
    ratio = Ratio(value=value / against) if against else None
    return Measurement(metric=metric, value=value, samples=1, method="counted", ratio=ratio)


def _read(file: Path) -> Result:
    """Raises ValueError where the file holds something else."""
    return Result.model_validate_json(read_plain(file, SEALED_LIMIT))


def _write(file: Path, result: Result) -> None:
    """Write the whole file anew; a reader sees the old one or the new one."""
    unfinished = file.with_name(f".{file.name}.unfinished")
    unfinished.write_text(result.model_dump_json(indent=1) + "\n", encoding="utf-8")
    unfinished.replace(file)
