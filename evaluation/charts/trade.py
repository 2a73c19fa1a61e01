"""Quality against what it is traded for: perplexity over the size of the weights and over decode latency.

A point is an artifact, in the order of the stages; the line joins those that nothing else beats on both axes (the
Pareto front: lower is better on both). Whiskers are 95 % intervals.
"""

from typing import TYPE_CHECKING

from evaluation.charts.frame import ACCENT, INK, LIMIT, SOFT, new_figure, to_svg, valid
from evaluation.gate import AGAINST_BASELINE, Limit
from evaluation.measurement import METRICS, Measurement
from evaluation.report import Report, Row
from evaluation.units import format_number, scale_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Point = tuple[Row, Measurement, Measurement]


def size_chart(report: Report) -> str:
    """Perplexity over the size of the weights; empty if fewer than two artifacts have both."""
    return _chart(report, "weight_bytes")


def speed_chart(report: Report) -> str:
    """Perplexity over decode latency; empty if fewer than two artifacts have both."""
    return _chart(report, "decode_latency")


def pareto(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those that no other beats on one axis without losing on the other, from left to right; lower is better."""
    front: list[tuple[float, float]] = []
    for point in sorted(set(points)):
        if not front or point[1] < front[-1][1]:
            front.append(point)
    return front


def _chart(report: Report, metric: str) -> str:
    points: list[Point] = []
    for row in report.rows:
        cost, quality = valid(row, metric), valid(row, "perplexity")
        if cost is not None and quality is not None:
            points.append((row, cost, quality))
    if len(points) < 2:
        return ""
    figure, (axes,) = new_figure()
    factor, unit = scale_of(metric, max(cost.value for _, cost, _ in points))
    places = [(cost.value / factor, quality.value) for _, cost, quality in points]
    front = pareto(places)
    axes.plot(*zip(*front, strict=True), color=ACCENT, linewidth=1.2, zorder=1, drawstyle="steps-post")
    for (row, cost, quality), (x, y) in zip(points, places, strict=True):
        _whiskers(axes, cost, quality, factor)
        face = ACCENT if row is report.final else SOFT
        axes.plot([x], [y], "o", markersize=8, color=face, mec=ACCENT, mew=1.4, zorder=3)
    _name_points(axes, [row.name for row, _, _ in points], places)
    _draw_limit(axes, report, points[0][2].value)
    axes.set_xlabel(f"{METRICS[metric].name.lower()} ({unit}), the line: not beaten on both")
    axes.set_ylabel("perplexity")
    axes.set_xlim(0, max(x for x, _ in places) * 1.12)
    axes.margins(y=0.22)
    return to_svg(figure, f"Perplexity over {METRICS[metric].name.lower()}, stage by stage")


def _whiskers(axes: "Axes", cost: Measurement, quality: Measurement, factor: float) -> None:
    x, y = cost.value / factor, quality.value
    if quality.interval is not None:
        axes.plot([x, x], [quality.interval.low, quality.interval.high], color=ACCENT, linewidth=1.6, zorder=2)
    if cost.interval is not None:
        ends = [cost.interval.low / factor, cost.interval.high / factor]
        axes.plot(ends, [y, y], color=ACCENT, linewidth=1.6, zorder=2)


def _name_points(axes: "Axes", names: list[str], places: list[tuple[float, float]]) -> None:
    """Name each point beside it; points at the same place in x are named above or below, by their rank there."""
    reach = max(x for x, _ in places)
    for name, (x, y) in zip(names, places, strict=True):
        neighbors = [other for at, other in places if abs(at - x) < 0.12 * reach]
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
            axes.annotate(
                f"gate {format_number(bound)}", (1, bound), xycoords=("axes fraction", "data"), xytext=(5, 0),
                textcoords="offset points", ha="left", va="center", fontsize=9, color=LIMIT,
            )  # fmt: skip


def _absolute(limit: Limit, baseline: float) -> float:
    """A limit in the metric's own unit."""
    if limit.kind == "max_increase":
        return baseline + limit.bound
    return limit.bound * (baseline if limit.kind in AGAINST_BASELINE else 1.0)
