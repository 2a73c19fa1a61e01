"""The arms of a session take turns: in each block every arm once, in random order, in a fresh process each.

    block b:  order = permutation(seed, b)  ->  settle  ->  process of the first arm  ->  settle  ->  the next ...

The parent sleeps while an arm runs. The session is handed on after every turn, so that a killed one goes on: blocks
that were finished stay, a block that was cut off is taken again as a whole, since its arms must have run within
seconds of each other. An arm that dies takes no further turns, and the others go on; a resumed session tries it again,
unless it is one that takes part in the first blocks only: to retake those would cost the others theirs.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from compress.stage import Form
from evaluation.latency import Protocol, Session, Turn
from recipes.schema import available_cores
from recipes.timing.arm_process import Order
from recipes.timing.arms import OPENER

PATIENCE = 1800.0
"""Seconds that one turn may take."""
ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """An arm before it is opened."""

    name: str
    folder: Path
    form: Form
    on_gpu: bool = False
    opener: str = OPENER
    blocks: int | None = None
    """It takes part in so many of the first blocks; None: in all."""

    def due(self, block: int) -> bool:
        """Whether it takes part in a block."""
        return self.blocks is None or block < self.blocks


def new_session(entrants: Sequence[Entrant], protocol: Protocol, left_out: Mapping[str, str] | None = None) -> Session:
    """A session without a turn; the first entrant is the baseline, and goes through every block."""
    return Session(protocol=protocol, arms=tuple(entrant.name for entrant in entrants), left_out=dict(left_out or {}))


def take_turns(
    session: Session,
    entrants: Sequence[Entrant],
    ids: tuple[int, ...],
    *,
    blocks: int,
    on_turn: Callable[[Session], None] = lambda session: None,
) -> Session:
    """Go on with a session until it has `blocks` blocks.

    Args:
        ids: token ids for the prompts, as many as the largest cell needs.
        on_turn: told of the session after every turn.
    """
    session = resumed(session, entrants)
    done = 1 + max((turn.block for turn in session.turns), default=-1)
    for block in range(done, blocks):
        random = np.random.default_rng([session.protocol.seed, block])
        racing = [entrant for entrant in entrants if entrant.due(block)]
        order = random.permutation(len(racing))
        cells = tuple(session.protocol.cells[index] for index in random.permutation(len(session.protocol.cells)))
        for place, entrant in enumerate(racing[index] for index in order):
            if session.error(entrant.name):
                continue
            time.sleep(session.protocol.settle)
            wanted = Order(
                arm=entrant.name,
                folder=entrant.folder,
                form=entrant.form,
                on_gpu=entrant.on_gpu,
                opener=entrant.opener,
                block=block,
                place=place,
                cells=cells,
                protocol=session.protocol,
                ids=ids,
            )
            session = session.model_copy(update={"turns": (*session.turns, run_process(wanted))})
            on_turn(session)
    return session


def resumed(session: Session, entrants: Sequence[Entrant]) -> Session:
    """A session cut back to the blocks that all who were due have been through, so that a dead arm is tried again."""
    been = {entrant.name: set(session.of(entrant.name)) for entrant in entrants}
    lost = {entrant.name for entrant in entrants if entrant.blocks is not None and session.error(entrant.name)}

    def whole(block: int) -> bool:
        due = (entrant.name for entrant in entrants if entrant.due(block))
        return all(block in been[name] or name in lost for name in due)

    length = next(block for block in range(len(session.turns) + 1) if not whole(block))
    return session.model_copy(update={"turns": tuple(turn for turn in session.turns if turn.block < length)})


def run_process(order: Order) -> Turn:
    """A fresh process takes a turn; what went wrong is the turn's `error`."""
    started, begun = datetime.now(UTC), time.monotonic()
    command = [sys.executable, "-m", "recipes.timing.arm_process"]
    try:
        finished = subprocess.run(
            command,
            input=order.model_dump_json(),
            capture_output=True,
            text=True,
            env=_environment(order.protocol.threads),
            timeout=PATIENCE,
            check=False,
        )
        problem = _last_words(finished)
        if not problem:
            turn = Turn.model_validate_json(finished.stdout.strip().splitlines()[-1])
            return turn.model_copy(update={"wall_seconds": time.monotonic() - begun})
    except subprocess.TimeoutExpired:
        problem = f"no answer in {PATIENCE:.0f} s"
    except (ValidationError, IndexError) as error:
        problem = f"expected one line of JSON from its process, got something else ({type(error).__name__})"
    return Turn(arm=order.arm, block=order.block, place=order.place, started=started, process=0, error=problem)


def _environment(threads: int) -> dict[str, str]:
    """The same for every arm; the packages are found where this process found them."""
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    here = os.pathsep.join(path for path in (str(ROOT), *sys.path) if path)
    settings = {"PYTHONPATH": here, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return os.environ | counts | settings


def _last_words(finished: "subprocess.CompletedProcess[str]") -> str:
    """Why a process failed; empty where it did not."""
    if finished.returncode == 0:
        return ""
    said = (finished.stderr.strip().splitlines() or ["it said nothing"])[-1]
    if finished.returncode < 0:
        name = signal.Signals(-finished.returncode).name
        return f"its process was ended by {name}; the last line that it wrote: {said}"
    return said


def pinned_cpus(threads: int) -> tuple[int, ...]:
    """Logical processors for so many threads, each on a core of its own as far as there are cores; empty where the
    system cannot pin.
    """
    if not hasattr(os, "sched_getaffinity"):
        return ()
    usable = sorted(os.sched_getaffinity(0))
    first_of = {_siblings(cpu): cpu for cpu in reversed(usable)}
    cores = sorted(first_of.values())
    rest = [cpu for cpu in usable if cpu not in cores]
    return tuple(sorted([*cores, *rest][: min(threads, available_cores())]))


def _siblings(cpu: int) -> str:
    """What names the core that a logical processor belongs to; itself where the system does not say."""
    file = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError:
        return str(cpu)
