"""What `gate` and `compare` read, changed: a run that failed never passes, one that passed never fails, and figures are
those of the samples, or it is refused.

Some are sealed again, as a forger would: of those no more is asked than an answer that can be read.
"""

import json
import re
import shutil
import sys
from pathlib import Path
from random import Random

from attempt import BROKEN, FAILED, INCONCLUSIVE, INVALID, PASSED, REFUSED, Ended, Finding, command
from campaign import Case
from mutate import apply, drawn_byte_op, drawn_file_op, drawn_tree_op, header_of, parsed, readable
from tiny import ROOT

NUMBER = re.compile(r"\d+(?:\.\d+)?")
WAYS = ("gate", "gate", "gate", "compare", "store list", "store verify", "report")


class MutatedReports:
    name, count, unit, alone = "reports", 1000, "reports", False

    def prepare(self, place: Path) -> None:
        sys.path.append(str(ROOT / "tests"))
        from finished_runs import finish

        self.given = place
        finish(place / "good")
        finish(place / "bad", cost=0.4, seed=8)
        self.files = {}
        for run in ("good", "bad"):
            files = [file for file in sorted((place / run).rglob("*")) if file.is_file() and not _aside(file)]
            self.files[run] = [file.relative_to(place).as_posix() for file in files]
        self.codes = {run: self._gate(place, run).code for run in ("good", "bad")}
        assert self.codes == {"good": PASSED, "bad": FAILED}, self.codes
        self.shown = {run: _numbers(self._gate(place, run)) for run in ("good", "bad")}
        self.compared = _numbers(command("compare", "good", "bad", place=place))

    def draw(self, random: Random) -> Case:
        run = random.choice(("good", "bad", "bad"))
        ops = [self._op(random, run) for _ in range(random.choice((1, 1, 1, 2)))]
        return {"run": run, "ops": ops, "way": random.choice(WAYS), "sealed": random.random() < 0.4}

    def _op(self, random: Random, run: str) -> dict[str, object]:
        file = f"{run}/report.json" if random.random() < 0.5 else random.choice(self.files[run])
        chance = random.random()
        if chance < 0.75 and file.endswith(".json"):
            return drawn_tree_op(random, file, parsed(self.given / file))
        if chance < 0.75 and file.endswith(".safetensors"):
            return drawn_tree_op(random, file, header_of(self.given / file))
        if chance < 0.93:
            return drawn_byte_op(random, file, (self.given / file).stat().st_size)
        return drawn_file_op(random, file)

    def attempt(self, case: Case, place: Path) -> list[Finding]:
        for run in ("good", "bad"):
            shutil.copytree(self.given / run, place / run, symlinks=True)
        for op in case["ops"]:
            apply(op, place)
            if case["sealed"]:
                _seal_again(place / op["file"])
        run, way = case["run"], case["way"]
        if way == "compare":
            ended = command("compare", "good", "bad", place=place)
            found = ended.findings((PASSED, REFUSED, INVALID, BROKEN))
            return found if case["sealed"] else found or self._figures(ended, self.compared)
        if way.startswith("store"):
            ended = command(*way.split(), f"{run}/artifacts", place=place)
            return ended.findings((PASSED, REFUSED, BROKEN))
        ended = self._gate(place, run, *(["--out", "again"] if way == "report" else []))
        allowed = {self.codes[run], REFUSED, INCONCLUSIVE, INVALID, BROKEN}
        if case["sealed"]:
            return ended.findings(range(BROKEN + 1))
        return ended.findings(allowed) or self._figures(ended, self.shown[run])

    def _gate(self, place: Path, run: str, *more: str) -> Ended:
        return command("gate", run, *more, place=place)

    def _figures(self, ended: Ended, right: list[str]) -> list[Finding]:
        """Where a verdict is given, its figures are those of the undisturbed one, or a note says which are not."""
        shown = _numbers(ended)
        if ended.code not in (PASSED, FAILED) or shown == right or "note:" in ended.out:
            return []
        return [Finding(what="wrong", text=f"exit {ended.code}, figures {_other(shown, right)}: {ended.out[-1500:]}")]


def _seal_again(file: Path) -> None:
    """Give a file that changed the seal that it would have had."""
    from compress.digests import SEAL, sealed
    from evaluation.report import UNSEALED, seal_of

    try:
        content = parsed(file) if readable(file) else None
        if file.name == "report.json":
            text = json.dumps(content | {"seal": ""}, indent=2) + "\n"
            file.write_text(text.replace(UNSEALED, f'"seal": "{seal_of(text)}"', 1), encoding="utf-8")
        elif SEAL in content:
            content.pop(SEAL)
            file.write_text(sealed(content), encoding="utf-8")
    except (OSError, ValueError, RecursionError, TypeError, AttributeError):
        return


def _other(shown: list[str], right: list[str]) -> str:
    return f"{[one for one in shown if one not in right]} instead of {[one for one in right if one not in shown]}"


def _numbers(ended: Ended) -> list[str]:
    """The figures that were shown, without those of paths."""
    words = [word for word in ended.out.split() if "/" not in word]
    return NUMBER.findall(" ".join(words))


def _aside(file: Path) -> bool:
    """What people look at, and nothing reads."""
    return file.suffix in {".html", ".md", ".png", ".svg", ".xml", ".prom", ".lock"} or file.name in {
        "log.txt",
        "libraries.txt",
        "bom.json",
    }
