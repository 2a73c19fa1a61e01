"""Part `loss`: forward KL over a large vocabulary, in chunks and written out.

    chunked    compress.training.losses.chunked_loss
    naive      both models' logits of all positions, log_softmax of both, kl_div, backward

Both give the gradients of the student's hidden states and of its head. Peak memory is of one pass in a fresh process,
above what it held before (hidden states and heads); times are of passes in two processes that take turns in randomly
ordered blocks. Gradients are held against each other in float64, at a quarter of the positions.

    python -m benchmarks.distillation_loss ARM FOLDER THREADS      prints {"held", "peak"} in bytes
    python -m benchmarks.distillation_loss check FOLDER THREADS    prints the largest relative errors

    N positions    V vocabulary    D hidden width
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.distillation_order import Json, Part, Request
from benchmarks.process import VariantProcess, run_json

SETTINGS = "loss.json"
SETTLE = 0.3


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large the tensors are."""

    positions: int
    vocabulary: int
    width: int


class Tensors:
    """What a loss is computed from; the same numbers in every process."""

    def __init__(self, size: Size, *, double: bool = False) -> None:
        import torch

        generator, dtype = torch.Generator().manual_seed(0), torch.float64 if double else torch.float32

        def normal(rows: int, scale: float) -> Any:
            return torch.randn(rows, size.width, generator=generator, dtype=dtype).mul_(scale)

        self.hidden_ND, self.weight_VD = normal(size.positions, 1.0), normal(size.vocabulary, 0.1)
        self.teacher_ND, self.teacher_VD = normal(size.positions, 1.0), normal(size.vocabulary, 0.1)
        self.next_N = torch.randint(size.vocabulary, (size.positions,), generator=generator)
        self.hidden_ND.requires_grad_()
        self.weight_VD.requires_grad_()


def chunked(at: Tensors) -> Any:
    """The loss as the distillation of this repository takes it."""
    from compress.training.losses import DenseTarget, Head, Mix, chunked_loss

    target = DenseTarget(at.teacher_ND, Head(at.teacher_VD))
    loss, _ = chunked_loss(at.hidden_ND, Head(at.weight_VD), target, at.next_N, Mix(weights={"forward_kl": 1.0}))
    return loss


def naive(at: Tensors) -> Any:
    """The loss from all logits at once; what one gives a name stays until the loss is there."""
    import torch
    from torch.nn import functional

    student_NV = functional.linear(at.hidden_ND, at.weight_VD)
    with torch.no_grad():
        teacher_NV = functional.linear(at.teacher_ND, at.teacher_VD)
    log_q_NV, log_p_NV = functional.log_softmax(student_NV, -1), functional.log_softmax(teacher_NV, -1)
    return functional.kl_div(log_q_NV, log_p_NV, log_target=True, reduction="sum")


VARIANTS: dict[str, Callable[[Tensors], Any]] = {"chunked": chunked, "naive": naive}


def gradients(variant: str, at: Tensors) -> tuple[Any, ...]:
    """A pass: the gradients of the student's hidden states and of its head."""
    import torch

    return torch.autograd.grad(VARIANTS[variant](at), [at.hidden_ND, at.weight_VD])


class Runner:
    """A variant as worker.py runs one: a step is a pass."""

    variant = ""

    def __init__(self, folder: Path, threads: int, device: str) -> None:
        import torch

        torch.set_num_threads(threads)
        self.tensors = Tensors(_size(folder))

    def read(self, ids_BT: Any, room: int) -> Any:
        return ids_BT[:, 0]

    def step(self, next_B: Any) -> Any:
        gradients(self.variant, self.tensors)
        return next_B

    def rewind(self) -> None:
        return None


class Chunked(Runner):
    variant = "chunked"


class Naive(Runner):
    variant = "naive"


def loss(request: Request, part: Part) -> None:
    """Memory, gradients and time of both variants."""
    size = Size(positions=request.positions, vocabulary=request.vocabulary, width=request.width)
    folder = request.work / "loss"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SETTINGS).write_text(json.dumps(asdict(size)), encoding="utf-8")
    part.about(**asdict(size), threads=request.threads)
    for variant in VARIANTS:
        request.tell(f"memory: {variant}")
        part.row(variant, partial(_run, variant, folder, request.threads))
    request.tell("gradients")
    part.about(errors=_run("check", folder, request.threads))
    for variant, seconds in _times(folder, request).items():
        part.rows[variant]["seconds"] = seconds
    part.about()


def _run(what: str, folder: Path, threads: int) -> Json:
    return run_json([sys.executable, "-m", "benchmarks.distillation_loss", what, str(folder), str(threads)], threads)


def _times(folder: Path, request: Request) -> dict[str, list[float]]:
    """Median pass of each block, for each variant; the first trial of each is not kept."""
    seconds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    random, running = np.random.default_rng(0), {}
    try:
        for variant in VARIANTS:
            runner = f"benchmarks.distillation_loss:{variant.capitalize()}"
            running[variant] = VariantProcess(
                runner, folder, threads=request.threads, device="cpu", scratch=request.work / "scratch"
            )
            running[variant].order("open")
            running[variant].order("read", ids=[[0]], room=0)
        for block in range(-1, request.blocks):
            request.tell(f"time: block {block + 1} of {request.blocks}")
            for variant in random.permutation(sorted(VARIANTS)):
                time.sleep(SETTLE)
                taken = running[variant].order("steps", untimed=1, count=request.steps)["seconds"]
                if block >= 0:
                    seconds[variant].append(float(np.median(taken)))
    finally:
        for process in running.values():
            process.close()
    return seconds


def _size(folder: Path) -> Size:
    return Size(**json.loads((folder / SETTINGS).read_text(encoding="utf-8")))


def measure_memory(variant: str, size: Size) -> Json:
    """Bytes held before the pass, and at its peak."""
    import psutil

    from recipes.measure.peak_memory import peak_memory

    gradients(variant, Tensors(Size(positions=4, vocabulary=64, width=size.width)))  # whatever libraries set up once
    tensors = Tensors(size)
    held = psutil.Process().memory_info().rss
    gradients(variant, tensors)
    return {"held": held, "peak": peak_memory()}


def check_gradients(size: Size) -> Json:
    """||chunked - naive|| / ||naive|| of both gradients, in float64."""
    part = Size(positions=max(1, size.positions // 4), vocabulary=size.vocabulary, width=size.width)
    tensors = Tensors(part, double=True)
    pairs = zip(("hidden", "head"), gradients("chunked", tensors), gradients("naive", tensors), strict=True)
    return {name: float((ours - theirs).norm() / theirs.norm()) for name, ours, theirs in pairs}


def main() -> None:
    """One variant's memory, or the gradients."""
    import torch

    what, folder, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    size = _size(Path(folder))
    print(json.dumps(check_gradients(size) if what == "check" else measure_memory(what, size)))


if __name__ == "__main__":
    main()
