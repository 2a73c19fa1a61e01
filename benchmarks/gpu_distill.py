"""Section `distill`: students of the embedded teacher on the GPU, and how good they become with more tokens.

Each budget of tokens is a run of its own through the distill stage, with its own learning rate falling to 0, since a
longer run that is looked at half way is not what a shorter one ends with. Runs are in bf16; the batch grows with the
budget, so that a run has some hundred steps, and the learning rate with the root of the batch. The loss on the held-out
text is followed, and the weights of the lowest one are kept: 50 million tokens are the novels about fifty times.

Quality is the perplexity on the novels' test text over the teacher's. A run that would not end in time is shortened to
what fits; where that is little more than the run before had, the section ends and says so.
"""

import math
import time
from functools import partial

from benchmarks.distillation_order import NOVELS, Json, Part, Texts, perplexity
from benchmarks.distillation_order import Request as Order
from benchmarks.distillation_quality import distilled
from benchmarks.gpu_order import Request

BUDGETS = (300_000, 1_000_000, 3_000_000, 10_000_000, 30_000_000, 50_000_000)
DRY_BUDGETS = (512, 1024)
LENGTH, WINDOWS = 256, 128
STEPS = 600
"""A run's steps, about, where the batch is within its bounds."""
LEAST, MOST = 8, 256
"""Rows of a batch."""
RATE, HIGHEST = 1e-3, 3e-3
WORTH = 1.3
"""A shortened run has at least so many times the tokens of the one before."""
RESERVE = 15.0
"""Seconds for what a run does beside its steps: it starts, follows the held-out loss, and is measured."""


def distill(request: Request, part: Part) -> None:
    """A row for each budget, as long as there is time."""
    windows, length = (4, 32) if request.dry else (WINDOWS, LENGTH)
    test = NOVELS / "test.txt"
    teacher = perplexity(request.embedded, test, windows, length, evenly=True)
    part.about(model=request.embedded.name, layers=request.layers, length=length, teacher=teacher, reached=0)
    budgets = DRY_BUDGETS if request.dry else tuple(tokens for tokens in BUDGETS if tokens <= request.tokens)
    speed = 0.0
    for wanted in budgets:
        tokens = fitting(wanted, speed, request.left())
        if tokens < wanted and tokens < WORTH * int(part.found["reached"]):
            part.about(stopped=f"{wanted:,} tokens did not fit into the {request.seconds:.0f} s")
            return
        request.tell(f"{tokens:,} tokens")
        row = part.row(f"{tokens}", partial(_student, request, tokens, teacher, windows))
        speed = row["tokens_per_second"]
        part.about(reached=tokens)
        if tokens < wanted:
            part.about(stopped=f"the last run was cut from {wanted:,} tokens to what fitted")
            return
    part.about(stopped="")


def fitting(wanted: int, speed: float, left: float) -> int:
    """Tokens of a run that ends in time, at most `wanted`.

    Args:
        speed: tokens per second of the run before, whose batch is no larger; 0 where it is not known: it is tried.
    """
    return wanted if not speed else max(0, min(wanted, int(speed * (left - RESERVE))))


def batch_of(tokens: int, length: int = LENGTH) -> int:
    """Rows of a step: the power of two for which a run has about STEPS steps."""
    wanted = max(1, tokens // (length * STEPS))
    return int(min(MOST, max(LEAST, 2 ** int(math.log2(wanted)))))


def _knobs(request: Request, tokens: int) -> Json:
    batch = 2 if request.dry else batch_of(tokens)
    knobs = {
        "layers": request.layers,
        "choose": "spread",
        "tokens": tokens,
        "batch": batch,
        "length": 32 if request.dry else LENGTH,
        "learning_rate": min(HIGHEST, RATE * math.sqrt(batch / LEAST)),
        "checkpoints": 1 if request.dry else 5,
        "held_out": not request.dry,
    }
    return knobs if request.dry else knobs | {"device": "cuda", "precision": "bf16"}


def _student(request: Request, tokens: int, teacher: float, windows: int) -> Json:
    order = Order(work=request.work, tell=request.tell)
    knobs, started = _knobs(request, tokens), time.perf_counter()
    trained = distilled(order, request.embedded, request.embedded, Texts(), knobs, 0, f"{tokens:,} tokens")
    seconds = time.perf_counter() - started
    found = perplexity(trained.out, NOVELS / "test.txt", windows, knobs["length"], evenly=True)
    row = {
        "tokens": tokens,
        "batch": knobs["batch"],
        "learning_rate": knobs["learning_rate"],
        "trained": seconds,
        "tokens_per_second": trained.tokens_per_second,
        "perplexity": found,
        "ratio": found / teacher,
        "history": trained.metadata["history"],
        "error": "",
    }
    trained.forget()
    return row
