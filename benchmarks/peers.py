"""demitasse and its peers side by side, in one run, on one machine, on the CPU.

    python -m benchmarks.peers --quick                            one model, three workloads, a few minutes
    python -m benchmarks.peers --model gpt2-124m --model FOLDER   the whole grid, then docs/benchmarks.md

A model is a shape of shapes.py with random weights, or the folder of a dense checkpoint. Every variant gets the same
token ids, the same number of threads and its own process (worker.py); how it is timed stands in grid.py. A variant that
is not installed, cannot run a model or fails says why in its place in the table, and the others go on.
"""

import json
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

if __name__ == "__main__" and not __package__:  # started by its path: imports begin at the repository
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import typer

from benchmarks.grid import FLOOR, Prompts, Settings, Tell, run_grid, workloads_of
from benchmarks.page import finish
from benchmarks.prepare import CALIBRATION, Files, PrepareError, prepared
from benchmarks.results import RESULTS, sizes_of, store, teller
from benchmarks.shapes import SHAPES, write_checkpoint
from benchmarks.variants import OURS, PEERS, REFERENCE, VARIANTS

Json = dict[str, Any]
DEFAULT_MODELS = ("gpt2-124m", "smollm2-135m")


def main(
    model: Annotated[list[str], typer.Option(help="A shape of benchmarks/shapes.py or a checkpoint's folder.")] = [],  # noqa: B006
    variant: Annotated[list[str], typer.Option(help="Only these variants (the reference and ours always).")] = [],  # noqa: B006
    quick: Annotated[bool, typer.Option(help="A smoke run: one model, three workloads, three blocks.")] = False,
    batch: Annotated[list[int], typer.Option(help="Rows of a workload; repeatable.")] = [1, 4, 8],  # noqa: B006
    blocks: Annotated[int, typer.Option(help="Blocks of a workload at batch 1.")] = 7,
    steps: Annotated[int, typer.Option(help="Timed steps in a block.")] = 8,
    threads: Annotated[int, typer.Option(help="Threads of every variant.")] = 2,
    work: Annotated[Path | None, typer.Option(help="Where the variants' files are kept; default: thrown away.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where the results go as JSON; a smoke run's are not kept.")] = None,
) -> None:
    """Compare demitasse with its peers on this machine's CPU."""
    models = tuple(model) or (DEFAULT_MODELS[:1] if quick else DEFAULT_MODELS)
    check_names(models, tuple(variant))
    wanted = PEERS if not variant else tuple(name for name in VARIANTS if name in {*variant, REFERENCE, OURS})
    if quick:
        workloads, blocks = workloads_of((128,), (128,), (1, 4))[:3], min(blocks, 3)
    else:
        workloads = workloads_of((128, 900), (128, 512), batch)
    settings = Settings(workloads=workloads, blocks=blocks, steps=steps, loads=1 if quick else 3, threads=threads)
    out = out or (None if quick else RESULTS / "peers.json")
    finish(compare(models, wanted, settings, work, out), out)


def check_names(models: tuple[str, ...], variants: tuple[str, ...] = ()) -> None:
    """Refuse what cannot be found before anything runs.

    Raises:
        typer.BadParameter: a model is neither a shape nor a checkpoint's folder, or a variant is not in VARIANTS.
    """
    for model in models:
        if model not in SHAPES and not (Path(model) / "config.json").is_file():
            raise typer.BadParameter(f"--model {model}: expected a checkpoint's folder or one of {', '.join(SHAPES)}")
    for variant in variants:
        if variant not in VARIANTS:
            raise typer.BadParameter(f"--variant {variant}: expected one of {', '.join(VARIANTS)}")


def compare(
    models: tuple[str, ...], variants: tuple[str, ...], settings: Settings, work: Path | None, out: Path | None
) -> Json:
    """Run every variant on every model; the results as they are stored, which is done after every model.

    Other models that `out` holds stay there if they were taken on the same machine with the same settings.
    """
    from benchmarks.machine import machine

    with tempfile.TemporaryDirectory(prefix="demitasse-peers-") as temporary:
        folder = Path(temporary) if work is None else work
        started = time.perf_counter()
        results: Json = {
            "kind": "peers",
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "machine": machine(settings.device),
            "settings": {
                "threads": settings.threads,
                "device": settings.device,
                "blocks": settings.blocks,
                "steps": settings.steps,
                "workloads": [workload.key for workload in settings.workloads],
            },
            "models": {},
        }
        for model in models:
            name = model if model in SHAPES else Path(model).resolve().name
            results["models"][name] = compare_model(model, variants, settings, folder / name, teller(name))
            results["seconds"] = time.perf_counter() - started
            if out is not None:
                results = joined(results, out)
                store(results, out)
    return results


def joined(results: Json, out: Path) -> Json:
    """`results` with the other models of an earlier run of the same kind, machine and settings that `out` holds."""
    if not out.is_file():
        return results
    earlier = json.loads(out.read_text(encoding="utf-8"))
    if any(earlier.get(key) != results[key] for key in ("kind", "machine", "settings")):
        return results
    return results | {"models": earlier["models"] | results["models"]}


def compare_model(model: str, variants: tuple[str, ...], settings: Settings, work: Path, tell: Tell) -> Json:
    """One model on every variant."""
    checkpoint = checkpoint_of(model, work)
    files, results = prepare_all(variants, checkpoint, settings.device, work, tell)
    return timed(files, results, checkpoint, settings, work, tell) | {
        "weights": "random" if model in SHAPES else "the checkpoint's own"
    }


def timed(files: dict[str, Files], results: Json, checkpoint: Path, settings: Settings, work: Path, tell: Tell) -> Json:
    """A model's results with the times of all variants that have files."""
    from benchmarks.bandwidth import BYTES
    from compress.checkpoints.config import read_config
    from compress.checkpoints.folder import inspect_checkpoint

    times = run_grid(files, Prompts.read(checkpoint, settings.longest), settings, work / "scratch", tell)
    floor = times.pop(FLOOR)
    for name, result in times.items():
        results[name] |= result
    parameters = inspect_checkpoint(checkpoint).parameters
    return {
        "family": str(read_config(checkpoint)["model_type"]),
        "parameters": parameters,
        "float32_bytes": 4 * parameters,
        "floor": floor,
        "floor_bytes": BYTES,
        "variants": results,
    }


def checkpoint_of(model: str, work: Path) -> Path:
    """The folder of a model; a shape is written into `work` first."""
    work.mkdir(parents=True, exist_ok=True)
    return Path(model).resolve() if model not in SHAPES else _shape(model, work)


def _shape(shape: str, work: Path) -> Path:
    checkpoint = work / "checkpoint"
    if not (checkpoint / "model.safetensors").is_file():
        write_checkpoint(shape, checkpoint)
    return checkpoint


def prepare_all(
    variants: tuple[str, ...], checkpoint: Path, device: str, work: Path, tell: Tell, calibration: Path = CALIBRATION
) -> tuple[dict[str, Files], Json]:
    """The files of every variant that can take part, and a result to fill for each variant."""
    from compress.checkpoints.config import read_config

    family = str(read_config(checkpoint)["model_type"])
    files: dict[str, Files] = {}
    results: Json = {}
    for name in variants:
        reason, made = VARIANTS[name].reason_against(family), Files(folder=checkpoint)
        if not reason:
            tell(f"files of {name}")
            try:
                made = files[name] = prepared(VARIANTS[name].files, checkpoint, work, device, calibration)
            except PrepareError as error:
                reason = f"its files could not be made: {error}"
        results[name] = {
            "title": VARIANTS[name].title,
            "reason": reason,
            "load": [],
            "check": [],
            "workloads": {},
            "idle": 0.0,
        }
        results[name] |= {"weight_bytes": 0, "bytes": 0, "made": made.parts}
        if not reason:
            results[name] |= sizes_of(made.folder)
    return files, results


if __name__ == "__main__":
    typer.run(main)
