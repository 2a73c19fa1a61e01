"""Where the bytes went: the weights after each stage as a waterfall, and what kind of numbers hold them.

The kinds are known where a stage says so (`facts["coverage"]` of an export: int8 values, their scales, floats);
elsewhere a form has one kind.
"""

from typing import TYPE_CHECKING

from evaluation.charts.frame import ACCENT, INK, LIMIT, LINE, MUTED, SECOND, SOFT, key, new_figure, to_svg, valid
from evaluation.report import Report, Row
from evaluation.units import format_change, format_value, scale_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KINDS: dict[str, str] = {
    "float": SECOND,
    "int8 and float": MUTED,
    "int8": ACCENT,
    "scales": SOFT,
    "graph": LINE,
}
"""Every kind of weight and its color."""
KIND_OF_FORM = {"dense": "float", "int8": "int8 and float"}


def waterfall_chart(report: Report) -> str:
    """The size of the weights stage by stage, with what each took away; empty if fewer than two were counted."""
    rows = [(row, found.value) for row in report.rows if (found := valid(row, "weight_bytes")) is not None]
    if len(rows) < 2:
        return ""
    figure, (axes,) = new_figure(height=0.7 + 0.42 * len(rows))
    factor, unit = scale_of("weight_bytes", max(size for _, size in rows))
    shown: dict[str, None] = {}
    for place, (row, size) in enumerate(rows):
        start = 0.0
        for kind, part in kinds_of(row, size).items():
            label = None if kind in shown else kind
            axes.barh([place], [part / factor], left=start / factor, height=0.6, color=KINDS[kind], label=label)
            start, shown[kind] = start + part, None
        _label(axes, place, size, rows[place - 1][1] if place else None, factor)
    axes.set_yticks(range(len(rows)), [row.name for row, _ in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, max(size for _, size in rows) / factor * 1.55)
    axes.set_xlabel(f"weights ({unit})")
    key(axes, loc="upper left", bbox_to_anchor=(0, -0.9 / len(rows)), ncols=5, borderpad=0, columnspacing=1.2)
    return to_svg(figure, "Size of the weights after each stage, by kind of number")


def kinds_of(row: Row, size: float) -> dict[str, float]:
    """Bytes by kind of number, which add up to `size`."""
    coverage = row.facts.get("coverage")
    if not isinstance(coverage, dict) or "int8_bytes" not in coverage:
        return {KIND_OF_FORM.get(row.form, "float"): size}
    parts = {"int8": coverage["int8_bytes"], "scales": coverage["scale_bytes"], "float": coverage["float_bytes"]}
    known = {kind: float(part) for kind, part in parts.items() if part}
    rest = size - sum(known.values())
    return known | {"graph": rest} if rest > 0 else known


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
