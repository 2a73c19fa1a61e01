"""What a latency session leaves: every raw time, with what is needed to judge it again and to doubt it.

    Session   the protocol, the variants, and the trials
    Trial      one variant's trial in one block: a fresh process that opened the model, warmed up and ran every workload
    Workload      one question put to all variants: so many rows of so long a prompt, and so many new tokens of each

All times are seconds by the process's monotonic clock; `started` is wall-clock time in UTC. A session reads and writes
as JSON, and every figure follows from it (`figures.py`), so a verdict can be given again from the file alone.

Not covered: what ran beside the variants, by name; only how much of the processor it took is known.
"""

from datetime import datetime
from typing import Literal

from pydantic import Field

from evaluation.latency.machine_load import Reading, disturbed
from evaluation.measurement import Value

SCHEMA_VERSION = 1
Part = Literal["opening", "timed"]
"""Of a trial: from the start to the first prompt's next token, or the workloads."""


class Workload(Value):
    """One point of the grid."""

    prompt: int = Field(ge=1)
    """Tokens of each row's prompt."""
    tokens: int = Field(ge=1)
    """New tokens of each row; the prompt's own next token is the first of them."""
    batch: int = Field(default=1, ge=1)
    """Rows."""

    def __str__(self) -> str:
        return f"prompt of {self.prompt} tokens, {self.tokens} new tokens, batch {self.batch}"


class WorkloadTimes(Value):
    """What the clock said about one workload in one trial."""

    workload: Workload
    prefill: tuple[float, ...]
    """From a prompt to its next token, several times."""
    steps: tuple[float, ...]
    """Further tokens after the last of these, each slice's first left out; empty where there is a single new token."""
    warmups: int
    """Untimed runs before."""
    settled: bool
    """Whether the last of those agreed; False where their number ran out."""

    @property
    def end_to_end(self) -> float:
        """From the last prompt to its last new token; the tokens that were not timed at the mean of the others."""
        if not self.steps:
            return self.prefill[-1]
        return self.prefill[-1] + (self.workload.tokens - 1) * sum(self.steps) / len(self.steps)


class Trial(Value):
    """One variant in one block, in a process of its own."""

    variant: str
    block: int
    place: int
    """Its place in the random order of the block, from 0."""
    started: datetime
    process: int
    """The process's id; 0 where it never told."""
    wall_seconds: float | None = None
    """For which the others waited, its start and its libraries included: what the trial cost."""
    sliced: bool = False
    """Whether its slices alternated with those of the block's other variants; False where each was done at once."""
    error: str = ""
    """The process's last words where it did not finish; everything below but the exit code is then empty."""
    exit_code: int = 0
    """What the process ended with then, as commands do: 5 where its files are not what was exported."""
    runtime: str = ""
    """What ran it, such as "ONNX Runtime 1.31.1 on the CPU; cache, inputs and logits bound once (IO binding)"."""
    open_seconds: float | None = None
    first_run: float | None = None
    """The first prompt of the process, on the first workload."""
    workloads: tuple[WorkloadTimes, ...] = ()
    opening: Reading | None = None
    """What the machine told about the seconds from the start to the end of the first run."""
    timed: Reading | None = None
    """What it told about the seconds of the workloads."""
    peak_memory: int | None = None
    gpu_memory: int | None = None
    """None where it runs on no GPU."""

    def reading(self, part: Part) -> Reading | None:
        return self.opening if part == "opening" else self.timed

    def disturbances(self, part: Part = "timed", usual_megahertz: float | None = None) -> tuple[str, ...]:
        """Why this part of the trial is left out; empty where nothing speaks against it."""
        reading = self.reading(part)
        return () if reading is None else disturbed(reading, usual_megahertz)

    def times(self, workload: Workload) -> WorkloadTimes | None:
        return next((times for times in self.workloads if times.workload == workload), None)


class Protocol(Value):
    """What all trials of a session share."""

    workloads: tuple[Workload, ...] = Field(min_length=1)
    threads: int = Field(ge=1)
    cpus: tuple[int, ...] = ()
    """The logical processors that every variant is pinned to; empty where the system cannot pin."""
    seed: int = 0
    """Of the order of variants and workloads, and of prompts that are drawn."""
    settle: float = 0.05
    """Seconds of idleness before each trial."""
    prefills: int = 12
    """Timed prompts of each workload and trial; fewer of long ones (`timing.py`)."""
    prompt: str = "random token ids"
    """Where the prompts come from."""

    def describe(self, workload: Workload | None = None) -> str:
        """In one sentence, for `Measurement.method`."""
        pinned = f"pinned to logical processors {_listed(self.cpus)}" if self.cpus else "not pinned"
        about = f"{workload}, greedy; " if workload is not None else ""
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{about}{threads}, {pinned}; {self.prompt}"


class Pending(Value):
    """What cannot be taken on this machine, and another one needs to know to take it."""

    reason: str
    """Why, and the way out."""
    ids: tuple[int, ...]
    """The prompt's tokens."""
    stage_blocks: int
    """In how many blocks the variants between the first and the last take part."""


class Session(Value):
    """Everything that was taken."""

    schema_version: int = SCHEMA_VERSION
    protocol: Protocol
    variants: tuple[str, ...]
    """Their names; the first is the baseline."""
    trials: tuple[Trial, ...] = ()
    """Some variants may have been asked for in the first blocks only."""
    left_out: dict[str, str] = Field(default_factory=dict)
    """Why others take no trials, by name."""
    planned: int | None = None
    """The most blocks that there may be."""
    stopped: str = ""
    """Why there are no more."""
    pending: Pending | None = None
    """What is to be taken elsewhere; None: nothing."""

    @property
    def baseline(self) -> str:
        return self.variants[0]

    def of(self, variant: str) -> dict[int, Trial]:
        """A variant's trials that finished, by block."""
        return {trial.block: trial for trial in self.trials if trial.variant == variant and not trial.error}

    @property
    def taken(self) -> int:
        """How many blocks were begun."""
        return 1 + max((trial.block for trial in self.trials), default=-1)

    def before(self, block: int) -> "Session":
        """What had been taken when a block began."""
        return self.model_copy(update={"trials": tuple(trial for trial in self.trials if trial.block < block)})

    def describe(self) -> str:
        """How many blocks were planned and taken, and why, in a sentence; empty where that is not known."""
        if self.planned is None or not self.stopped:
            return ""
        return f"{self.taken} of at most {self.planned} blocks were timed: {self.stopped}"

    def error(self, variant: str) -> str:
        """The last words of a variant that died, or empty."""
        return next((trial.error for trial in self.trials if trial.variant == variant and trial.error), "")

    def seconds_of_a_trial(self, variant: str) -> float:
        """What a trial of a variant costs on average, its process's start included; 0 where that is unknown."""
        told = [
            trial.wall_seconds for trial in self.trials if trial.variant == variant and trial.wall_seconds is not None
        ]
        return sum(told) / len(told) if told else 0.0


def _listed(cpus: tuple[int, ...]) -> str:
    """Such as "0, 1" or, of many, "0 to 31 (16 of them)"."""
    return ", ".join(map(str, cpus)) if len(cpus) <= 8 else f"{cpus[0]} to {cpus[-1]} ({len(cpus)} of them)"
