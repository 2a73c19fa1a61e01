"""The arms of a session take turns: in each block every arm once, in random order, in a fresh process each.

    block b:  order = permutation(seed, b)  ->  a fresh process of each arm opens  ->  slices of all arms alternate

What disturbs a machine for a second or two would meet one arm or the other if each ran at once; slices of a few steps
share it out. Arms that do not fit into memory together are taken one after the other, each at once.

The parent sleeps while an arm runs. The session is handed on after every block, so that a killed one goes on: blocks
that were finished stay, a block that was cut off is taken again as a whole, since its arms must have run side by side.
An arm that dies takes no further turns, and the others go on; a resumed session tries it again, unless it is one that
takes part in the first blocks only: to retake those would cost the others theirs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compress.stage import FormatName
from evaluation.latency import Protocol, Session
from evaluation.latency.figures import kept_blocks
from evaluation.machine import available_cores, usable_processors
from recipes.formats import OPENER
from recipes.measure.variant_client import run_together
from recipes.measure.variant_process import Order

TIMES_ITS_FILES = 4
"""Memory that an open model takes, at most, for each byte of its files: float16 ones are held as float32."""


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """An arm before it is opened."""

    name: str
    folder: Path
    format: FormatName
    on_gpu: bool = False
    opener: str = OPENER
    blocks: int | None = None
    """It takes part until it has so many undisturbed blocks; None: in all."""

    def due(self, session: Session, block: int) -> bool:
        """Whether it takes part in a block, by what came before it."""
        return self.blocks is None or len(kept_blocks(session.before(block), self.name).blocks) < self.blocks


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
    """Go on with a session (`resumed`, where it was cut off) until it has `blocks` blocks.

    Args:
        ids: token ids for the prompts, as many as the largest cell needs.
        on_turn: told of the session with every turn, once its block is through.
    """
    for block in range(session.taken, blocks):
        random = np.random.default_rng([session.protocol.seed, block])
        racing = [entrant for entrant in entrants if entrant.due(session, block)]
        order = random.permutation(len(racing))
        cells = tuple(session.protocol.cells[index] for index in random.permutation(len(session.protocol.cells)))
        orders = [
            Order(
                arm=entrant.name,
                folder=entrant.folder,
                format=entrant.format,
                on_gpu=entrant.on_gpu,
                opener=entrant.opener,
                block=block,
                place=place,
                cells=cells,
                protocol=session.protocol,
                ids=ids,
            )
            for place, entrant in enumerate(racing[index] for index in order)
            if not session.error(entrant.name)
        ]
        for group in [orders] if _fit(orders) else [[each] for each in orders]:
            for turn in run_together(group, random) if group else []:
                session = session.model_copy(update={"turns": (*session.turns, turn)})
                on_turn(session)
    return session


def _fit(orders: Sequence[Order]) -> bool:
    """Whether the memory holds all of them at once."""
    import psutil

    files = (file for order in orders for file in order.folder.rglob("*") if file.is_file())
    return TIMES_ITS_FILES * sum(file.stat().st_size for file in files) < float(psutil.virtual_memory().available)


def resumed(session: Session, entrants: Sequence[Entrant]) -> Session:
    """A session cut back to the blocks that all who were due have been through, so that a dead arm is tried again."""
    been = {entrant.name: set(session.of(entrant.name)) for entrant in entrants}
    lost = {entrant.name for entrant in entrants if entrant.blocks is not None and session.error(entrant.name)}

    def whole(block: int) -> bool:
        due = (entrant.name for entrant in entrants if entrant.due(session, block))
        return all(block in been[name] or name in lost for name in due)

    length = next(block for block in range(len(session.turns) + 1) if not whole(block))
    return session.model_copy(update={"turns": tuple(turn for turn in session.turns if turn.block < length)})


def pinned_cpus(threads: int) -> tuple[int, ...]:
    """Logical processors for so many threads, each on a core of its own as far as there are cores; empty where the
    system cannot pin.
    """
    usable = usable_processors()
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
