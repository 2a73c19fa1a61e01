"""Where the bytes went: the weights after each stage as a waterfall, by kind of number and by part of the model.

A row tells both (`Row.weights`); what its weights come to beyond that is the graph itself. What a stage took away stays
as an outline.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from evaluation.charts.frame import ACCENT, INK, LIMIT, LINE, MUTED, SECOND, SOFT, key, new_figure, to_svg, valid
from evaluation.escaping import visible
from evaluation.report import Report, Row
from evaluation.units import format_change, format_value, scale_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NUMBERS: dict[str, str] = {"float": SECOND, "int8": ACCENT, "int4": LIMIT, "scales": SOFT}
PARTS: dict[str, str] = {
    "embeddings": SOFT,
    "attention": ACCENT,
    "mlp": SECOND,
    "norms": LIMIT,
    "head": MUTED,
    "other": INK,
}
REST = "graph"
"""What is neither: the graph's own bytes."""
VISIBLE = 0.003
"""Share of a bar below which a kind cannot be seen, and is not named."""


def waterfall_chart(report: Report) -> str:
    """By kind of number; empty if the weights of fewer than two artifacts were counted."""
    return _chart(report, by_number, NUMBERS, "Size of the weights after each stage, by kind of number")


def parts_chart(report: Report) -> str:
    """By part of the model; empty if the weights of fewer than two artifacts were counted."""
    return _chart(report, by_part, PARTS, "Size of the weights after each stage, by part of the model")


def by_number(row: Row) -> dict[str, int]:
    """Kind of number -> bytes."""
    return {number: sum(sizes.get(number, 0) for sizes in row.weights.values()) for number in NUMBERS}


def by_part(row: Row) -> dict[str, int]:
    """Part of the model -> bytes."""
    return {part: sum(row.weights.get(part, {}).values()) for part in PARTS}


def _chart(report: Report, split: Callable[[Row], dict[str, int]], colors: dict[str, str], title: str) -> str:
    counted = [(row, found.value) for row in report.rows if (found := valid(row, "weight_bytes")) is not None]
    rows = [(row, size) for row, size in counted if row.weights]
    if len(rows) < 2:
        return ""
    figure, (axes,) = new_figure(height=0.7 + 0.42 * len(rows))
    factor, unit = scale_of("weight_bytes", max(size for _, size in rows))
    for place, (row, size) in enumerate(rows):
        start, parts = 0.0, {kind: part for kind, part in split(row).items() if part}
        for kind, part in (parts | {REST: size - sum(parts.values())}).items():
            axes.barh([place], [part / factor], left=start / factor, height=0.6, color=colors.get(kind, LINE))
            start += part
        _label(axes, place, size, rows[place - 1][1] if place else None, factor)
    for kind in (*colors, REST):
        if any(split(row).get(kind, size - sum(split(row).values())) > VISIBLE * size for row, size in rows):
            axes.barh([0], [0], color=colors.get(kind, LINE), label=kind)
    axes.set_yticks(range(len(rows)), [visible(row.name) for row, _ in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, max(size for _, size in rows) / factor * 1.55)
    axes.set_xlabel(f"weights ({unit})")
    key(axes, loc="upper left", bbox_to_anchor=(0, -0.9 / len(rows)), ncols=4, borderpad=0, columnspacing=1.2)
    return to_svg(figure, title)


def _label(axes: "Axes", place: int, size: float, before: float | None, factor: float) -> None:
    """The size beside its bar, with what the stage changed; what it took away stays as an outline."""
    text, end = format_value("weight_bytes", size), size
    if before is not None and before != size:
        text += f" ({format_change('weight_bytes', size - before)})"
    if before is not None and before > size:
        end, gone = before, (before - size) / factor
        axes.barh([place], [gone], left=size / factor, height=0.6, color="none", edgecolor=LINE, linewidth=1)
    color = LIMIT if before is not None and size > before else INK
    axes.annotate(
        text, (end / factor, place), xytext=(6, 0), textcoords="offset points", va="center", fontsize=9.5, color=color
    )
