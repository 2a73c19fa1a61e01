"""The campaign: thousands of seeded attempts to get a wrong number, a lie or a mess out of demitasse.

    python tests/campaign [--only KIND ...] [--count N] [--seed S] [--first N] [--minutes M] [--workers W]
    python tests/campaign --replay FILE ...

One summary line a kind; the exit code is 1 if anything was found, and 0 if nothing was. What failed lies shrunk in
build/campaign (`--failures DIR`), a file a case, and is carried out again by `--replay FILE`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from attempt import warm
from campaign import carry_out, replay
from faulted_writes import environment_with_library
from kinds import KINDS, kind_of

PRELOADED = "faults"


def main() -> int:
    options = _options()
    only = options.only or list(KINDS)
    if options.replay:
        return _replay(options.replay)
    warm()
    clean = True
    with tempfile.TemporaryDirectory(prefix="campaign-", dir=options.scratch) as scratch:
        for name in only:
            if name == PRELOADED and "LD_PRELOAD" not in os.environ:
                clean = _with_library(options, Path(scratch)) and clean
                continue
            kind = kind_of(name)
            tally = carry_out(
                kind,
                place=Path(scratch) / name,
                out=options.failures,
                count=options.count or kind.count - options.first,
                seed=options.seed,
                first=options.first,
                workers=options.workers,
                seconds=60 * options.minutes,
            )
            clean = clean and tally.clean
            print(tally.line(), flush=True)
            for file in tally.saved:
                print(f"  {file}: {json.loads(file.read_text(encoding='utf-8'))['findings'][0][:300]}", flush=True)
    return 0 if clean else 1


def _with_library(options: argparse.Namespace, scratch: Path) -> bool:
    """The kind that needs a library before all others, in a process of its own; whether nothing was found."""
    environment = environment_with_library(scratch)
    if not environment:
        print(f"{PRELOADED:<12} skipped: it needs a C compiler (gcc or cc), and there is none", flush=True)
        return True
    given = [
        f"--{name}={getattr(options, name)}" for name in ("count", "seed", "first", "minutes", "workers", "failures")
    ]
    given = [one for one in given if not one.endswith("=None")]
    command = [sys.executable, sys.argv[0], "--only", PRELOADED, *given, f"--scratch={scratch}"]
    return subprocess.run(command, env=os.environ | environment).returncode == 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="campaign", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(KINDS), metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--count", type=int, help="attempts of each kind (default: what a release makes)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="go on with this attempt: those before are made already")
    parser.add_argument("--minutes", type=float, default=600.0, help="the most that a kind may take")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--failures", type=Path, default=Path("build/campaign"), help="where failing cases are saved")
    parser.add_argument("--scratch", type=Path, help="where attempts are made (default: the system's own place)")
    parser.add_argument("--replay", nargs="+", type=Path, metavar="FILE", help="carry out saved cases again")
    return parser.parse_args()


def _replay(files: list[Path]) -> int:
    warm()
    found = 0
    for file in files:
        name = json.loads(file.read_text(encoding="utf-8"))["kind"]
        if name == PRELOADED and "LD_PRELOAD" not in os.environ:
            with tempfile.TemporaryDirectory(prefix="campaign-") as scratch:
                command = [sys.executable, sys.argv[0], "--replay", str(file)]
                environment = os.environ | environment_with_library(Path(scratch))
                found += subprocess.run(command, env=environment).returncode
            continue
        kind = kind_of(name)
        with tempfile.TemporaryDirectory(prefix="campaign-") as scratch:
            findings = replay(kind, file, Path(scratch))
        found += bool(findings)
        print(f"{file}: {'; '.join(f'{one.what}: {one.text}' for one in findings) or 'nothing found'}", flush=True)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
