"""One variant in a process of its own, so that it has its own memory, threads and libraries.

    python -m benchmarks.worker MODULE:CLASS FOLDER THREADS DEVICE KNOBS

It reads one JSON order a line from stdin and writes one JSON answer a line to stdout; what libraries print goes to
stderr. An order that fails is answered {"error": ...}, and the process goes on.

    {"do": "imports"}                           import its libraries: {}
    {"do": "open"}                              load the model: {"import": seconds, "open": seconds}
    {"do": "read", "ids": [B][T], "room": R,    read a prompt into an empty cache with room for R tokens more, as many
     "times": N}                                times: {"seconds": [N], "next": [B]}
    {"do": "steps", "untimed": U, "count": N}   U + N greedy steps from where the prompt ended, then back to there:
                                                {"seconds": [N], "tokens": [U + N][B]}
    {"do": "score", "ids": [B][T], "reference": [B]}
                                                feed the tokens one by one: means of each row, {"kl": [B], "same": [B],
                                                "nll": [B]}, against log-probabilities (T, V), a numpy file a row
    {"do": "memory"}                            {"peak": bytes, "idle": share of a core used between orders}

A step is timed from the token ids going in to the next ids being on the host: every variant pays for its own argmax.

    B rows    T tokens
"""

import importlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from recipes.measure.peak_memory import peak_memory

Ids = NDArray[np.int64]
Logits = NDArray[np.floating[Any]]
Answer = dict[str, Any]


class Runner(Protocol):
    """What a variant is to the worker; constructed as `Runner(folder, threads, device, **knobs)`, which loads the
    model."""

    def read(self, ids_BT: Ids, room: int) -> Ids:
        """Read a prompt into an empty cache that has room for `room` tokens more: the likeliest next ids (B)."""

    def step(self, next_B: Ids) -> Ids:
        """Append one token to every row: the likeliest next ids (B)."""

    def rewind(self) -> None:
        """Forget every token after the prompt."""

    def score(self, ids_BT: Ids) -> Iterator[Logits]:
        """Logits (B, V) after each token of the rows, fed one by one into an empty cache."""


class Worker:
    """Carries out orders, one method each."""

    def __init__(self, where: str, folder: Path, threads: int, device: str, knobs: dict[str, Any]) -> None:
        self.where, self.folder, self.threads, self.device, self.knobs = where, folder, threads, device, knobs
        self.runner: Runner | None = None
        self.next_B: Ids | None = None
        self.idle = _Idle()

    def imports(self) -> Answer:
        importlib.import_module(self.where.partition(":")[0])
        return {}

    def open(self) -> Answer:
        module, _, name = self.where.partition(":")
        started = time.perf_counter()
        factory = getattr(importlib.import_module(module), name)
        imported = time.perf_counter()
        self.runner = factory(self.folder, self.threads, self.device, **self.knobs)
        return {"import": imported - started, "open": time.perf_counter() - imported}

    def read(self, ids: list[list[int]], room: int, times: int = 1) -> Answer:
        assert self.runner is not None, "open comes first"
        ids_BT, seconds = np.asarray(ids, dtype=np.int64), []
        for _ in range(times):
            started = time.perf_counter()
            self.next_B = self.runner.read(ids_BT, room)
            seconds.append(time.perf_counter() - started)
        return {"seconds": seconds, "next": _listed(self.next_B)}

    def steps(self, untimed: int, count: int) -> Answer:
        assert self.runner is not None, "open comes first"
        assert self.next_B is not None, "read comes first"
        next_B, seconds, tokens = self.next_B, [], []
        for _ in range(untimed + count):
            started = time.perf_counter()
            next_B = self.runner.step(next_B)
            seconds.append(time.perf_counter() - started)
            tokens.append(_listed(next_B))
        self.runner.rewind()
        return {"seconds": seconds[untimed:], "tokens": tokens}

    def score(self, ids: list[list[int]], reference: list[str]) -> Answer:
        assert self.runner is not None, "open comes first"
        ids_BT = np.asarray(ids, dtype=np.int64)
        expected = [np.load(file, mmap_mode="r") for file in reference]
        kl, same, nll = (np.zeros(ids_BT.shape) for _ in range(3))
        for place, logits_BV in enumerate(self.runner.score(ids_BT)):
            ours_BV = log_softmax(np.asarray(logits_BV, dtype=np.float64), axis=-1)
            expected_BV = np.stack([row_TV[place] for row_TV in expected]).astype(np.float64)
            kl[:, place] = (np.exp(expected_BV) * (expected_BV - ours_BV)).sum(axis=-1)
            same[:, place] = expected_BV.argmax(axis=-1) == ours_BV.argmax(axis=-1)
            if place + 1 < ids_BT.shape[1]:
                nll[:, place + 1] = -np.take_along_axis(ours_BV, ids_BT[:, place + 1, None], axis=-1)[:, 0]
        means = {"kl": kl.mean(axis=1), "same": same.mean(axis=1), "nll": nll[:, 1:].mean(axis=1)}
        return {name: values_B.tolist() for name, values_B in means.items()}

    def memory(self) -> Answer:
        return {"peak": peak_memory(), "idle": self.idle.share()}


class _Idle:
    """The processor time that is used while no order is carried out: spinning threads show here."""

    def __init__(self) -> None:
        self.used = self.passed = 0.0
        self.rested()

    def rested(self) -> None:
        """An order ended."""
        self._since = time.process_time(), time.perf_counter()

    def woke(self) -> None:
        """An order came."""
        self.used += time.process_time() - self._since[0]
        self.passed += time.perf_counter() - self._since[1]

    def share(self) -> float:
        return self.used / self.passed if self.passed else 0.0


def _listed(ids_B: Any) -> list[int]:
    return [int(token) for token in ids_B]


def main() -> None:
    """Serve until stdin ends."""
    where, folder, threads, device, knobs = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    worker = Worker(where, Path(folder), int(threads), device, json.loads(knobs))
    for line in sys.stdin:
        worker.idle.woke()
        order = json.loads(line)
        try:
            answer = getattr(worker, order.pop("do"))(**order)
        except Exception as error:  # whatever a variant's library raises is that variant's result, and the run goes on
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        answers.write(json.dumps(answer) + "\n")
        worker.idle.rested()


if __name__ == "__main__":
    main()
