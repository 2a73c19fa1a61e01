"""From a session's raw times to measurements: which blocks count, the figure of each arm, its ratio to the baseline.

    block's figure    prefill, decode: the median of its times; the others: one time per block
    arm's figure      the median over blocks, its interval by bootstrap of blocks
    ratio, change     paired within blocks: `paired.py`

A block in which either arm was disturbed (`machine_load.py`) is left out for both, and counted; an arm whose blocks
were left out for more than `MOST_LEFT_OUT`, or that has fewer than `FEWEST` left, is INVALID: the machine was too busy
to say anything. So is an arm that crashed, with its last words, or was left out, with the reason; the others still have
their figures. An arm that took part in the first blocks only is held against the baseline in those.

A turn whose warm-up did not settle counts, and is told of: a machine that is never steady is what users may have.
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
from evaluation.latency.record import Cell, Part, Session, Turn
from evaluation.measurement import JUDGED, SHOWN, Measurement
from evaluation.statistics import median_interval

MOST_LEFT_OUT = 0.5
FEWEST = 3
Figure = Callable[[Turn], float | None]
NAN = math.nan


def _prefill(cell: Cell) -> Figure:
    return lambda turn: None if (times := turn.times(cell)) is None else float(np.median(times.prefill))


def _decode(cell: Cell) -> Figure:
    def figure(turn: Turn) -> float | None:
        times = turn.times(cell)
        return None if times is None or not times.steps else float(np.median(times.steps))

    return figure


def _end_to_end(cell: Cell) -> Figure:
    return lambda turn: None if (times := turn.times(cell)) is None else times.end_to_end


def _throughput(cell: Cell) -> Figure:
    def figure(turn: Turn) -> float | None:
        times = turn.times(cell)
        return None if times is None or not times.end_to_end > 0 else cell.tokens * cell.batch / times.end_to_end

    return figure


OF_A_CELL: dict[str, Callable[[Cell], Figure]] = {
    "prefill_latency": _prefill,
    "decode_latency": _decode,
    "end_to_end_latency": _end_to_end,
    "throughput": _throughput,
}
"""Metric -> a block's figure of it, for each cell."""
OF_A_PROCESS: dict[str, Figure] = {
    "open_latency": lambda turn: turn.open_seconds,
    "first_run_latency": lambda turn: turn.first_run,
    "peak_memory": lambda turn: turn.peak_memory,
    "gpu_memory": lambda turn: turn.gpu_memory,
}
"""Metric -> a block's figure of it, of the process as a whole."""
PART: dict[str, Part | None] = {
    "open_latency": "opening",
    "first_run_latency": "opening",
    "peak_memory": None,
    "gpu_memory": None,
}
"""Which part of a turn must have been undisturbed for a metric; None: none, "timed" where nothing is said."""
_WHERE_THERE_IS_ONE = frozenset({"gpu_memory"})


@dataclass(frozen=True)
class Kept:
    """The blocks that count for an arm, and why others do not."""

    blocks: tuple[int, ...]
    taken: int
    reasons: tuple[str, ...]
    """One for each block that is left out."""
    sliced: bool = False
    """Whether the arms alternated within every block."""

    def describe(self) -> str:
        """Such as "9 of 10 randomly interleaved blocks, a fresh process each (left out: stolen 5%)"."""
        counted = f"{len(self.blocks)} of {self.taken}" if self.reasons else f"{self.taken}"
        slices = ", all arms in alternating slices" if self.sliced else ""
        left_out = f" (left out as disturbed: {'; '.join(self.reasons)})" if self.reasons else ""
        return f"{counted} randomly interleaved blocks, a fresh process each{slices}{left_out}"


def latency_measurements(session: Session) -> dict[str, list[Measurement]]:
    """All that a session of one cell says about each arm; of those left out, why.

    Raises:
        ValueError: it has several cells, whose figures would have the same names.
    """
    if len(session.protocol.cells) != 1:
        raise ValueError(f"expected a session of one cell, got {len(session.protocol.cells)}; use cell_measurements")
    of_cell, of_process = cell_measurements(session, session.protocol.cells[0]), process_measurements(session)
    found = {arm: [*of_cell[arm], *of_process[arm]] for arm in session.arms}
    return found | {
        arm: [
            Measurement(metric=one.metric, value=NAN, samples=0, method="not timed", invalid=f"left out: {reason}")
            for one in found[session.baseline]
        ]
        for arm, reason in session.left_out.items()
    }


def cell_measurements(session: Session, cell: Cell) -> dict[str, list[Measurement]]:
    """Every arm's figures of one cell; of a cell with a single new token there is no decoding."""
    metrics = [metric for metric in OF_A_CELL if metric != "decode_latency" or cell.tokens > 1]
    return {arm: [measured(session, arm, metric, cell) for metric in metrics] for arm in session.arms}


def process_measurements(session: Session) -> dict[str, list[Measurement]]:
    """Every arm's cold start and memory; GPU memory only of arms that run on one."""
    found: dict[str, list[Measurement]] = {}
    for arm in session.arms:
        on_gpu = any(turn.gpu_memory is not None for turn in session.of(arm).values())
        metrics = [metric for metric in OF_A_PROCESS if metric not in _WHERE_THERE_IS_ONE or on_gpu]
        found[arm] = [measured(session, arm, metric) for metric in metrics]
    return found


def kept_blocks(session: Session, arm: str, part: Part | None = "timed") -> Kept:
    """The blocks in which neither the arm nor, where it ran, the baseline was disturbed in this part of its turn."""
    partners = [arm] if arm == session.baseline or session.error(session.baseline) else [arm, session.baseline]
    turns = {name: session.of(name) for name in partners}
    if part is None:
        together = sorted(set.intersection(*(set(of) for of in turns.values())))
        return Kept(tuple(together), len(together), ())
    usual = {name: _usual_megahertz(turns[name], part) for name in partners}
    together = sorted(set.intersection(*(set(of) for of in turns.values())))
    blocks, reasons = [], []
    for block in together:
        against = [
            f"{name} in block {block + 1}: {', '.join(why)}"
            for name in partners
            if (why := turns[name][block].disturbances(part, usual[name]))
        ]
        if against:
            reasons.append("; ".join(against))
        else:
            blocks.append(block)
    sliced = bool(together) and all(turns[name][block].sliced for name in partners for block in together)
    return Kept(tuple(blocks), len(together), tuple(reasons), sliced)


def _usual_megahertz(turns: dict[int, Turn], part: Part) -> float | None:
    readings = [turn.reading(part) for turn in turns.values()]
    told = [reading.megahertz for reading in readings if reading is not None and reading.megahertz is not None]
    return float(np.median(told)) if told else None


def measured(session: Session, arm: str, metric: str, cell: Cell | None = None) -> Measurement:
    """One figure of one arm, with its ratio to the baseline; `cell` for the metrics that belong to one."""
    figure = OF_A_PROCESS[metric] if cell is None else OF_A_CELL[metric](cell)
    part = PART.get(metric, "timed")
    kept = kept_blocks(session, arm, part)
    times_B = _figures(session, arm, figure, kept)
    method = f"{_runtime(session, arm)}; {session.protocol.describe(cell)}; median of {kept.describe()}"
    problem = _problem(session, arm, kept) or _not_numbers(times_B)
    if problem:
        return Measurement(metric=metric, value=NAN, samples=len(kept.blocks), method=method, invalid=problem)
    measurement = Measurement(
        metric=metric,
        value=float(np.median(times_B)),
        samples=len(times_B),
        method=method + "".join(f"; {remark}" for remark in _remarks(session, arm, metric, cell, kept)),
        interval=median_interval(times_B, confidence=SHOWN),
        bounds=median_interval(times_B, confidence=JUDGED),
    )
    return measurement if arm == session.baseline else _against_baseline(session, measurement, times_B, figure, kept)


def _against_baseline(
    session: Session, measurement: Measurement, times_B: NDArray[np.float64], figure: Figure, kept: Kept
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


def _figures(session: Session, arm: str, figure: Figure, kept: Kept) -> NDArray[np.float64]:
    turns = session.of(arm)
    values = [figure(turns[block]) if block in turns else None for block in kept.blocks]
    return np.array([NAN if value is None else value for value in values], dtype=np.float64)


def _problem(session: Session, arm: str, kept: Kept) -> str:
    """Why an arm's blocks cannot be used, or empty."""
    error = session.error(arm)
    if error:
        return f"the arm {arm!r} did not run: {error}"
    if not kept.taken:
        return f"the arm {arm!r} did not run"
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


def _runtime(session: Session, arm: str) -> str:
    return next((turn.runtime for turn in session.turns if turn.arm == arm and turn.runtime), arm)


def single_steps(session: Session, arm: str, cell: Cell) -> list[float]:
    """Every decode step of an arm on a cell, in seconds, of the blocks that count."""
    turns = session.of(arm)
    times = [turns[block].times(cell) for block in kept_blocks(session, arm).blocks]
    return [step for of_block in times if of_block is not None for step in of_block.steps]


def _remarks(session: Session, arm: str, metric: str, cell: Cell | None, kept: Kept) -> list[str]:
    """The tail of single steps, and what a reader should doubt."""
    turns = [session.of(arm)[block] for block in kept.blocks]
    part = PART.get(metric, "timed")
    readings = [turn.reading(part) for turn in turns] if part is not None else []
    untold = sorted({what for reading in readings if reading is not None for what in reading.untold})
    remarks = [f"this system does not tell of {', '.join(untold)}"] if untold else []
    if cell is None:
        return remarks
    times = [times for turn in turns if (times := turn.times(cell)) is not None]
    restless = sum(not of_block.settled for of_block in times)
    remarks += [f"warm-up did not become steady in {restless} of {len(turns)} blocks"] if restless else []
    if metric != "decode_latency":
        return remarks
    tails = percentiles(single_steps(session, arm, cell))
    told = (
        f"p{percent:g} {describe_percentile(value, SAMPLES_FOR_PERCENTILE[percent])}"
        for percent, value in tails.items()
    )
    return [*remarks, f"single steps: {', '.join(told)}"]
