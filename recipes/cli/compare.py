"""`demitasse compare A B`: two finished runs side by side, paired; as a table, and as JSON with --out."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from evaluation.measurement import metric_of
from evaluation.units import DASH, format_ratio, format_ratio_interval, format_value
from recipes.cli.terminal import Terminal, inline
from recipes.engine.compare import Pair, SideBySide, compare_runs


def compare(terminal: Terminal, *, first: Path, second: Path, out: Path | None) -> None:
    """Hold two runs against each other and show it."""
    found = compare_runs(first, second)
    if out is not None:
        out.write_text(found.model_dump_json(indent=2) + "\n", encoding="utf-8")
    show_side_by_side(terminal.console, found)


def show_side_by_side(console: Console, found: SideBySide) -> None:
    """A row per metric; below, how they were paired."""
    console.print(_table(found))
    ways: dict[str, list[str]] = {}
    for pair in found.pairs:
        name = metric_of(pair.metric).name
        ways.setdefault(pair.how, []).append(name if name[:2].isupper() else name[0].lower() + name[1:])
    for how, names in ways.items():
        console.print(inline(f"{how}: {', '.join(names)}"), soft_wrap=True)


def _table(found: SideBySide) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("Metric", no_wrap=True)
    for heading in (f"A {Path(found.first).name}", f"B {Path(found.second).name}", "B / A", "95 % interval"):
        table.add_column(inline(heading), justify="right", no_wrap=True)
    for pair in found.pairs:
        table.add_row(*_cells(pair))
    return table


def _cells(pair: Pair) -> list[str]:
    figures = ["invalid" if one.invalid else format_value(pair.metric, one.value) for one in (pair.first, pair.second)]
    ratio = DASH if pair.ratio is None else format_ratio(pair.ratio.value)
    interval = pair.ratio.interval if pair.ratio is not None else None
    between = "" if interval is None else format_ratio_interval(interval)
    return [metric_of(pair.metric).name, *figures, ratio, between]
