"""What compression bought in time: prefill and decode latency of several arms, timed so that drift favors none.

Arms (the PyTorch baseline, the ONNX bundle) take turns in blocks, in a new random order in each block, so a machine
that slows down or is shared slows all of them alike. Timing one arm after the other under 3 % drift gives "95 %"
intervals that hold the truth 14 % of the time; interleaved blocks hold what they promise. One turn of one arm:

    settle (idle, so that the last arm's spinning threads sleep)  ->  one untimed prefill  ->  one timed prefill  ->
    `tokens` timed steps

A block's decode time is the median of its steps. The figure is the median over blocks; the ratio is the median over
blocks of (arm / baseline) *within the block*, with a bootstrap interval over blocks. The ratio of two medians is
another number, and an unpaired one.

Percentiles need samples: `percentiles` gives only those that MLPerf's early-stopping rule would allow.

Not covered: throughput under load, batches larger than one, and energy.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from evaluation.measurement import Measurement, Ratio, Value
from evaluation.statistics import median_interval

SAMPLES_FOR_PERCENTILE: dict[float, int] = {90: 64, 95: 130, 99: 662, 99.9: 6_636}
"""MLPerf inference rules, "early stopping", at 99 % confidence."""

_NANOSECONDS = 1e-9


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One contender. Both callables return only when the result is there (a GPU arm synchronizes)."""

    prefill: Callable[[], object]
    """Start over with the prompt, up to its next token."""
    decode: Callable[[], object]
    """One more token on the warm cache that `prefill` left."""


class Samples(Value):
    """What the clock said about one arm, in seconds."""

    prefill: tuple[float, ...]
    """One per block."""
    decode: tuple[tuple[float, ...], ...]
    """The steps of each block."""


def time_arms(
    arms: Mapping[str, Arm],
    *,
    blocks: int,
    tokens: int,
    seed: int = 0,
    warmup: int = 2,
    settle: float = 0.05,
    on_block: Callable[[int], None] = lambda blocks: None,
    clock: Callable[[], int] = time.perf_counter_ns,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Samples]:
    """Time every arm in `blocks` interleaved blocks of one prefill and `tokens` steps.

    Args:
        warmup: whole turns of each arm that are not kept.
        settle: seconds of idleness before each turn.
        on_block: told 1 after each kept block.
        clock: nanoseconds.
    """
    if blocks < 1 or tokens < 1:
        raise ValueError(f"expected at least one block and one token, got {blocks} and {tokens}")
    generator = np.random.default_rng(seed)
    names = sorted(arms)
    turns: dict[str, list[tuple[float, ...]]] = {name: [] for name in names}
    for block in range(-warmup, blocks):
        for name in (names[index] for index in generator.permutation(len(names))):
            sleep(settle)
            turn = _turn(arms[name], tokens, clock)
            if block >= 0:
                turns[name].append(turn)
        if block >= 0:
            on_block(1)
    return {
        name: Samples(prefill=tuple(turn[0] for turn in kept), decode=tuple(turn[1:] for turn in kept))
        for name, kept in turns.items()
    }


def _turn(arm: Arm, tokens: int, clock: Callable[[], int]) -> tuple[float, ...]:
    """Seconds of one prefill and then of each of `tokens` steps."""
    arm.prefill()
    stamps = [clock()]
    arm.prefill()
    stamps.append(clock())
    for _ in range(tokens):
        arm.decode()
        stamps.append(clock())
    return tuple((later - earlier) * _NANOSECONDS for earlier, later in pairwise(stamps))


def percentiles(times: Sequence[float]) -> dict[float, float]:
    """The median and the higher percentiles that so many samples can carry, {50: seconds, 90: ...}; {} for none."""
    if not times:
        return {}
    allowed = [percent for percent, needed in SAMPLES_FOR_PERCENTILE.items() if len(times) >= needed]
    return {percent: float(np.percentile(times, percent)) for percent in (50, *allowed)}


def latency_measurements(
    samples: Mapping[str, Samples], *, baseline: str, runtimes: Mapping[str, str], protocol: str, seed: int = 0
) -> dict[str, list[Measurement]]:
    """Prefill and decode latency of each arm, with its paired ratio to the baseline arm.

    Args:
        samples: from one call of `time_arms`.
        runtimes: what ran each arm, such as {"final": "ONNX Runtime 1.31.1, CPU, IO binding"}; one that is missing from
            `samples` comes back as an invalid measurement.
        protocol: what they share, such as "2 threads, prompt of 128 tokens, 64 steps, batch 1, greedy".
    """
    prefill = {name: list(arm.prefill) for name, arm in samples.items()}
    decode = {name: [_median(steps) for steps in arm.decode] for name, arm in samples.items()}
    found: dict[str, list[Measurement]] = {}
    for name, runtime in runtimes.items():
        steps = [step for block in samples[name].decode for step in block] if name in samples else []
        method = f"{runtime}; {protocol}"
        found[name] = [
            _measure("prefill_latency", prefill, name, baseline, method, seed),
            _measure("decode_latency", decode, name, baseline, method + _describe_tail(steps), seed),
        ]
    return found


def _median(steps: Sequence[float]) -> float:
    return float(np.median(steps)) if steps else float("nan")


def _describe_tail(steps: Sequence[float]) -> str:
    tails = {percent: value for percent, value in percentiles(steps).items() if percent > 50}
    text = ", ".join(f"p{percent:g} {value * 1e3:.3g} ms" for percent, value in tails.items())
    return f"; single steps: {text}" if tails else ""


def _measure(
    metric: str, times: Mapping[str, list[float]], name: str, baseline: str, method: str, seed: int
) -> Measurement:
    times_B = np.array(times.get(name, []), dtype=np.float64)
    blocks = f"median of {len(times_B)} randomly interleaved blocks, 95 % interval by bootstrap of blocks"
    problem = _problem(times, name, baseline)
    if problem:
        return Measurement(
            metric=metric, value=math.nan, samples=len(times_B), method=f"{method}; {blocks}", invalid=problem
        )
    ratio = None
    if name != baseline:
        ratio_B = times_B / np.array(times[baseline])
        ratio = Ratio(value=float(np.median(ratio_B)), interval=median_interval(ratio_B, seed=seed))
        blocks += "; ratio to the baseline paired within blocks"
    return Measurement(
        metric=metric,
        value=float(np.median(times_B)),
        samples=len(times_B),
        method=f"{method}; {blocks}",
        interval=median_interval(times_B, seed=seed),
        ratio=ratio,
    )


def _problem(times: Mapping[str, list[float]], name: str, baseline: str) -> str:
    """Why this arm's times cannot be used, or empty."""
    for arm in (name, baseline):
        if not times.get(arm):
            return f"the arm {arm!r} did not run"
    if len(times[name]) < 2:
        return f"expected at least two timed blocks, got {len(times[name])}"
    if len(times[name]) != len(times[baseline]):
        return f"unpaired: {len(times[name])} blocks against the baseline's {len(times[baseline])}"
    if not all(math.isfinite(value) and value > 0 for value in times[name] + times[baseline]):
        return "a block's time is zero, negative or not a number"
    return ""
