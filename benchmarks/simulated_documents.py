"""Whether the intervals and gates of a perplexity ratio hold what they promise, on documents whose truth is known.

    python -m benchmarks.simulated_documents      the table (also at the end of `python -m benchmarks.simulations`)

A simulated experiment goes through the code that a real one goes through: the sums of each document, the bootstrap, the
bounds, the gate. Only the documents are made up:

    tokens     lognormal about 300, at least 40
    baseline   each document has its own mean, 3.2 nats with a standard deviation of 0.35; 2 nats of noise on each token
    cost       what compression costs each document: normal (0.05, 0.02) plus exponential (0.02), so that a few suffer
               far more than the rest; 0.07 nats on average, and 0.25 nats of noise on each token

Made up too neatly: real documents come in kinds, and one that is missing from the test text is missing from the truth.
"""

import argparse
import math

import numpy as np
from numpy.typing import NDArray

from evaluation.gate import Limit, judge
from evaluation.measurement import JUDGED, Measurement, Ratio
from evaluation.quality import BASELINE_NLL, NLL, RATIOS, TOKENS
from evaluation.statistics import Bootstrap

Floats = NDArray[np.float64]
TRUTH = math.exp(0.07)
"""The perplexity ratio that all documents of this kind together have."""
RESAMPLES = 1000
MARGIN = 1.02
"""How far a gate's limit lies from the truth, as a factor, where it is not on it."""


def paired_documents(generator: np.random.Generator, count: int) -> Floats:
    """Sums as quality has them, [U, K]: documents easy and hard, each with its own cost of compression."""
    tokens_U = np.maximum(40, generator.lognormal(math.log(300), 0.5, count)).round()
    cost_U = generator.normal(0.05, 0.02, count) + generator.exponential(0.02, count)
    sums_UK = np.zeros((count, BASELINE_NLL + 1))
    sums_UK[:, TOKENS] = tokens_U
    sums_UK[:, BASELINE_NLL] = tokens_U * generator.normal(3.2, 0.35, count)
    sums_UK[:, BASELINE_NLL] += 2.0 * generator.normal(0, 1, count) * np.sqrt(tokens_U)
    noise_U = 0.25 * generator.normal(0, 1, count) * np.sqrt(tokens_U)
    sums_UK[:, NLL] = sums_UK[:, BASELINE_NLL] + tokens_U * cost_U + noise_U
    return sums_UK


def experiment(generator: np.random.Generator, count: int, seed: int) -> Measurement:
    """One test text of so many documents, measured."""
    bootstrap = Bootstrap.draw(paired_documents(generator, count), resamples=RESAMPLES, seed=seed)
    found = bootstrap.compare(RATIOS["perplexity"], "log")
    return Measurement(
        metric="perplexity",
        value=found.value,
        samples=count,
        method="simulated",
        interval=found.interval,
        bounds=found.bounds,
        ratio=Ratio(**dict(found)),
    )


def shares(count: int, experiments: int = 2000, *, seed: int = 21) -> dict[str, float]:
    """How often the 95 % interval holds the truth, and how often a gate is wrong, of so many experiments.

    Keys: "covered"; "wrong PASS" and "wrong FAIL" of a gate whose limit is the truth itself (5 % each are promised);
    "PASS" and "FAIL" of gates whose limits lie a `MARGIN` to the right and to the left of it.
    """
    generator = np.random.default_rng(seed)
    limits = {"wrong PASS": TRUTH, "wrong FAIL": TRUTH, "PASS": TRUTH * MARGIN, "FAIL": TRUTH / MARGIN}
    told = dict.fromkeys(("covered", *limits), 0)
    for number in range(experiments):
        measured = experiment(generator, count, number)
        assert measured.interval is not None
        told["covered"] += measured.interval.low <= TRUTH <= measured.interval.high
        for name, limit in limits.items():
            (result,) = judge({"perplexity": Limit(max_ratio=limit)}, {"perplexity": measured})
            told[name] += result.verdict == name.removeprefix("wrong ")
    return {name: number / experiments for name, number in told.items()}


def table(seed: int = 21, *, experiments: int = 2000) -> str:
    """Everything, as Markdown."""
    lines = [
        f"Perplexity ratio of {TRUTH:.4f}, {experiments:,} experiments each, one-sided {(1 + JUDGED) / 2:.0%} bounds:",
        "",
        f"| documents | 95 % interval holds the truth | wrong PASS on the limit | wrong FAIL on the limit | "
        f"PASS {MARGIN - 1:.0%} inside | FAIL {MARGIN - 1:.0%} outside |",
        "|---|---|---|---|---|---|",
    ]
    for count in (12, 24, 40, 80):
        found = shares(count, experiments, seed=seed)
        lines.append(f"| {count} | " + " | ".join(f"{share:.1%}" for share in found.values()) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="What the verdicts and intervals of a perplexity ratio are worth.")
    parser.add_argument("--seed", type=int, default=21)
    print(table(parser.parse_args().seed))


if __name__ == "__main__":
    main()
