"""Part `speed`: training tokens per second, the same student, teacher, rows, batch and optimizer in every variant.

    ours       the distill stage, its teacher beside it
    stored     the distill stage with a teacher that was written down before
    plain      transformers' Trainer whose compute_loss runs both models and takes the KL of their logits

A variant is a process that trains. After each block it stops between two steps until it is told to go on, so that all
variants take turns in randomly ordered blocks; the first step of a trial is not timed. A step is everything from one to
the
next: data, both models, loss, optimizer, logging.

    python -m benchmarks.distillation_speed ARM SETTINGS.json
        reads the number of steps to time, a line each; prints {"seconds": [...]}, after {"seconds": []} for its start
"""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

import numpy as np

from benchmarks.distillation_order import Json, Part, Request
from benchmarks.prepare import ROOT

CHARACTERS = 200_000
"""Of the training text: enough rows for some tens of steps, which come again."""
ENDLESS = 10**8
"""Tokens; the processes are ended before."""
WARMUP, SETTLE, PATIENCE = 3, 0.3, 3600.0
DRAWS = 64
LEARNING_RATE, WEIGHT_DECAY, BETA2, WARMUP_SHARE = 1e-4, 0.1, 0.95, 0.05


class Ended(Exception):  # noqa: N818 (no error)
    """Nobody wants more steps."""


class Gate:
    """Stops training between two steps, and tells how long the steps took; also the `Progress` of a stage."""

    def __init__(self, orders: IO[str], answers: IO[str]) -> None:
        self.orders, self.answers = orders, answers
        self.wanted, self.stamps = WARMUP, list[float]()
        self.warm = False

    def step(self) -> None:
        """A step ended."""
        self.stamps.append(time.perf_counter())
        if len(self.stamps) <= self.wanted:
            return
        seconds = np.diff(self.stamps).tolist() if self.warm else []
        self.answers.write(json.dumps({"seconds": seconds}) + "\n")
        self.answers.flush()
        line = self.orders.readline()
        if not line:
            raise Ended
        self.wanted, self.stamps, self.warm = int(line), [], True

    def task(self, label: str, total: float, done: float = 0.0, *, steady: float = 0.0) -> AbstractContextManager[Any]:
        """As `compress.stage.Progress`: what is not training passes."""
        from compress.stage import Silent

        return nullcontext(self if label == "distill" else Silent())

    def advance(self, amount: float = 1.0, note: str = "") -> None:
        """As `compress.stage.Task`."""
        self.step()


def train_ours(settings: Json, gate: Gate, scratch: Path, **knobs: Any) -> None:
    """The distill stage."""
    from compress import STAGES, StageInput, TextSource

    (scratch / "out").mkdir()
    (scratch / "scratch").mkdir()
    given = StageInput(
        source=Path(settings["student"]),
        teacher=Path(settings["teacher"]),
        train_text=TextSource(file=Path(settings["text"])),
        out=scratch / "out",
        scratch=scratch / "scratch",
        progress=gate,
    )
    config = STAGES["distill"].config(
        tokens=ENDLESS,
        length=settings["length"],
        batch=settings["batch"],
        learning_rate=LEARNING_RATE,
        weight_decay=WEIGHT_DECAY,
        warmup=WARMUP_SHARE,
        checkpoints=0,
        report_to=(),
        losses={"forward_kl": 1.0},
        **knobs,
    )
    STAGES["distill"].run(config, given)


def train_stored(settings: Json, gate: Gate, scratch: Path) -> None:
    """The distill stage, its teacher written down first."""
    train_ours(settings, gate, scratch, stored={"draws": DRAWS, "folder": scratch / "teachers"})


def train_plain(settings: Json, gate: Gate, scratch: Path) -> None:
    """transformers' Trainer with a loss of its own, as one would write it."""
    import torch
    from torch.nn import functional
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from compress.checkpoints.folder import load_tokenizer
    from compress.checkpoints.loading import load_model
    from compress.text import TextSource, end_of_text, pack, read_documents, tokenize

    teacher, student = load_model(Path(settings["teacher"])), load_model(Path(settings["student"]))
    tokenizer = load_tokenizer(Path(settings["student"]))
    documents = tokenize(read_documents(TextSource(file=Path(settings["text"]))), tokenizer)
    rows_NT = pack(documents, settings["length"], end_of_text(tokenizer))

    class Distiller(Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **rest: Any) -> Any:
            logits_NV = model(**inputs, use_cache=False).logits[:, :-1].flatten(0, 1)
            with torch.no_grad():
                teacher_NV = teacher(**inputs, use_cache=False).logits[:, :-1].flatten(0, 1)
            log_q_NV, log_p_NV = functional.log_softmax(logits_NV, -1), functional.log_softmax(teacher_NV, -1)
            return functional.kl_div(log_q_NV, log_p_NV, log_target=True, reduction="batchmean")

    class Stop(TrainerCallback):
        def on_step_end(self, *arguments: Any, **rest: Any) -> None:
            gate.step()

    steps = ENDLESS // (settings["batch"] * settings["length"])
    arguments = TrainingArguments(
        output_dir=str(scratch),
        max_steps=steps,
        per_device_train_batch_size=settings["batch"],
        learning_rate=LEARNING_RATE,
        weight_decay=WEIGHT_DECAY,
        adam_beta2=BETA2,
        lr_scheduler_type="cosine",
        warmup_steps=round(WARMUP_SHARE * steps),
        optim="adamw_torch_fused",
        use_cpu=True,
        save_strategy="no",
        logging_steps=max(1, steps // 50),
        disable_tqdm=True,
        report_to=[],
    )
    data = [{"input_ids": torch.from_numpy(row_T)} for row_T in rows_NT]
    Distiller(model=student, args=arguments, train_dataset=data, callbacks=[Stop()]).train()


VARIANTS: dict[str, Callable[[Json, Gate, Path], None]] = {
    "ours": train_ours,
    "stored": train_stored,
    "plain": train_plain,
}


class TrainingProcess:
    """A variant, stopped between two steps but for its trials."""

    def __init__(self, variant: str, settings: Path, threads: int) -> None:
        environment = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.variant = variant
        self._log: IO[str] = settings.with_name(f"{variant}.log").open("w+", encoding="utf-8")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.distillation_speed", variant, str(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=ROOT,
            env=os.environ | environment,
        )

    def answer(self) -> list[float]:
        """Seconds of the steps of a trial; of the start, none.

        Raises:
            RuntimeError: the process ended instead, or took too long.
        """
        assert self._process.stdout is not None
        ready = select.select([self._process.stdout], [], [], PATIENCE)[0]
        line = self._process.stdout.readline() if ready else ""
        if not line:
            self._log.seek(0)
            raise RuntimeError(f"the variant {self.variant!r} gave no answer:\n{self._log.read()[-2000:]}")
        seconds: list[float] = json.loads(line)["seconds"]
        return seconds

    def trial(self, steps: int) -> list[float]:
        """Let it train for an untimed step and `steps` timed ones."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()


def speed(request: Request, part: Part) -> None:
    """Tokens per second of every variant, on the embedded teacher and on the real model."""
    models = {request.embedded.name: (request.embedded, request.novels.train, 8)}
    if request.model is not None:
        models[request.model.resolve().name] = (request.model, request.texts.train, 4)
    part.about(threads=request.threads, draws=DRAWS)
    for name, (teacher, text, batch) in models.items():
        part.row(name, partial(measure_speed, request, teacher, text, batch))


def measure_speed(request: Request, teacher: Path, text: Path, batch: int) -> Json:
    """The median step of each block of each variant."""
    from compress.checkpoints.config import context_length, read_config

    folder = request.work / "speed" / teacher.resolve().name
    folder.mkdir(parents=True, exist_ok=True)
    short = folder / "text.txt"
    short.write_text(text.read_text(encoding="utf-8")[:CHARACTERS], encoding="utf-8")
    length = min(256, context_length(read_config(teacher)) or 256)
    settings = {"teacher": str(teacher.resolve()), "text": str(short), "batch": batch, "length": length}
    student = folder / "student"
    kept = leave_out(teacher, student, 0.5)
    (folder / "settings.json").write_text(json.dumps(settings | {"student": str(student)}), encoding="utf-8")
    seconds = _times(folder / "settings.json", request, teacher.name)
    asked = {"blocks": request.blocks, "steps": request.steps}
    return {"batch": batch, "length": length, "layers": len(kept), **asked, "seconds": seconds}


def leave_out(source: Path, out: Path, share: float) -> list[int]:
    """Write the source with a share of its layers, evenly spread, weights as they are; returns which."""
    from compress.checkpoints.folder import load_tokenizer, save_checkpoint
    from compress.checkpoints.loading import load_model
    from compress.distillation.students import evenly_spaced, with_layers

    model = load_model(source)
    depth = model.config.num_hidden_layers
    kept = evenly_spaced(depth, max(1, round(depth * share)))
    out.mkdir(parents=True, exist_ok=True)
    save_checkpoint(with_layers(model, kept), load_tokenizer(source), out)
    return kept


def _times(settings: Path, request: Request, name: str) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    random, running = np.random.default_rng(0), dict[str, TrainingProcess]()
    try:
        for variant in VARIANTS:
            running[variant] = TrainingProcess(variant, settings, request.threads)
        for variant, process in running.items():
            request.tell(f"{name}: {variant} starts")
            process.answer()
        for block in range(request.blocks):
            request.tell(f"{name}: block {block + 1} of {request.blocks}")
            for variant in random.permutation(sorted(VARIANTS)):
                time.sleep(SETTLE)
                seconds[variant].append(float(np.median(running[variant].trial(request.steps))))
    finally:
        for process in running.values():
            process.close()
    return seconds


def main() -> None:
    """Train as a variant until stdin ends."""
    variant, settings = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    with TemporaryDirectory(prefix="demitasse-speed-") as scratch:
        try:
            VARIANTS[variant](
                json.loads(Path(settings).read_text(encoding="utf-8")), Gate(sys.stdin, answers), Path(scratch)
            )
        except Ended:
            return
    raise SystemExit("the training ended before the benchmark did")


if __name__ == "__main__":
    main()
