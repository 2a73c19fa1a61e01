"""The report's charts as inline SVG that takes its colors from the page, so that it follows light, dark and print.

Matplotlib draws with stand-in colors (`INKS`), which are then replaced by the page's CSS variables; text stays text.
"""

import io
from typing import TYPE_CHECKING, Any

from evaluation.gate import AGAINST_BASELINE, Limit
from evaluation.measurement import Measurement
from evaluation.report import Report, Row
from evaluation.units import format_number, format_value, scale_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INKS: dict[str, str] = {
    "#010101": "var(--ink)",
    "#020202": "var(--muted)",
    "#030303": "var(--line)",
    "#040404": "var(--accent)",
    "#050505": "var(--limit)",
    "#060606": "var(--soft)",
}
INK, MUTED, LINE, ACCENT, LIMIT, SOFT = INKS


def size_chart(report: Report) -> str:
    """Perplexity over the size of the weights, a point per artifact in the order of the stages; empty if unmeasured."""
    points = [(row, *pair) for row in report.rows if (pair := _pair(row, "weight_bytes", "perplexity")) is not None]
    if len(points) < 2:
        return ""
    figure, (axes,) = _figure(1, height=3.5)
    factor, unit = scale_of("weight_bytes", max(size.value for _, size, _ in points))
    sizes = [size.value / factor for _, size, _ in points]
    axes.plot(sizes, [quality.value for _, _, quality in points], color=MUTED, linewidth=1, zorder=1)
    for (row, _, quality), x in zip(points, sizes, strict=True):
        _whisker(axes, x, quality)
        face = ACCENT if row is report.final else SOFT
        axes.plot([x], [quality.value], "o", markersize=8, color=face, mec=ACCENT, mew=1.4, zorder=3)
    _name_points(axes, [row.name for row, _, _ in points], sizes, [quality.value for _, _, quality in points])
    _draw_limit(axes, report, points[0][2].value)
    axes.set_xlabel(f"weights ({unit})")
    axes.set_ylabel("perplexity")
    axes.set_xlim(0, max(sizes) * 1.12)
    axes.margins(y=0.22)
    return _svg(figure, "Perplexity over the size of the weights, stage by stage")


def latency_chart(report: Report) -> str:
    """Prefill and decode latency of every arm that was timed, with intervals; empty if fewer than two were."""
    metrics = {"decode_latency": "Decode, per token", "prefill_latency": "Prefill"}
    timed = {metric: _timed(report, metric) for metric in metrics}
    timed = {metric: rows for metric, rows in timed.items() if len(rows) >= 2}
    if not timed:
        return ""
    figure, panels = _figure(len(timed), height=3.5)
    for axes, (metric, rows) in zip(panels, timed.items(), strict=True):
        _bars(axes, metric, rows, metrics[metric])
    figure.subplots_adjust(hspace=0.6)
    return _svg(figure, "Latency of the baseline and of what ships")


def _pair(row: Row, first: str, second: str) -> tuple[Measurement, Measurement] | None:
    one, other = row.measurement(first), row.measurement(second)
    if one is None or other is None or one.invalid or other.invalid:
        return None
    return one, other


def _timed(report: Report, metric: str) -> list[tuple[str, Measurement]]:
    found = [(row.name, row.measurement(metric)) for row in report.rows]
    return [(name, measurement) for name, measurement in found if measurement is not None and not measurement.invalid]


def _whisker(axes: "Axes", x: float, measurement: Measurement) -> None:
    if measurement.interval is not None:
        axes.plot([x, x], [measurement.interval.low, measurement.interval.high], color=ACCENT, linewidth=1.6, zorder=2)


def _name_points(axes: "Axes", names: list[str], xs: list[float], ys: list[float]) -> None:
    """Name each point beside it; points at the same place in x are named above or below, by their rank there."""
    reach = max(xs)
    for name, x, y in zip(names, xs, ys, strict=True):
        neighbors = [other for other, at in zip(ys, xs, strict=True) if abs(at - x) < 0.12 * reach]
        right = y >= max(neighbors) and x < 0.8 * reach
        offset, align = ((9, 4), "left") if right else ((-9, 4), "right")
        if x < 0.2 * reach:
            offset, align = (9, 4 if right else -12), "left"
        axes.annotate(name, (x, y), xytext=offset, textcoords="offset points", ha=align, fontsize=9.5, color=INK)


def _draw_limit(axes: "Axes", report: Report, baseline: float) -> None:
    for result in report.gates:
        if result.metric == "perplexity":
            bound = _absolute(result.limit, baseline)
            axes.axhline(bound, color=LIMIT, linewidth=1.2, linestyle=(0, (5, 3)), zorder=0)
            label = f"gate {format_number(bound)}"
            axes.annotate(
                label, (1, bound), xycoords=("axes fraction", "data"), xytext=(5, 0), textcoords="offset points",
                ha="left", va="center", fontsize=9, color=LIMIT,
            )  # fmt: skip


def _absolute(limit: Limit, baseline: float) -> float:
    """A limit in the metric's own unit."""
    if limit.kind == "max_increase":
        return baseline + limit.bound
    return limit.bound * (baseline if limit.kind in AGAINST_BASELINE else 1.0)


def _bars(axes: "Axes", metric: str, rows: list[tuple[str, Measurement]], title: str) -> None:
    factor, unit = scale_of(metric, max(measurement.value for _, measurement in rows))
    longest = max(measurement.value for _, measurement in rows) / factor
    for place, (_, measurement) in enumerate(rows):
        value = measurement.value / factor
        face = ACCENT if place == len(rows) - 1 else SOFT
        axes.barh([place], [value], height=0.62, color=face, edgecolor=ACCENT, linewidth=1)
        end = value
        if measurement.interval is not None:
            end = measurement.interval.high / factor
            axes.plot([measurement.interval.low / factor, end], [place, place], color=INK, linewidth=1.6)
        axes.annotate(
            format_value(metric, measurement.value), (end, place), xytext=(6, 0), textcoords="offset points",
            va="center", fontsize=9.5, color=INK,
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, longest * 1.28)
    axes.set_title(f"{title} ({unit})", loc="left", fontsize=10, color=INK)


def _figure(panels: int, *, height: float) -> "tuple[Figure, list[Axes]]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, height), facecolor="none")
    drawn = [figure.add_subplot(panels, 1, number + 1) for number in range(panels)]
    for axes in drawn:
        axes.set_facecolor("none")
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(LINE)
        axes.tick_params(color=LINE, labelcolor=MUTED, labelsize=9, length=3)
        axes.xaxis.label.set(color=MUTED, fontsize=9.5)
        axes.yaxis.label.set(color=MUTED, fontsize=9.5)
        axes.locator_params(axis="x", nbins=6)
    return figure, drawn


def _svg(figure: "Figure", title: str) -> str:
    """The figure as an <svg> element that scales with its column and names itself to screen readers."""
    import matplotlib

    buffer = io.StringIO()
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": title, "font.family": "sans-serif"}
    with matplotlib.rc_context(style):
        figure.savefig(buffer, format="svg", bbox_inches="tight", pad_inches=0.05, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for ink, variable in INKS.items():
        text = text.replace(ink, variable)
    return text.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
