"""Streams that are closed or full, limits that are reached, surroundings that are missing: exit code 1 stays FAIL, a
verdict is given only where it could be told, and there is never a traceback.
"""

import os
import resource
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random

from attempt import BROKEN, FAILED, INCONCLUSIVE, INVALID, PASSED, REFUSED, Finding, command
from campaign import Case
from tiny import ROOT, bundle, finished

PIPE = 141
COMMANDS: dict[str, tuple[tuple[str, ...], int]] = {
    "help": (("--help",), PASSED),
    "version": (("--version",), PASSED),
    "schema": (("schema",), PASSED),
    "methods": (("methods",), PASSED),
    "doctor": (("doctor",), PASSED),
    "plan": (("plan", "short.yaml"), PASSED),
    "plan wrong": (("plan", "short.yaml", "--set", "prune.sparsity=2"), REFUSED),
    "no such command": (("nosuch",), REFUSED),
    "run again": (("run", "short.yaml", "--out", "short-run"), PASSED),
    "gate good": (("gate", "good"), PASSED),
    "gate bad": (("gate", "bad"), FAILED),
    "gate out": (("gate", "good", "--out", "judged"), PASSED),
    "compare": (("compare", "good", "bad"), PASSED),
    "verify": (("verify", "bundle"), PASSED),
    "verify broken": (("verify", "broken"), BROKEN),
    "generate": (("generate", "bundle", "It was", "--tokens", "8"), PASSED),
    "store list": (("store", "list", "short-run/artifacts"), PASSED),
    "store verify": (("store", "verify", "short-run/artifacts"), PASSED),
    "store prune": (("store", "prune", "short-run/artifacts"), PASSED),
    "prune": (("prune", "gpt2", "--out", "pruned", "--sparsity", "0.5"), PASSED),
    "train text missing": (("train", "gpt2", "--out", "trained"), REFUSED),
}


def _close(*descriptors: int) -> Callable[[], None]:
    def closed() -> None:
        for number in descriptors:
            with suppress(OSError):  # by another op already
                os.close(number)
        if 1 in descriptors:
            sys.stdout = None  # type: ignore[assignment] # as Python itself starts with a closed stream
        if 2 in descriptors:
            sys.stderr = None  # type: ignore[assignment]

    return closed


def _onto(path: str, *descriptors: int) -> Callable[[], None]:
    def led() -> None:
        for number in descriptors:
            os.dup2(os.open(path, os.O_WRONLY), number)

    return led


def _pipe(*descriptors: int) -> Callable[[], None]:
    """A pipe whose reader has gone."""

    def gone() -> None:
        reader, writer = os.pipe()
        os.close(reader)
        for number in descriptors:
            os.dup2(writer, number)

    return gone


def _limit(which: int, most: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(which, (most, most))


def _gone() -> None:
    """The working directory was removed."""
    folder = Path("gone").absolute()
    folder.mkdir()
    os.chdir(folder)
    folder.rmdir()


def _environment(**changes: str | None) -> Callable[[], None]:
    def changed() -> None:
        for name, value in changes.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value

    return changed


def _no_temporary() -> None:
    import tempfile

    os.environ["TMPDIR"] = "/nosuch"
    tempfile.tempdir = None
    tempfile._candidate_tempdir_list = lambda: ["/nosuch"]  # type: ignore[attr-defined] # /tmp is there for everyone


SURROUNDINGS: dict[str, Callable[[], None]] = {
    "stdout closed": _close(1),
    "stderr closed": _close(2),
    "both closed": _close(1, 2),
    "stdin closed": _close(0),
    "all closed": _close(0, 1, 2),
    "stdout full": _onto("/dev/full", 1),
    "stderr full": _onto("/dev/full", 2),
    "both full": _onto("/dev/full", 1, 2),
    "stdout without reader": _pipe(1),
    "stderr without reader": _pipe(2),
    "both without reader": _pipe(1, 2),
    "files of 0 bytes": _limit(resource.RLIMIT_FSIZE, 0),
    "files of 2 kB": _limit(resource.RLIMIT_FSIZE, 2048),
    "40 open files": _limit(resource.RLIMIT_NOFILE, 40),
    "no temporary folder": _no_temporary,
    "working directory gone": _gone,
    "no home": _environment(HOME=None, XDG_CACHE_HOME=None),
    "home is a file": _environment(HOME="/dev/null"),
    "C locale": _environment(LC_ALL="C", LANG="C", PYTHONIOENCODING="ascii"),
    "no columns": _environment(COLUMNS="1", LINES="1"),
    "odd columns": _environment(COLUMNS="x", TERM="dumb", NO_COLOR="1"),
    "store elsewhere": _environment(DEMITASSE_STORE="/proc/nosuch"),
    "threads": _environment(OMP_NUM_THREADS="x", WORLD_SIZE="x", RANK="0"),
}
MUTE = {name for name in SURROUNDINGS if any(word in name for word in ("closed", "full", "reader", "0 bytes"))}


class Streams:
    name, unit, alone = "streams", "commands", False
    count = 2 * len(COMMANDS) * len(SURROUNDINGS)

    def prepare(self, place: Path) -> None:
        sys.path.append(str(ROOT / "tests"))
        from finished_runs import finish

        self.given = place
        finished(place)
        finish(place / "good")
        finish(place / "bad", cost=0.4, seed=8)
        shutil.copytree(bundle(place), place / "bundle")
        shutil.copytree(place / "bundle", place / "broken")
        (place / "broken" / "tokenizer.json").write_text("{}", encoding="utf-8")
        self.names = [
            "short.yaml",
            "short-run",
            "good",
            "bad",
            "bundle",
            "broken",
            "gpt2",
            "test.txt",
            "calibration.txt",
        ]

    def draw(self, random: Random) -> Case:
        ops = [{"surroundings": name} for name in random.sample(list(SURROUNDINGS), random.choice((1, 1, 1, 2)))]
        return {"command": random.choice(list(COMMANDS)), "ops": ops}

    def attempt(self, case: Case, place: Path) -> list[Finding]:
        arguments, right = COMMANDS[case["command"]]
        for name in self.names:
            if name in arguments or name == "short-run":
                source = self.given / name
                (shutil.copytree if source.is_dir() else shutil.copy)(source, place / name)
        if case["command"].startswith(("plan", "run")):
            for name in ("gpt2", "test.txt", "calibration.txt"):
                source = self.given / name
                (shutil.copytree if source.is_dir() else shutil.copy)(source, place / name)
        names = [op["surroundings"] for op in case["ops"]]

        def before() -> None:
            for name in names:
                SURROUNDINGS[name]()

        ended = command(*arguments, place=place, before=before)
        other = (REFUSED, PIPE, *([] if right == FAILED else [INCONCLUSIVE]), INVALID, BROKEN)
        found = ended.findings((right, *other))
        return [one for one in found if not self._expected(one, names)]

    def _expected(self, finding: Finding, names: list[str]) -> bool:
        """Nothing can be said where nothing can be heard."""
        return bool(MUTE & set(names)) and "without a word" in finding.text
