"""The clock: how one variant is warmed up and timed, in the process that is its own.

    warm up     prompt and a few steps, again and again, until the last `AGREEING` runs lie within `SPREAD` of
                each other, or `MOST_RUNS` have been made (which is noted: `settled` is False)
    slices      `prefills` prompts, a slice each; then the tokens - 1 further tokens of the last one, `SLICE` at a time

Between two slices other variants may have theirs, so that what disturbs the machine for a second or two meets all of
them alike. A slice begins with a call that is not timed, which wakes threads and caches: a prompt where one takes less
than `WAKE`, a further token where the slice has more than one. Long prompts are timed less often: no more of them, from
the `FEWEST_PREFILLS`th on, once they took `ENOUGH` seconds together.

A time runs from the call to its return, and a variant returns when its result is on the host: the token is known. The
loop between two readings of the clock is one call and one append, far below 1 % of a 2 ms step; `python -m
benchmarks.overhead` measures it.

Not covered: requests that arrive while others are answered.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from evaluation.latency.record import Workload, WorkloadTimes

AGREEING, SPREAD, MOST_RUNS = 3, 0.05, 12
SLICE, WAKE = 5, 0.1
FEWEST_PREFILLS, ENOUGH = 3, 1.5
WARM_STEPS = 8
NANOSECOND = 1e-9
Clock = Callable[[], int]
"""Nanoseconds, monotonic."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One contender on one workload. Both callables return only when the result is there (a GPU variant
    synchronizes)."""

    prefill: Callable[[], object]
    """Start over with the prompt, up to its next token."""
    decode: Callable[[], object]
    """One more token on the warm cache that `prefill` left."""
    problem: Callable[[], str] = lambda: ""
    """Asked after the clock has stopped: why what was computed is no result (logits that are not numbers), or empty."""


def warm_up(variant: Variant, steps: int, clock: Clock = time.perf_counter_ns) -> tuple[int, bool]:
    """Run prompt and steps until they are steady: how many runs that took, and whether they became steady."""
    runs: list[int] = []
    while len(runs) < MOST_RUNS:
        started = clock()
        variant.prefill()
        for _ in range(min(steps, WARM_STEPS)):
            variant.decode()
        runs.append(clock() - started)
        last = runs[-AGREEING:]
        if len(last) == AGREEING and max(last) <= (1 + SPREAD) * min(last):
            return len(runs), True
    return len(runs), False


def pieces_of(workload: Workload, prefills: int) -> int:
    """How many pieces the timing of a workload has: the warm-up and every slice."""
    return 1 + prefills + math.ceil((workload.tokens - 1) / SLICE)


@dataclass(kw_only=True)
class WorkloadTimer:
    """One variant on one workload, in pieces."""

    variant: Variant
    workload: Workload
    prefills: int
    clock: Clock = time.perf_counter_ns
    _warm: tuple[int, bool] | None = None
    _prefill: list[float] = field(default_factory=list)
    _steps: list[float] = field(default_factory=list)
    _asked: int = 0
    _decoded: int = 0

    def go_on(self) -> None:
        """Take the next piece."""
        if self._warm is None:
            self._warm = warm_up(self.variant, self.workload.tokens - 1, self.clock)
        elif self._asked < self.prefills:
            self._asked += 1
            self._time_prompt()
        else:
            count = min(SLICE, self.workload.tokens - 1 - self._decoded)
            taken = timed(self.variant.decode, count, self.clock)
            self._steps += taken[1:] or taken
            self._decoded += count

    def _time_prompt(self) -> None:
        if len(self._prefill) >= FEWEST_PREFILLS and sum(self._prefill) > ENOUGH:
            return
        if not self._prefill or self._prefill[-1] < WAKE:
            self.variant.prefill()
        self._prefill += timed(self.variant.prefill, 1, self.clock)

    def times(self) -> WorkloadTimes:
        """What the clock said, once all pieces are taken."""
        warmups, settled = self._warm or (0, False)
        return WorkloadTimes(
            workload=self.workload,
            prefill=tuple(self._prefill),
            steps=tuple(self._steps),
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


def steady_step(variant: Variant, *, blocks: int, steps: int, settle: float = 0.05) -> float:
    """Seconds of one step of a variant that has no contender: the median over blocks of each block's median."""
    warm_up(variant, steps)
    medians = []
    for _ in range(blocks):
        time.sleep(settle)
        variant.prefill()
        medians.append(float(np.median(timed(variant.decode, steps))))
    return float(np.median(medians))
