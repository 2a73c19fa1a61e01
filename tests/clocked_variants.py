"""Contenders that do what a file tells them, in processes of their own: known durations, and ways to fail; and a real
checkpoint that fails.

variant.json in the folder: {"prefill": seconds, "decode": seconds, "fails": "raise" | "killed" | "nan", "fails_from":
n}, where the n-th opening is the first that fails; every opening is noted in opened.txt with its process and its
threads.
"""

import json
import math
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.overhead import Clocked, wait
from evaluation.latency import Variant
from recipes.formats.base import NOT_NUMBERS

OPENER = "clocked_variants:open_variant"


class Failing(Clocked):
    """A contender whose logits are not numbers."""

    def decoding(self, ids_BT: NDArray[np.int64], tokens: int) -> Variant:
        return Variant(prefill=lambda: wait(0), decode=lambda: wait(0), problem=lambda: NOT_NUMBERS)


def open_variant(folder: Path, format: str, threads: int, device: str) -> Clocked:
    """Open what variant.json describes, and note that it was opened."""
    told: dict[str, Any] = json.loads((folder / "variant.json").read_text(encoding="utf-8"))
    opened = folder / "opened.txt"
    with opened.open("a", encoding="utf-8") as stream:
        stream.write(f"{os.getpid()} {os.environ['OMP_NUM_THREADS']}\n")
    count = len(opened.read_text(encoding="utf-8").splitlines())
    if count >= told.get("fails_from", 1):
        match told.get("fails", ""):
            case "raise":
                raise RuntimeError("the weights are of another planet")
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "nan":
                return Failing(0, 0)
    print("library_output on stdout that is no answer")
    return Clocked(told.get("prefill", 0.0004), told.get("decode", 0.0002))


def make_variant(folder: Path, **told: Any) -> Path:
    """A folder with such a contender."""
    folder.mkdir()
    (folder / "variant.json").write_text(json.dumps(told), encoding="utf-8")
    return folder


def not_numbers(source: Path, out: Path) -> Path:
    """A copy of a GPT-2 checkpoint whose last norm is not a number, and so nothing that it computes is."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(source, out)
    tensors = load_file(out / "model.safetensors")
    tensors["transformer.ln_f.weight"][:] = math.nan
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out
