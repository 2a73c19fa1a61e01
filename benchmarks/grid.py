"""The workloads of the comparison, and how they are timed so that drift favors no variant.

All variants of a model run at once, each in its own process, idle but for the one whose turn it is. In every block of a
workload the variants take turns in a new random order; a trial settles first, so that the last variant's threads sleep:

    decode    every variant has read the prompt; a trial is UNTIMED + `steps` greedy steps and then back to there,
              and counts as the median of the timed ones
    prefill   a trial reads the prompt: at batch 1 twice, of which the second counts; at larger batches once

One trial of each variant before the first block is not kept, except for its tokens: they are held against PyTorch's,
and `same` counts the blocks that gave the same ones again, so that a variant that did not come back to its prompt is
seen. Cells of a larger batch get about half of the blocks.

What starting costs is measured first, `loads` times in new processes, also in random order: opening the model, the
first token of a prompt, and the peak memory after LOAD_STEPS steps, all at batch 1 and `load_prompt` tokens. The last
of these processes are the ones that stay.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.prepare import ROOT, Files
from benchmarks.process import VariantError, VariantProcess
from benchmarks.variants import VARIANTS

TEXT = ROOT / "recipes" / "data" / "novels" / "test.txt"
UNTIMED = 2
LOAD_STEPS = 8
FLOOR, FLOOR_RUNNER = "floor", "benchmarks.bandwidth:Reader"
Tell = Callable[[str], None]
Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One question put to every variant."""

    kind: Literal["decode", "prefill"]
    tokens: int
    batch: int

    @property
    def key(self) -> str:
        """Such as "decode-128-1"; the key of its results."""
        return f"{self.kind}-{self.tokens}-{self.batch}"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a run is taken."""

    workloads: tuple[Workload, ...]
    blocks: int
    steps: int
    loads: int
    threads: int
    device: str = "cpu"
    settle: float = 0.05
    load_prompt: int = 128
    """Tokens of the prompt behind the first token's time."""
    checked: int = 16
    """Prompts whose next token is held against PyTorch's."""
    seed: int = 0

    @property
    def room(self) -> int:
        """Tokens that a cache has room for after its prompt; the same in every workload, so that nothing compiles
        anew."""
        return UNTIMED + self.steps

    @property
    def longest(self) -> int:
        """Tokens of text that the largest workload needs."""
        return max(self.checked * self.load_prompt, *(workload.tokens * workload.batch for workload in self.workloads))

    def blocks_of(self, workload: Workload) -> int:
        return self.blocks if workload.batch == 1 else max(3, self.blocks // 2 + 1)


def workloads_of(decode: Sequence[int], prefill: Sequence[int], batches: Sequence[int]) -> tuple[Workload, ...]:
    """Every combination; the first is the one that everything else is likest to."""
    decodes = [Workload(kind="decode", tokens=tokens, batch=batch) for batch in batches for tokens in decode]
    return (
        *decodes,
        *(Workload(kind="prefill", tokens=tokens, batch=batch) for batch in batches for tokens in prefill),
    )


@dataclass
class Prompts:
    """Rows of real text, the same for every variant."""

    ids_T: list[int] = field(default_factory=list)

    @classmethod
    def read(cls, checkpoint: Path, tokens: int) -> "Prompts":
        """At least `tokens` tokens of the novels, as this checkpoint's tokenizer cuts them."""
        from compress.checkpoints.folder import load_tokenizer

        text = TEXT.read_text(encoding="utf-8")[: 20 * tokens + 1000]
        return cls([int(token) for token in load_tokenizer(checkpoint)(text, verbose=False)["input_ids"]])

    def rows(self, batch: int, tokens: int) -> list[list[int]]:
        """`batch` different rows of the same length."""
        rows = [self.ids_T[row * tokens : (row + 1) * tokens] for row in range(batch)]
        assert len(rows[-1]) == tokens, f"the text is too short for {batch} rows of {tokens} tokens"
        return rows


def run_grid(files: Mapping[str, Files], prompts: Prompts, settings: Settings, scratch: Path, tell: Tell) -> Json:
    """Time every variant that has files: {name: {"load": [...], "workloads": {key: ...}, "reason": ..., "idle": ...}}.

    FLOOR is one of the names: it reads memory and takes part in the decode workloads.
    """
    random = np.random.default_rng(settings.seed)
    start = partial(VariantProcess, threads=settings.threads, device=settings.device, scratch=scratch)
    results: Json = {
        name: {"load": [], "check": [], "workloads": {}, "reason": "", "idle": 0.0} for name in (*files, FLOOR)
    }
    running: dict[str, VariantProcess] = {}
    with ExitStack() as stack:
        running[FLOOR] = stack.enter_context(start(FLOOR_RUNNER, scratch))
        _try(results[FLOOR], partial(running[FLOOR].order, "open"))
        for name, stays in _load_trials(files, settings, random):
            tell(f"starting {name}")
            process = stack.enter_context(start(VARIANTS[name].runner, files[name].folder))
            measure_load(results[name], process, prompts.rows(1, settings.load_prompt), settings.room)
            if stays and not results[name]["reason"]:
                running[name] = process
            else:
                process.close()
        ids = prompts.rows(settings.checked, settings.load_prompt)
        for name, process in running.items():
            tell(f"checking {name}")
            check_next(results[name], process, ids, settings.room)
        for workload in settings.workloads:
            time_workload(
                results, running, workload, prompts.rows(workload.batch, workload.tokens), settings, random, tell
            )
        for name, process in running.items():
            results[name]["idle"] = process.order("memory")["idle"] if process.alive else 0.0
    return results


def _load_trials(
    files: Mapping[str, Files], settings: Settings, random: np.random.Generator
) -> Iterator[tuple[str, bool]]:
    """Who starts, in a random order in each trial; in the last trial everyone, to stay."""
    names = sorted(files)
    for trial in range(settings.loads):
        last = trial == settings.loads - 1
        yield from ((names[index], last) for index in random.permutation(len(names)) if last or not slow(names[index]))


def slow(name: str) -> bool:
    return VARIANTS[name].slow_start


def measure_load(result: Json, process: VariantProcess, ids: list[list[int]], room: int) -> None:
    """Open, read, decode a little, and say what that took; a variant that fails here takes no further part."""
    try:
        opened = process.order("open")
        read = process.order("read", ids=ids, room=room)
        process.order("steps", untimed=0, count=min(LOAD_STEPS, room))
        peak = process.order("memory")["peak"]
    except VariantError as error:
        result["reason"] = str(error)
        return
    first = opened["open"] + read["seconds"][0]
    result["load"].append({"import": opened["import"], "open": opened["open"], "first_token": first, "peak": peak})


def time_workload(
    results: Json,
    running: Mapping[str, VariantProcess],
    workload: Workload,
    ids: list[list[int]],
    settings: Settings,
    random: np.random.Generator,
    tell: Tell,
) -> None:
    """Time one workload on every variant that lives, into results[name]["workloads"][workload.key]."""
    workloads: dict[str, Json] = {}
    running = {name: process for name, process in running.items() if name != FLOOR or workload.kind == "decode"}
    for name, process in running.items():
        fresh: Json = {"seconds": [], "first": [], "tokens": [], "same": 0, "reason": ""}
        workloads[name] = results[name]["workloads"][workload.key] = fresh
        tell(f"{workload.key}: {name} begins")
        if process.alive:
            _try(workloads[name], partial(_begin, process, workload, ids, settings, workloads[name]))
        else:
            workloads[name]["reason"] = "its process had died"
    names = sorted(running)
    for block in range(settings.blocks_of(workload)):
        tell(f"{workload.key}: block {block + 1} of {settings.blocks_of(workload)}")
        for name in (names[index] for index in random.permutation(len(names))):
            if not workloads[name]["reason"]:
                time.sleep(settings.settle)
                _try(workloads[name], partial(_trial, running[name], workload, ids, settings, workloads[name]))


def check_next(result: Json, process: VariantProcess, ids: list[list[int]], room: int) -> None:
    """The likeliest next token of many prompts: what is fast and wrong is not a contender."""
    try:
        result["check"] = process.order("read", ids=ids, room=room)["next"]
    except VariantError as error:
        result["reason"] = str(error)


def _try(result: Json, work: Callable[[], object]) -> None:
    try:
        work()
    except VariantError as error:
        result["reason"] = str(error)


def _begin(process: VariantProcess, workload: Workload, ids: list[list[int]], settings: Settings, result: Json) -> None:
    """The untimed trial."""
    if workload.kind == "prefill":
        result["first"] = process.order("read", ids=ids, room=settings.room)["next"]
        return
    first = process.order("read", ids=ids, room=settings.room)["next"]
    answer = process.order("steps", untimed=UNTIMED, count=settings.steps)
    result["first"], result["tokens"] = first, [first, *answer["tokens"]]


def _trial(process: VariantProcess, workload: Workload, ids: list[list[int]], settings: Settings, result: Json) -> None:
    if workload.kind == "decode":
        answer = process.order("steps", untimed=UNTIMED, count=settings.steps)
        result["seconds"].append(float(np.median(answer["seconds"])))
        result["same"] += answer["tokens"] == result["tokens"][1:]
        return
    read = process.order("read", ids=ids, room=settings.room, times=2 if workload.batch == 1 else 1)
    result["seconds"].append(read["seconds"][-1])
