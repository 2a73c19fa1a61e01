"""One of several processes that run a stage together, started by a launcher.

    python -m recipes.engine.worker FOLDER    request.json in FOLDER says what to run; see `launcher.py`

The first process leaves metadata.json. What goes wrong on any of them stands in error-R.json, which the process that
asked for the launch tells its user; the exit code ends the launch.
"""

import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

from compress.stage import Stage, StageInput, StageMetadata
from compress.text import TextSource
from compress.training.launch import Launch, adopt, launch
from recipes.engine.launcher import METADATA, POLL_SECONDS, PROGRESS, REQUEST, LauncherError
from recipes.runs.failures import exit_code, message, terminable

RENDEZVOUS_SECONDS = 300.0
WATCH_SECONDS = 0.5
OTHER_LAUNCHES = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")


def main() -> None:
    """Run what the request in the folder of the first argument asks for."""
    folder = Path(sys.argv[1])
    if not (folder / REQUEST).is_file():
        sys.exit(
            f"error: cannot see {folder}; all machines of a launch must share the folder that is written to: name one "
            "on a shared file system"
        )
    end_with_parent()
    sys.exit(work(folder))


def work(folder: Path) -> int:
    """Run the request as this process of its launch; the exit code."""
    adopt()
    here = launch()
    request = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
    try:
        _check_launcher()
        if request["kind"] is None:
            _write(folder / f"here-{here.rank}.json", {"world": here.world, "local_world": here.local_world})
            return 0
        with terminable():
            _rendezvous(folder, here)
            metadata = _run(folder, request, here)
    except BaseException as error:  # the one place that tells of whatever ended this process
        told = {"rank": here.rank, "world": here.world, "text": message(error), "code": exit_code(error)}
        _write(folder / f"error-{here.rank}.json", {**told, "final": not _restarts_left(), "at": time.time()})
        return exit_code(error)
    if metadata is not None:
        _write(folder / METADATA, metadata)
    return 0


def _restarts_left() -> bool:
    """Whether the launcher starts its workers again when one fails; torchrun and accelerate tell them how often."""
    count, most = (os.environ.get(f"TORCHELASTIC_{name}", "0") for name in ("RESTART_COUNT", "MAX_RESTARTS"))
    return int(count) < int(most)


def end_with_parent() -> None:
    """Have this process end when the one that started it is gone, whatever it computes just then.

    A signal alone would not do: Python looks at signals only between its own instructions.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _check_launcher() -> None:
    for name in OTHER_LAUNCHES:
        if os.environ.get(name, "false").lower() == "true":
            raise LauncherError(
                f"{name}: expected a plain launch, because the recipe says how processes share the work; launch "
                "without it, and set `distributed: fsdp` on the stage for sharded training",
                code=2,
            )


def _rendezvous(folder: Path, here: Launch) -> None:
    """Tell everyone where the first process is, where the launcher does not."""
    if "MASTER_ADDR" in os.environ or here.world == 1:
        return
    file = folder / "address.json"
    if here.first:
        with socket.socket() as found:
            found.bind(("", 0))
            port = found.getsockname()[1]
        machines = int(os.environ.get("SLURM_STEP_NUM_NODES") or os.environ.get("SLURM_NNODES") or 1)
        host = "127.0.0.1" if machines == 1 and here.local_world == here.world else socket.gethostname()
        _write(file, {"MASTER_ADDR": host, "MASTER_PORT": str(port)})
    until = time.monotonic() + RENDEZVOUS_SECONDS
    while not file.is_file():
        if time.monotonic() > until:
            raise LauncherError(f"the first process of {here.world} did not start within {RENDEZVOUS_SECONDS:.0f} s")
        time.sleep(POLL_SECONDS)
    os.environ.update(json.loads(file.read_text(encoding="utf-8")))


def _run(folder: Path, request: Mapping[str, Any], here: Launch) -> StageMetadata | None:
    """Run the stage; the first process's metadata, None on the others."""
    from compress.training.distributed import FollowedError

    stage = _stage(request)
    with _input(folder, request["given"], here) as given:
        try:
            metadata: StageMetadata = stage.run(stage.config.model_validate(request["knobs"]), given)
        except FollowedError:  # its part is over once the training is
            return None
    return metadata if here.first else None


def _stage(request: Mapping[str, Any]) -> Stage[Any]:
    module, _, name = request["stages"].partition(":")
    stages: dict[str, Stage[Any]] = getattr(import_module(module), name)
    return stages[request["kind"]]


@contextmanager
def _input(folder: Path, plain: Mapping[str, Any], here: Launch) -> Iterator[StageInput]:
    """What the stage is given; only the first process writes what is kept."""
    paths = {name: plain[name] and Path(plain[name]) for name in ("source", "out", "scratch", "teacher", "logs")}
    texts = {
        name: None if plain[name] is None else TextSource.model_validate(plain[name])
        for name in ("train_text", "calibration_text")
    }
    told: dict[str, Any] = {**paths, **texts, "seed": plain["seed"], "lineage": tuple(plain["lineage"])}
    if here.first:
        yield StageInput(**told, progress=FileProgress(folder / PROGRESS))
        return
    told["out"] = Path(tempfile.mkdtemp(prefix="demitasse-"))
    try:
        yield StageInput(**told)
    finally:
        shutil.rmtree(told["out"], ignore_errors=True)


def _write(file: Path, content: Mapping[str, Any]) -> None:
    """Written as a whole; a reader sees all of it or none."""
    unfinished = file.with_name(f".{file.name}")
    unfinished.write_text(json.dumps(content), encoding="utf-8")
    unfinished.replace(file)


@dataclass(frozen=True)
class FileProgress:
    """A `Progress` that another process shows: an event a line."""

    file: Path
    numbers: Iterator[int] = field(default_factory=count)

    @contextmanager
    def task(self, label: str, total: float, done: float = 0.0, *, steady: float = 0.0) -> Iterator["_FileTask"]:
        """See `compress.stage.Progress`."""
        task = _FileTask(self, next(self.numbers))
        self.tell({"task": task.number, "label": label, "total": total, "done": done, "steady": steady})
        try:
            yield task
        finally:
            self.tell({"task": task.number})

    def tell(self, event: Mapping[str, Any]) -> None:
        """Append an event."""
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(event) + "\n")


@dataclass(frozen=True)
class _FileTask:
    progress: FileProgress
    number: int

    def advance(self, amount: float = 1.0, note: str = "") -> None:
        """See `compress.stage.Task`."""
        self.progress.tell({"task": self.number, "amount": amount, "note": note})


if __name__ == "__main__":
    main()
