"""Whether the benchmark is right about a real bundle: the same one twice, and one that is slowed by 5 %.

    python -m benchmarks.slowdown BUNDLE [--blocks 10] [--threads N]

Three variants in one session: the bundle, the bundle again, and the bundle with every prompt and step prolonged,
without sleeping, by 5 % of what it took. At a margin of 2 % the second must PASS and the third FAIL; exit code 0 where
both do, else 3. A machine that is not quiet says INVALID, and rightly so.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.overhead import wait
from compress.stage import FormatName
from evaluation.gate import Limit, judge
from evaluation.latency import Protocol, Session, Variant, Workload, workload_measurements
from evaluation.latency.figures import kept_blocks
from evaluation.machine import available_cores
from evaluation.units import format_ratio, format_ratio_interval
from export import bundle_folder
from export.runtime.model import BundleConfig
from recipes.formats import FORMATS
from recipes.formats.base import Device, LoadedModel
from recipes.measure.interleaving import BenchmarkTarget, new_session, pinned_cpus, run_trials

OPENER = "benchmarks.slowdown:open_slowed"
SLOWDOWN, MARGIN = 0.05, 1.02
METRICS = {"prefill_latency": "time to first token", "decode_latency": "time per token"}
TRUTH = {"same": "1.000", "slowed": f"{1 + SLOWDOWN:.3f}"}
EXPECTED = {"same": "PASS", "slowed": "FAIL"}


class Slowed:
    """A contender whose calls take longer than they need to."""

    def __init__(self, model: LoadedModel) -> None:
        self._model, self.runtime = model, f"{model.runtime}, slowed by {SLOWDOWN:.0%}"

    def decoding(self, ids_BT: NDArray[np.int64], tokens: int) -> Variant:
        variant = self._model.decoding(ids_BT, tokens)
        return Variant(prefill=prolonged(variant.prefill), decode=prolonged(variant.decode), problem=variant.problem)


def prolonged(call: Callable[[], object]) -> Callable[[], object]:
    """The call, and then a wait in proportion to it."""

    def slowed() -> object:
        started = time.perf_counter_ns()
        answer = call()
        wait(round(SLOWDOWN * (time.perf_counter_ns() - started)))
        return answer

    return slowed


def open_slowed(folder: Path, format: FormatName, threads: int, device: Device) -> Slowed:
    """Open what a folder holds, slowed."""
    return Slowed(FORMATS[format].open(folder, threads=threads, device=device))


def take(folder: Path, workload: Workload, *, blocks: int, threads: int) -> Session:
    """The three variants' session."""
    variants = [BenchmarkTarget(name=name, folder=folder.absolute(), format="onnx") for name in ("bundle", "same")]
    variants.append(BenchmarkTarget(name="slowed", folder=folder.absolute(), format="onnx", opener=OPENER))
    protocol = Protocol(workloads=(workload,), threads=threads, cpus=pinned_cpus(threads))
    vocabulary = BundleConfig.read(bundle_folder(folder)).vocabulary
    ids = tuple(int(token) for token in np.random.default_rng(0).integers(vocabulary, size=workload.prompt))
    return run_trials(new_session(variants, protocol), variants, ids, blocks=blocks)


def table(session: Session, workload: Workload) -> tuple[str, bool]:
    """What is true, what was measured, and the verdict beside the one that is right; and whether all are."""
    rows = [
        f"| variant | truth | metric | ratio to the bundle (95 % interval) | at most {MARGIN} | expected |",
        "|---|---|---|---|---|---|",
    ]
    measured, right, reasons = workload_measurements(session, workload), True, dict[str, None]()
    for variant, expected in EXPECTED.items():
        by_metric = {one.metric: one for one in measured[variant]}
        for result in judge({metric: Limit(max_ratio=MARGIN) for metric in METRICS}, by_metric):
            right &= result.verdict == expected
            ratio = "" if result.value is None else format_ratio(result.value)
            between = "" if result.interval is None else f" ({format_ratio_interval(result.interval)})"
            name = METRICS[result.metric]
            rows.append(f"| {variant} | {TRUTH[variant]} | {name} | {ratio}{between} | {result.verdict} | {expected} |")
            reasons |= {} if result.verdict == expected else {f"{variant}, {name}: {result.detail}": None}
    return "\n".join([*rows, *(f"\n{reason}" for reason in reasons)]), right


def main() -> None:
    """Print what the gate says of each variant."""
    parser = argparse.ArgumentParser(description="Is the benchmark right about the same bundle, and a slowed one?")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    given = parser.parse_args()
    workload = Workload(prompt=given.prompt, tokens=given.tokens)
    session = take(given.bundle, workload, blocks=given.blocks, threads=given.threads)
    said, right = table(session, workload)
    print(f"{given.bundle}: {workload}; {kept_blocks(session, 'slowed').describe()}\n\n{said}\n")
    print("The benchmark is right about both." if right else "The benchmark is not right about both, or cannot say.")
    sys.exit(0 if right else 3)


if __name__ == "__main__":
    main()
