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
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

if __name__ == "__main__" and not __package__:  # started by its path: imports begin at the repository
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import typer

from benchmarks.grid import FLOOR, Prompts, Settings, Tell, Workload, run_grid
from benchmarks.marks import Parts, peak_until, seconds_until
from benchmarks.peers import RESULTS, finish, sizes_of, teller
from benchmarks.prepare import Files, PrepareError, prepared
from benchmarks.shapes import SHAPES, write_checkpoint
from benchmarks.tables import Table, format_bytes, format_seconds, format_times, targets_table
from benchmarks.targets import Outcome, floor_seconds, reason_of, seconds_of
from benchmarks.variants import OURS, VARIANTS
from evaluation.statistics import median_interval

NAMES = {"124M": "gpt2-124m", "355M": "gpt2-355m", "774M": "gpt2-774m", "1.5B": "gpt2-1.5b"}
WRITTEN = "written"
CONTEXT, BLOCKS, STEPS = 128, 7, 8
WORKLOAD = f"decode-{CONTEXT}-1"
TIME_AT_MOST, PEAK_AT_MOST, GROWTH_AT_MOST, LARGEST_AT_MOST = 0.5, 2.0, 1.1, 16e9
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


def scaling_tables(run: Json) -> list[Table]:
    """The tables of a run."""
    return [_export_table(run), _decode_table(run), targets_table(scaling_outcomes(run))]


def _export_table(run: Json) -> Table:
    columns = ("shape", "float32", "quantize", "graph written after", "peak", "proven after", "peak", "peak / float32")
    rows: list[tuple[str, ...]] = []
    for name, shape in run["shapes"].items():
        if shape["reason"]:
            rows.append((name, f"n/a ({shape['reason']})", *[""] * (len(columns) - 2)))
            continue
        parts, size = shape["export"], shape["float32_bytes"]
        written, whole = _figures(parts, WRITTEN), _figures(parts)
        quantize = ", ".join(_figures(shape["quantize"]))
        rows.append((name, format_bytes(size), quantize, *written, *whole, f"{peak_until(parts) / size:.2f}x"))
        if "torch_export" in shape:
            theirs, share = _figures(shape["torch_export"]), peak_until(shape["torch_export"]) / size
            rows.append((f"{name}, torch.onnx.export", format_bytes(size), "", *theirs, "", "", f"{share:.2f}x"))
    return Table(title="Export", columns=columns, rows=tuple(rows))


def _figures(parts: Parts, last: str = "") -> tuple[str, str]:
    return format_seconds(seconds_until(parts, last)), format_bytes(peak_until(parts, last))


def _decode_table(run: Json) -> Table:
    columns = ("shape", "weights", "opens in", "peak memory", "decode, ms", "floor, ms", "share of the floor's speed")
    shapes = {name: shape for name, shape in run["shapes"].items() if not shape["reason"]}
    rows = tuple((name, *_decode_row(shape)) for name, shape in shapes.items())
    return Table(title=f"Decode at a context of {CONTEXT} tokens, batch 1", columns=columns, rows=rows)


def _decode_row(shape: Json) -> tuple[str, ...]:
    ours, weights = shape["variants"][OURS], format_bytes(shape["variants"][OURS]["weight_bytes"])
    floor_N, decode_N = (
        np.array(floor_seconds(shape, WORKLOAD)),
        np.array(seconds_of(shape["variants"], OURS, WORKLOAD)),
    )
    if not len(decode_N):
        return (weights, f"n/a ({reason_of(shape['variants'], OURS, WORKLOAD)})", *[""] * 4)
    opens, peak = (float(np.median([load[what] for load in ours["load"]])) for what in ("open", "peak"))
    share = format_times(float(np.median(floor_N / decode_N)), median_interval(floor_N / decode_N))
    times = (f"{np.median(decode_N) * 1e3:.2f}", f"{np.median(floor_N) * 1e3:.2f}")
    return (weights, format_seconds(opens), format_bytes(peak), *times, share)


def scaling_outcomes(run: Json) -> list[Outcome]:
    """What export is held to: against torch.onnx.export, and from the first shape to the last."""
    shapes = {name: shape for name, shape in run["shapes"].items() if not shape["reason"]}
    if not shapes:
        return []
    (first, smallest), (last, largest) = next(iter(shapes.items())), next(reversed(shapes.items()))
    found = []
    if "torch_export" in smallest:
        found += [*_against_torch(first, smallest, WRITTEN), *_against_torch(first, smallest, "")]
    return found if first == last else [*found, *_growth(f"{last} / {first}", smallest, largest)]


def _growth(what: str, smallest: Json, largest: Json) -> Iterator[Outcome]:
    """No more than linear: time and memory per byte of weights do not rise. And what the largest takes."""
    for name, measure in {"time": seconds_until, "peak memory": peak_until}.items():
        per_byte = [measure(shape["export"]) / shape["float32_bytes"] for shape in (smallest, largest)]
        growth = per_byte[1] / per_byte[0]
        yield Outcome(what=f"{what}: export's {name} per byte", limit=GROWTH_AT_MOST, value=growth, at_least=False)
    peak = peak_until(largest["export"]) / 1e9
    what = f"{what.partition(' /')[0]}: export's peak memory"
    yield Outcome(what=what, limit=LARGEST_AT_MOST / 1e9, value=peak, at_least=False, unit=" GB")


def _against_torch(name: str, shape: Json, last: str) -> Iterator[Outcome]:
    """torch.onnx.export proves nothing, so the like of it is the graph as written; the whole stage stands beside it."""
    what = f"{name}: export, graph written" if last else f"{name}: export with its proofs"
    time = seconds_until(shape["export"], last) / seconds_until(shape["torch_export"])
    peak = peak_until(shape["export"], last) / shape["float32_bytes"]
    yield Outcome(what=f"{what}, time / torch.onnx.export's", limit=TIME_AT_MOST, value=time, at_least=False)
    yield Outcome(what=f"{what}, peak memory / float32 weights", limit=PEAK_AT_MOST, value=peak, at_least=False)


if __name__ == "__main__":
    typer.run(main)
