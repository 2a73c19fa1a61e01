"""Runs that are killed at random instants and resumed until they end: with the artifacts of a run that nobody killed.

A case is a chain: one recipe of all stages, with its timing processes or with its footprint processes, each run of it
killed (SIGKILL, or asked to end by SIGTERM or SIGINT) after a random time of its own and its children's processors, as
the clock says little on a busy machine. Most times are short, so that the instants around the writing of results are
met often. After every kill whatever the store calls a result is whole; at the end no
process of any killed run is alive.
"""

import json
import os
import shutil
import signal
import time
from pathlib import Path
from random import Random

from attempt import INCONCLUSIVE, INVALID, PASSED, Ended, Finding, Running, command
from campaign import Case
from tiny import CHAIN, SHORT, TIMED, artifacts, dense, finished, known_footprints, texts

KILLS = 25
"""In a chain."""
PATIENCE = 600.0
"""Seconds of processor time for a run that is left alone."""
OUTLIVE = 20.0
"""Seconds that a child may outlive its killed parent."""
RECIPES = {"chain": CHAIN, "timed": TIMED, "short": SHORT}


class KilledRuns:
    name, count, unit, alone = "kills", 1000 // KILLS, "chains", False

    def prepare(self, place: Path) -> None:
        self.given = place
        dense(place)
        texts(place)
        self.right = {name: artifacts(finished(place, recipe, name)) for name, recipe in RECIPES.items()}
        assert all(len(right) >= 5 for right in self.right.values())

    def draw(self, random: Random) -> Case:
        times = [round(random.choice((0.3, 0.6, 1.2, 3.0)) * random.random(), 3) for _ in range(KILLS)]
        numbers = random.choices(("SIGKILL", "SIGTERM", "SIGINT"), (8, 1, 1), k=KILLS)
        ops = [{"after": after, "signal": number} for after, number in zip(times, numbers, strict=True)]
        recipe = random.choices(list(RECIPES), (4, 1, 5))[0]
        return {"recipe": recipe, "sized": random.random() < 0.7, "ops": ops}

    def attempt(self, case: Case, place: Path) -> list[Finding]:
        name, killed = case["recipe"], []
        for file in (f"{name}.yaml", "train.txt", "calibration.txt", "test.txt"):
            shutil.copy(self.given / file, place)
        shutil.copytree(self.given / "gpt2", place / "gpt2")
        if case["sized"]:
            known_footprints(self.given / f"{name}-run", place / "run")
        found: list[Finding] = []
        for op in case["ops"]:
            ended, process = _run_and_kill(place, name, op)
            if ended is not None:  # it came to its end before it could be killed
                found += ended.findings((PASSED, INVALID, INCONCLUSIVE))
                break
            killed.append(process)
            found += _half_written(place, op)
        case["counted"] = {"kills": len(killed)}
        last = command("run", f"{name}.yaml", "--out", "run", place=place, seconds=PATIENCE)
        found += last.findings((PASSED,))
        found += _other(self.right[name], artifacts(place / "run"))
        found += command("store", "verify", "run/artifacts", place=place).findings((PASSED,))
        left = [path.name for path in (place / "run/artifacts/.work").glob("*") if path.suffix != ".lock"]
        if left:
            found.append(Finding(what="wrong", text=f"left in the store: {left}"))
        return found + _alive(killed)


def _run_and_kill(place: Path, name: str, op: dict[str, object]) -> tuple[Ended | None, int]:
    """A run, ended after a while; None: it was killed."""
    from recipes.cli.app import main

    running = Running(main, place, ["demitasse", "run", f"{name}.yaml", "--out", "run"])
    running.work_for(float(str(op["after"])))
    number = signal.Signals[str(op["signal"])]
    os.kill(running.process, number)  # one that has ended waits for its parent, so the number is still its own
    ended = running.wait(PATIENCE, leave=True)
    return None if ended.code in (-number, 128 + number) else ended, running.process


def _half_written(place: Path, op: dict[str, object]) -> list[Finding]:
    """Whatever the store calls a result is one."""
    for record in (place / "run/artifacts").glob("*/artifact.json"):
        try:
            content = json.loads(record.read_text(encoding="utf-8"))
        except ValueError:
            return [Finding(what="wrong", text=f"{record.parent.name} has half a record after {op}")]
        for name, entry in content["files"].items():
            file = record.parent / "files" / name
            if not file.is_file() or file.stat().st_size != entry["bytes"]:
                return [Finding(what="wrong", text=f"{record.parent.name}/{name} is not whole after {op}")]
    return []


def _other(right: dict[str, dict[str, str]], ours: dict[str, dict[str, str]]) -> list[Finding]:
    """Where artifacts are not those of the undisturbed run."""
    differ = [name for name in sorted(right.keys() | ours.keys()) if right.get(name) != ours.get(name)]
    if not differ:
        return []
    first = differ[0]
    a, b = right.get(first, {}), ours.get(first, {})
    files = sorted(file for file in a.keys() | b.keys() if a.get(file) != b.get(file))
    return [Finding(what="wrong", text=f"other artifacts than the undisturbed run: {differ}; {files} in {first}")]


def _alive(sessions: list[int]) -> list[Finding]:
    """Processes of killed runs that did not end by themselves."""
    until = time.monotonic() + OUTLIVE
    while (left := _of_sessions(set(sessions))) and time.monotonic() < until:
        time.sleep(0.5)
    for process in left:
        os.kill(process, signal.SIGKILL)
    return (
        [Finding(what="hang", text=f"{len(left)} processes outlive their killed run by {OUTLIVE:.0f} s")]
        if left
        else []
    )


def _of_sessions(sessions: set[int]) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) in sessions and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found
