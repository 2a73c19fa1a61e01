"""The tables of `benchmarks.scaling`, and what export is held to there."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.marks import Parts, peak_until, seconds_until
from benchmarks.tables import Table, format_bytes, format_seconds, format_times, targets_table
from benchmarks.targets import Outcome, floor_seconds, reason_of, seconds_of
from benchmarks.variants import OURS
from evaluation.statistics import median_interval

WRITTEN = "written"
CONTEXT = 128
WORKLOAD = f"decode-{CONTEXT}-1"
TIME_AT_MOST, PEAK_AT_MOST, GROWTH_AT_MOST, LARGEST_AT_MOST = 0.5, 2.0, 1.1, 16e9
Json = dict[str, Any]


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
