"""One variant's trial in one block, in a process of its own: its own memory, threads, libraries and cold start.

    python -m recipes.measure.variant_process   a `TrialRequest` as JSON from stdin, a `Trial` as stdout's last line

    pin to the processors -> open the model -> first prompt -> every workload, in pieces -> memory -> one line of JSON

Before each piece it waits to be asked (`variant_client.py`), so that other variants can have their slices in between.

What libraries print goes to stderr. A variant that cannot be opened or computes no numbers ends with its reason on
stderr and the exit code that a command would end with; the parent keeps the last line.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from compress.stage import FormatName
from evaluation.latency import Counters, Protocol, Trial, Workload, WorkloadTimer, WorkloadTimes, pieces_of
from evaluation.latency.timing import timed
from evaluation.measurement import Value
from recipes.formats import OPENER, opener_of
from recipes.formats.base import Device, Ids, LoadedModel
from recipes.measure.peak_memory import peak_memory
from recipes.runs.failures import exit_code

MEBIBYTE = 2**20


class TrialRequest(Value):
    """What a process is to do."""

    variant: str
    folder: Path
    format: FormatName
    on_gpu: bool = False
    opener: str = OPENER
    block: int
    place: int
    workloads: tuple[Workload, ...]
    """The protocol's workloads in the order of this block."""
    protocol: Protocol
    ids: tuple[int, ...]
    """Token ids, as many as the largest workload needs."""


def main() -> None:
    """Take the trial that stdin requests."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def wait() -> None:
        """Tell that a piece is done; go on when the next one is asked for."""
        answers.write("\n")
        answers.flush()
        if not sys.stdin.readline():
            sys.exit("nobody asks for more")

    order = TrialRequest.model_validate_json(sys.stdin.readline())
    try:
        trial = take_trial(order, wait)
    except Exception as error:  # whatever a variant's library raises is that variant's result
        print(f"{type(error).__name__}: {error}".splitlines()[0], file=sys.stderr)
        sys.exit(exit_code(error))
    answers.write(trial.model_dump_json() + "\n")
    answers.flush()


def pieces(order: TrialRequest) -> int:
    """How often a trial waits to be asked to go on."""
    return sum(pieces_of(workload, order.protocol.prefills) for workload in order.workloads)


def take_trial(order: TrialRequest, wait: Callable[[], None]) -> Trial:
    """Open, run the first prompt, then every workload in pieces.

    Args:
        wait: called before every piece; returns when it is this variant's trial again.

    Raises:
        ValueError: what was computed is no number.
    """
    if order.protocol.cpus:
        os.sched_setaffinity(0, order.protocol.cpus)
    started, begun = datetime.now(UTC), Counters.now()
    model, open_seconds = _open(order)
    first = order.protocol.workloads[0]
    first_run = timed(model.decoding(_prompts(order.ids, first), first.tokens).prefill, 1)[0]
    opening, moments = Counters.now().since(begun), list[Counters]()
    workloads = tuple(_time(model, workload, order, wait, moments) for workload in order.workloads)
    return Trial(
        variant=order.variant,
        block=order.block,
        place=order.place,
        started=started,
        process=os.getpid(),
        runtime=model.runtime,
        open_seconds=open_seconds,
        first_run=first_run,
        workloads=workloads,
        opening=opening,
        timed=moments[-1].since(moments[0]),
        peak_memory=peak_memory(),
        gpu_memory=_gpu_memory() if order.on_gpu else None,
    )


def _open(order: TrialRequest) -> tuple[LoadedModel, float]:
    begun = time.perf_counter()
    device: Device = "cuda" if order.on_gpu else "cpu"
    model = opener_of(order.opener)(order.folder, order.format, threads=order.protocol.threads, device=device)
    return model, time.perf_counter() - begun


def _time(
    model: LoadedModel, workload: Workload, order: TrialRequest, wait: Callable[[], None], moments: list[Counters]
) -> WorkloadTimes:
    prefills = order.protocol.prefills
    variant = model.decoding(_prompts(order.ids, workload), workload.tokens)
    timer = WorkloadTimer(variant=variant, workload=workload, prefills=prefills)
    for _ in range(pieces_of(workload, prefills)):
        wait()
        moments.append(Counters.now())
        timer.go_on()
    moments.append(Counters.now())
    problem = variant.problem()
    if problem:
        raise ValueError(problem)
    return timer.times()


def _prompts(ids: tuple[int, ...], workload: Workload) -> Ids:
    """A workload's rows (B, T), each another piece of the ids."""
    return np.array(ids[: workload.batch * workload.prompt], dtype=np.int64).reshape(workload.batch, workload.prompt)


def _gpu_memory() -> int | None:
    """Bytes that this process holds on the GPU, its context included; None where the system does not say."""
    command = ["nvidia-smi", "--query-compute-apps=pid,used_gpu_memory", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return memory_of(os.getpid(), told)


def memory_of(process: int, told: str) -> int | None:
    """Bytes of a process in lines such as "4711, 512": its id, and MiB."""
    rows = (line.replace(" ", "").split(",") for line in told.splitlines())
    held = [int(row[1]) for row in rows if row[0] == str(process) and len(row) == 2 and row[1].isdecimal()]
    return sum(held) * MEBIBYTE if held else None


if __name__ == "__main__":
    main()
