"""Whether the latency benchmark's verdicts and intervals hold what they promise, on machines whose truth is known.

    python -m benchmarks.simulations            the table
    python -m benchmarks.simulations --seed 1   with other random numbers

A simulated session goes through the code that a real one goes through: which blocks count, the figures, the t interval,
the gate. Only the clock and the kernel's counters are made up. The time of one step of a variant is

    step = true time * drift * process * jitter, and now and then an outlier or a theft

    drift      a random walk on the log scale over all trials of the session, standard deviation 3 % at its end
    process    lognormal, 0.5 %: where a fresh process happens to lie in memory
    jitter     lognormal, 5 %, each step by itself
    outlier    1 % of the steps take longer by an exponential share with mean 1 (twice as long on average)
    theft      5 % of the trials lose a run of their steps, of a length drawn evenly, to other guests: these take longer
               by a share that is exponential with mean 0.3. The kernel counts what was stolen in ticks of 10 ms

A theft is found, or not, by the rule that real trials are held to: what is too small for it stays in and does its harm.

Made up too neatly: real outliers come in swarms, real drift has steps, and a neighbor who steals may favor one variant
(one that idles less).

Legend: E experiments, B blocks, A variants (the baseline first), S steps.
"""

import argparse
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from benchmarks import simulated_documents
from evaluation.gate import Limit, judge
from evaluation.latency import (
    Protocol,
    Reading,
    Session,
    Trial,
    Workload,
    WorkloadTimes,
    disturbed,
    measured,
    paired_ratio,
)

Floats = NDArray[np.float64]
VARIANTS = ("baseline", "other")
TRUE_STEP = 0.008
"""Seconds of the baseline's step."""
STEPS, BLOCKS, CPUS = 63, 10, 2
TICK = 0.01
MARGIN = 1.02


@dataclass(frozen=True, kw_only=True)
class Noise:
    """The machine; see the head of this file."""

    drift: float = 0.03
    process: float = 0.005
    jitter: float = 0.05
    outliers: float = 0.01
    outlier_share: float = 1.0
    thefts: float = 0.05
    theft_share: float = 0.3


@dataclass(frozen=True, eq=False)
class Simulated:
    """Sessions with the same truth."""

    steps_EBAS: Floats
    stolen_EBA: Floats
    """Seconds, in whole ticks."""

    def reading(self, experiment: int, block: int, variant: int) -> Reading:
        """What the kernel tells of a trial."""
        seconds = float(self.steps_EBAS[experiment, block, variant].sum())
        busy = seconds * CPUS
        stolen = float(self.stolen_EBA[experiment, block, variant])
        return Reading(seconds=seconds, cpus=CPUS, own=busy, busy=busy, stolen=stolen, held_back=0.0)

    def kept(self, experiment: int) -> NDArray[np.bool_]:
        """Which blocks count: (B,)."""
        blocks = range(self.steps_EBAS.shape[1])
        return np.array(
            [
                not any(disturbed(self.reading(experiment, block, variant)) for variant in range(len(VARIANTS)))
                for block in blocks
            ]
        )

    def session(self, experiment: int) -> Session:
        """As the benchmark would have left it."""
        workload = Workload(prompt=128, tokens=self.steps_EBAS.shape[-1] + 1)
        trials = tuple(
            self._trial(experiment, block, variant, workload)
            for block in range(self.steps_EBAS.shape[1])
            for variant in range(len(VARIANTS))
        )
        return Session(protocol=Protocol(workloads=(workload,), threads=CPUS), variants=VARIANTS, trials=trials)

    def _trial(self, experiment: int, block: int, variant: int, workload: Workload) -> Trial:
        steps = tuple(self.steps_EBAS[experiment, block, variant].tolist())
        return Trial(
            variant=VARIANTS[variant],
            block=block,
            place=variant,
            started=datetime(2026, 1, 1, tzinfo=UTC),
            process=1,
            workloads=(WorkloadTimes(workload=workload, prefill=(TRUE_STEP,), steps=steps, warmups=3, settled=True),),
            timed=self.reading(experiment, block, variant),
        )


def simulate(
    experiments: int,
    *,
    ratio: float = 1.0,
    blocks: int = BLOCKS,
    seed: int = 0,
    interleaved: bool = True,
    noise: Noise | None = None,
) -> Simulated:
    """Sessions in which the second variant truly takes `ratio` times as long as the first.

    Args:
        interleaved: False: all trials of one variant, then all of the other, as a stopwatch in two terminals would.
    """
    noise, random = noise or Noise(), np.random.default_rng(seed)
    shape = (experiments, blocks, len(VARIANTS))
    walk_ET = np.cumsum(random.normal(size=(experiments, blocks * 2)), axis=1) * noise.drift / np.sqrt(blocks * 2)
    drift_EBA = np.take_along_axis(walk_ET, _when(random, shape, interleaved).reshape(experiments, -1), axis=1)
    scale_EBA = np.exp(drift_EBA.reshape(shape) + noise.process * random.normal(size=shape))
    steps_EBAS = TRUE_STEP * scale_EBA[..., None] * np.exp(noise.jitter * random.normal(size=(*shape, STEPS)))
    steps_EBAS[:, :, 1] *= ratio
    struck = random.random((*shape, STEPS)) < noise.outliers
    steps_EBAS *= 1 + struck * random.exponential(noise.outlier_share, size=(*shape, STEPS))
    lost_EBAS = steps_EBAS * _thefts(random, shape, noise)
    ticks_EBA = np.floor(lost_EBAS.sum(axis=-1) / TICK + random.random(shape))
    return Simulated(steps_EBAS + lost_EBAS, ticks_EBA * TICK)


def _when(random: np.random.Generator, shape: tuple[int, int, int], interleaved: bool) -> NDArray[np.int64]:
    """The number of each trial in the order in which they were taken: [E, B, A]."""
    _, blocks, variants = shape
    if not interleaved:
        return np.broadcast_to(np.arange(blocks)[:, None] + blocks * np.arange(variants), shape).copy()
    place_EBA = random.random(shape).argsort(axis=-1)
    return place_EBA + variants * np.arange(blocks)[:, None]


def _thefts(random: np.random.Generator, shape: tuple[int, int, int], noise: Noise) -> Floats:
    """By what share each step is prolonged: [E, B, A, S]."""
    hit_EBA = random.random(shape) < noise.thefts
    share_EBA = hit_EBA * random.exponential(noise.theft_share, size=shape)
    length_EBA = random.random(shape) * STEPS
    start_EBA = random.random(shape) * (STEPS - length_EBA)
    step_S = np.arange(STEPS)
    inside_EBAS = (step_S >= start_EBA[..., None]) & (step_S < (start_EBA + length_EBA)[..., None])
    return np.asarray(inside_EBAS * share_EBA[..., None], dtype=np.float64)


def verdicts(
    sessions: int, *, ratio: float, margin: float = MARGIN, blocks: int = BLOCKS, seed: int = 0
) -> Counter[str]:
    """What the gate says of `decode_latency` in so many sessions."""
    simulated, gates = (
        simulate(sessions, ratio=ratio, blocks=blocks, seed=seed),
        {"decode_latency": Limit(max_ratio=margin)},
    )
    told: Counter[str] = Counter()
    for number in range(sessions):
        session = simulated.session(number)
        found = measured(session, VARIANTS[1], "decode_latency", session.protocol.workloads[0])
        told[judge(gates, {"decode_latency": found})[0].verdict] += 1
    return told


def coverage(experiments: int, *, ratio: float = 1.0, seed: int = 0, interleaved: bool = True) -> float:
    """How often the 95 % interval of the ratio holds the truth."""
    simulated = simulate(experiments, ratio=ratio, seed=seed, interleaved=interleaved)
    median_EBA = np.median(simulated.steps_EBAS, axis=-1)
    held = 0
    for number in range(experiments):
        kept_B = simulated.kept(number)
        interval = paired_ratio(median_EBA[number, kept_B, 1], median_EBA[number, kept_B, 0]).interval
        assert interval is not None
        held += interval.low <= ratio <= interval.high
    return held / experiments


def table(seed: int = 0, *, sessions: int = 200, experiments: int = 2000) -> str:
    """Everything, as Markdown."""
    asked = [("identical", 1.0, BLOCKS), ("5 % slower", 1.05, BLOCKS), ("2 % slower: on the limit", 1.02, BLOCKS)]
    asked += [("identical, --quick", 1.0, 5), ("5 % slower, --quick", 1.05, 5), ("identical, --release", 1.0, 20)]
    lines = [
        f"At most {MARGIN} times the baseline, {sessions} sessions each:",
        "",
        "| truth | blocks | PASS | INCONCLUSIVE | FAIL |",
    ]
    lines.append("|---|---|---|---|---|")
    for name, ratio, blocks in asked:
        told = verdicts(sessions, ratio=ratio, blocks=blocks, seed=seed)
        shares = " | ".join(f"{told[word] / sessions:.1%}" for word in ("PASS", "INCONCLUSIVE", "FAIL"))
        lines.append(f"| {name} | {blocks} | {shares} |")
    lines += ["", f"How often the 95 % interval holds the truth, {experiments:,} sessions of {BLOCKS} blocks:", ""]
    lines += ["| protocol | coverage |", "|---|---|"]
    lines.append(f"| interleaved blocks, paired | {coverage(experiments, seed=seed):.1%} |")
    lines.append(f"| one variant after the other | {coverage(experiments, seed=seed, interleaved=False):.1%} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="What the latency benchmark's verdicts and intervals are worth.")
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    print(table(seed))
    print()
    print(simulated_documents.table(seed))


if __name__ == "__main__":
    main()
