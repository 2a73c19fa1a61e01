"""One bit of a bundle or of a store is another: `verify`, `store verify`, `gate` and `run` find it, every time.

Judged is every file of a bundle but its README.md, and every file of every result in a store but such a README.md.
"""

import shutil
from pathlib import Path
from random import Random

from attempt import BROKEN, REFUSED, Finding, command
from campaign import Case
from tiny import bundle, finished

ASIDE = {"README.md"}


class Flipped:
    """What both have in common."""

    unit, alone, count = "flips", False, 2000
    commands: tuple[tuple[str, ...], ...]
    given: Path
    files: list[str]

    def draw(self, random: Random) -> Case:
        """Half of them by size, half by file, so that small files are looked at as well."""
        sizes = [(self.given / file).stat().st_size for file in self.files]
        index = random.choices(range(len(sizes)), sizes if random.random() < 0.5 else None)[0]
        file, size = self.files[index], sizes[index]
        return {"file": file, "bit": random.randrange(8 * size), "command": random.randrange(len(self.commands))}

    def attempt(self, case: Case, place: Path) -> list[Finding]:
        shutil.copytree(self.given, place, symlinks=True, dirs_exist_ok=True)
        file = place / case["file"]
        content = bytearray(file.read_bytes())
        content[case["bit"] // 8] ^= 1 << case["bit"] % 8
        file.write_bytes(content)
        ended = command(*self.commands[case["command"]], place=place)
        case["counted"] = {"found": int(ended.code in (BROKEN, REFUSED))}
        findings = ended.findings((BROKEN, REFUSED))
        where = f"byte {case['bit'] // 8} of {case['file']}: "
        return [Finding(what=finding.what, text=where + finding.text) for finding in findings]


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
