"""What distillation costs and what it gives: memory and time of its loss, training speed, and how good students are.

    python -m benchmarks.distillation [--only PART ...] [--work DIR] [--model FOLDER --train FILE ... --test FILE]

    loss       forward KL over 50,257 tokens in chunks against all logits at once (distillation_loss.py)
    speed      tokens per second against a plain Trainer, with the teacher beside and stored (distillation_speed.py)
    half       the embedded teacher to half of its layers: losses, seeds, controls (distillation_quality.py)
    smollm2    --model to two thirds of its layers, and the same tokens without a teacher (distillation_quality.py)

Parts that are not run stay in the results as they are. Results are written down after every row; with a --work folder
that stays, a killed run with the same options goes on where it was, in the middle of a training too.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

if __name__ == "__main__" and not __package__:  # started by its path: imports begin at the repository
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import typer

from benchmarks.distillation_loss import loss
from benchmarks.distillation_order import NOVELS, Json, Part, Request, Texts
from benchmarks.distillation_quality import half, smollm2
from benchmarks.distillation_speed import speed
from benchmarks.page import finish
from benchmarks.results import RESULTS, store, teller

SEPARATOR = "\n<|endoftext|>\n"
PARTS: dict[str, Callable[[Request, Part], None]] = {"loss": loss, "speed": speed, "half": half, "smollm2": smollm2}


def main(
    only: Annotated[list[str], typer.Option(help="Only these parts; repeatable.")] = [],  # noqa: B006
    model: Annotated[Path | None, typer.Option(help="A trained dense checkpoint, for `smollm2` and `speed`.")] = None,
    train: Annotated[list[Path], typer.Option(help="What it learns from; repeatable.")] = [],  # noqa: B006
    held_out: Annotated[Path, typer.Option(help="What its loss is followed on.")] = NOVELS / "valid.txt",
    test: Annotated[Path, typer.Option(help="What it is measured on.")] = NOVELS / "test.txt",
    elsewhere: Annotated[Path | None, typer.Option(help="A text of another kind to measure its students on.")] = None,
    tokens: Annotated[int, typer.Option(help="How many tokens it learns from.")] = 1_000_000,
    knob: Annotated[list[str], typer.Option(help="A knob of its distillation, such as batch=4; repeatable.")] = [],  # noqa: B006
    blocks: Annotated[int, typer.Option(help="Timed blocks of `loss` and `speed`.")] = 15,
    steps: Annotated[int, typer.Option(help="Timed steps in a block.")] = 3,
    threads: Annotated[int, typer.Option(help="Threads of every variant that is timed.")] = 2,
    work: Annotated[Path | None, typer.Option(help="Where files are made; default: a temporary folder.")] = None,
    out: Annotated[Path, typer.Option(help="Where the results go as JSON.")] = RESULTS / "distillation.json",
) -> None:
    """Measure what distillation costs and gives."""
    unknown = sorted(set(only) - set(PARTS))
    if unknown:
        raise typer.BadParameter(f"--only: expected {', '.join(PARTS)}, got {', '.join(unknown)}")
    wanted = [name for name in PARTS if name in only or (not only and (name != "smollm2" or model is not None))]
    if "smollm2" in wanted and model is None:
        raise typer.BadParameter("--model: expected a trained checkpoint's folder for the part `smollm2`")
    with tempfile.TemporaryDirectory(prefix="demitasse-distillation-") as temporary:
        folder = work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        request = Request(
            work=folder.resolve(),
            tell=teller("distillation"),
            model=model,
            texts=Texts(train=joined(train or [NOVELS / "train.txt"], folder), held_out=held_out, test=test),
            elsewhere=elsewhere,
            tokens=tokens,
            knobs=dict(read_knob(text) for text in knob),
            blocks=blocks,
            steps=steps,
            threads=threads,
        )
        finish(measure(wanted, request, out), out)


def read_knob(text: str) -> tuple[str, Any]:
    """("batch", 4) of "batch=4": the value is JSON, or else text."""
    name, sign, value = text.partition("=")
    if not sign:
        raise typer.BadParameter(f"--knob: expected name=value, got {text}")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def joined(files: list[Path], folder: Path) -> Path:
    """One text of several."""
    if len(files) == 1:
        return files[0]
    unfit = [str(file) for file in files if file.suffix != ".txt"]
    if unfit:
        raise typer.BadParameter(f"--train: expected .txt files where there are several, got {', '.join(unfit)}")
    together = folder / "train.txt"
    together.write_text(SEPARATOR.join(file.read_text(encoding="utf-8") for file in files), encoding="utf-8")
    return together


def measure(parts: list[str], request: Request, out: Path | None = None) -> Json:
    """Run the parts; the results as they are stored, with what `out` holds of the others."""
    from benchmarks.machine import machine

    earlier = json.loads(out.read_text(encoding="utf-8"))["parts"] if out is not None and out.is_file() else {}
    about = {"date": datetime.now(UTC).strftime("%Y-%m-%d"), "machine": machine("cpu")}
    results: Json = {"kind": "distillation", **about, "parts": earlier}
    for name in parts:
        asked, found = settings_of(name, request), earlier.get(name, {})
        if found.get("complete") or found.get("asked") != asked:
            found = {}
        results["parts"][name] = found
        part = Part(found, partial(store, results, out) if out is not None else lambda: None)
        part.about(asked=asked, complete=False)
        PARTS[name](request, part)
        part.about(complete=True)
    return results


def settings_of(part: str, request: Request) -> Json:
    """What a part's figures depend on, as JSON: a killed run is gone on with only where all of it is the same."""
    real = {
        "model": request.model and request.model.resolve().name,
        "texts": [file.name for file in (request.texts.train, request.texts.held_out, request.texts.test)],
    }
    timed = {"blocks": request.blocks, "steps": request.steps, "threads": request.threads}
    return {
        "loss": {"size": [request.positions, request.vocabulary, request.width], **timed},
        "speed": {**real, **timed},
        "half": {"model": request.embedded.name, "seeds": list(request.seeds), "budget": request.budget},
        "smollm2": {
            **real,
            "elsewhere": request.elsewhere and request.elsewhere.name,
            "tokens": request.tokens,
            "knobs": request.knobs,
        },
    }[part]


if __name__ == "__main__":
    typer.run(main)
