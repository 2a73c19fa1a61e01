"""Quality, decode speed and bytes of every scheme and of the peers' own, from one checkpoint on one machine: the front.

    python -m benchmarks.front --model FOLDER --text wikitext=FILE --work DIR     everything, then docs/benchmarks.md
    python -m benchmarks.front ... --part quality                                 only what a busy machine can tell

quality    each variant reads ROWS rows of ROW_TOKENS tokens of each text together, token by token on its own cache, as
           it would write them. Compared with the checkpoint in PyTorch, float32:
               KL      mean over positions of KL(PyTorch || variant), nats
               same    share of positions where the likeliest token is PyTorch's
               ratio   perplexity / PyTorch's
speed      as in peers.py: decode and prefill in randomly ordered blocks
bytes      of the file with the weights

A row is the sampling unit: tokens of one text are good or bad together. Every variant starts from the same checkpoint;
ours in 4 bits are rounded with `gptq` on text that is not the one compared on, the peers by their own tools' defaults.
A checkpoint whose weights lie on another quantizer's grid makes group quantizers look better than they are.
"""

import sys
import tempfile
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

if __name__ == "__main__" and not __package__:  # started by its path: imports begin at the repository
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import typer

from benchmarks.grid import TEXT, Settings, Tell, workloads_of
from benchmarks.page import finish
from benchmarks.peers import check_names, checkpoint_of, joined, prepare_all, timed
from benchmarks.prepare import CALIBRATION, Files
from benchmarks.process import VariantError, VariantProcess
from benchmarks.results import RESULTS, store, teller
from benchmarks.shapes import SHAPES
from benchmarks.variants import FRONT, VARIANTS
from compress.checkpoints.folder import inspect_checkpoint
from compress.text import SEPARATOR
from export.torch_reference import scores

Json = dict[str, Any]
ROWS, ROW_TOKENS = 8, 256
PIECE, PIECES = 3000, 60
"""Characters of a piece of calibration text, and pieces of each file."""
Part = Literal["all", "quality", "speed"]


def main(
    model: Annotated[list[str], typer.Option(help="A checkpoint's folder; repeatable.")],
    text: Annotated[list[str], typer.Option(help="NAME=FILE, beside the novels; repeatable.")] = [],  # noqa: B006
    calibration: Annotated[list[Path], typer.Option(help="What to calibrate on; repeatable.")] = [CALIBRATION],  # noqa: B006
    variant: Annotated[list[str], typer.Option(help="Only these variants.")] = [],  # noqa: B006
    part: Annotated[Part, typer.Option(help="quality can be taken while the machine is busy, speed cannot.")] = "all",
    blocks: Annotated[int, typer.Option(help="Blocks of a workload.")] = 7,
    steps: Annotated[int, typer.Option(help="Timed steps in a block.")] = 8,
    threads: Annotated[int, typer.Option(help="Threads of every variant.")] = 2,
    work: Annotated[Path | None, typer.Option(help="Where the variants' files are kept; default: thrown away.")] = None,
    out: Annotated[Path, typer.Option(help="Where the results go as JSON.")] = RESULTS / "front.json",
) -> None:
    """Compare every scheme with the peers in quality, speed and bytes."""
    texts = {"novels": TEXT} | dict(_text_of(given) for given in text)
    check_names(tuple(model), tuple(variant))
    settings = Settings(
        workloads=workloads_of((128, 900), (128, 512), (1,)), blocks=blocks, steps=steps, loads=1, threads=threads
    )
    with tempfile.TemporaryDirectory(prefix="demitasse-front-") as temporary:
        names = tuple(name for name in FRONT if not variant or name in variant)
        finish(compare(tuple(model), names, texts, calibration, settings, part, work or Path(temporary), out), out)


def _text_of(given: str) -> tuple[str, Path]:
    name, _, file = given.partition("=")
    if not file or not Path(file).is_file():
        raise typer.BadParameter(f"--text {given}: expected NAME=FILE with a file that is there")
    return name, Path(file)


def compare(
    models: tuple[str, ...],
    variants: tuple[str, ...],
    texts: dict[str, Path],
    calibration: list[Path],
    settings: Settings,
    part: Part,
    work: Path,
    out: Path,
) -> Json:
    """Every variant on every model; stored after every model. What `part` leaves out stays as `out` has it."""
    from benchmarks.machine import machine

    started = time.perf_counter()
    results: Json = {
        "kind": "front",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": machine(settings.device),
        "settings": {
            "threads": settings.threads,
            "blocks": settings.blocks,
            "steps": settings.steps,
            "rows": ROWS,
            "tokens": ROW_TOKENS,
            "texts": sorted(texts),
            "calibration": [f"{file.resolve().parent.name}/{file.name}" for file in calibration],
        },
        "models": {},
    }
    results = joined(results, out)
    for model in models:
        name = model if model in SHAPES else Path(model).resolve().name
        tell, folder = teller(name), work / name
        checkpoint = checkpoint_of(model, folder)
        text = in_turn(calibration, folder / "calibration.txt")
        files, made = prepare_all(variants, checkpoint, settings.device, folder, tell, text)
        before = results["models"].get(name, {"variants": {}, "quality": {}})
        found = dict(before)
        if part != "quality":
            found |= timed(files, made, checkpoint, settings, folder, tell)
        if part != "speed":
            found["quality"] = before["quality"] | quality(files, checkpoint, texts, settings, folder, tell)
        found["sizes"] = before.get("sizes", {}) | {name: made[name]["weight_bytes"] for name in files}
        results["models"][name] = found
        results["seconds"] = time.perf_counter() - started
        store(results, out)
    return results


def in_turn(files: list[Path], out: Path) -> Path:
    """A text of pieces of each of the files in turn, enough for all rows of calibration."""
    texts = [file.read_text(encoding="utf-8").replace(f"\n{SEPARATOR}\n", "\n") for file in files]
    pieces = [text[at : at + PIECE] for at in range(0, PIECES * PIECE, PIECE) for text in texts]
    out.write_text(f"\n{SEPARATOR}\n".join(piece for piece in pieces if piece), encoding="utf-8")
    return out


def quality(
    files: dict[str, Files], checkpoint: Path, texts: dict[str, Path], settings: Settings, work: Path, tell: Tell
) -> Json:
    """{variant: {text: {"kl": [ROWS], "same": [ROWS], "nll": [ROWS], "reference": [ROWS]}}}, means of each row."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    found: Json = {name: {} for name in files}
    for text, file in texts.items():
        rows = rows_of(checkpoint, file)
        references = [work / f"reference-{text}-{row}.npy" for row in range(ROWS)]
        nll = [_take_reference(model, ids, file) for ids, file in zip(rows, references, strict=True)]
        for name, made in files.items():
            tell(f"quality on {text}: {name}")
            found[name][text] = _score(name, made, rows, references, settings, work) | {"reference": nll}
        for reference in references:
            reference.unlink()
    return found


def rows_of(checkpoint: Path, file: Path) -> list[list[int]]:
    """ROWS rows of tokens, evenly spread over the text; of ROW_TOKENS, or what the model's context holds."""
    text = file.read_text(encoding="utf-8")
    about = inspect_checkpoint(checkpoint)
    count, tokenizer = min(ROW_TOKENS, about.context or ROW_TOKENS), about.tokenizer
    at_most = 20 * count
    starts = np.linspace(0, max(0, len(text) - at_most), ROWS, dtype=int)
    return [[int(token) for token in tokenizer(text[at : at + at_most])["input_ids"][:count]] for at in starts]


def _take_reference(model: Any, ids: list[int], file: Path) -> float:
    """PyTorch's log-probabilities (T, V) into a file; its mean negative log-likelihood of the row."""
    scores_TV = scores(model, np.asarray(ids, dtype=np.int64), len(ids))
    np.save(file, scores_TV)
    return -float(np.mean([scores_TV[place, token] for place, token in enumerate(ids[1:])]))


def _score(
    name: str, made: Files, rows: list[list[int]], references: list[Path], settings: Settings, work: Path
) -> Json:
    start = partial(VariantProcess, threads=1, device=settings.device, scratch=work / "scratch")
    try:
        with start(VARIANTS[name].runner, made.folder) as process:
            process.order("open")
            return process.order("score", ids=rows, reference=[str(file) for file in references]) | {"reason": ""}
    except VariantError as error:
        return {"kl": [], "same": [], "nll": [], "reason": str(error)}


if __name__ == "__main__":
    typer.run(main)
