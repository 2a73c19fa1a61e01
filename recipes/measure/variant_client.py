"""A variant's process under way: opened, then asked for one piece after another, so that variants can alternate.

    parent                        child (`variant_process.py`)
    order, a line of JSON   ->    opens the model, runs the first prompt
                            <-    an empty line: ready
    an empty line           ->    takes a piece
                            <-    an empty line; after the last piece the `Trial`, a line of JSON

A child whose parent is gone reads the end of its stdin and ends.
"""

import os
import select
import signal
import subprocess
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from tempfile import TemporaryFile

import numpy as np
from pydantic import ValidationError

from evaluation.latency import Trial
from recipes.measure.variant_process import TrialRequest, pieces
from recipes.runs.processes import environment, python_module

PATIENCE = 1800.0
"""Seconds that one piece may take."""
BREATH = 0.01
"""Seconds between two variants, in which the threads of the one before stop waiting for more."""
COMMAND = python_module("recipes.measure.variant_process")


class Running:
    """One variant's process; what goes wrong with it is its turn's `error`."""

    def __init__(self, order: TrialRequest) -> None:
        """Start it and wait until it is open."""
        self.order, self.started = order, datetime.now(UTC)
        self._trial: Trial | None = None
        self._problem, self._exit_code, self._seconds, self._read = "", 0, 0.0, b""
        self._log = TemporaryFile()  # noqa: SIM115 (closed by `close`)
        self._process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=_environment(order.protocol.threads),
            bufsize=0,
        )
        self._ask(order.model_dump_json())

    def go_on(self) -> None:
        """Let it take its next piece, and wait until it has; nothing where it has ended."""
        if self._trial is None and not self._problem:
            self._ask("")

    def trial(self, *, sliced: bool) -> Trial:
        """What came of it."""
        if self._trial is not None and not self._problem:
            return self._trial.model_copy(update={"wall_seconds": self._seconds, "sliced": sliced})
        order, problem = self.order, self._problem or "it ended before all was timed"
        return Trial(
            variant=order.variant,
            block=order.block,
            place=order.place,
            started=self.started,
            process=0,
            error=problem,
            exit_code=self._exit_code,
        )

    def close(self) -> None:
        """End the process, whatever it does."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()
        self._log.close()

    def _ask(self, line: str) -> None:
        begun = time.monotonic()
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
            answer = self._line()
            if answer:
                self._trial = Trial.model_validate_json(answer)
        except TimeoutError:
            self._problem = f"no answer in {PATIENCE:.0f} s"
        except (BrokenPipeError, EOFError):
            self._problem = self._last_words()
        except ValidationError as error:
            self._problem = f"expected a trial as JSON from its process, got something else ({type(error).__name__})"
        self._seconds += time.monotonic() - begun

    def _line(self) -> bytes:
        """The next line that it writes.

        Raises:
            EOFError: it ended.
            TimeoutError: it says nothing.
        """
        assert self._process.stdout is not None
        deadline = time.monotonic() + PATIENCE
        while b"\n" not in self._read:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError
            told = os.read(self._process.stdout.fileno(), 1 << 16)
            if not told:
                raise EOFError
            self._read += told
        line, _, self._read = self._read.partition(b"\n")
        return line

    def _last_words(self) -> str:
        """Why the process ended."""
        self._exit_code = code = self._process.wait()
        self._log.seek(0)
        said = (self._log.read().decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
        if code < 0:
            return f"its process was ended by {signal.Signals(-code).name}; the last line that it wrote: {said}"
        return said


def run_together(requests: Sequence[TrialRequest], random: np.random.Generator) -> list[Trial]:
    """Every order in a process of its own; all are open at once, and take their pieces in turn, in random order."""
    running: list[Running] = []
    try:
        for order in requests:
            time.sleep(order.protocol.settle)
            running.append(Running(order))
        for _ in range(pieces(requests[0])):
            for index in random.permutation(len(running)):
                time.sleep(BREATH)
                running[index].go_on()
        return _shared([one.trial(sliced=len(requests) > 1) for one in running])
    finally:
        for one in running:
            one.close()


def _shared(trials: list[Trial]) -> list[Trial]:
    """What the kernel counted meanwhile is about all of them together, and so is what they used themselves."""
    own = sum(trial.timed.own for trial in trials if trial.timed is not None)
    return [
        trial
        if trial.timed is None
        else trial.model_copy(update={"timed": trial.timed.model_copy(update={"own": own})})
        for trial in trials
    ]


def _environment(threads: int) -> dict[str, str]:
    """The same for every variant; the packages are found where this process found them."""
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    return environment(**counts, HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
