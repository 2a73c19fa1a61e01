"""One bit of a bundle or of a store is another: `verify`, `store verify`, `gate` and `run` find it, every time.

Judged is every file of a bundle but its README.md, and every file of every result in a store but such a README.md; a
flip may not be found where it changes nothing that is read (the white space of a record).
"""

import json
import shutil
from pathlib import Path
from random import Random

from attempt import BROKEN, PASSED, REFUSED, Finding, command
from campaign import Case
from tiny import bundle, finished

ASIDE = {"README.md"}


class Flipped:
    """What both have in common."""

    unit, alone, count = "flips", False, 2000
    commands: tuple[tuple[str, ...], ...]
    folder: str
    most = 8
    """Flips in a file for each that its size gives it, so that small files are looked at as well."""

    def draw(self, random: Random) -> Case:
        file = random.choice(self.files)
        size = (self.given / file).stat().st_size
        if random.random() < 0.5:
            file = random.choices(self.files, [(self.given / file).stat().st_size for file in self.files])[0]
            size = (self.given / file).stat().st_size
        return {"file": file, "bit": random.randrange(8 * size), "command": random.randrange(len(self.commands))}

    def attempt(self, case: Case, place: Path) -> list[Finding]:
        shutil.copytree(self.given, place, symlinks=True, dirs_exist_ok=True)
        file = place / case["file"]
        content = bytearray(file.read_bytes())
        content[case["bit"] // 8] ^= 1 << case["bit"] % 8
        before, same = file.read_bytes(), False
        file.write_bytes(content)
        if file.suffix == ".json":
            same = _says_the_same(before, bytes(content))
        ended = command(*self.commands[case["command"]], place=place)
        found = ended.code in (BROKEN, REFUSED)
        case["counted"] = {"found": int(found), "that change nothing": int(same and not found)}
        findings = ended.findings((BROKEN, REFUSED, *([PASSED] if same else [])))
        where = f"byte {case['bit'] // 8} of {case['file']}: "
        return [Finding(what=finding.what, text=where + finding.text) for finding in findings]


def _says_the_same(before: bytes, after: bytes) -> bool:
    try:
        return json.dumps(json.loads(before), sort_keys=True) == json.dumps(json.loads(after), sort_keys=True)
    except (ValueError, RecursionError):
        return False


class FlippedBundle(Flipped):
    name = "flips"

    def prepare(self, place: Path) -> None:
        self.given = place / "only"
        self.given.mkdir()
        shutil.copytree(bundle(place), self.given / "bundle")
        files = [file for file in sorted(self.given.rglob("*")) if file.is_file() and file.name not in ASIDE]
        self.files = [file.relative_to(self.given).as_posix() for file in files]
        self.commands = (("verify", "bundle", "--no-replay"),)


class FlippedStore(Flipped):
    name = "flips-store"

    def prepare(self, place: Path) -> None:
        finished(place)
        self.given = place
        results = [record.parent for record in sorted((place / "short-run/artifacts").glob("*/artifact.json"))]
        assert len(results) > 5
        files = [file for result in results for file in sorted(result.rglob("*")) if file.is_file()]
        self.files = [file.relative_to(place).as_posix() for file in files if file.name not in ASIDE]
        self.commands = (("store", "verify", "short-run/artifacts"), ("run", "short.yaml", "--out", "short-run"))
