"""Where a decoding step's time goes, operator by operator, from ONNX Runtime's own profiler.

    python -m benchmarks.node_profile BUNDLE [BUNDLE ...]

For each bundle and context: the operators of a step by their share of the time in nodes, and for the products how many
bytes of weights they read a second. The profiler writes an event for each node, which costs some microseconds each: a
step is slower under it, and the shares of small nodes are too high. It is for finding what to do next, not for times.
"""

import json
import sys
import tempfile
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

if __name__ == "__main__" and not __package__:  # started by its path: imports begin at the repository
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import typer

from benchmarks.page import finish
from benchmarks.results import RESULTS

CONTEXTS, STEPS, WARMUP = (128, 900), 32, 4
Json = dict[str, Any]


def main(
    bundle: Annotated[list[Path], typer.Argument(help="Folders that export left.")],
    threads: Annotated[int, typer.Option(help="Threads.")] = 2,
    out: Annotated[Path, typer.Option(help="Where the results go as JSON.")] = RESULTS / "profile.json",
) -> None:
    """Profile a decoding step, node by node."""
    from benchmarks.bandwidth import read_bandwidth
    from benchmarks.machine import machine

    results: Json = {
        "kind": "profile",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": machine("cpu"),
        "settings": {"threads": threads, "steps": STEPS},
        "bandwidth": read_bandwidth(threads),
        "bundles": {folder.resolve().name: profile(folder, threads) for folder in bundle},
    }
    finish(results, out)


def profile(bundle: Path, threads: int) -> Json:
    """{context: {operator: {"count": a step, "seconds": a step}}, ...} and the bytes of the products' weights."""
    from export.coverage import coverage
    from export.external_data import read_graph

    held = coverage(read_graph(bundle))
    steps = {str(context): _operators(bundle, context, threads) for context in CONTEXTS}
    return {"product_bytes": held["int8_bytes"] + held["int4_bytes"] + held["scale_bytes"], "contexts": steps}


def _operators(bundle: Path, context: int, threads: int) -> Json:
    from export.runtime.model import BundleConfig, OnnxCausalLM
    from export.runtime.session import open_session

    with tempfile.TemporaryDirectory() as scratch:
        session = open_session(bundle, threads=threads, profile=Path(scratch) / "profile")
        cursor = OnnxCausalLM(session, BundleConfig.read(bundle), provider="cpu").cursor()
        cursor.prefill(np.arange(1, context + 1)[None], reserve=STEPS + WARMUP)
        for _ in range(STEPS + WARMUP):
            cursor.step()
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return operators_of(events, STEPS)


def operators_of(events: list[Json], steps: int) -> Json:
    """Count and seconds per step of each operator in the last `steps` runs of a profile."""
    first = sorted(event["ts"] for event in events if event["name"] == "model_run")[-steps]
    count, micros = Counter[str](), Counter[str]()
    for event in events:
        if event.get("cat") == "Node" and event["ts"] >= first and event["name"].endswith("_kernel_time"):
            count[event["args"]["op_name"]] += 1
            micros[event["args"]["op_name"]] += event["dur"]
    return {name: {"count": count[name] / steps, "seconds": total / steps * 1e-6} for name, total in micros.items()}


if __name__ == "__main__":
    typer.run(main)
