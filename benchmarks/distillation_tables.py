"""What distillation.py stored, as tables and targets.

Ratios of times are paired within blocks, the median over blocks, with a bootstrap interval over blocks. Where a variant
was trained with several seeds, its figure is their mean, with the smallest and the largest.
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
MEMORY_AT_MOST, TIME_AT_MOST, ERROR_AT_MOST = 0.4, 1.05, 1e-6
PLAIN_AT_LEAST, STORED_AT_LEAST = 1.3, 1.25
TITLES = {
    "ours": "demitasse, teacher beside",
    "stored": "demitasse, teacher stored before",
    "plain": "Trainer with both models' logits",
}
CURVE_POINTS = 8


def distillation_tables(run: Json) -> dict[str, list[Table]]:
    """The tables of each part that was run, and one of targets."""
    parts = {name: part for name, part in run["parts"].items() if part.get("complete")}
    tables = {name: list(build(parts[name])) for name, build in TABLES.items() if name in parts}
    found = list(distillation_outcomes(parts))
    return tables | ({"targets": [targets_table(found)]} if found else {})


def _loss(part: Json) -> Iterator[Table]:
    rows = []
    for variant, row in part["rows"].items():
        memory, _ = _of_naive(part, variant)
        time, interval = _paired(part["rows"], variant, "naive")
        shares = ("", "") if variant == "naive" else (f"{memory:.2f}x", format_times(time, interval))
        above = format_bytes(row["peak"] - row["held"])
        rows.append((variant, above, shares[0], format_seconds(float(np.median(row["seconds"]))), shares[1]))
    title = f"Forward KL, {part['positions']} positions of {part['vocabulary']} tokens, width {part['width']}"
    columns = ("loss", "peak memory above what was held", "of naive", "forward and backward", "of naive's time")
    yield Table(title=title, columns=columns, rows=tuple(rows))


def _of_naive(part: Json, variant: str) -> tuple[float, float]:
    """Share of the naive loss's memory, and of nothing else: (share, bytes)."""
    above = {name: row["peak"] - row["held"] for name, row in part["rows"].items()}
    return above[variant] / above["naive"], above[variant]


def _paired(rows: Json, above: str, below: str) -> tuple[float, Interval | None]:
    """Seconds of one variant over another's."""
    ratio = np.array(rows[above]["seconds"]) / np.array(rows[below]["seconds"])
    return float(np.median(ratio)), median_interval(ratio)


def _speed(part: Json) -> Iterator[Table]:
    for name, row in part["rows"].items():
        rows = []
        for variant, seconds in row["seconds"].items():
            rate = row["batch"] * row["length"] / float(np.median(seconds))
            times = "" if variant == "plain" else format_times(*_times_as_fast(row, variant, "plain"))
            rows.append((TITLES[variant], f"{rate:,.0f}", times))
        title = (
            f"{name} to {row['layers']} layers, {row['batch']} x {row['length']} tokens a step, "
            f"{row['blocks']} blocks of {row['steps']}"
        )
        columns = ("training", "tokens/s", "times as fast as the Trainer")
        yield Table(title=title, columns=columns, rows=tuple(rows))


def _times_as_fast(row: Json, variant: str, other: str) -> tuple[float, Interval | None]:
    ratio = np.array(row["seconds"][other]) / np.array(row["seconds"][variant])
    return float(np.median(ratio)), median_interval(ratio)


def _half(part: Json) -> Iterator[Table]:
    rows = [("teacher", "", format_number(part["teacher"]), "")]
    for variant, values in _by_variant(part).items():
        ratios = [value / part["teacher"] for value in values]
        rows.append((variant, str(len(values)), _spread(values), _spread(ratios, "x")))
    title = (
        f"{part['model']} from {part['depth']} to {part['layers']} layers, {part['budget']['tokens']:,} training tokens"
    )
    yield Table(title=title, columns=("student", "seeds", "perplexity", "of the teacher's"), rows=tuple(rows))


def _by_variant(part: Json) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for row in part["rows"].values():
        found.setdefault(row["variant"], []).append(row["perplexity"])
    return found


def _spread(values: list[float], unit: str = "") -> str:
    """Such as "71.2 (70.9 to 71.5)"."""
    between = f" ({min(values):.4g} to {max(values):.4g})" if len(values) > 1 else ""
    return f"{float(np.mean(values)):.4g}{unit}{between}"


def _smollm2(part: Json) -> Iterator[Table]:
    rows, teacher = [], part["rows"]["teacher"]
    for name, row in part["rows"].items():
        workloads = [name]
        for figure in ("perplexity", "elsewhere") if part["elsewhere"] else ("perplexity",):
            ratio = "" if row is teacher else f" ({row[figure] / teacher[figure]:.3g}x)"
            workloads.append(f"{format_number(row[figure])}{ratio}")
        rows.append((*workloads, f"{100 * row['agreement']:.1f} %"))
    title = (
        f"{part['model']} from {part['depth']} to {part['layers']} layers, {part['knobs']['tokens']:,} training tokens"
    )
    elsewhere = (f"of {part['elsewhere']}",) if part["elsewhere"] else ()
    columns = ("student", "perplexity", *elsewhere, "same likeliest token as the teacher")
    yield Table(title=title, columns=columns, rows=tuple(rows))
    curves = {name: row["curve"] for name, row in part["rows"].items() if row.get("curve")}
    if curves:
        yield _curve(curves)


def _curve(curves: dict[str, list[list[float]]]) -> Table:
    """Held-out loss against training tokens, at points that all variants have."""
    losses = {name: {int(tokens): loss for tokens, loss in curve} for name, curve in curves.items()}
    common = sorted(set.intersection(*(set(found) for found in losses.values())))
    chosen = np.unique(np.linspace(0, len(common) - 1, min(CURVE_POINTS, len(common))).round().astype(int))
    rows = tuple(
        (f"{common[index]:,}", *(f"{found[common[index]]:.3f}" for found in losses.values())) for index in chosen
    )
    return Table(title="Held-out loss, nats per token", columns=("training tokens", *losses), rows=rows)


TABLES: dict[str, Callable[[Json], Iterator[Table]]] = {
    "loss": _loss,
    "speed": _speed,
    "half": _half,
    "smollm2": _smollm2,
}


def distillation_outcomes(parts: Json) -> Iterator[Outcome]:
    """What distillation is held to, as far as it was measured."""
    if "loss" in parts:
        yield from _loss_outcomes(parts["loss"])
    for name, row in parts.get("speed", {}).get("rows", {}).items():
        for variant, other, limit in (("ours", "plain", PLAIN_AT_LEAST), ("stored", "ours", STORED_AT_LEAST)):
            value, interval = _times_as_fast(row, variant, other)
            what = f"{name}: tokens/s, {TITLES[variant]} / {TITLES[other]}"
            yield Outcome(what=what, limit=limit, value=value, interval=interval)


def _loss_outcomes(part: Json) -> Iterator[Outcome]:
    memory, _ = _of_naive(part, "chunked")
    time, interval = _paired(part["rows"], "chunked", "naive")
    yield Outcome(what="chunked loss: memory / naive's", limit=MEMORY_AT_MOST, value=memory, at_least=False)
    yield Outcome(
        what="chunked loss: time / naive's", limit=TIME_AT_MOST, value=time, interval=interval, at_least=False
    )
    error, what = max(part["errors"].values()), "chunked loss: its gradients, relative error in float64"
    yield Outcome(what=what, limit=ERROR_AT_MOST, value=error, at_least=False, unit="")
