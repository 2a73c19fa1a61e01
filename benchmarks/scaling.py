"""How export and decoding grow with the model: GPT-2's four shapes with random weights, each step in a fresh process.

    python -m benchmarks.scaling [--shapes 124M,355M,774M,1.5B]

For each shape: the int8 checkpoint (quantize), the bundle (export) with its time and peak memory once the graph is
written and once every proof is done; then opening it and decoding at a context of 128 tokens, against the floor

    bytes of weights / memory bandwidth, measured in the same blocks

and, for the smallest shape, torch.onnx.export of the same checkpoint. Times are of the work, imports aside (they are
the same few seconds for every shape); memory is the process's peak, libraries included. A shape's files are removed
before the next one's are made: 1.5B needs 6.2 GB for its checkpoint, 3.4 GB for the int8 one and 1.6 GB for the bundle.
"""

import shutil
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

if __name__ == "__main__" and not __package__:  # started by its path: imports begin at the repository
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import typer

from benchmarks.grid import FLOOR, Prompts, Settings, Tell, Workload, run_grid
from benchmarks.page import finish
from benchmarks.prepare import Files, PrepareError, prepared
from benchmarks.results import RESULTS, sizes_of, teller
from benchmarks.scaling_tables import CONTEXT
from benchmarks.shapes import SHAPES, write_checkpoint
from benchmarks.variants import OURS, VARIANTS

NAMES = {"124M": "gpt2-124m", "355M": "gpt2-355m", "774M": "gpt2-774m", "1.5B": "gpt2-1.5b"}
BLOCKS, STEPS = 7, 8
Json = dict[str, Any]


def main(
    shapes: Annotated[str, typer.Option(help="Which shapes, with commas between.")] = ",".join(NAMES),
    threads: Annotated[int, typer.Option(help="Threads for decoding.")] = 2,
    work: Annotated[Path | None, typer.Option(help="Where files are made; default: a temporary folder.")] = None,
    out: Annotated[Path, typer.Option(help="Where the results go as JSON.")] = RESULTS / "scaling.json",
) -> None:
    """Export and decode GPT-2 at growing shapes, with random weights."""
    wanted = [NAMES.get(name, name) for name in shapes.split(",")]
    unknown = sorted(set(wanted) - set(SHAPES))
    if unknown:
        raise typer.BadParameter(f"expected some of {', '.join(NAMES)}, got {', '.join(unknown)}")
    finish(scale(wanted, threads=threads, work=work), out)


def scale(shapes: list[str], *, threads: int, work: Path | None, **changes: Any) -> Json:
    """Run every shape, the smallest also through torch.onnx.export; the results as they are stored.

    Args:
        changes: fields of every shape's config to change, so that a test can be small.
    """
    from benchmarks.machine import machine

    results: Json = {
        "kind": "scaling",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": machine("cpu"),
        "settings": {"threads": threads, "context": CONTEXT, "blocks": BLOCKS, "steps": STEPS},
        "shapes": {},
    }
    with tempfile.TemporaryDirectory(prefix="demitasse-scaling-") as temporary:
        for shape in shapes:
            folder = (work or Path(temporary)) / shape
            measured = results["shapes"][shape] = {"reason": ""}
            try:
                measured |= _one_shape(shape, folder, threads, torch_export=shape == shapes[0], changes=changes)
            except PrepareError as error:
                measured["reason"] = str(error)
            shutil.rmtree(folder, ignore_errors=True)
    return results


def _one_shape(shape: str, folder: Path, threads: int, *, torch_export: bool, changes: Json) -> Json:
    from compress.checkpoints.folder import inspect_checkpoint

    tell, checkpoint = teller(shape), folder / "checkpoint"
    tell("writes the checkpoint")
    write_checkpoint(shape, checkpoint, **changes)
    parameters = inspect_checkpoint(checkpoint).parameters
    result: Json = {"parameters": parameters, "float32_bytes": 4 * parameters}
    if torch_export:
        tell("torch.onnx.export")
        result["torch_export"] = prepared("torch_export", checkpoint, folder, "cpu").parts
    tell("quantizes")
    result["quantize"] = prepared("int8", checkpoint, folder, "cpu").parts
    tell("exports")
    bundle = prepared(VARIANTS[OURS].files, checkpoint, folder, "cpu")
    decoded = _decode(bundle, checkpoint, threads, folder / "scratch", tell)
    decoded["variants"][OURS] |= sizes_of(bundle.folder)
    return result | {"export": bundle.parts} | decoded


def _decode(bundle: Files, checkpoint: Path, threads: int, scratch: Path, tell: Tell) -> Json:
    """Opening, memory, and the median step of each block with the floor of the same blocks."""
    from benchmarks.bandwidth import BYTES

    workload = Workload(kind="decode", tokens=CONTEXT, batch=1)
    settings = Settings(workloads=(workload,), blocks=BLOCKS, steps=STEPS, loads=3, threads=threads, checked=1)
    results = run_grid({OURS: bundle}, Prompts.read(checkpoint, settings.longest), settings, scratch, tell)
    return {"variants": results, "floor": results.pop(FLOOR), "floor_bytes": BYTES}


if __name__ == "__main__":
    typer.run(main)
