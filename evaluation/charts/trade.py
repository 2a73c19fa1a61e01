"""Quality against what it is traded for: perplexity over the size of the weights and over decode latency.

A point is an artifact, in the order of the stages; the line joins those that nothing else beats on both axes (the
Pareto front: lower is better on both). Whiskers are 95 % intervals.
"""

from typing import TYPE_CHECKING

from evaluation.charts.frame import ACCENT, INK, LIMIT, MUTED, SOFT, new_figure, to_svg, valid
from evaluation.gate import AGAINST_BASELINE, Limit
from evaluation.measurement import Measurement, metric_of
from evaluation.report import Report, Row
from evaluation.units import format_number, scale_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Point = tuple[Row, Measurement, Measurement]
Box = tuple[float, float, float, float]
"""Left, bottom, right, top, in points."""
LETTER = 5.6
"""Points that a letter of a name takes, about."""
NEAR = 14
"""Points of distance within which the lower one's name goes below."""
RISES = (4, -13, 16, -25, 28)
"""How far above its point a name may stand, the best first."""


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
    baseline = valid(report.rows[0], "perplexity")
    _draw_limit(axes, report, None if baseline is None else baseline.value)
    axes.set_xlabel(f"{metric_of(metric).name.lower()} ({unit}), the line: not beaten on both")
    axes.set_ylabel("perplexity")
    axes.set_xlim(0, max(x for x, _ in places) * 1.12)
    axes.margins(y=0.22)
    _name_points(axes, [row.name for row, _, _ in points], places)
    return to_svg(figure, f"Perplexity over {metric_of(metric).name.lower()}, stage by stage")


def _whiskers(axes: "Axes", cost: Measurement, quality: Measurement, factor: float) -> None:
    x, y = cost.value / factor, quality.value
    if quality.interval is not None:
        axes.plot([x, x], [quality.interval.low, quality.interval.high], color=MUTED, linewidth=1.2, zorder=2)
    if cost.interval is not None:
        ends = [cost.interval.low / factor, cost.interval.high / factor]
        axes.plot(ends, [y, y], color=MUTED, linewidth=1.2, zorder=2)


def _name_points(axes: "Axes", names: list[str], places: list[tuple[float, float]]) -> None:
    """Name each point beside it, where its name meets no other point, name, or edge; limits must be set before."""
    per_point = axes.figure.dpi / 72
    dots = [tuple(axes.transData.transform(place) / per_point) for place in places]
    left, right = (float(axes.transAxes.transform((x, 0))[0]) / per_point for x in (0, 1))
    taken: list[Box] = [(x - 5, y - 5, x + 5, y + 5) for x, y in dots]
    for own in sorted(range(len(names)), key=lambda index: -dots[index][0]):  # so that names of neighbors do not cross
        name, place, (x, y) = names[own], places[own], dots[own]
        width = LETTER * len(name)
        others = [box for index, box in enumerate(taken) if index != own]
        below = any(0 < other - y < NEAR and abs(at - x) < NEAR for at, other in dots)
        offsets = [(side, rise) for rise in (RISES[1:] if below else RISES) for side in (9, -9)]
        boxes = {(side, rise): _box(x + side, y + rise, width, side) for side, rise in offsets}
        free = [
            at
            for at, box in boxes.items()
            if left <= box[0] and box[2] <= right and not any(_meet(box, other) for other in others)
        ]
        side, rise = free[0] if free else offsets[0]
        taken.append(boxes[side, rise])
        axes.annotate(
            name, place, xytext=(side, rise), textcoords="offset points", ha="left" if side > 0 else "right",
            fontsize=9.5, color=INK,
        )  # fmt: skip


def _box(x: float, y: float, width: float, side: int) -> Box:
    return (x, y - 2, x + width, y + 9) if side > 0 else (x - width, y - 2, x, y + 9)


def _meet(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _draw_limit(axes: "Axes", report: Report, baseline: float | None) -> None:
    """The gate on perplexity; one against a baseline that is not known cannot be drawn."""
    for result in report.gates:
        if result.metric == "perplexity" and not (baseline is None and result.limit.kind in AGAINST_BASELINE):
            bound = _absolute(result.limit, baseline or 0.0)
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
