"""Latency of every artifact of a recipe beside its baseline: the link from a run to `interleaving.py`.

    block      0  1  2  3  4  5  6 ...        with stage_blocks: 5
    baseline   x  x  x  x  x  x  x
    between    x  x  x  x  x                  every stage's artifact but the last, until as many were undisturbed
    last       x  x  x  x  x  x  x            what ships, and what the gates are about
                           |     |
                      look, look, ...         enough where every gate on it is decided (`evaluation/stopping_rule.py`)

All are timed in the same session on the first tokens of the test text, as the baseline's tokenizer cuts it; each is
held against the baseline in the blocks that both went through, so those between have wider intervals. All run where the
last one runs: beside a bundle for CUDA, PyTorch is timed on the GPU too. Where there is none, nothing is timed: what is
to be done is kept, for `finish_latency` on a machine that has one. Peak memory is that of the timed processes. The raw
times are kept in `latency.json`, from which every figure follows (`evaluation.latency`).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from compress.checkpoints.folder import load_tokenizer
from compress.stage import FormatName, Progress, first_line
from compress.text import TextSource, end_of_text, read_documents, tokenize
from evaluation.latency import Pending, Protocol, Session, Workload, latency_measurements
from evaluation.machine import available_cores
from evaluation.measurement import Measurement
from evaluation.stopping_rule import StoppingRule
from export.runtime.gpu import gpus
from export.runtime.session import is_here
from recipes.config.recipe import BenchmarkConfig
from recipes.formats import FORMATS
from recipes.formats.base import MeasureError
from recipes.measure.interleaving import BenchmarkTarget, new_session, pinned_cpus, resumed, run_trials
from recipes.runs.environment import processor
from recipes.runs.store import versions

LATENCY_FILE = "latency.json"


def measure_latency(
    targets: Sequence[BenchmarkTarget],
    *,
    config: BenchmarkConfig,
    test: TextSource,
    seed: int,
    progress: Progress,
    enough: StoppingRule | None = None,
    out: Path | None = None,
    scratch: Path | None = None,
    log: Callable[[str], None] = lambda text: None,
) -> dict[str, list[Measurement]]:
    """Latencies, throughput and memory of the targets by name, side by side; the first one is the baseline.

    Args:
        enough: when to stop before `config.blocks` blocks; None: never.
        out: where the raw times are kept at the end, in `latency.json`.
        scratch: where they are noted meanwhile, so that the same measurement goes on where it was cut off.
        log: told after the first block what a trial of each costs, and what all of it will take.

    Raises:
        MeasureError: it cannot be measured as asked.
    """
    racing = _together(targets, config.stage_blocks)
    protocol = Protocol(
        workloads=(Workload(prompt=config.prompt, tokens=config.tokens + 1),),  # the first one comes of the prompt
        threads=config.threads,
        cpus=pinned_cpus(config.threads),
        seed=seed,
        prompt="prompt from the start of the test text",
    )
    ids = first_tokens(racing[0].folder, config.prompt, test)
    fresh = new_session(racing, protocol).model_copy(update={"planned": config.blocks})
    if racing[-1].on_gpu and not is_here("cuda"):
        pending = Pending(reason=PENDING, ids=ids, stage_blocks=config.stage_blocks)
        session = fresh.model_copy(update={"pending": pending})
        log(f"latency: {PENDING}")
    else:
        session = _timed(fresh, racing, ids, enough=enough, progress=progress, scratch=scratch, log=log)
    if out is not None:
        write_session(session, out / LATENCY_FILE)
    return latency_measurements(session)


def finish_latency(
    session: Session,
    targets: Sequence[BenchmarkTarget],
    *,
    enough: StoppingRule,
    progress: Progress,
    out: Path,
    scratch: Path,
    log: Callable[[str], None],
) -> dict[str, list[Measurement]]:
    """Take on this machine what was pending on another: `targets` are all that it was to time, in its order."""
    pending = session.pending
    assert pending is not None, "nothing is pending"
    protocol = session.protocol.model_copy(update={"cpus": pinned_cpus(session.protocol.threads)})
    fresh = session.model_copy(update={"protocol": protocol, "pending": None})
    racing = _together(targets, pending.stage_blocks)
    taken = _timed(fresh, racing, pending.ids, enough=enough, progress=progress, scratch=scratch, log=log)
    write_session(taken, out / LATENCY_FILE)
    return latency_measurements(taken)


def _timed(
    fresh: Session,
    racing: Sequence[BenchmarkTarget],
    ids: tuple[int, ...],
    *,
    enough: StoppingRule | None,
    progress: Progress,
    scratch: Path | None,
    log: Callable[[str], None],
) -> Session:
    """A session with its trials."""
    planned = fresh.planned or 0
    enough = enough or StoppingRule(gates={}, blocks=(planned,), looks=1)
    session = resumed(_begin(scratch, fresh), racing)
    total = sum(min(target.blocks or planned, planned) for target in racing)
    done = min(len(session.trials), total)
    with progress.task("benchmark", total=total, done=done, steady=len(racing)) as task:

        def keep(session: Session) -> None:
            trial = session.trials[-1]
            cost = f" ({trial.wall_seconds:.0f} s a trial)" if trial.wall_seconds else ""
            task.advance(1, note=f"{trial.variant}{cost}")
            if scratch is not None:
                write_session(session, scratch / LATENCY_FILE)
            if len(session.trials) == len(racing):
                log(f"latency: {_cost(session, racing, planned)}")

        for blocks in enough.blocks:
            session = run_trials(session, racing, ids, blocks=blocks, on_trial=keep)
            stopped = enough.reason(session)
            if stopped:
                break
        session = session.model_copy(update={"stopped": stopped})
        task.advance(max(0, total - len(session.trials)), note=stopped)
        log(f"latency: {session.describe()}")
    return session


PENDING = (
    "pending: it runs on CUDA, and this machine has no GPU for that; run `demitasse gate RUN --measure` on one that has"
)


def _together(targets: Sequence[BenchmarkTarget], stage_blocks: int) -> list[BenchmarkTarget]:
    """Who takes turns, in how many blocks, and all on the device of the last."""
    baseline, between, last = targets[0], targets[1:-1], targets[1:][-1:]
    briefly = [replace(target, blocks=stage_blocks) for target in between if stage_blocks]
    return [replace(target, on_gpu=targets[-1].on_gpu) for target in (baseline, *briefly, *last)]


def _cost(session: Session, racing: Sequence[BenchmarkTarget], blocks: int) -> str:
    """What a trial of each costs, and all of them."""
    each = {target.name: session.seconds_of_a_trial(target.name) for target in racing}
    seconds = sum(each[target.name] * min(target.blocks or blocks, blocks) for target in racing)
    trials = ", ".join(f"{name} {cost:.1f} s" for name, cost in each.items())
    return f"about {seconds / 60:.1f} minutes in all; a trial of {trials}"


def latency_identity(
    timed: Sequence[tuple[str, FormatName]], *, config: BenchmarkConfig, test: TextSource, seed: int
) -> dict[str, Any]:
    """What latencies depend on: keys and formats of all that is timed, the first being the baseline; the machine."""
    timed = timed if config.stage_blocks else [timed[0], *timed[1:][-1:]]
    return {
        "baseline": timed[0][0],
        "between": [{"artifact": key, "format": format} for key, format in timed[1:-1]],
        "artifact": timed[-1][0],
        "format": timed[-1][1],
        "benchmark": config.model_dump(mode="json"),
        "test": test.digest(),
        "seed": seed,
        "processor": processor(),
        **({"gpus": [gpu.name for gpu in gpus()]} if gpus() else {}),
        "cores": available_cores(),
        "libraries": versions(tuple({library for _, format in timed for library in FORMATS[format].libraries})),
    }


def target_of(name: str, folder: Path, format: FormatName) -> BenchmarkTarget:
    """An artifact as it takes turns."""
    return BenchmarkTarget(name=name, folder=folder, format=format, on_gpu=FORMATS[format].device(folder) == "cuda")


def kept_session(folder: Path) -> Session | None:
    """The raw times in a result's folder; None where its meter kept none."""
    file = folder / LATENCY_FILE
    return read_session(file) if file.is_file() else None


INVALID = "is invalid: taken again"
TOO_FEW = "does not suffice for these gates: gone on with"


def objection(folder: Path, enough: StoppingRule) -> str:
    """Why the raw times in a result's folder do not do: `INVALID` or `TOO_FEW`; empty where they do."""
    session = kept_session(folder)
    if session is None or (session.pending and not is_here("cuda")):
        return ""
    if is_invalid(session):
        return INVALID
    return "" if enough.reason(session) else TOO_FEW


def is_invalid(session: Session) -> bool:
    """Whether the baseline or the last variant has no figures, for a reason that may have passed."""
    found = latency_measurements(session)
    return any(one.invalid for variant in (session.variants[0], session.variants[-1]) for one in found[variant])


def seconds_of_a_block(session: Session) -> float:
    """What one more block costs once the stages between have had theirs."""
    return sum(
        session.seconds_of_a_trial(variant) for variant in dict.fromkeys((session.variants[0], session.variants[-1]))
    )


def _begin(scratch: Path | None, fresh: Session) -> Session:
    """What an interrupted measurement of the same variants by the same protocol left, or a session without a trial."""
    file = None if scratch is None else scratch / LATENCY_FILE
    if file is not None and file.is_file():
        left = read_session(file).model_copy(update={"planned": fresh.planned, "stopped": ""})
        if left.model_copy(update={"trials": ()}) == fresh:
            return left
    return fresh


def read_session(file: Path) -> Session:
    """The raw times that a measurement kept.

    Raises:
        MeasureError: the file is missing or holds something else.
    """
    try:
        return Session.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MeasureError(f"{file}: expected the raw times of a latency measurement ({first_line(error)})") from error


def write_session(session: Session, file: Path) -> None:
    """Write the raw times; a reader sees the old file or the new one, never half of it."""
    unfinished = file.with_name(f".{file.name}")
    unfinished.write_text(session.model_dump_json(indent=1) + "\n", encoding="utf-8")
    unfinished.replace(file)


def first_tokens(folder: Path, length: int, test: TextSource) -> tuple[int, ...]:
    """The first tokens of the test text, as a checkpoint's tokenizer cuts it.

    Raises:
        MeasureError: the text is too short.
    """
    tokenizer = load_tokenizer(folder)
    ids: list[int] = []
    for document in read_documents(test):
        (found,) = tokenize([document], tokenizer)
        ids += [*found.tolist(), end_of_text(tokenizer)]
        if len(ids) >= length:
            return tuple(ids[:length])
    raise MeasureError(f"{test}: expected at least {length} tokens for the benchmark's prompt, got {len(ids)}")
