"""Where the bytes went: the weights after each stage as a waterfall, and what kind of numbers hold them.

The kinds are known where a stage says so (`facts["coverage"]` of an export: int8 values, their scales, floats);
elsewhere a form has one kind.
"""

from typing import TYPE_CHECKING

from evaluation.charts.frame import ACCENT, INK, LIMIT, LINE, MUTED, SECOND, SOFT, key, new_figure, to_svg, valid
from evaluation.report import Report, Row
from evaluation.units import MINUS, format_value, scale_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KINDS: dict[str, str] = {
    "float": SECOND,
    "int8 and float": ACCENT,
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
    axes.set_xlim(0, max(size for _, size in rows) / factor * 1.34)
    axes.set_xlabel(f"weights ({unit})")
    key(axes, loc="lower right", ncols=1)
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
    """The size beside its bar, with what the stage changed, and a line from where it started."""
    text = format_value("weight_bytes", size)
    if before is not None and before != size:
        sign = MINUS if size < before else "+"
        text += f"  ({sign}{format_value('weight_bytes', abs(size - before))})"
        axes.plot([before / factor] * 2, [place - 0.72, place + 0.3], color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
    color = LIMIT if before is not None and size > before else INK
    axes.annotate(
        text, (size / factor, place), xytext=(6, 0), textcoords="offset points", va="center", fontsize=9.5, color=color
    )
