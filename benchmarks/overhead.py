"""What the harness itself costs: variants of a known duration, and what the benchmark says of them.

    python -m benchmarks.overhead           a table: known duration of a step, what was measured, the difference

A clocked variant waits, without sleeping, until the processor's own counter has reached the end of its step, so its
duration is known to a fraction of a microsecond however fast the machine is. What is measured beyond is the harness: a
call, two readings of the clock and an append; the 10th percentile, since other load on the machine only adds. Sleeping
would not do: a timer's slack alone is 50 microseconds.

`open_clocked` opens such a variant from a folder, for benchmarks that must know the truth: clocked.json holds the
seconds of a prompt and of a step, such as {"prefill": 0.01, "decode": 0.002}.
"""

import json
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compress.stage import FormatName
from evaluation.latency import Variant
from evaluation.latency.timing import timed

OPENER = "benchmarks.overhead:open_clocked"
STEPS = (0.0005, 0.002, 0.01)
COUNT = 200
MOST = 0.01
NANOSECONDS = 1_000_000_000


class Clocked:
    """A contender whose every step takes as long as it says."""

    runtime = "a clock"

    def __init__(self, prefill: float, decode: float) -> None:
        self._prefill, self._decode = round(prefill * NANOSECONDS), round(decode * NANOSECONDS)

    def decoding(self, ids_BT: NDArray[np.int64], tokens: int) -> Variant:
        return Variant(prefill=lambda: wait(self._prefill), decode=lambda: wait(self._decode))


def wait(nanoseconds: int) -> None:
    """Come back as soon as so much time has passed."""
    clock = time.perf_counter_ns
    end = clock() + nanoseconds
    while clock() < end:
        pass


def open_clocked(folder: Path, format: FormatName, threads: int) -> Clocked:
    """A contender from the seconds in clocked.json."""
    return Clocked(**json.loads((folder / "clocked.json").read_text(encoding="utf-8")))


def overhead(seconds: float, count: int = COUNT) -> float:
    """Seconds by which the harness says more than the truth, the 10th percentile of so many steps."""
    variant = Clocked(prefill=seconds, decode=seconds).decoding(np.zeros((1, 1), dtype=np.int64), 1)
    return float(np.percentile(timed(variant.decode, count), 10)) - seconds


def main() -> None:
    """Print the table."""
    print(f"What the harness adds to a step of known duration: the 10th percentile of {COUNT} steps.\n")
    print("| step | measured beyond it | share |\n|---|---|---|")
    for seconds in STEPS:
        extra = overhead(seconds)
        print(f"| {seconds * 1e3:g} ms | {extra * 1e6:.2f} µs | {extra / seconds:.3%} |")
    print(f"\nWanted: less than {MOST:.0%} of a step of 2 ms.")


if __name__ == "__main__":
    main()
