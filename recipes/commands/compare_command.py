"""`demitasse compare A B`: two finished runs side by side, paired; as a table, and as JSON with --out."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from rich.console import Console

    from recipes.comparing import Pair, SideBySide

FIRST = Annotated[Path, typer.Argument(metavar="A", help="A run's folder: what B is divided by.")]
SECOND = Annotated[Path, typer.Argument(metavar="B", help="Another run's folder.")]
OUT = Annotated[Path | None, typer.Option("--out", metavar="FILE.json", help="Write it as JSON.", show_default=False)]
DEBUG = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def compare_command() -> Callable[..., None]:
    """The command, for `cli.py`."""
    return compare


def compare(first: FIRST, second: SECOND, out: OUT = None, debug: DEBUG = False) -> None:
    """Hold two candidates of the same baseline and test text against each other, paired by document."""
    from recipes.session import session

    with session(debug=debug) as terminal:
        from recipes.comparing import compare_runs

        found = compare_runs(first, second)
        if out is not None:
            out.write_text(found.model_dump_json(indent=2) + "\n", encoding="utf-8")
        show_side_by_side(terminal.console, found)


def show_side_by_side(console: "Console", found: "SideBySide") -> None:
    """A row per metric; below, how they were paired."""
    from evaluation.measurement import metric_of

    console.print(_table(found))
    ways: dict[str, list[str]] = {}
    for pair in found.pairs:
        name = metric_of(pair.metric).name
        ways.setdefault(pair.how, []).append(name if name[:2].isupper() else name[0].lower() + name[1:])
    for how, names in ways.items():
        console.print(escape(f"{how}: {', '.join(names)}"), soft_wrap=True)


def _table(found: "SideBySide") -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("Metric", no_wrap=True)
    for heading in (f"A {Path(found.first).name}", f"B {Path(found.second).name}", "B / A", "95 % interval"):
        table.add_column(escape(heading), justify="right", no_wrap=True)
    for pair in found.pairs:
        table.add_row(*_cells(pair))
    return table


def _cells(pair: "Pair") -> list[str]:
    from evaluation.measurement import metric_of
    from evaluation.units import DASH, format_ratio, format_ratio_interval, format_value

    figures = ["invalid" if one.invalid else format_value(pair.metric, one.value) for one in (pair.first, pair.second)]
    ratio = DASH if pair.ratio is None else format_ratio(pair.ratio.value)
    interval = pair.ratio.interval if pair.ratio is not None else None
    between = "" if interval is None else format_ratio_interval(interval)
    return [metric_of(pair.metric).name, *figures, ratio, between]
