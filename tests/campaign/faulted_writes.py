"""Runs whose file calls fail: a full disk, a broken one, half a write, a rename or an fsync that is refused.

A small C library (faulty.c, by LD_PRELOAD) makes the N-th call below the run's folder fail, once or from then on, in
the run and in the processes that it starts. Then the run ends in one line and exit code 2, or it did not need what
failed and its verdict is right; the same command again, undisturbed, ends with the artifacts of a run that nothing
disturbed.
"""

import ctypes
import errno
import os
import shutil
import struct
import subprocess
from pathlib import Path
from random import Random

from attempt import INCONCLUSIVE, INVALID, PASSED, REFUSED, Ended, Finding, command
from campaign import Case
from killed_runs import PATIENCE, _other
from tiny import CHAIN, SHORT, TIMED, artifacts, dense, finished, known_footprints, texts

SOURCE = Path(__file__).with_name("faulty.c")
RECIPES = {"short": SHORT, "chain": CHAIN, "timed": TIMED}
KINDS = ("write", "write", "write", "fsync", "rename", "open", "mkdir", "unlink", "truncate", "write,fsync,rename,open")
ERRORS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "EROFS": errno.EROFS, "EACCES": errno.EACCES, "short": 0}


class FaultedWrites:
    name, count, unit, alone = "faults", 500, "runs", False

    def prepare(self, place: Path) -> None:
        self.given, self.library = place, Path(os.environ["LD_PRELOAD"])
        dense(place)
        texts(place)
        self.right = {name: artifacts(finished(place, recipe, name)) for name, recipe in RECIPES.items()}
        tried = place.with_name("counting")
        self._copy(tried, "short", sized=True)
        self._run(tried, "short", {"at": 2**40, "calls": ",".join(KINDS), "errno": "EIO", "stays": False})
        (self.calls,) = struct.unpack("q", tried.with_name("counting.count").read_bytes())
        assert self.calls > 100, f"only {self.calls} calls were counted: the library does nothing"

    def draw(self, random: Random) -> Case:
        name, kinds = random.choices(list(RECIPES), (100, 3, 1))[0], random.choice(KINDS)
        at = int(self.calls ** random.random())  # early calls and late ones alike, as some kinds of calls are few
        return {
            "recipe": name,
            "sized": random.random() < 0.98,
            "at": at,
            "calls": kinds,
            "errno": random.choice(list(ERRORS)),
            "stays": random.random() < 0.5,
        }

    def attempt(self, case: Case, place: Path) -> list[Finding]:
        name = case["recipe"]
        self._copy(place, name, sized=case["sized"])
        ended = self._run(place, name, case)
        found = ended.findings((PASSED, REFUSED, *([INVALID, INCONCLUSIVE] if name == "timed" else [])))
        again = command("run", f"{name}.yaml", "--out", "run", place=place, seconds=PATIENCE)
        found += again.findings((PASSED, *([INVALID] if name == "timed" else [])))
        found += _other(self.right[name], artifacts(place / "run"))
        found += command("store", "verify", "run/artifacts", place=place).findings((PASSED,))
        case["counted"] = {"disturbed": int(ended.code != PASSED)}
        return found

    def _copy(self, place: Path, name: str, *, sized: bool) -> None:
        """What a run starts from; `sized`: its footprints are taken already."""
        (place / "run").mkdir(parents=True)
        for file in (f"{name}.yaml", "train.txt", "calibration.txt", "test.txt"):
            shutil.copy(self.given / file, place)
        shutil.copytree(self.given / "gpt2", place / "gpt2")
        if sized:
            known_footprints(self.given / f"{name}-run", place / "run")

    def _run(self, place: Path, name: str, case: Case) -> Ended:
        counter = place.with_name(f"{place.name}.count")
        counter.write_bytes(bytes(8))
        environment = {
            "FAULTY_AT": str(case["at"]),
            "FAULTY_COUNT": str(counter),
            "FAULTY_BELOW": str(place / "run"),
            "FAULTY_CALLS": case["calls"],
            "FAULTY_ERRNO": str(ERRORS[case["errno"]]),
            "FAULTY_STAYS": str(int(case["stays"])),
        }
        begin = ctypes.CDLL(str(self.library)).faulty_begin
        return command(
            "run", f"{name}.yaml", "--out", "run", place=place, environment=environment, before=begin, seconds=PATIENCE
        )


def environment_with_library(scratch: Path) -> dict[str, str]:
    """What a process is started with so that its file calls can fail; empty where there is no compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return {}
    library = scratch / "faulty.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-ldl"], check=True)
    return {"LD_PRELOAD": str(library)}
