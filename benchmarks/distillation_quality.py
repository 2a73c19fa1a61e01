"""Parts `half` and `smollm2`: how good students are.

half      students with half of the embedded teacher's layers, evenly spread, trained with `BUDGET`;
          every variant of CONTROLS with several seeds, those of ALTERNATIVES with one. Perplexity of 128 windows of 256
          test tokens, evenly spread.
smollm2   a real model to two thirds of its layers, distilled and with the cross-entropy alone; on the
          first 8 x 512 test tokens, perplexity and how often the teacher's likeliest token is the student's too; the
          perplexity of a text of another kind. Its training resumes from its own checkpoints in the working folder.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.distillation_order import Json, Part, Request, Texts, agreement, perplexity
from benchmarks.distillation_speed import leave_out

DISTILLED, TEXT_ONLY = "distilled", "cross-entropy alone"
RANDOM, UNTRAINED = "distilled from random weights", "layers left out, untrained"
TEACHER = "teacher"
CONTROLS: dict[str, Json] = {DISTILLED: {}, TEXT_ONLY: {"losses": {"cross_entropy": 1.0}}, RANDOM: {}}
REAL_VARIANTS = (DISTILLED, TEXT_ONLY)
ALTERNATIVES: dict[str, Json] = {
    "reverse KL": {"losses": {"reverse_kl": 0.9, "cross_entropy": 0.1}},
    "Jensen-Shannon": {"losses": {"jensen_shannon": 0.9, "cross_entropy": 0.1}},
    "skewed KL": {"losses": {"skewed_kl": 0.9, "cross_entropy": 0.1}},
    "forward KL alone": {"losses": {"forward_kl": 1.0}},
    "with hidden states": {"losses": {"forward_kl": 0.9, "cross_entropy": 0.1, "hidden_states": 1.0}},
    "with attention relations": {"losses": {"forward_kl": 0.9, "cross_entropy": 0.1, "attention_relations": 1.0}},
    "layers by block influence": {"choose": "block_influence"},
    "layers by perplexity": {"choose": "perplexity"},
    "a stored teacher": {"stored": {"draws": 64}},
}
BUDGET: Json = {"tokens": 240_000, "batch": 8, "learning_rate": 1e-3, "length": 256}
WINDOWS, LENGTH = 128, 256
REAL_WINDOWS, REAL_LENGTH, REAL_SHARE = 8, 512, 2 / 3
REAL: Json = {"length": REAL_LENGTH, "batch": 8, "learning_rate": 3e-4, "checkpoints": 20, "held_out": True}


class Clock:
    """The `Progress` of a stage that only asks how fast it trains."""

    def __init__(self, tell: Callable[[str], None], label: str) -> None:
        self.tell, self.label = tell, label
        self.stamps: list[float] = []

    def task(self, label: str, total: float, done: float = 0.0, *, steady: float = 0.0) -> AbstractContextManager[Any]:
        """As `compress.stage.Progress`."""
        from compress.stage import Silent

        return nullcontext(self if label == "distill" else Silent())

    def advance(self, amount: float = 1.0, note: str = "") -> None:
        """As `compress.stage.Task`."""
        self.stamps.append(time.perf_counter())
        if len(self.stamps) % 100 == 0:
            self.tell(f"{self.label}: {len(self.stamps)} steps, {note}")

    def steps_per_second(self) -> float:
        """Of the steps of this process, checkpoints and held-out losses included; 0 where there were none."""
        passed = self.stamps[-1] - self.stamps[0] if len(self.stamps) > 1 else 0.0
        return (len(self.stamps) - 1) / passed if passed else 0.0


def half(request: Request, part: Part) -> None:
    """Every variant against the embedded teacher."""
    budget = BUDGET | request.budget
    depth = _depth(request.embedded)
    layers = depth // 2
    seeds = list(request.seeds)
    part.about(model=request.embedded.name, depth=depth, layers=layers, budget=budget, seeds=seeds)
    if "teacher" not in part.found:
        part.about(teacher=_half_perplexity(request, request.embedded))
    part.row(f"{UNTRAINED}, seed 0", lambda: _untrained(request, layers / depth))
    variants = [(name, knobs, seed) for name, knobs in CONTROLS.items() for seed in request.seeds]
    variants += [(name, knobs, request.seeds[0]) for name, knobs in ALTERNATIVES.items()]
    for name, knobs, seed in variants:
        row = f"{name}, seed {seed}"
        request.tell(row)
        part.row(row, partial(_student, request, layers, name, budget | knobs, seed))


def _student(request: Request, layers: int, name: str, knobs: Json, seed: int) -> Json:
    source, chosen = request.embedded, {"layers": layers, "choose": "spread"}
    if name == RANDOM:
        source, chosen = _random(request, layers, seed), {}
    trained = distilled(request, source, request.embedded, request.novels, chosen | knobs, seed, name)
    found = {"perplexity": _half_perplexity(request, trained.out), "seed": seed, "variant": name}
    trained.forget()
    return found | {"tokens_per_second": trained.tokens_per_second, "kept": trained.metadata.get("kept_layers")}


def _half_perplexity(request: Request, checkpoint: Path) -> float:
    return perplexity(checkpoint, request.novels.test, WINDOWS, _length(request.embedded, LENGTH), evenly=True)


def _untrained(request: Request, share: float) -> Json:
    out = request.work / "half" / "untrained"
    kept = leave_out(request.embedded, out, share)
    return {"perplexity": _half_perplexity(request, out), "seed": 0, "variant": UNTRAINED, "kept": kept}


def _random(request: Request, layers: int, seed: int) -> Path:
    """A checkpoint of the student's shape, initialized anew."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from compress.checkpoints.folder import load_tokenizer, save_checkpoint

    out = request.work / "half" / f"random-{layers}-{seed}"
    if not (out / "config.json").is_file():
        shape = AutoConfig.from_pretrained(request.embedded, local_files_only=True)
        shape.num_hidden_layers = layers
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(shape, dtype=torch.float32)
        out.mkdir(parents=True, exist_ok=True)
        save_checkpoint(model, load_tokenizer(request.embedded), out)
    return out


class Trained:
    """A student that was trained, and the folders it needed."""

    def __init__(self, folder: Path, metadata: Json, tokens_per_second: float) -> None:
        self.folder, self.metadata, self.tokens_per_second = folder, metadata, tokens_per_second
        self.out = folder / "out"

    def forget(self) -> None:
        """Remove its files."""
        shutil.rmtree(self.folder)


def distilled(
    request: Request, source: Path, teacher: Path, texts: Texts, knobs: Json, seed: int, label: str
) -> Trained:
    """Run the distill stage; killed and run again, it goes on from its last checkpoint."""
    from compress import STAGES, StageInput, TextSource

    stage = STAGES["distill"]
    identity = json.dumps([str(source.resolve()), str(teacher.resolve()), str(texts), knobs, seed], sort_keys=True)
    folder = request.work / "students" / hashlib.sha256(identity.encode()).hexdigest()[:16]
    out, scratch = folder / "out", folder / "scratch"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    scratch.mkdir(exist_ok=True)
    stored = {"stored": knobs["stored"] | {"folder": request.work / "teachers"}} if "stored" in knobs else {}
    config, clock = stage.config(**knobs | stored | {"report_to": ()}), Clock(request.tell, label)
    given = StageInput(
        source=source,
        teacher=teacher,
        out=out,
        scratch=scratch,
        seed=seed,
        train_text=TextSource(file=texts.train),
        calibration_text=TextSource(file=texts.held_out),
        progress=clock,
    )
    metadata = stage.run(config, given)
    return Trained(folder, metadata, clock.steps_per_second() * config.batch * config.length)


def smollm2(request: Request, part: Part) -> None:
    """A real model to two thirds of its layers, and how its held-out loss fell."""
    assert request.model is not None
    depth = _depth(request.model)
    layers = max(1, round(depth * REAL_SHARE))
    knobs = (
        REAL
        | {"length": _length(request.model, REAL_LENGTH), "layers": layers, "tokens": request.tokens}
        | request.knobs
    )
    part.about(
        model=request.model.resolve().name, depth=depth, layers=layers, knobs=knobs, test=request.texts.test.name
    )
    part.about(elsewhere=request.elsewhere and request.elsewhere.name)
    part.row(TEACHER, partial(_scores, request, request.model))
    for name in REAL_VARIANTS:
        request.tell(name)
        part.row(name, partial(_real_student, request, knobs | CONTROLS[name], name))
    kept = part.rows[DISTILLED]["kept"]
    part.row(UNTRAINED, lambda: {**_scores(request, _without_training(request, kept)), "kept": kept})


def _real_student(request: Request, knobs: Json, name: str) -> Json:
    assert request.model is not None
    trained = distilled(request, request.model, request.model, request.texts, knobs, 0, name)
    curve = [[row["tokens"], row["held_out_loss"]] for row in trained.metadata["history"] if "held_out_loss" in row]
    about = {"tokens_per_second": trained.tokens_per_second, "curve": curve, "kept": trained.metadata["kept_layers"]}
    return _scores(request, trained.out) | about


def _without_training(request: Request, kept: list[int]) -> Path:
    from compress.checkpoints.folder import load_tokenizer, save_checkpoint
    from compress.checkpoints.loading import load_model
    from compress.distillation.students import with_layers

    assert request.model is not None
    out = request.work / "smollm2-untrained"
    out.mkdir(parents=True, exist_ok=True)
    save_checkpoint(with_layers(load_model(request.model), kept), load_tokenizer(request.model), out)
    return out


def _scores(request: Request, checkpoint: Path) -> Json:
    assert request.model is not None
    test, length = request.texts.test, _length(request.model, REAL_LENGTH)
    found = {
        "perplexity": perplexity(checkpoint, test, REAL_WINDOWS, length, evenly=False),
        "agreement": agreement(checkpoint, request.model, test, REAL_WINDOWS, length),
    }
    if request.elsewhere is None:
        return found
    return found | {"elsewhere": perplexity(checkpoint, request.elsewhere, REAL_WINDOWS, length, evenly=True)}


def _depth(checkpoint: Path) -> int:
    from transformers import AutoConfig

    return int(AutoConfig.from_pretrained(checkpoint, local_files_only=True).num_hidden_layers)


def _length(checkpoint: Path, wanted: int) -> int:
    """As long as wanted, or as the model's context."""
    from compress.checkpoints.config import context_length, read_config

    return int(np.minimum(wanted, context_length(read_config(checkpoint)) or wanted))
