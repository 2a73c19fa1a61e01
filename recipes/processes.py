"""The same command on several processes: the first does what one would do, the others help wherever a stage trains.

    first     the store, measurements, report, terminal and log:   share stage 2 ---- run it ---- ... ---- end
    others    quiet, no files of their own:                        wait --- run stage 2 with it --- wait --- exit 0

Whoever launched them (torchrun, accelerate launch) gives every process a place to meet: a store of keys and values that
torch.distributed opens from the environment. Messages are keys in it:

    meet  first -> others: a file that all must see        here/R     other R sees it and knows the recipe
    share/N  what is to be run together, the Nth time      done/N/R   other R has run it
    error    what went wrong on another process first      end        the first is done, well or not

The others look for a message twice a second, so waiting costs nothing for as long as it takes, and they can be
interrupted at any time. While a stage runs, a thread of the others looks for `end` and one of the first for `error`,
since a process may hang in a call to the others when one of them is gone. An error on any process ends all of them,
with one message by the first. The others exit with 0 if the first has heard of it: the verdict is its alone.

Not covered: machines that share no file system (refused); commands other than run, train and distill, which the first
process carries out alone.
"""

import json
import os
import secrets
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress import Stage, StageConfig, StageInput
from compress.training.launch import Launch, launch, unfit
from recipes.errors import Problem
from recipes.failures import GOES_ON, Terminated, exit_code, is_ours, message
from recipes.planning import Step
from recipes.schema import Recipe, Stages

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

POLL_SECONDS = 0.5
MEET_SECONDS = 300.0
"""Within which every process has started, imported what it needs and read the recipe."""
SEEN_SECONDS = 30.0
"""Within which a file of the first process is visible to the others: network file systems look only now and then."""
HEARD_SECONDS = 30.0
"""Within which the first process hears of an error on another, or the other tells it itself."""
GONE_SECONDS = 3.0
OTHER_LAUNCHES = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")
LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL", "gloo")
"""How libraries put it that another process is gone."""


class ProcessError(Exception):
    """The processes cannot work together, or one of them failed; the message says which and what."""

    def __init__(self, text: str, code: int = 4) -> None:
        super().__init__(text)
        self.exit_code = code


@dataclass
class Alone:
    """A process that nobody helps."""

    launch: Launch = field(default_factory=Launch)

    def meet(self, folder: Path) -> None:
        """See that everyone is there."""

    @contextmanager
    def share(self, number: int, given: StageInput) -> Iterator[None]:
        """The stage that is run inside of this is run by everyone."""
        yield


@dataclass
class First(Alone):
    """The process that does the work, with others to help."""

    store: "Store | None" = None
    shared: int = 0

    def meet(self, folder: Path) -> None:
        token = folder / f".processes-{secrets.token_hex(8)}"
        token.touch()
        try:
            self._tell("meet", {"token": str(token)})
            self._await("here", MEET_SECONDS, "have not started")
        finally:
            token.unlink()

    @contextmanager
    def share(self, number: int, given: StageInput) -> Iterator[None]:
        self._raise_reported()
        paths = {name: getattr(given, name) for name in ("source", "scratch", "teacher")}
        plain = {name: None if path is None else str(path.absolute()) for name, path in paths.items()}
        self.shared += 1
        self._tell(f"share/{self.shared}", {"stage": number, **plain})
        try:
            with self._alarmed():
                yield
        except KeyboardInterrupt:
            self._raise_reported()
            raise
        except Exception as error:
            if is_ours(error) or not any(sign in str(error) for sign in LOST):
                raise
            self._raise_reported(HEARD_SECONDS / 3)
            reason = str(error).strip().partition("\n")[0]
            raise ProcessError(
                f"training broke off because another process ended or cannot be reached ({reason}); {GOES_ON}"
            ) from error
        self._await(f"done/{self.shared}", MEET_SECONDS, "have not ended their training")

    @contextmanager
    def _alarmed(self) -> Iterator[None]:
        """Interrupt what runs inside of this once another process has reported an error, as if the user did."""
        over, lock, here = threading.Event(), threading.Lock(), threading.get_ident()

        def watch() -> None:
            with suppress(Exception):  # a store that is gone tells nothing
                while not over.wait(POLL_SECONDS):
                    if self.store is not None and self.store.check(["error"]):
                        with lock:
                            if not over.is_set():
                                signal.pthread_kill(here, signal.SIGINT)
                        return

        if threading.current_thread() is threading.main_thread():  # no other one can be interrupted
            threading.Thread(target=watch, daemon=True).start()
        try:
            yield
        finally:
            with lock:
                over.set()

    def end(self) -> None:
        """Let the others go, and see them off: a launcher kills those that are there when one has failed."""
        with suppress(Exception):  # a store that is gone has nobody who waits at it
            self._tell("end", {})
            until = time.monotonic() + GONE_SECONDS
            while time.monotonic() < until and self._missing("gone"):
                time.sleep(0.05)

    def _tell(self, key: str, value: Mapping[str, Any]) -> None:
        assert self.store is not None
        self.store.set(key, json.dumps(value))

    def _await(self, key: str, seconds: float, what: str) -> None:
        """Wait for the word of every other process."""
        until = time.monotonic() + seconds
        while missing := self._missing(key):
            self._raise_reported()
            if time.monotonic() > until:
                names = ", ".join(map(str, missing))
                raise ProcessError(f"processes {names} of {self.launch.world} {what} within {seconds:.0f} s; {GOES_ON}")
            time.sleep(0.05)

    def _missing(self, key: str) -> list[int]:
        """Who has not said so yet."""
        assert self.store is not None
        return [rank for rank in range(1, self.launch.world) if not self.store.check([f"{key}/{rank}"])]

    def _raise_reported(self, seconds: float = 0.0) -> None:
        """Raise what another process has reported, if one does within some seconds."""
        until = time.monotonic() + seconds
        assert self.store is not None
        while not self.store.check(["error"]):
            if time.monotonic() >= until:
                return
            time.sleep(0.05)
        told = json.loads(self.store.get("error"))
        self._tell("heard", {})
        raise ProcessError(f"process {told['rank']} of {self.launch.world}: {told['text']}", told["code"])


@dataclass
class Other(Alone):
    """A process that helps the first one."""

    store: "Store | None" = None

    def follow(self, help_with: Callable[[int, StageInput], None]) -> None:
        """Run with the first process what it shares, until it is done.

        Args:
            help_with: (number of the stage, what the stage is given, but for texts and seed) -> None
        """
        asked = self._next("meet")
        if asked is None:
            return
        self._look_for(Path(asked["token"]))
        self._say("here")
        count = 1
        while (asked := self._next(f"share/{count}")) is not None:
            with self._place() as out:
                source, teacher = (asked[name] and Path(asked[name]) for name in ("source", "teacher"))
                given = StageInput(source=source, out=out, scratch=Path(asked["scratch"]), teacher=teacher)
                help_with(int(asked["stage"]), given)
            self._say(f"done/{count}")
            count += 1

    def report(self, error: Exception) -> bool:
        """Tell the first process what went wrong here; whether it has heard."""
        assert self.store is not None
        told = {"rank": self.launch.rank, "text": message(error), "code": exit_code(error)}
        until = time.monotonic() + HEARD_SECONDS
        try:
            self.store.compare_set("error", "", json.dumps(told))
            while time.monotonic() < until:
                if self.store.check(["heard"]) or self.store.check(["end"]):
                    return True
                time.sleep(POLL_SECONDS)
        except Exception:  # the store went with the first process, which has then said why
            return True
        return False

    def gone(self) -> None:
        """Say good-bye."""
        with suppress(Exception):  # nobody is there any more to hear it
            self._say("gone")

    def _say(self, key: str) -> None:
        assert self.store is not None
        self.store.set(f"{key}/{self.launch.rank}", "")

    def _next(self, key: str) -> dict[str, Any] | None:
        """The next message; None once the first process is done."""
        assert self.store is not None
        while True:
            if self.store.check([key]):
                found: dict[str, Any] = json.loads(self.store.get(key))
                return found
            if self.store.check(["end"]):
                return None
            time.sleep(POLL_SECONDS)

    def _look_for(self, token: Path) -> None:
        until = time.monotonic() + SEEN_SECONDS
        while not token.exists():
            if self.store is not None and self.store.check(["end"]):
                return
            if time.monotonic() > until:
                raise ProcessError(
                    f"cannot see {token.parent}, where the first process writes; all machines of a launch must share "
                    "the run's folder: name one on a shared file system with --out",
                    code=2,
                )
            time.sleep(POLL_SECONDS)

    @contextmanager
    def _place(self) -> Iterator[Path]:
        """An output folder that is thrown away, also where this process has to end in the middle."""
        folder, over = Path(tempfile.mkdtemp(prefix="demitasse-")), threading.Event()

        def leave_when_told() -> None:
            assert self.store is not None
            while not over.wait(POLL_SECONDS):
                with suppress(Exception):  # where the store is gone, so is the first process
                    if not self.store.check(["end"]):
                        continue
                shutil.rmtree(folder, ignore_errors=True)
                self.gone()
                os._exit(0)

        threading.Thread(target=leave_when_told, daemon=True).start()
        try:
            yield folder
        finally:
            over.set()
            shutil.rmtree(folder, ignore_errors=True)


Crew = Alone | First | Other


def alone() -> Alone:
    """A process without others.

    Raises:
        ProcessError: it was launched with others, who would all do the same work.
    """
    world = launch().world
    if world > 1:
        raise ProcessError(
            f"expected one process, got one of {world}; on several, launch the command `demitasse run` itself", code=2
        )
    return Alone()


@contextmanager
def crew() -> Iterator[Crew]:
    """This process and those that it was launched with.

    Raises:
        ProcessError: the launcher does what the recipe should say.
    """
    here = launch()
    if here.world == 1:
        yield Alone()
    elif here.first:
        first = First(here, _meeting_place(here))
        try:
            check_launcher()
            yield first
        finally:
            first.end()
    else:
        with _quiet(Other(here, _meeting_place(here))) as other:
            yield other


@contextmanager
def _quiet(other: Other) -> Iterator[Other]:
    """What goes wrong here is told to the first process, and by this one only if that does not hear it."""
    try:
        yield other
    except (KeyboardInterrupt, Terminated) as error:
        raise SystemExit(exit_code(error)) from None
    except Exception as error:
        if other.report(error):
            raise SystemExit(0) from None
        here = other.launch
        raise ProcessError(f"process {here.rank} of {here.world}: {message(error)}", exit_code(error)) from error
    finally:
        other.gone()


def _meeting_place(here: Launch) -> "Store":
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(iter(rendezvous("env://", timeout=timedelta(seconds=MEET_SECONDS))))
    return PrefixStore(f"demitasse/{here.attempt}", store)


def check_launcher() -> None:
    """Refuse a launcher that would share the work in its own way.

    Raises:
        ProcessError: it was told to.
    """
    for name in OTHER_LAUNCHES:
        if os.environ.get(name, "false").lower() == "true":
            raise ProcessError(
                f"{name}: expected a plain launch, because the recipe says how processes share the work; launch "
                "without it, and set `distributed: fsdp` on the stage for sharded training",
                code=2,
            )


def help_recipe(recipe: Recipe, stages: Stages) -> Callable[[int, StageInput], None]:
    """How another process helps with the stages of a recipe."""

    def help_with(number: int, given: StageInput) -> None:
        data, planned = recipe.data, recipe.stages[number]
        given = replace(given, seed=recipe.seed, train_text=data.train, calibration_text=data.calibration)
        run_along(stages[planned.kind], planned.config, given)

    return help_with


def run_along(stage: Stage[Any], config: StageConfig, given: StageInput) -> None:
    """A stage as another process than the first runs it: until the training in it is over."""
    from compress.training.distributed import FollowedError

    with suppress(FollowedError):
        stage.run(config, given)


def unfit_batches(recipe: Recipe, steps: Sequence[Step], world: int) -> list[Problem]:
    """Batches that cannot be dealt out to that many processes."""
    found = ((step, unfit_batch(step.stage, step.config, world)) for step in steps)
    return [
        recipe.where.problem(("stages", step.index, step.stage.kind, "batch"), wrong)
        for step, wrong in found
        if wrong is not None
    ]


def unfit_batch(stage: Stage[Any], config: StageConfig, world: int) -> str | None:
    """What is wrong with a stage's batch for that many processes, if anything is."""
    batch: int | None = getattr(config, "batch", None)
    if batch is None or not stage.parallel:
        return None
    return unfit(batch, getattr(config, "accumulate", 1), world)
