"""What a sensitivity looks like in the terminal: each kind and each block with its increase of the loss."""

import math

from rich.console import Console
from rich.table import Table

from compress.pruning.sensitivity import Curve, Point, Sensitivity
from evaluation.units import MINUS, format_value
from recipes.cli.terminal import inline
from recipes.engine.sensitivity_picture import by_increase, level_text

ENDS = 5
"""Blocks that the table shows from each end of the order."""


def show_sensitivity(console: Console, found: Sensitivity) -> None:
    """Every kind, and the most and the least sensitive blocks, each with its increase of the loss at every level."""
    perplexity = format_value("perplexity", math.exp(found.dense))
    held_out = f"{found.held_out_tokens:,} held-out tokens"
    console.print(f"dense: loss {found.dense:.4f} nats, perplexity {perplexity}, on {held_out}", soft_wrap=True)
    below = f"below: what that rises by when one part alone is pruned by {found.criterion}"
    console.print(inline(below), soft_wrap=True)
    for heading, curves in (("Kind", found.kinds), ("Block", found.blocks)):
        if curves:
            console.print()
            console.print(_table(heading, by_increase(curves)))


def _table(heading: str, curves: list[Curve]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column(heading, no_wrap=True)
    table.add_column("Weights", justify="right", no_wrap=True)
    for point in curves[0].points:
        table.add_column(level_text(point.level), justify="right", no_wrap=True)
    hidden = len(curves) - 2 * ENDS if len(curves) > 2 * ENDS + 1 else 0
    for place, curve in enumerate(curves):
        if hidden and place == ENDS:
            table.add_row(f"[dim]... {hidden} between[/]")
        if not hidden or not ENDS <= place < len(curves) - ENDS:
            figures = (figure_text(point) for point in curve.points)
            table.add_row(inline(curve.name), format_value("parameters", curve.parameters), *figures)
    return table


def figure_text(point: Point) -> str:
    """Such as "+0.0123 ± 0.0011"."""
    text = f"{point.increase:+.4f} [dim]\N{PLUS-MINUS SIGN} {point.error:.4f}[/]"
    return text.replace("-", MINUS)
