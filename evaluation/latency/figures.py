"""From a session's raw times to measurements: which blocks count, the figure of each variant, its ratio to the
baseline.

    block's figure    prefill, decode: the median of its times; the others: one time per block
    variant's figure      the median over blocks, its interval by bootstrap of blocks
    ratio, change     paired within blocks: `paired.py`

A block in which either variant was disturbed (`machine_load.py`) is left out for both, and counted; a variant whose
blocks were left out for more than `MOST_LEFT_OUT`, or that has fewer than `FEWEST` left, is INVALID: the machine was
too busy to say anything. So is a variant that crashed, with its last words, or was left out, with the reason; the
others still have their figures. A variant that took part in the first blocks only is held against the baseline in
those.

A trial whose warm-up did not settle counts, and is told of: a machine that is never steady is what users may have.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.latency.paired import (
    SAMPLES_FOR_PERCENTILE,
    bootstrap_objection,
    describe_percentile,
    paired_change,
    paired_ratio,
    percentiles,
)
from evaluation.latency.record import Part, Session, Trial, Workload
from evaluation.measurement import JUDGED, SHOWN, Measurement
from evaluation.statistics import median_interval

MOST_LEFT_OUT = 0.5
FEWEST = 3
Figure = Callable[[Trial], float | None]
NAN = math.nan


def _prefill(workload: Workload) -> Figure:
    return lambda trial: None if (times := trial.times(workload)) is None else float(np.median(times.prefill))


def _decode(workload: Workload) -> Figure:
    def figure(trial: Trial) -> float | None:
        times = trial.times(workload)
        return None if times is None or not times.steps else float(np.median(times.steps))

    return figure


def _end_to_end(workload: Workload) -> Figure:
    return lambda trial: None if (times := trial.times(workload)) is None else times.end_to_end


def _throughput(workload: Workload) -> Figure:
    def figure(trial: Trial) -> float | None:
        times = trial.times(workload)
        return (
            None if times is None or not times.end_to_end > 0 else workload.tokens * workload.batch / times.end_to_end
        )

    return figure


OF_A_WORKLOAD: dict[str, Callable[[Workload], Figure]] = {
    "prefill_latency": _prefill,
    "decode_latency": _decode,
    "end_to_end_latency": _end_to_end,
    "throughput": _throughput,
}
"""Metric -> a block's figure of it, for each workload."""
OF_A_PROCESS: dict[str, Figure] = {
    "open_latency": lambda trial: trial.open_seconds,
    "first_run_latency": lambda trial: trial.first_run,
    "peak_memory": lambda trial: trial.peak_memory,
    "gpu_memory": lambda trial: trial.gpu_memory,
}
"""Metric -> a block's figure of it, of the process as a whole."""
PART: dict[str, Part | None] = {
    "open_latency": "opening",
    "first_run_latency": "opening",
    "peak_memory": None,
    "gpu_memory": None,
}
"""Which part of a trial must have been undisturbed for a metric; None: none, "timed" where nothing is said."""
_WHERE_THERE_IS_ONE = frozenset({"gpu_memory"})


@dataclass(frozen=True)
class Undisturbed:
    """The blocks that count for a variant, and why others do not."""

    blocks: tuple[int, ...]
    taken: int
    reasons: tuple[str, ...]
    """One for each block that is left out."""
    sliced: bool = False
    """Whether the variants alternated within every block."""

    def describe(self) -> str:
        """Such as "9 of 10 randomly interleaved blocks, a fresh process each (left out: stolen 5%)"."""
        counted = f"{len(self.blocks)} of {self.taken}" if self.reasons else f"{self.taken}"
        slices = ", all variants in alternating slices" if self.sliced else ""
        left_out = f" (left out as disturbed: {'; '.join(self.reasons)})" if self.reasons else ""
        return f"{counted} randomly interleaved blocks, a fresh process each{slices}{left_out}"


def latency_measurements(session: Session) -> dict[str, list[Measurement]]:
    """All that a session of one workload says about each variant; of those left out, why.

    Raises:
        ValueError: it has several workloads, whose figures would have the same names.
    """
    if len(session.protocol.workloads) != 1:
        raise ValueError(
            f"expected a session of one workload, got {len(session.protocol.workloads)}; use workload_measurements"
        )
    of_workload, of_process = (
        workload_measurements(session, session.protocol.workloads[0]),
        process_measurements(session),
    )
    found = {variant: [*of_workload[variant], *of_process[variant]] for variant in session.variants}
    return found | {
        variant: [
            Measurement(metric=one.metric, value=NAN, samples=0, method="not timed", invalid=f"left out: {reason}")
            for one in found[session.baseline]
        ]
        for variant, reason in session.left_out.items()
    }


def workload_measurements(session: Session, workload: Workload) -> dict[str, list[Measurement]]:
    """Every variant's figures of one workload; of a workload with a single new token there is no decoding."""
    metrics = [metric for metric in OF_A_WORKLOAD if metric != "decode_latency" or workload.tokens > 1]
    return {
        variant: [measured(session, variant, metric, workload) for metric in metrics] for variant in session.variants
    }


def process_measurements(session: Session) -> dict[str, list[Measurement]]:
    """Every variant's cold start and memory; GPU memory only of variants that run on one."""
    found: dict[str, list[Measurement]] = {}
    for variant in session.variants:
        on_gpu = any(trial.gpu_memory is not None for trial in session.of(variant).values())
        metrics = [metric for metric in OF_A_PROCESS if metric not in _WHERE_THERE_IS_ONE or on_gpu]
        found[variant] = [measured(session, variant, metric) for metric in metrics]
    return found


def kept_blocks(session: Session, variant: str, part: Part | None = "timed") -> Undisturbed:
    """The blocks in which neither the variant nor, where it ran, the baseline was disturbed in this part of its
    turn."""
    partners = (
        [variant] if variant == session.baseline or session.error(session.baseline) else [variant, session.baseline]
    )
    trials = {name: session.of(name) for name in partners}
    if part is None:
        together = sorted(set.intersection(*(set(of) for of in trials.values())))
        return Undisturbed(tuple(together), len(together), ())
    usual = {name: _usual_megahertz(trials[name], part) for name in partners}
    together = sorted(set.intersection(*(set(of) for of in trials.values())))
    blocks, reasons = [], []
    for block in together:
        against = [
            f"{name} in block {block + 1}: {', '.join(why)}"
            for name in partners
            if (why := trials[name][block].disturbances(part, usual[name]))
        ]
        if against:
            reasons.append("; ".join(against))
        else:
            blocks.append(block)
    sliced = bool(together) and all(trials[name][block].sliced for name in partners for block in together)
    return Undisturbed(tuple(blocks), len(together), tuple(reasons), sliced)


def _usual_megahertz(trials: dict[int, Trial], part: Part) -> float | None:
    readings = [trial.reading(part) for trial in trials.values()]
    told = [reading.megahertz for reading in readings if reading is not None and reading.megahertz is not None]
    return float(np.median(told)) if told else None


def measured(session: Session, variant: str, metric: str, workload: Workload | None = None) -> Measurement:
    """One figure of one variant, with its ratio to the baseline; `workload` for the metrics that belong to one."""
    figure = OF_A_PROCESS[metric] if workload is None else OF_A_WORKLOAD[metric](workload)
    part = PART.get(metric, "timed")
    kept = kept_blocks(session, variant, part)
    times_B = _figures(session, variant, figure, kept)
    method = f"{_runtime(session, variant)}; {session.protocol.describe(workload)}; median of {kept.describe()}"
    problem = _problem(session, variant, kept) or _not_numbers(times_B)
    if problem:
        return Measurement(metric=metric, value=NAN, samples=len(kept.blocks), method=method, invalid=problem)
    measurement = Measurement(
        metric=metric,
        value=float(np.median(times_B)),
        samples=len(times_B),
        method=method + "".join(f"; {remark}" for remark in _remarks(session, variant, metric, workload, kept)),
        interval=median_interval(times_B, confidence=SHOWN),
        bounds=median_interval(times_B, confidence=JUDGED),
    )
    return (
        measurement if variant == session.baseline else _against_baseline(session, measurement, times_B, figure, kept)
    )


def _against_baseline(
    session: Session, measurement: Measurement, times_B: NDArray[np.float64], figure: Figure, kept: Undisturbed
) -> Measurement:
    baseline_kept = kept_blocks(session, session.baseline, PART.get(measurement.metric, "timed"))
    problem = _problem(session, session.baseline, baseline_kept)
    baseline_B = _figures(session, session.baseline, figure, kept)
    problem = problem or _not_numbers(baseline_B)
    if problem:
        return measurement.model_copy(update={"method": f"{measurement.method}; no ratio: the baseline: {problem}"})
    how = "ratio by the t interval of log ratios within blocks"
    objection = bootstrap_objection(times_B, baseline_B, seed=session.protocol.seed)
    return measurement.model_copy(
        update={
            "ratio": paired_ratio(times_B, baseline_B),
            "change": paired_change(times_B, baseline_B),
            "method": "; ".join(part for part in (measurement.method, how, objection) if part),
        }
    )


def _figures(session: Session, variant: str, figure: Figure, kept: Undisturbed) -> NDArray[np.float64]:
    trials = session.of(variant)
    values = [figure(trials[block]) if block in trials else None for block in kept.blocks]
    return np.array([NAN if value is None else value for value in values], dtype=np.float64)


def _problem(session: Session, variant: str, kept: Undisturbed) -> str:
    """Why a variant's blocks cannot be used, or empty."""
    if session.pending is not None:
        return session.pending.reason
    error = session.error(variant)
    if error:
        return f"the variant {variant!r} did not run: {error}"
    if not kept.taken:
        return f"the variant {variant!r} did not run"
    if len(kept.reasons) > MOST_LEFT_OUT * kept.taken:
        first = kept.reasons[0]
        disturbed = f"{len(kept.reasons)} of {kept.taken} blocks were disturbed (such as {first})"
        return f"the machine was too busy: {disturbed}; stop what else runs, and time it again"
    if len(kept.blocks) < FEWEST:
        return f"expected at least {FEWEST} undisturbed blocks, got {len(kept.blocks)} of {kept.taken}"
    return ""


def _not_numbers(times_B: NDArray[np.float64]) -> str:
    good = bool(np.isfinite(times_B).all() and (times_B > 0).all())
    return "" if good else "a block's figure is missing, zero, negative or not a number"


def _runtime(session: Session, variant: str) -> str:
    return next((trial.runtime for trial in session.trials if trial.variant == variant and trial.runtime), variant)


def single_steps(session: Session, variant: str, workload: Workload) -> list[float]:
    """Every decode step of a variant on a workload, in seconds, of the blocks that count."""
    trials = session.of(variant)
    times = [trials[block].times(workload) for block in kept_blocks(session, variant).blocks]
    return [step for of_block in times if of_block is not None for step in of_block.steps]


def _remarks(session: Session, variant: str, metric: str, workload: Workload | None, kept: Undisturbed) -> list[str]:
    """The tail of single steps, and what a reader should doubt."""
    trials = [session.of(variant)[block] for block in kept.blocks]
    part = PART.get(metric, "timed")
    readings = [trial.reading(part) for trial in trials] if part is not None else []
    untold = sorted({what for reading in readings if reading is not None for what in reading.untold})
    remarks = [f"this system does not tell of {', '.join(untold)}"] if untold else []
    if workload is None:
        return remarks
    times = [times for trial in trials if (times := trial.times(workload)) is not None]
    restless = sum(not of_block.settled for of_block in times)
    remarks += [f"warm-up did not become steady in {restless} of {len(trials)} blocks"] if restless else []
    if metric != "decode_latency":
        return remarks
    tails = percentiles(single_steps(session, variant, workload))
    told = (
        f"p{percent:g} {describe_percentile(value, SAMPLES_FOR_PERCENTILE[percent])}"
        for percent, value in tails.items()
    )
    return [*remarks, f"single steps: {', '.join(told)}"]
