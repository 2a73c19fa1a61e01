"""Stored results as tables of finished text, for the terminal and for docs/benchmarks.md alike.

A figure is the median over blocks; the ratio below it says how many times as fast ours is (peer / ours, paired within
blocks), with its 95 % interval. What a variant could not do says why.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.targets import Outcome, floor_seconds, outcomes, paired_ratio, reason_of, seconds_of
from benchmarks.variants import OURS, REFERENCE
from evaluation.measurement import Interval
from evaluation.units import BYTE_UNITS, format_number

Json = dict[str, Any]
BREAK = "\n"


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text; a workload may hold line breaks."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """As a Markdown table, the first column to the left and the others to the right."""
        lines = [self.columns, ("---", *("---:" for _ in self.columns[1:])), *self.rows]
        return "\n".join(
            "| " + " | ".join(workload.replace(BREAK, "<br>") for workload in line) + " |" for line in lines
        )


def model_tables(model: Json) -> list[Table]:
    """Every table of one model of a comparison."""
    keys = list(dict.fromkeys(key for variant in model["variants"].values() for key in variant["workloads"]))
    tables = [footprint_table(model), grid_table(model, "decode", keys), grid_table(model, "prefill", keys)]
    tables.append(targets_table(outcomes(model)))
    return [table for table in tables if len(table.columns) > 1 and table.rows]


def footprint_table(model: Json) -> Table:
    """Size, start and memory of each variant, and whether it computes the same."""
    columns = (
        "variant",
        "weights",
        "of float32",
        "opens in",
        "first token after",
        "peak memory",
        "next token as PyTorch",
    )
    rows = []
    for variant in model["variants"].values():
        if variant["reason"]:
            rows.append((variant["title"], f"n/a ({variant['reason']})", *("" for _ in columns[2:])))
            continue
        share = f"{variant['weight_bytes'] / model['float32_bytes']:.3f}x"
        starts = [format_seconds(_median(variant["load"], what)) for what in ("open", "first_token")]
        peak = format_bytes(_median(variant["load"], "peak"))
        rows.append(
            (variant["title"], format_bytes(variant["weight_bytes"]), share, *starts, peak, agreement(model, variant))
        )
    return Table(title="Size, start, memory", columns=columns, rows=tuple(rows))


def grid_table(model: Json, kind: str, keys: list[str]) -> Table:
    """Decode as tokens per second, prefill as milliseconds; a column per workload."""
    workloads = [key for key in keys if key.startswith(kind)]
    heads = [f"{tokens} tokens, batch {batch}" for _, tokens, batch in (key.split("-") for key in workloads)]
    rows = [(variant["title"], *_grid_cells(model, name, workloads)) for name, variant in model["variants"].items()]
    if kind == "decode":
        rows.append(("floor: our weights read once", *(_floor_workload(model, key) for key in workloads)))
    title = {"decode": "Decode, tokens per second", "prefill": "Prefill, milliseconds"}[kind]
    return Table(title=title, columns=("variant", *heads), rows=tuple(rows))


def _grid_cells(model: Json, name: str, workloads: list[str]) -> list[str]:
    """A cell for each workload; of a variant that did not run at all the reason once."""
    if reason := model["variants"][name]["reason"]:
        return [f"n/a ({reason})", *[""] * (len(workloads) - 1)]
    return [grid_workload(model, name, key) for key in workloads]


def grid_workload(model: Json, name: str, key: str) -> str:
    """One figure, and below it how many times as fast ours is."""
    seconds = seconds_of(model["variants"], name, key)
    if not seconds:
        return f"n/a ({reason_of(model['variants'], name, key)})"
    kind, _, batch = key.split("-")
    median = float(np.median(seconds))
    figure = format_number(int(batch) / median) if kind == "decode" else format_number(median * 1e3)
    if name == OURS:
        return f"**{figure}**"
    ratio, interval, _ = paired_ratio(model["variants"], name, OURS, key)
    return figure if ratio is None else f"{figure}{BREAK}{format_times(ratio, interval)}"


def _floor_workload(model: Json, key: str) -> str:
    seconds = floor_seconds(model, key)
    return format_number(int(key.split("-")[2]) / float(np.median(seconds))) if seconds else "n/a"


def targets_table(found: list[Outcome]) -> Table:
    """Each target, what was measured, and the verdict."""
    rows = tuple((outcome.what, _limit(outcome), _measured(outcome), outcome.verdict) for outcome in found)
    return Table(title="Targets", columns=("target", "limit", "measured", "verdict"), rows=rows)


def _limit(outcome: Outcome) -> str:
    return f"{'at least' if outcome.at_least else 'at most'} {outcome.limit:g}{outcome.unit}"


def _measured(outcome: Outcome) -> str:
    if outcome.value is None:
        return f"n/a ({outcome.reason})"
    return format_times(outcome.value, outcome.interval, unit=outcome.unit)


def agreement(model: Json, variant: Json) -> str:
    """How many next tokens are the reference's, of those that were chosen after the same text as there."""
    reference = model["variants"][REFERENCE]
    same = total = 0
    for theirs, ours in _pairs(reference, variant):
        if theirs and ours and theirs[0] and ours[0]:
            equal_NB = np.asarray(ours) == np.asarray(theirs)
            same_text_NB = np.vstack([np.ones_like(equal_NB[:1]), np.cumprod(equal_NB, axis=0)[:-1]]).astype(bool)
            same += int((equal_NB & same_text_NB).sum())
            total += int(same_text_NB.sum())
    return f"{same} of {total}" if total else "n/a"


def _pairs(reference: Json, variant: Json) -> Iterator[tuple[list[list[int]], list[list[int]]]]:
    """The tokens of both, [N][B]: of the prompts that were checked, and of every decode workload."""
    yield [reference.get("check", [])], [variant.get("check", [])]
    for key, workload in variant["workloads"].items():
        yield reference["workloads"].get(key, {}).get("tokens", []), workload["tokens"]


def _median(loads: list[Json], what: str) -> float:
    return float(np.median([load[what] for load in loads]))


def format_times(ratio: float, interval: Interval | None, unit: str = "x") -> str:
    """Such as "1.42x (1.35 to 1.49)"."""
    between = "" if interval is None else f" ({interval.low:.3g} to {interval.high:.3g})"
    return f"{ratio:.3g}{unit}{between}"


def format_bytes(value: float) -> str:
    """Such as "135 MB"."""
    factor, unit = next((factor, unit) for unit, factor in BYTE_UNITS.items() if value >= factor or factor == 1)
    return f"{format_number(value / factor)} {unit}"


def format_seconds(value: float) -> str:
    """Such as "0.31 s" or "24 ms"."""
    return f"{value:.2f} s" if value >= 0.1 else f"{value * 1e3:.0f} ms"
