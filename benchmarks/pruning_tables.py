"""What pruning.py stored, as tables and targets.

A latency's ratio is paired within blocks: variant / whole, the median over blocks, a bootstrap interval over blocks.
"Of what the bytes predict" is that ratio over the ratio of the bundles' weights.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.tables import Table, format_bytes, format_seconds, format_times, targets_table
from benchmarks.targets import Outcome
from evaluation.measurement import Interval
from evaluation.statistics import median_interval
from evaluation.units import format_number

Json = dict[str, Any]
WHOLE, ZEROED, PEER = "whole", "half of the weights zero", "llm-compressor"
PERPLEXITY_AT_MOST: dict[str, dict[str, float]] = {
    "SmolLM2-135M-Instruct": {"Wanda, 50 %": 58.5, "SparseGPT, 50 %": 51.1, "SparseGPT, 2:4": 95.0}
}
"""llm-compressor 0.14 on this model, WikiText-2, the same rows."""
SECONDS_AT_MOST = {"Wanda, 50 %": 60.0, "SparseGPT, 50 %": 110.0}
RECOVERY_AT_MOST = {"prune-gradual": 1.05, "prune-gradual-2-4": 1.08}
MEMORY_TIMES, MEMORY_BESIDE, LARGEST_AT_MOST, PREDICTED_WITHIN = 1.5, 1e9, 16e9, 0.10


def pruning_tables(run: Json) -> dict[str, list[Table]]:
    """The tables of each part that was run, and one of targets."""
    parts = run["parts"]
    tables = {name: [build(parts[name])] for name, build in TABLES.items() if name in parts}
    return tables | {"targets": [targets_table(list(pruning_outcomes(parts)))]}


def _masks(part: Json) -> Table:
    columns = ("method", "perplexity", "of dense", "zeros", "time, one thread", "peak memory", "of float32")
    rows = [("dense", format_number(part["dense"]), "", "", "", "", "")]
    for name, row in part["rows"].items():
        zeros = f"{100 * row['sparsity']:.1f} %" if "sparsity" in row else ""
        quality = (format_number(row["perplexity"]), f"{format_number(row['perplexity'] / part['dense'])}x")
        cost = (format_seconds(row["seconds"]), format_bytes(row["peak"]))
        share = f"{row['peak'] / part['float32_bytes']:.2f}x"
        rows.append((name, *quality, zeros, *cost, share))
    return Table(title=f"{part['model']}, one-shot", columns=columns, rows=tuple(rows))


def _widths(part: Json) -> Table:
    columns = (
        "shape",
        "parameters",
        "bundle's weights",
        "decode, ms",
        "of the whole's time",
        "of what the bytes predict",
    )
    rows = []
    for name, row in part["rows"].items():
        share, _ = _against_whole(part, name)
        of_bytes, interval = _of_bytes(part, name)
        parameters = f"{row['parameters'] / 1e6:.1f} M"
        time = f"{1e3 * float(np.median(row['seconds'])):.2f}"
        times = () if name == WHOLE else (f"{share:.3f}x", format_times(of_bytes, interval))
        rows.append((name, parameters, format_bytes(row["weight_bytes"]), time, *(times or ("", ""))))
    title = f"{part['shape']}, decode at {part['context']} tokens in ONNX Runtime"
    return Table(title=title, columns=columns, rows=tuple(rows))


def _against_whole(part: Json, name: str) -> tuple[float, Interval | None]:
    ratio = np.array(part["rows"][name]["seconds"]) / np.array(part["rows"][WHOLE]["seconds"])
    return float(np.median(ratio)), median_interval(ratio)


def _of_bytes(part: Json, name: str) -> tuple[float, Interval | None]:
    bytes_share = part["rows"][name]["weight_bytes"] / part["rows"][WHOLE]["weight_bytes"]
    value, interval = _against_whole(part, name)
    scaled = interval and interval.model_copy(
        update={"low": interval.low / bytes_share, "high": interval.high / bytes_share}
    )
    return value / bytes_share, scaled


def _memory(part: Json) -> Table:
    figures = (format_bytes(part["float32_bytes"]), format_seconds(part["seconds"]), format_bytes(part["peak"]))
    columns = ("shape", "float32", "SparseGPT takes", "peak memory")
    return Table(title="The largest shape", columns=columns, rows=((part["shape"], *figures),))


def _recovery(part: Json) -> Table:
    metrics = ("perplexity", "weight_bytes", "decode_latency")
    rows = tuple(
        (name, *(_ratio(row.get(metric)) for metric in metrics), str(row["verdict"]))
        for name, row in part["rows"].items()
    )
    columns = ("recipe", "perplexity", "weights", "decode latency", "verdict")
    return Table(title="The recipes, of the model they begin with", columns=columns, rows=rows)


def _ratio(ratio: Json | None) -> str:
    if ratio is None:
        return ""
    interval = ratio.get("interval")
    return format_times(ratio["value"], None if interval is None else Interval.model_validate(interval))


TABLES: dict[str, Callable[[Json], Table]] = {
    "masks": _masks,
    "widths": _widths,
    "memory": _memory,
    "recovery": _recovery,
}


def pruning_outcomes(parts: Json) -> Iterator[Outcome]:
    """What pruning is held to, as far as it was measured."""
    if "masks" in parts:
        yield from _mask_outcomes(parts["masks"])
    if "widths" in parts:
        yield from _width_outcomes(parts["widths"])
    if "memory" in parts:
        peak, what = parts["memory"]["peak"] / 1e9, f"{parts['memory']['shape']}: SparseGPT's peak memory"
        yield Outcome(what=what, limit=LARGEST_AT_MOST / 1e9, value=peak, at_least=False, unit=" GB")
    for name, row in parts.get("recovery", {}).get("rows", {}).items():
        if name in RECOVERY_AT_MOST and "perplexity" in row:
            interval = Interval.model_validate(row["perplexity"]["interval"])
            limit, value = RECOVERY_AT_MOST[name], row["perplexity"]["value"]
            yield Outcome(what=f"{name}: perplexity", limit=limit, value=value, interval=interval, at_least=False)


def _mask_outcomes(part: Json) -> Iterator[Outcome]:
    rows = part["rows"]
    for name, limit in PERPLEXITY_AT_MOST.get(part["model"], {}).items():
        yield _at_most(f"{name}: perplexity", limit, rows[name]["perplexity"], "")
    for name, limit in SECONDS_AT_MOST.items():
        yield _at_most(f"{name}: time on one thread", limit, rows[name]["seconds"], " s")
    for name in (name for name in rows if f"{name}, {PEER}" in rows):
        theirs = rows[f"{name}, {PEER}"]
        for figure in ("perplexity", "seconds"):
            yield _at_most(f"{name}: {figure} / {PEER}'s", 1.0, rows[name][figure] / theirs[figure], "x")
    allowed = (MEMORY_TIMES * part["float32_bytes"] + MEMORY_BESIDE) / 1e9
    peak = max(row["peak"] for name, row in rows.items() if not name.endswith(PEER)) / 1e9
    yield _at_most("peak memory of any method (1.5x the weights + 1 GB)", round(allowed, 2), peak, " GB")


def _width_outcomes(part: Json) -> Iterator[Outcome]:
    for name in part["rows"]:
        if name not in (WHOLE, ZEROED):
            value, interval = _of_bytes(part, name)
            what = f"{name}: decode latency / what the bytes predict"
            yield Outcome(what=what, limit=1 + PREDICTED_WITHIN, value=value, interval=interval, at_least=False)


def _at_most(what: str, limit: float, value: float, unit: str) -> Outcome:
    return Outcome(what=what, limit=limit, value=value, at_least=False, unit=unit)
