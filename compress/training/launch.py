"""What a launcher tells the processes that it starts: torchrun, accelerate launch and their like, by the environment.

    RANK, WORLD_SIZE            which process of how many        LOCAL_RANK, LOCAL_WORLD_SIZE    on this machine
    MASTER_ADDR, MASTER_PORT    where the store is that they meet at
    TORCHELASTIC_RESTART_COUNT  which attempt this is, where torchrun starts them again; the store outlives an attempt

srun and mpirun have names of their own for the first four (`adopt`). They also stand in the environment of a process
that was started beside the workers, such as a batch script, so only a worker may take them for its own.

Nothing is imported here that takes time: a process on its own is the common case, and it looks here too.
"""

import os
from dataclasses import dataclass

from compress.errors import DemitasseError

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
NAMES_ELSEWHERE = (
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One process among those that were started together."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    attempt: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0


class LaunchError(DemitasseError):
    """A launcher told what cannot be."""


def launch() -> Launch:
    """This process; one that no launcher started is alone.

    Raises:
        LaunchError: a variable holds no number.
    """
    world = _told("WORLD_SIZE", 1)
    if world == 1 or "RANK" not in os.environ:
        return Launch()
    rank = _told("RANK", 0)
    return Launch(
        rank=rank,
        world=world,
        local_rank=_told("LOCAL_RANK", rank),
        local_world=_told("LOCAL_WORLD_SIZE", world),
        attempt=_told("TORCHELASTIC_RESTART_COUNT", 0),
    )


def _told(name: str, default: int) -> int:
    text = os.environ.get(name)
    if text is not None and not text.strip().isdecimal():
        raise LaunchError(f"{name}: expected a whole number, as a launcher sets it, got {text!r}; unset it")
    return default if text is None else int(text)


def adopt() -> None:
    """Take what srun or mpirun tells this worker for what torchrun would."""
    if NAMES[0] in os.environ:
        return
    for names in NAMES_ELSEWHERE:
        if names[0] in os.environ and names[1] in os.environ:
            told = {name: os.environ[theirs] for name, theirs in zip(NAMES, names, strict=True) if theirs in os.environ}
            os.environ.update(told)
            return


def unfit(batch: int, accumulate: int, world: int) -> str | None:
    """What is wrong with dealing out `batch` rows to `world` processes in `accumulate` parts each; None: nothing."""
    parts = world * accumulate
    if batch % parts == 0:
        return None
    taken = f"{world} processes with {accumulate} parts each" if accumulate > 1 else f"{world} processes"
    return f"expected a multiple of {parts}, because {taken} share it, got {batch}"
