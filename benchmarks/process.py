"""The other end of worker.py: a variant's process, and the orders it is given."""

import json
import os
import select
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 900.0
"""Seconds that an order may take; compiling takes the longest."""


class VariantError(Exception):
    """An order failed; the message is the reason in the table."""


class VariantProcess:
    """A running variant. Use it as a context manager: it ends with the block."""

    def __init__(
        self,
        runner: str,
        folder: Path,
        *,
        threads: int,
        device: str,
        scratch: Path,
        knobs: Mapping[str, Any] | None = None,
        patience: float = PATIENCE,
    ) -> None:
        """`knobs` are what the runner is given by name; `patience` is the seconds that an order may take."""
        self.patience = patience
        scratch.mkdir(parents=True, exist_ok=True)
        settings = {
            "OMP_NUM_THREADS": str(threads),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "TORCHINDUCTOR_CACHE_DIR": str(scratch / "inductor"),
            "TORCHINDUCTOR_COMPILE_THREADS": "1" if device == "cpu" else "8",
        }
        self._log: IO[str] = (scratch / f"{runner.rpartition(':')[2]}-{id(self):x}.log").open("w+", encoding="utf-8")
        arguments = (runner, str(folder), str(threads), device, json.dumps(dict(knobs or {})))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=ROOT,
            env=os.environ | settings,
        )

    def order(self, do: str, **fields: Any) -> dict[str, Any]:
        """Give an order and wait for its answer.

        Raises:
            VariantError: it failed, took too long, or the process died.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **fields}) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise VariantError(self._last_words()) from error
        if not select.select([self._process.stdout], [], [], self.patience)[0]:
            self._process.kill()
            raise VariantError(f"no answer to {do!r} in {self.patience:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise VariantError(self._last_words())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise VariantError(answer["error"])
        return answer

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def _last_words(self) -> str:
        self._process.wait()
        self._log.seek(0)
        lines = [line.strip() for line in self._log if line.strip()]
        return f"died with {self._process.returncode}: {lines[-1] if lines else 'nothing on stderr'}"

    def close(self) -> None:
        """End the process; once it has ended, nothing."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(OSError):  # a process that died left its end of the pipe closed
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()

    def __enter__(self) -> "VariantProcess":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def run_json(command: list[str], threads: int) -> dict[str, Any]:
    """Run a program whose last line is JSON.

    Raises:
        RuntimeError: it failed; the message is its last words.
    """
    settings = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=os.environ | settings)
    if ran.returncode != 0:
        raise RuntimeError(f"{' '.join(command[:4])} ended with {ran.returncode}:\n{ran.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(ran.stdout.strip().splitlines()[-1])
    return answer
