"""The variants of a session take turns: in each block every variant once, in random order, in a fresh process each.

    block b:  order = permutation(seed, b)  ->  a fresh process of each variant opens  ->  their slices alternate

What disturbs a machine for a second or two would meet one variant or the other if each ran at once; slices of a few
steps share it out. Variants that do not fit into memory together are taken one after the other, each at once.

The parent sleeps while a variant runs. The session is handed on after every block, so that a killed one goes on: blocks
that were finished stay, a block that was cut off is taken again as a whole, since its variants must have run side by
side. A variant that dies takes no further turns, and the others go on; a resumed session tries it again, unless it is
one that takes part in the first blocks only: to retake those would cost the others theirs.
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
from recipes.measure.variant_process import TrialRequest

TIMES_ITS_FILES = 4
"""Memory that an open model takes, at most, for each byte of its files: float16 ones are held as float32."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkTarget:
    """A variant before it is opened."""

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


def new_session(
    targets: Sequence[BenchmarkTarget], protocol: Protocol, left_out: Mapping[str, str] | None = None
) -> Session:
    """A session without a trial; the first target is the baseline, and goes through every block."""
    return Session(protocol=protocol, variants=tuple(target.name for target in targets), left_out=dict(left_out or {}))


def run_trials(
    session: Session,
    targets: Sequence[BenchmarkTarget],
    ids: tuple[int, ...],
    *,
    blocks: int,
    on_trial: Callable[[Session], None] = lambda session: None,
) -> Session:
    """Go on with a session (`resumed`, where it was cut off) until it has `blocks` blocks.

    Args:
        ids: token ids for the prompts, as many as the largest workload needs.
        on_trial: told of the session with every trial, once its block is through.
    """
    for block in range(session.taken, blocks):
        random = np.random.default_rng([session.protocol.seed, block])
        racing = [target for target in targets if target.due(session, block)]
        order = random.permutation(len(racing))
        workloads = tuple(
            session.protocol.workloads[index] for index in random.permutation(len(session.protocol.workloads))
        )
        requests = [
            TrialRequest(
                variant=target.name,
                folder=target.folder,
                format=target.format,
                on_gpu=target.on_gpu,
                opener=target.opener,
                block=block,
                place=place,
                workloads=workloads,
                protocol=session.protocol,
                ids=ids,
            )
            for place, target in enumerate(racing[index] for index in order)
            if not session.error(target.name)
        ]
        for group in [requests] if _fit(requests) else [[each] for each in requests]:
            for trial in run_together(group, random) if group else []:
                session = session.model_copy(update={"trials": (*session.trials, trial)})
                on_trial(session)
    return session


def _fit(requests: Sequence[TrialRequest]) -> bool:
    """Whether the memory holds all of them at once."""
    import psutil

    files = (file for order in requests for file in order.folder.rglob("*") if file.is_file())
    return TIMES_ITS_FILES * sum(file.stat().st_size for file in files) < float(psutil.virtual_memory().available)


def resumed(session: Session, targets: Sequence[BenchmarkTarget]) -> Session:
    """A session cut back to the blocks that all who were due have been through, so that a dead variant is tried
    again."""
    been = {target.name: set(session.of(target.name)) for target in targets}
    lost = {target.name for target in targets if target.blocks is not None and session.error(target.name)}

    def whole(block: int) -> bool:
        due = (target.name for target in targets if target.due(session, block))
        return all(block in been[name] or name in lost for name in due)

    length = next(block for block in range(len(session.trials) + 1) if not whole(block))
    return session.model_copy(update={"trials": tuple(trial for trial in session.trials if trial.block < length)})


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
