"""Training on several processes: this one stays alone, and has the stage's workers started by a launcher.

    this process   request.json -> LAUNCHER python -m recipes.engine.worker FOLDER -> metadata.json, or error-R.json
    N workers      run the stage together; the first one alone writes, and tells how far it is in progress.jsonl

FOLDER lies in the stage's scratch folder, which all machines of a launch must share. A launcher is whatever starts the
same command several times and tells each process which one it is (`compress/training/launch.py`): torchrun, accelerate
launch, srun, mpirun; or `ray`, for a cluster of Ray (`ray_workers.py`).

Before anything runs the launcher is tried with workers that only tell how many they are. A worker that fails ends all
of them, with one message; when this process ends, so does the launcher.
"""

import ctypes
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from compress.errors import DemitasseError
from compress.stage import Progress, Stage, StageConfig, StageInput, StageMetadata, Task
from recipes.runs.failures import GOES_ON
from recipes.runs.processes import environment, python_module

POLL_SECONDS = 0.1
END_SECONDS = 45.0
"""Within which a launcher that is asked to end its workers has done so; torchrun gives them 30."""
FAILED_SECONDS = 30.0
"""Within which a launcher ends the others when a worker has failed; srun waits for them for ever."""
WORKER = "recipes.engine.worker"
REQUEST, METADATA, PROGRESS = "request.json", "metadata.json", "progress.jsonl"
PYTHON_LAUNCHERS = ("torchrun", "torch.distributed.run", "accelerate", "accelerate.commands.launch", "deepspeed")
"""Launchers that start Python themselves."""
STAGES = "recipes.config.stages:STAGES"
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG
LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL", "gloo")
"""How libraries put it that another process is gone."""
ENDED = (130, 143)
"""Exit codes of a process that was asked to end, by its launcher because another one failed."""


class LauncherError(DemitasseError):
    """The launcher does not work, or a process that it started failed; the message says which and what."""

    def __init__(self, text: str, code: int = 4) -> None:
        super().__init__(text)
        self.exit_code = code


@dataclass(frozen=True, kw_only=True)
class Size:
    """How many processes a launcher starts."""

    world: int
    local_world: int
    """Of these on this machine."""


@dataclass(frozen=True, kw_only=True)
class Launcher:
    """Starts the processes of a stage."""

    command: str
    """Such as "torchrun --nproc-per-node 4", "srun -n 8", or "ray"."""
    place: Path | None = None
    """A folder that all machines of a launch see, in which it is tried; None: the temporary one."""
    stages: str = STAGES
    """Where the workers find the stages, as "module:dictionary"."""

    def size(self) -> Size:
        """How many processes it starts; it is tried once.

        Raises:
            LauncherError: it cannot be started, or its processes do not know of each other.
        """
        return _size(self)

    def run(self, stage: Stage[Any], config: StageConfig, given: StageInput) -> StageMetadata:
        """Run a stage on all processes.

        Raises:
            LauncherError: one of them failed.
        """
        with _folder(given.scratch) as folder:
            request = {
                "stages": self.stages,
                "kind": stage.kind,
                "knobs": config.model_dump(mode="json"),
                "given": as_plain(given),
            }
            (folder / REQUEST).write_text(json.dumps(request), encoding="utf-8")
            self._carry_out(folder, given.progress)
            metadata: StageMetadata = json.loads((folder / METADATA).read_text(encoding="utf-8"))
        return {**metadata, "processes": self.size().world}

    def _carry_out(self, folder: Path, progress: Progress) -> None:
        """Start the workers and wait for them."""
        log = folder / "launcher.log"
        with log.open("wb") as stream, _following(folder / PROGRESS, progress) as follow:
            process = _started(self._words(folder), stream)
            try:
                self._wait(process, folder, follow)
                follow()
            except BaseException:
                _end(process)
                raise
        said = log.read_text(encoding="utf-8", errors="replace")
        sys.stderr.write(said)
        if process.returncode != 0 or not (folder / METADATA).is_file():
            raise _failure(folder, said, process.returncode)

    def _wait(self, process: "subprocess.Popen[bytes]", folder: Path, follow: Callable[[], None]) -> None:
        """Until the launcher has ended, or has not although a worker failed: then it is ended."""
        failed: float | None = None
        while process.poll() is None:
            follow()
            if failed is None and any(error["final"] for error in _errors(folder)):
                failed = time.monotonic()
            if failed is not None and time.monotonic() > failed + FAILED_SECONDS:
                _end(process)
                return
            time.sleep(POLL_SECONDS)

    def _words(self, folder: Path) -> list[str]:
        words = shlex.split(self.command)
        if words[:1] == ["ray"]:
            return python_module("recipes.engine.ray_workers", *words[1:], str(folder))
        starts_python = any(Path(word).name in PYTHON_LAUNCHERS for word in words)
        return [*words, "-m", WORKER, str(folder)] if starts_python else [*words, *python_module(WORKER, str(folder))]


@cache
def _size(launcher: Launcher) -> Size:
    with TemporaryDirectory(prefix=".launch-", dir=launcher.place) as place:
        folder = Path(place)
        (folder / REQUEST).write_text(json.dumps({"kind": None}), encoding="utf-8")
        log = folder / "launcher.log"
        with log.open("wb") as stream:
            process = _started(launcher._words(folder), stream)
            try:
                code = process.wait()
            except BaseException:
                _end(process)
                raise
        told = [json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("here-*.json")]
        said = log.read_text(encoding="utf-8", errors="replace")
        if code != 0 or not told:
            raise _failure(folder, said, code, what=f"--launcher {launcher.command}: ")
        if len(told) != told[0]["world"]:
            raise LauncherError(
                f"--launcher {launcher.command}: expected {told[0]['world']} processes that see {folder.parent}, heard "
                f"of {len(told)}; all machines of a launch must share it: name another with --out",
                code=2,
            )
        return Size(world=told[0]["world"], local_world=told[0]["local_world"])


def as_plain(given: StageInput) -> dict[str, Any]:
    """What a worker needs to know of a stage's input, as JSON has it."""
    paths = {name: getattr(given, name) for name in ("source", "out", "scratch", "teacher", "logs")}
    texts = {name: getattr(given, name) for name in ("train_text", "calibration_text")}
    return {
        **{name: None if path is None else str(path.absolute()) for name, path in paths.items()},
        **{name: None if text is None else text.model_dump(mode="json") for name, text in texts.items()},
        "seed": given.seed,
        "lineage": list(given.lineage),
    }


@contextmanager
def _folder(scratch: Path) -> Iterator[Path]:
    """A folder for what this process and the workers tell each other."""
    folder = scratch / ".workers"
    shutil.rmtree(folder, ignore_errors=True)  # of a launch that was killed
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _started(command: Sequence[str], log: Any) -> "subprocess.Popen[bytes]":
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment(),
            start_new_session=True,  # an interruption from the keyboard is passed on by this process, once
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )
    except OSError as error:
        raise LauncherError(f"--launcher {command[0]}: cannot be started ({error.strerror})", code=2) from error


def _die_with_parent() -> None:
    """Have the kernel end the launcher, and it its workers, should this process be killed."""
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGTERM)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the launcher and all that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(END_SECONDS)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
        return


def _failure(folder: Path, said: str, code: int, what: str = "") -> LauncherError:
    """The error that ended a launch: of several, the first that is not about another process being gone."""
    told = _errors(folder)
    causes = [error for error in told if error["code"] not in ENDED and not _lost(error)]
    if causes:
        first = min(causes, key=lambda error: error["at"])
        return LauncherError(f"{what}process {first['rank']} of {first['world']}: {first['text']}", first["code"])
    lines = [line for line in said.splitlines() if line.strip()]
    words = next((line for line in lines if line.startswith("error: ")), lines[-1] if lines else "it said nothing")
    if what:
        return LauncherError(f"{what}ended with {code} ({words.removeprefix('error: ')})", code=2)
    reason = next((error["text"] for error in told if _lost(error)), words.removeprefix("error: "))
    return LauncherError(f"training broke off because a process ended or cannot be reached ({reason}); {GOES_ON}")


def _errors(folder: Path) -> list[dict[str, Any]]:
    """What each worker that failed has told; one that its launcher starts again fails no launch yet."""
    return [json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("error-*.json")]


def _lost(error: Mapping[str, Any]) -> bool:
    return any(sign in error["text"] for sign in LOST)


@contextmanager
def _following(file: Path, progress: Progress) -> Iterator[Any]:
    """What the first worker tells of its progress, shown here: call what this gives now and then."""
    with ExitStack() as stack:
        reader = _Reader(file, progress, stack)
        yield reader.read


@dataclass
class _Reader:
    """Reads events as they are appended (`FileProgress` in `worker.py`)."""

    file: Path
    progress: Progress
    stack: ExitStack
    offset: int = 0

    def __post_init__(self) -> None:
        self.tasks: dict[int, tuple[Task, ExitStack]] = {}

    def read(self) -> None:
        """Show what is new."""
        if not self.file.is_file():
            return
        with self.file.open("rb") as stream:
            stream.seek(self.offset)
            for line in stream:
                if not line.endswith(b"\n"):  # still being written
                    return
                self.offset += len(line)
                self._show(json.loads(line))

    def _show(self, event: Mapping[str, Any]) -> None:
        number = event["task"]
        if "label" in event:
            inner = self.stack.enter_context(ExitStack())
            opened = self.progress.task(event["label"], event["total"], event["done"], steady=event["steady"])
            self.tasks[number] = inner.enter_context(opened), inner
        elif "amount" in event:
            self.tasks[number][0].advance(event["amount"], event["note"])
        else:
            self.tasks.pop(number)[1].close()
