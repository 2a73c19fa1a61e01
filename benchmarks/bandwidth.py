"""How fast this machine reads memory: the floor under a decode step, which reads every weight once.

    floor of a step = bytes of weights / bandwidth

Measured as the sum of an array larger than a processor's own caches, by as many threads as the variants have. Beside
the variants it is one more process that takes its turn in every block (`Reader`), so that the floor and the step it is
held against come from the same minute. A virtual machine may see a part of a large shared cache: weights that stay
there can be read faster than this floor says.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.worker import Ids

BYTES = 1 << 30
REPEATS = 7


class Reader:
    """A runner (worker.py) that reads BYTES of memory in every step, and knows no token."""

    def __init__(self, folder: Path, threads: int, device: str) -> None:
        torch.set_num_threads(threads)
        self.values = array_of(BYTES, device)

    def read(self, ids_BT: Ids, room: int) -> Ids:
        return np.zeros(len(ids_BT), dtype=np.int64)

    def step(self, next_B: Ids) -> Ids:
        assert float(self.values.sum()) > 0
        return next_B

    def rewind(self) -> None:
        """Nothing was kept."""


def array_of(size: int, device: str) -> Any:
    """An array of `size` bytes that are really there."""
    return torch.ones(size // 4, dtype=torch.float32, device=device)


def read_bandwidth(threads: int, *, size: int = BYTES, repeats: int = REPEATS) -> float:
    """Bytes per second, the best of several."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    values = array_of(size, "cpu")
    best = min(_seconds(values) for _ in range(repeats + 1))
    torch.set_num_threads(before)
    return size / best


def _seconds(values: Any) -> float:
    started = time.perf_counter()
    assert float(values.sum()) > 0
    return time.perf_counter() - started


if __name__ == "__main__":
    for count in (1, 2):
        print(f"{count} threads: {read_bandwidth(count) / 2**30:.1f} GiB/s")
