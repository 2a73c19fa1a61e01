"""The clock: how one arm is warmed up and timed, in the process that is its own.

    warm up     prompt and a few steps, again and again, until the last `AGREEING` runs lie within `SPREAD` of
                each other, or `MOST_RUNS` have been made (which is noted: `settled` is False)
    time        `prefills` prompts, and after the last one token - 1 further tokens, each by itself

A time runs from the call to its return, and an arm returns when its result is on the host: the token is known. The loop
between two readings of the clock is one call and one append, far below 1 % of a 2 ms step; `python -m
benchmarks.overhead` measures it.

Not covered: requests that arrive while others are answered.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from evaluation.latency.samples import Cell, CellTimes

AGREEING, SPREAD, MOST_RUNS = 3, 0.05, 12
WARM_STEPS = 8
NANOSECOND = 1e-9
Clock = Callable[[], int]
"""Nanoseconds, monotonic."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One contender on one cell. Both callables return only when the result is there (a GPU arm synchronizes)."""

    prefill: Callable[[], object]
    """Start over with the prompt, up to its next token."""
    decode: Callable[[], object]
    """One more token on the warm cache that `prefill` left."""
    problem: Callable[[], str] = lambda: ""
    """Asked after the clock has stopped: why what was computed is no result (logits that are not numbers), or empty."""


def warm_up(arm: Arm, steps: int, clock: Clock = time.perf_counter_ns) -> tuple[int, bool]:
    """Run prompt and steps until they are steady: how many runs that took, and whether they became steady."""
    runs: list[int] = []
    while len(runs) < MOST_RUNS:
        started = clock()
        arm.prefill()
        for _ in range(min(steps, WARM_STEPS)):
            arm.decode()
        runs.append(clock() - started)
        last = runs[-AGREEING:]
        if len(last) == AGREEING and max(last) <= (1 + SPREAD) * min(last):
            return len(runs), True
    return len(runs), False


def time_cell(arm: Arm, cell: Cell, *, prefills: int, clock: Clock = time.perf_counter_ns) -> CellTimes:
    """Warm up, then time `prefills` prompts and the further tokens of the last one."""
    warmups, settled = warm_up(arm, cell.tokens - 1, clock)
    return CellTimes(
        cell=cell,
        prefill=timed(arm.prefill, prefills, clock),
        steps=timed(arm.decode, cell.tokens - 1, clock),
        warmups=warmups,
        settled=settled,
    )


def timed(call: Callable[[], object], times: int, clock: Clock = time.perf_counter_ns) -> tuple[float, ...]:
    """Seconds of each of so many calls, one right after the other."""
    stamps = [clock()]
    for _ in range(times):
        call()
        stamps.append(clock())
    return tuple(float(seconds) for seconds in np.diff(stamps) * NANOSECOND)


def steady_step(arm: Arm, *, blocks: int, steps: int, settle: float = 0.05) -> float:
    """Seconds of one step of an arm that has no contender: the median over blocks of each block's median."""
    warm_up(arm, steps)
    medians = []
    for _ in range(blocks):
        time.sleep(settle)
        arm.prefill()
        medians.append(float(np.median(timed(arm.decode, steps))))
    return float(np.median(medians))
