"""What a key of ONNX Runtime's session is worth to a decoder: sessions of a bundle take turns, a key changed in each.

    python -m benchmarks.session_keys BUNDLE [--prompt 128]

A trial is a few greedy steps after a prompt; the order within a block is random. The figure is how many times as fast a
session decodes as the one that we ship, the median over blocks with its 95 % interval. What spins between two steps
takes processor time from who runs beside it, so a key that only gains that way is no gain on a shared machine.
"""

import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

if __name__ == "__main__" and not __package__:  # started by its path: imports begin at the repository
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import typer

from benchmarks.page import finish
from benchmarks.results import RESULTS
from export.runtime.batch import Batch
from export.runtime.session import open_session

Json = dict[str, Any]
SHIPPED = "as shipped"
KEYS: dict[str, dict[str, str]] = {
    SHIPPED: {},
    "spins on between steps": {"session.force_spinning_stop": "0"},
    "never spins": {"session.intra_op.allow_spinning": "0"},
    "worker thread pinned": {"session.intra_op_thread_affinities": "2"},
    "denormals are zero": {"session.set_denormal_as_zero": "1"},
}
STEPS, UNTIMED = 8, 2


def main(
    bundle: Annotated[Path, typer.Argument(help="A bundle's folder.")],
    prompt: Annotated[int, typer.Option(help="Tokens before the steps.")] = 128,
    blocks: Annotated[int, typer.Option(help="Blocks of trials.")] = 21,
    out: Annotated[Path, typer.Option(help="Where the results go as JSON.")] = RESULTS / "session_keys.json",
) -> None:
    """Time every key."""
    from benchmarks.machine import machine

    run = {
        "kind": "session_keys",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": machine("cpu"),
        "settings": {"prompt": prompt, "blocks": blocks, "threads": 2},
        "seconds": time_keys(bundle, prompt, blocks),
    }
    finish(run, out)


def time_keys(bundle: Path, prompt: int, blocks: int) -> dict[str, list[float]]:
    """Seconds of a step of each session in each block."""
    batches = {}
    for name, keys in KEYS.items():
        batch = Batch(open_session(bundle, threads=2, keys=keys), 1, prompt + STEPS + UNTIMED, "cpu")
        batch.feed(np.arange(prompt, dtype=np.int64)[None] % 97 + 3, np.asarray([prompt]))
        batches[name] = batch
    random = np.random.default_rng(0)
    found: dict[str, list[float]] = {name: [] for name in KEYS}
    for _ in range(blocks):
        for name in (list(KEYS)[index] for index in random.permutation(len(KEYS))):
            found[name].append(_trial(batches[name].rewind(prompt)))
    return found


def _trial(batch: Batch) -> float:
    """The median step; the first ones wake the threads."""
    seconds = []
    for token in range(UNTIMED + STEPS):
        started = time.perf_counter()
        batch.step(np.asarray([token + 3]))
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds[UNTIMED:]))


if __name__ == "__main__":
    typer.run(main)
