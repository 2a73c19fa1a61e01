"""A command in a process of its own, forked from a warm one: what it said, how it ended, what it took.

Importing PyTorch and transformers takes seconds, a fork takes milliseconds; so `warm()` imports once, and every attempt
is a fork that runs the command line as a user would: its own working directory, streams, environment and limits.
"""

import ctypes
import os
import re
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages

from jinja2 import UndefinedError

HANG_SECONDS = 20.0
"""Of processor time, or so long without any: on a busy machine the clock alone says little."""
LOOK_SECONDS = 2.0
STIRS = 0.02
"""Seconds of processor time below which nothing has happened."""
MOST_MEMORY = 2 * 10**9
ROOM = 3 * 2**30
"""Bytes of addresses that an attempt may ask for beyond those it begins with: no input takes the machine down."""
LATE = (
    "matplotlib.backends.backend_svg",
    "matplotlib.figure",
    "mobius._configs.per_model",
    "onnx_shape_inference._ops",
    "onnxscript._internal._inference",
    "sympy.tensor.tensor",
    "transformers.generation.utils",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.llama.modeling_llama",
)
"""What libraries import when they are first used."""
TRACEBACK = "Traceback (most recent call last)"
UNEXPECTED = re.compile(r"unexpected \w+(Error|Exception|Panic\w*|Exit|Warning):")
NO_MEMORY = re.compile(r"out of memory|can't allocate memory|bad_alloc|Unable to allocate", re.IGNORECASE)
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
PASSED, FAILED, REFUSED, INCONCLUSIVE, INVALID, BROKEN = range(6)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that is not right."""

    what: str
    """wrong, unexpected, traceback, hang, memory"""
    text: str


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A command that has ended."""

    code: int
    """Its exit code; minus the signal that ended it."""
    out: str
    err: str
    cpu: float
    """Seconds of processor time."""
    memory: int
    """Bytes at its peak."""
    hung: bool
    """It was ended because it took too long."""

    @property
    def said(self) -> str:
        return " | ".join((self.err or self.out).strip().splitlines()[-3:])[-600:]

    def findings(self, allowed: Iterable[int]) -> list[Finding]:
        """What is wrong with how it ended, whatever it computed; `allowed` are the exit codes that may be."""
        text, found = f"exit {self.code}: {self.said}", []
        if self.hung:
            found.append(Finding(what="hang", text=f"{self.cpu:.1f} s of processor time; {text}"))
        if self.memory > MOST_MEMORY or NO_MEMORY.search(self.err):
            found.append(Finding(what="memory", text=f"{self.memory / 1e9:.2f} GB; {text}"))
        if TRACEBACK in self.out + self.err:
            found.append(Finding(what="traceback", text=text))
        elif UNEXPECTED.search(self.err) or (self.code < 0 and not self.hung):
            found.append(Finding(what="unexpected", text=text))
        elif self.code not in allowed and not found:
            found.append(Finding(what="wrong" if self.code in (PASSED, FAILED) else "unexpected", text=text))
        elif self.code not in (PASSED, FAILED, INCONCLUSIVE) and not found:
            found += _unclear(self)
        return found


def _unclear(ended: Ended) -> list[Finding]:
    """What keeps a refusal from being read: nothing said, control characters, a wall of text."""
    if not ended.err.strip() and not ended.out.strip():
        return [Finding(what="unexpected", text=f"exit {ended.code} without a word")]
    if CONTROL.search(ended.err.replace("\r\n", "\n")):
        return [Finding(what="unexpected", text=f"control characters in {ended.err[-300:]!r}")]
    if max(map(len, ended.err.splitlines()), default=0) > 2000:
        return [Finding(what="unexpected", text=f"a line of more than 2,000 characters: {ended.err[:200]!r}")]
    return []


def warm() -> None:
    """Import what commands import, once; no thread is started, so that forking stays safe."""
    os.environ.update(TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
    import accelerate  # noqa: F401
    import bitsandbytes  # noqa: F401
    import mobius  # noqa: F401
    import onnx_ir  # noqa: F401
    import onnxruntime  # noqa: F401
    import scipy.stats  # noqa: F401
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments  # noqa: F401

    from evaluation.pages import TEMPLATES, filled

    for name in ("compress", "export", "evaluation", "recipes"):
        for module in walk_packages(import_module(name).__path__, f"{name}."):
            import_module(module.name)
    for name in LATE:
        import_module(name)
    for template in sorted(TEMPLATES.glob("*.j2")):
        with suppress(UndefinedError):  # it is compiled before it misses its values
            filled(template.name)
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()


def command(
    *arguments: object,
    place: Path,
    environment: Mapping[str, str] | None = None,
    before: Callable[[], None] = lambda: None,
    seconds: float = HANG_SECONDS,
) -> Ended:
    """Run `demitasse ARGUMENTS` in the folder `place`; `before` is called in the process, just before."""

    def work() -> None:
        from recipes.cli.app import main

        os.environ.update(environment or {})
        before()
        main()

    return forked(work, place, ["demitasse", *map(str, arguments)], seconds=seconds)


def forked(
    work: Callable[[], object], place: Path, argv: list[str] | None = None, *, seconds: float = HANG_SECONDS
) -> Ended:
    """Do work in a fork that stands in the folder `place`; what it says goes into files beside that folder.

    It may take `seconds` of processor time with all its children, and may not wait for as long without any.
    """
    running = Running(work, place, argv or ["demitasse"])
    return running.wait(seconds)


class Running:
    """A fork under way: the leader of a session of its own."""

    def __init__(self, work: Callable[[], object], place: Path, argv: list[str]) -> None:
        place.mkdir(parents=True, exist_ok=True)
        self._said = [place.with_name(f"{place.name}.{stream}") for stream in ("out", "err")]
        for file in self._said:
            file.write_bytes(b"")
        sys.stdout.flush()
        sys.stderr.flush()
        self.process = os.fork()
        if self.process == 0:
            code = 99
            try:
                code = _child(work, place, argv, self._said)
            finally:
                os._exit(code)

    def wait(self, seconds: float = HANG_SECONDS, *, leave: bool = False, beside: Sequence["Running"] = ()) -> Ended:
        """Wait for its end, or end it when it hangs; then end its children too, unless they are to be left.

        It may wait for those that run `beside` it, for as long as one of them computes.
        """
        hung, status, used = False, 0, None
        began = looked = stirred = time.monotonic()
        spent = all_spent = 0.0
        while used is None:
            done, status, usage = os.wait4(self.process, os.WNOHANG)
            now = time.monotonic()
            if done:
                used = usage
            elif now - looked > LOOK_SECONDS:
                looked, before, spent = now, all_spent, processor_seconds(self.process)
                all_spent = spent + sum(processor_seconds(one.process) for one in beside if one is not self)
                starved = any(runnable(one.process) for one in (self, *beside))
                stirred = now if starved or abs(all_spent - before) > STIRS else stirred
                hung = spent > seconds or now - stirred > HANG_SECONDS
                if hung:
                    self.kill(signal.SIGKILL)
                    _, status, used = os.wait4(self.process, 0)
            else:
                time.sleep(0.004 if now - began < 2 else 0.05)
        if not leave:
            self.kill(signal.SIGKILL)
        out, err = (file.read_bytes().decode("utf-8", "replace") for file in self._said)
        return Ended(
            code=os.waitstatus_to_exitcode(status),
            out=out,
            err=err,
            cpu=max(spent, used.ru_utime + used.ru_stime),
            memory=used.ru_maxrss * 1024,
            hung=hung,
        )

    def work_for(self, seconds: float) -> None:
        """Wait until it has used so many seconds of processor time, or has ended, or has waited for long."""
        until = time.monotonic() + HANG_SECONDS * (1 + seconds)
        ended = os.WEXITED | os.WNOHANG | os.WNOWAIT
        while processor_seconds(self.process) < seconds and time.monotonic() < until:
            if os.waitid(os.P_PID, self.process, ended) is not None:
                return
            time.sleep(0.003)
        time.sleep(seconds % 0.01)  # the kernel counts in hundredths

    def kill(self, number: int) -> None:
        """Send a signal to the whole session."""
        try:
            os.killpg(self.process, number)
        except ProcessLookupError:
            return


def processor_seconds(process: int) -> float:
    """What a process and all its children, those that have ended too, have computed so far."""
    return sum(sum(map(int, fields[11:15])) for fields in _family(process)) / os.sysconf("SC_CLK_TCK")


def runnable(process: int) -> bool:
    """Whether it or one of its children would compute, if a busy machine let it."""
    return any(fields[0] == "R" for fields in _family(process))


def _family(process: int) -> Iterator[list[str]]:
    """What the kernel tells of a process and of all its children, from its state on."""
    todo = [process]
    while todo:
        one = todo.pop()
        try:
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            todo += [
                int(child)
                for file in Path(f"/proc/{one}/task").glob("*/children")
                for child in file.read_text().split()
            ]
        except (OSError, ValueError):  # it has ended meanwhile
            continue
        yield fields


def _child(work: Callable[[], object], place: Path, argv: list[str], said: list[Path]) -> int:
    """Runs in the fork: its exit code, as Python itself would end."""
    os.setsid()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: a campaign that is ended leaves nothing running
    asked = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (asked, asked))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    for number, file in enumerate(said, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), number)
    os.chdir(place)
    sys.argv = argv
    try:
        work()
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
        code = 1
    else:
        code = 0
    if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            code = 120  # as Python's own end does
    return int(code or 0) & 255


def emptied(folder: Path) -> Path:
    """A folder with nothing in it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
