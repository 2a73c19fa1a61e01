"""A section of the GPU's benchmark in a process of its own, which may crash, and may be ended when its time is over.

    python -m benchmarks.gpu_section NAME OUT REQUEST

REQUEST is JSON. `carried_out` starts it and says how it went; what it measured lies in OUT, whatever happened.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from benchmarks.distillation_order import Part
from benchmarks.gpu_order import Request, Results, said_by
from benchmarks.prepare import ROOT
from benchmarks.results import teller
from compress.registry import lazy

SECTIONS: dict[str, Callable[[Request, Part], None]] = {
    "parity": lazy("benchmarks.gpu_parity:parity"),
    "placement": lazy("benchmarks.gpu_placement:placement"),
    "distill": lazy("benchmarks.gpu_distill:distill"),
    "speed": lazy("benchmarks.gpu_speed:speed"),
}
"""In the order in which they run: while the first three use the GPU, the files of the last are made."""
LOG = 6000
"""Characters of what a section said that are said again when it has ended."""
GRACE = 10.0
"""Seconds that a section may take beyond its time."""


def carried_out(name: str, request: Request, out: Path) -> str:
    """Run a section in a new process; the error that it ended with, or empty."""
    results, started = Results(out), time.monotonic()
    results.section(name, fresh=name != "speed")["error"] = ""  # speed keeps the models that it does not time now
    results.keep()
    asked = asdict(request) | {"work": str(request.work), "tell": None}
    command = [sys.executable, "-m", "benchmarks.gpu_section", name, str(out.resolve()), json.dumps(asked)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore", "TOKENIZERS_PARALLELISM": "false"}
    log = request.work / f"{name}.log"
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=stream, process_group=0)
        error = _waited(process, request.seconds + GRACE)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # whatever it started and left behind
    sys.stderr.write(log.read_text(encoding="utf-8", errors="replace")[-LOG:])
    if error and process.returncode:
        error += f": {_last_line(log)}"
    results = Results(out)
    results.section(name)["seconds"] = round(time.monotonic() - started, 1)
    results.section(name)["error"] = error = results.section(name)["error"] or error
    results.keep()
    return error


def _waited(process: "subprocess.Popen[bytes]", seconds: float) -> str:
    """Wait for a process; why it did not end well, or empty."""
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"ended after {seconds:.0f} s, its time and {GRACE:.0f} s more"
    return f"died with {process.returncode}" if process.returncode else ""


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "nothing on stderr"


def run_section(name: str, request: Request, out: Path) -> None:
    """Run a section in this process; what it raises is kept as its error."""
    results = Results(out)
    part = results.part(name)
    part.about(error="")
    try:
        SECTIONS[name](request, part)
    except Exception as error:  # whatever a section raises is its result, and the others go on
        part.about(error=said_by(error))


def main() -> None:
    """Run the section that the arguments name."""
    name, out, asked = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    asked |= {"work": Path(asked["work"]), "models": tuple(asked["models"]), "tell": teller(name)}
    del asked["started"]
    run_section(name, Request(**asked), out)


if __name__ == "__main__":
    main()
