"""Two variants against each other: the ratio of their times, how sure it is, and how many blocks would settle it.

With x_b = log(time of the variant in block b / time of the baseline in block b), over B blocks,

    ratio       exp(mean x)
    interval    exp(mean x +- t_{B-1} * sd(x) / sqrt(B))                  Student's t
    check       the bootstrap-t of blocks of the same mean; where an end lies further from t's than `DISAGREES` of
                t's half width, the method says so

A block's time is a median over its own steps, and both variants of a block ran within seconds, so slow drift cancels in
x_b and single slow steps do not count. What is left is near normal, on a log scale where twice and half are alike.

    blocks      the smallest B at which |log limit - mean x| reaches (t_{B-1, 0.95} + z_power) * sd(x) / sqrt(B)

Percentiles need samples: MLPerf's early-stopping rule at 99 % confidence gives 64 for p90, 130 for p95, 662 for p99.

Not covered: several variants at once (each ratio is judged by itself), and blocks that depend on each other.

Legend: B blocks.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evaluation.measurement import JUDGED, SHOWN, Change, Interval, Ratio
from evaluation.statistics import Bootstrap

Floats = NDArray[np.float64]
SAMPLES_FOR_PERCENTILE: dict[float, int] = {50: 1, 90: 64, 95: 130, 99: 662, 99.9: 6_636}
"""MLPerf inference rules, "early stopping", at 99 % confidence; the median is no tail, and any sample has one."""
DISAGREES = 0.75
"""On normal data of 10 blocks the two part so far in 4 of 100 sessions; with a block 12 deviations off in all."""
ENOUGH_FOR_BOOTSTRAP = 10
"""Blocks; of fewer the bootstrap knows too little to check anything."""
POWER = 0.9
MOST_BLOCKS = 10_000


def t_interval(values_B: Floats, confidence: float = SHOWN) -> Interval:
    """Of the mean of independent values, at least two."""
    from scipy.special import stdtrit

    half = float(stdtrit(len(values_B) - 1, 0.5 + confidence / 2) * values_B.std(ddof=1) / math.sqrt(len(values_B)))
    mean = float(values_B.mean())
    return Interval(low=mean - half, high=mean + half, confidence=confidence)


def paired_ratio(times_B: Floats, baseline_B: Floats) -> Ratio:
    """The ratio of positive times that were taken in the same blocks, at least two."""
    logs_B = np.log(times_B) - np.log(baseline_B)
    return Ratio(
        value=math.exp(logs_B.mean()),
        interval=_exp(t_interval(logs_B, SHOWN)),
        bounds=_exp(t_interval(logs_B, JUDGED)),
    )


def paired_change(times_B: Floats, baseline_B: Floats) -> Change:
    """The mean difference of times that were taken in the same blocks, at least two."""
    differences_B = times_B - baseline_B
    return Change(
        value=float(differences_B.mean()),
        interval=t_interval(differences_B, SHOWN),
        bounds=t_interval(differences_B, JUDGED),
    )


def _exp(interval: Interval) -> Interval:
    return Interval(low=math.exp(interval.low), high=math.exp(interval.high), confidence=interval.confidence)


def bootstrap_objection(times_B: Floats, baseline_B: Floats, *, seed: int = 0) -> str:
    """What a bootstrap of blocks holds against the t interval of their ratio; empty where they agree."""
    if len(times_B) < ENOUGH_FOR_BOOTSTRAP:
        return ""
    logs_B = np.log(times_B) - np.log(baseline_B)
    ours = t_interval(logs_B)
    sums_B2 = np.stack([logs_B, np.ones_like(logs_B)], axis=1)
    theirs = Bootstrap.draw(sums_B2, seed=seed).interval(lambda sums: sums[..., 0] / sums[..., 1])
    half = (ours.high - ours.low) / 2
    if theirs is None or max(abs(theirs.low - ours.low), abs(theirs.high - ours.high)) <= DISAGREES * half:
        return ""
    low, high = math.exp(theirs.low), math.exp(theirs.high)
    return f"a bootstrap of blocks disagrees and gives {low:.3f} to {high:.3f}: some blocks are unlike the others"


def blocks_to_decide(
    ratio: Ratio, blocks: int, limit: float, *, power: float = POWER, fewest: int | None = None
) -> int | None:
    """How many blocks in all would probably settle whether a ratio keeps `limit`.

    Args:
        ratio: with its interval, from `paired_ratio` over `blocks` blocks.
        power: the chance of a decision that is asked for.
        fewest: of a benchmark that is yet to be planned; None: `blocks`, which are there already.

    Returns:
        At least `fewest`; None where the ratio is so near the limit that `MOST_BLOCKS` would not do, or unknown.
    """
    from scipy.special import ndtri, stdtrit

    if ratio.interval is None or blocks < 2 or not ratio.value > 0 or not limit > 0:
        return None
    t = float(stdtrit(blocks - 1, 0.5 + ratio.interval.confidence / 2))
    deviation = (math.log(ratio.interval.high) - math.log(ratio.value)) / t * math.sqrt(blocks)
    distance = abs(math.log(limit) - math.log(ratio.value))
    count_N = np.arange(max(2, blocks if fewest is None else fewest), MOST_BLOCKS + 1)
    reach_N = (stdtrit(count_N - 1, 0.5 + JUDGED / 2) + ndtri(power)) * deviation / np.sqrt(count_N)
    enough_N = count_N[reach_N <= distance]
    return int(enough_N[0]) if len(enough_N) else None


def percentiles(times: Sequence[float]) -> dict[float, float | None]:
    """{50: seconds, 90: ...}; None for each that so few samples cannot carry."""
    return {
        percent: float(np.percentile(times, percent)) if len(times) >= needed else None
        for percent, needed in SAMPLES_FOR_PERCENTILE.items()
    }


def describe_percentile(seconds: float | None, needed: int) -> str:
    """Such as "2.31 ms" or "n/a (needs 662)"."""
    return f"n/a (needs {needed:,})" if seconds is None else f"{seconds * 1e3:.3g} ms"
