"""What each way of pruning costs and what it buys: quality, time, memory, and latency in ONNX Runtime.

    python -m benchmarks.pruning --model FOLDER --calibration FILE --test FILE [--peer PYTHON] [--only PART ...]

    masks       one-shot criteria on a trained model: perplexity, seconds and peak memory on one thread; with --peer,
                the python of an environment that has llm-compressor, its own side by side
    widths      GPT-2 124M's shape with 25 % and 50 % of its parameters removed in width and in depth: decoding in ONNX
                Runtime against what the bytes predict; and half of its weights zeroed, which buys no time
    memory      SparseGPT on GPT-2 1.5B's shape
    recovery    the recipes prune-*.yaml, from one end to the other

Parts that are not run stay in the results as they are. Perplexity is of the first 8 x 512 tokens of the test text; the
calibration is the first 32 x 512 tokens of its own. Times are of the work, imports aside.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

if __name__ == "__main__" and not __package__:  # started by its path: imports begin at the repository
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import typer

from benchmarks.grid import Prompts, Settings, Tell, Workload, time_workload
from benchmarks.marks import peak_until, seconds_until
from benchmarks.page import finish
from benchmarks.prepare import CALIBRATION, ROOT, prepared
from benchmarks.process import VariantProcess, run_json
from benchmarks.pruning_tables import PEER, WHOLE, ZEROED
from benchmarks.results import RESULTS, sizes_of, teller
from benchmarks.shapes import write_checkpoint
from benchmarks.variants import OURS, VARIANTS

Json = dict[str, Any]
TEST = CALIBRATION.with_name("test.txt")
ROWS, LENGTH, WINDOWS, THREADS = 32, 512, 8, 1
HALF, TWO_FOUR = {"sparsity": 0.5}, {"pattern": "2:4"}
METHODS: dict[str, Json] = {
    "random, 50 %": {"criterion": "random", **HALF},
    "magnitude, 50 %": {"criterion": "magnitude", **HALF},
    "Wanda, 50 %": {"criterion": "wanda", **HALF},
    "SparseGPT, 50 %": {"criterion": "sparsegpt", **HALF},
    "magnitude, 2:4": {"criterion": "magnitude", **TWO_FOUR},
    "Wanda, 2:4": {"criterion": "wanda", **TWO_FOUR},
    "SparseGPT, 2:4": {"criterion": "sparsegpt", **TWO_FOUR},
}
PEER_METHODS: dict[str, tuple[str, str]] = {
    "Wanda, 50 %": ("wanda", "0.5"),
    "SparseGPT, 50 %": ("sparsegpt", "0.5"),
    "SparseGPT, 2:4": ("sparsegpt", "2:4"),
}
SHAPE, LARGE = "gpt2-124m", "gpt2-1.5b"
WIDTH, DEPTH = ["ffn", "heads", "hidden"], ["layers"]
ALTERNATIVES: dict[str, tuple[str, Json]] = {
    ZEROED: ("prune", {"criterion": "magnitude", **HALF}),
    "width, 25 % removed": ("slim", {"target": {"parameters": 0.75}, "axes": WIDTH, "importance": "weights"}),
    "width, 50 % removed": ("slim", {"target": {"parameters": 0.5}, "axes": WIDTH, "importance": "weights"}),
    "depth, 25 % removed": ("slim", {"target": {"parameters": 0.75}, "axes": DEPTH}),
    "depth, 50 % removed": ("slim", {"target": {"parameters": 0.5}, "axes": DEPTH}),
}
WORKLOAD = Workload(kind="decode", tokens=128, batch=1)
BLOCKS, STEPS = 15, 16
METRICS = ("perplexity", "weight_bytes", "decode_latency")
RECIPES = ("prune-sparsegpt", "prune-gradual", "prune-gradual-2-4", "prune-width", "prune-depth")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked for."""

    model: Path | None
    calibration: Path
    test: Path
    peer: Path | None
    work: Path
    tell: Tell
    rows: int = ROWS
    length: int = LENGTH
    blocks: int = BLOCKS
    changes: Json = field(default_factory=dict)
    """Fields of the shapes' configs to change, so that a test can be small."""


def main(
    model: Annotated[Path | None, typer.Option(help="A trained dense checkpoint, for the part `masks`.")] = None,
    calibration: Annotated[Path, typer.Option(help="The text to calibrate on.")] = CALIBRATION,
    test: Annotated[Path, typer.Option(help="The text to measure on.")] = TEST,
    peer: Annotated[Path | None, typer.Option(help="The python of an environment with llm-compressor.")] = None,
    only: Annotated[list[str], typer.Option(help="Only these parts; repeatable.")] = [],  # noqa: B006
    work: Annotated[Path | None, typer.Option(help="Where files are made; default: a temporary folder.")] = None,
    out: Annotated[Path, typer.Option(help="Where the results go as JSON.")] = RESULTS / "pruning.json",
) -> None:
    """Measure what pruning costs and buys."""
    unknown = sorted(set(only) - set(PARTS))
    if unknown:
        raise typer.BadParameter(f"--only: expected {', '.join(PARTS)}, got {', '.join(unknown)}")
    wanted = [part for part in PARTS if not only or part in only]
    if "masks" in wanted and model is None:
        raise typer.BadParameter("--model: expected a trained checkpoint's folder for the part `masks`")
    with tempfile.TemporaryDirectory(prefix="demitasse-pruning-") as temporary:
        request = Request(
            model=model,
            calibration=calibration,
            test=test,
            peer=peer,
            work=work or Path(temporary),
            tell=teller("pruning"),
        )
        finish(measure(wanted, request, out), out)


def measure(parts: list[str], request: Request, out: Path | None = None) -> Json:
    """Run the parts; the results as they are stored, with what `out` holds of the others."""
    from benchmarks.machine import machine

    earlier = json.loads(out.read_text(encoding="utf-8"))["parts"] if out is not None and out.is_file() else {}
    about = {"date": datetime.now(UTC).strftime("%Y-%m-%d"), "machine": machine("cpu")}
    results: Json = {"kind": "pruning", **about, "parts": earlier}
    for part in parts:
        request.work.mkdir(parents=True, exist_ok=True)
        results["parts"][part] = PARTS[part](request)
    return results


def masks(request: Request) -> Json:
    """Every criterion on one trained model; times and memory side by side with the peer's."""
    assert request.model is not None
    dense = perplexity(request.model, request.test, request.length)
    rows: dict[str, Json] = {}
    for name, knobs in METHODS.items():
        request.tell(name)
        ran = run_stage(
            "prune",
            request.model,
            knobs | {"rows": request.rows, "length": request.length},
            request.calibration,
            request.work,
        )
        parts = ran["parts"]
        rows[name] = {
            "perplexity": perplexity(Path(ran["out"]), request.test, request.length),
            "sparsity": ran["metadata"]["sparsity"],
            "seconds": seconds_until(parts),
            "peak": peak_until(parts),
        }
        shutil.rmtree(ran["out"])
        if request.peer is not None and name in PEER_METHODS:
            request.tell(f"{PEER}: {name}")
            rows[f"{name}, {PEER}"] = _peer(request, *PEER_METHODS[name])
    weights = sum(4 * np.prod(shape) for shape in _shapes(request.model))
    return {
        "model": request.model.name,
        "dense": dense,
        "float32_bytes": float(weights),
        "rows": rows,
        "calibration": request.calibration.name,
        "test": request.test.name,
        "threads": THREADS,
        "peer": None if request.peer is None else f"{PEER} {peer_version(request.peer)}",
    }


def peer_version(python: Path) -> str:
    """llm-compressor's version in another environment."""
    code = "from importlib.metadata import version; print(version('llmcompressor'))"
    return subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def _shapes(checkpoint: Path) -> list[tuple[int, ...]]:
    from compress.checkpoints.loading import empty_model

    return [tuple(parameter.shape) for parameter in empty_model(checkpoint).parameters()]


def run_stage(kind: str, source: Path, knobs: Json, text: Path, work: Path, threads: int = THREADS) -> Json:
    """Run a stage in its own process: its answer, and the folder it filled as "out"."""
    out = Path(tempfile.mkdtemp(prefix=f"{kind}-", dir=work))
    module = [sys.executable, "-m", "benchmarks.prune_process"]
    return run_json([*module, kind, str(source), str(out), str(text), str(threads), json.dumps(knobs)], threads) | {
        "out": str(out)
    }


def _peer(request: Request, method: str, amount: str) -> Json:
    out = Path(tempfile.mkdtemp(prefix="peer-", dir=request.work))
    script = str(ROOT / "benchmarks" / "llm_compressor.py")
    texts = [
        str(request.model),
        str(out),
        str(request.calibration),
        str(request.rows),
        str(request.length),
        str(THREADS),
    ]
    ran = run_json([str(request.peer), script, *texts, method, amount], THREADS)
    found = {
        "perplexity": perplexity(out, request.test, request.length),
        "seconds": ran["seconds"],
        "peak": ran["peak"],
    }
    shutil.rmtree(out)
    return found


def perplexity(checkpoint: Path, test: Path, length: int = LENGTH) -> float:
    """exp of the mean loss over the first WINDOWS windows of `length` tokens, the first token of each aside."""
    import torch

    from compress.checkpoints.folder import load_tokenizer
    from compress.checkpoints.loading import load_model
    from compress.models.calibration import calibration_rows
    from compress.text import TextSource
    from compress.training.objective import Objective

    objective = Objective(load_model(checkpoint))
    rows_NT = calibration_rows(TextSource(file=test), load_tokenizer(checkpoint), WINDOWS, length)
    with torch.inference_mode():
        losses = [float(objective.next_token_loss(torch.from_numpy(row[None]))) for row in rows_NT]
    return float(np.exp(np.mean(losses)))


def widths(request: Request) -> Json:
    """Decoding of smaller shapes against the whole one, all of them taking turns in the same blocks."""
    source = request.work / SHAPE
    if not (source / "model.safetensors").is_file():
        write_checkpoint(SHAPE, source, **request.changes)
    rows: dict[str, Json] = {WHOLE: {"metadata": {}}}
    folders = {WHOLE: source}
    for name, (kind, knobs) in ALTERNATIVES.items():
        request.tell(name)
        ran = run_stage(kind, source, knobs, CALIBRATION, request.work, threads=2)
        folders[name], rows[name] = Path(ran["out"]), {"metadata": _brief(ran["metadata"])}
    bundles = {}
    for name, folder in folders.items():
        request.tell(f"bundle: {name}")
        bundles[name] = prepared(VARIANTS[OURS].files, folder, request.work, "cpu").folder
        rows[name] |= sizes_of(bundles[name])
        rows[name]["parameters"] = sum(int(np.prod(shape)) for shape in _shapes(folder))
    for name, seconds in _decode(bundles, source, request).items():
        rows[name]["seconds"] = seconds
    return {
        "shape": SHAPE,
        "rows": rows,
        "blocks": request.blocks,
        "steps": STEPS,
        "threads": 2,
        "context": WORKLOAD.tokens,
    }


def _brief(metadata: Json) -> Json:
    """The metadata that fit into a table."""
    return {key: value for key, value in metadata.items() if not isinstance(value, dict | list)}


def _decode(bundles: dict[str, Path], source: Path, request: Request) -> dict[str, list[float]]:
    """Median step of each block, for each bundle."""
    settings = Settings(workloads=(WORKLOAD,), blocks=request.blocks, steps=STEPS, loads=1, threads=2)
    prompts = Prompts.read(source, settings.longest)
    running, results = {}, {name: {"workloads": {}, "reason": ""} for name in bundles}
    try:
        for name, folder in bundles.items():
            running[name] = VariantProcess(
                VARIANTS[OURS].runner, folder, threads=2, device="cpu", scratch=request.work / "scratch"
            )
            running[name].order("open")
        random = np.random.default_rng(0)
        time_workload(results, running, WORKLOAD, prompts.rows(1, WORKLOAD.tokens), settings, random, request.tell)
    finally:
        for process in running.values():
            process.close()
    return {name: result["workloads"][WORKLOAD.key]["seconds"] for name, result in results.items()}


def memory(request: Request) -> Json:
    """SparseGPT on the largest shape, whose weights alone are 6.2 GB in float32."""
    source = request.work / LARGE
    if not (source / "model.safetensors").is_file():
        request.tell(f"writes {LARGE}")
        write_checkpoint(LARGE, source, **request.changes)
    request.tell(f"SparseGPT on {LARGE}")
    ran = run_stage(
        "prune",
        source,
        METHODS["SparseGPT, 50 %"] | {"rows": request.rows, "length": request.length},
        CALIBRATION,
        request.work,
        threads=2,
    )
    shutil.rmtree(ran["out"])
    weights = sum(4 * int(np.prod(shape)) for shape in _shapes(source))
    shutil.rmtree(source)
    parts = ran["parts"]
    return {"shape": LARGE, "float32_bytes": weights, "seconds": seconds_until(parts), "peak": peak_until(parts)}


def recovery(request: Request) -> Json:
    """The shipped recipes, run or found again in the working folder."""
    from recipes import load_recipe, run

    rows = {}
    for name in RECIPES:
        request.tell(f"recipe {name}")
        report = run(load_recipe(name), out=request.work / name)
        found = {
            metric: report.final.measurement(metric) for metric in ("perplexity", "weight_bytes", "decode_latency")
        }
        rows[name] = {"verdict": report.verdict} | {
            metric: taken.ratio.model_dump(mode="json") for metric, taken in found.items() if taken and taken.ratio
        }
    return {"rows": rows}


PARTS: dict[str, Callable[[Request], Json]] = {
    "masks": masks,
    "widths": widths,
    "memory": memory,
    "recovery": recovery,
}


if __name__ == "__main__":
    typer.run(main)
