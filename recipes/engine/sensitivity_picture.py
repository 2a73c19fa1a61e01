"""What a sensitivity looks like, as a picture of two panels.

left     each block's increase of the loss, over the depth of the model; a line per level, its standard error as a band
right    each kind's increase, the most sensitive on top; a dot per level

What a part bears spans orders of magnitude, so both axes are logarithmic; around zero, as far as the errors reach, they
are linear, so that what cannot be told from nothing looks like nothing.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from compress.pruning.config import SparsityLevel
from compress.pruning.sensitivity import Curve, Point, Sensitivity

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, MUTED, LINE, PATTERN = "#1d1f22", "#656a72", "#dcdad4", "#a8432f"
DEEP, PALE = (0x1C, 0x3B, 0x57), (0x9D, 0xBF, 0xDC)
"""The colors of the largest and of the smallest share of zeros."""
LEAST = 1e-4
"""Nats; less than this is nothing on any axis."""


def by_increase(curves: tuple[Curve, ...]) -> list[Curve]:
    """The most sensitive first, at the largest share of zeros (or at the last pattern, where there are only those)."""
    return sorted(curves, key=lambda curve: -_largest(curve).increase)


def _largest(curve: Curve) -> Point:
    shares = [point for point in curve.points if isinstance(point.level, float)]
    return (shares or list(curve.points))[-1]


def level_text(level: SparsityLevel) -> str:
    """Such as "50 %" or "2:4"."""
    return level if isinstance(level, str) else f"{level * 100:g} %"


def draw(found: Sensitivity, file: Path) -> None:
    """The picture, in the format that the file's ending names."""
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = {"svg.hashsalt": "sensitivity", "font.family": "sans-serif"}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(11.0, 4.6), facecolor="white", layout="constrained")
        ratios = (1.6, 1.0) if found.kinds else (1.0,)
        panels = figure.subplots(1, len(ratios), squeeze=False, gridspec_kw={"width_ratios": ratios})[0]
        _draw_blocks(panels[0], found)
        if found.kinds:
            _draw_kinds(panels[1], found)
        title = f"What each part bears alone: increase of the loss, pruned by {found.criterion}"
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, color=INK)
        metadata = {"Date": None} if file.suffix == ".svg" else None
        figure.savefig(file, dpi=150, metadata=metadata)


def _draw_blocks(axes: "Axes", found: Sensitivity) -> None:
    places = range(len(found.blocks))
    for row, level in enumerate(point.level for point in found.blocks[0].points):
        points = [curve.points[row] for curve in found.blocks]
        heights = [_height(point) for point in points]
        color = level_color(found, level)
        axes.plot(places, heights, "-o", color=color, linewidth=1.6, markersize=4)
        low = [height - point.error for height, point in zip(heights, points, strict=True)]
        high = [height + point.error for height, point in zip(heights, points, strict=True)]
        axes.fill_between(places, low, high, color=color, alpha=0.13, linewidth=0)
        axes.annotate(
            level_text(level), (len(points) - 1, heights[-1]), xytext=(9, 0), textcoords="offset points",
            va="center", fontsize=9.5, color=color, annotation_clip=False,
        )  # fmt: skip
    _frame(axes)
    _scale(axes, "y", found)
    axes.set_xlim(-0.4, len(found.blocks) - 0.6)
    axes.set_xlabel("block")
    axes.locator_params(axis="x", integer=True)
    axes.set_title("by block", loc="left", fontsize=10.5, color=MUTED)


def _draw_kinds(axes: "Axes", found: Sensitivity) -> None:
    curves = by_increase(found.kinds)
    for place, curve in enumerate(curves):
        heights = [_height(point) for point in curve.points]
        axes.plot([min(heights), max(heights)], [place, place], color=LINE, linewidth=2, zorder=1)
        for point, height in zip(curve.points, heights, strict=True):
            axes.plot([height], [place], "o", color=level_color(found, point.level), markersize=7, zorder=2)
    _frame(axes)
    _scale(axes, "x", found)
    axes.set_yticks(range(len(curves)), [curve.name for curve in curves])
    axes.set_ylim(len(curves) - 0.4, -0.6)
    axes.set_title("by kind of linear, in all blocks at once", loc="left", fontsize=10.5, color=MUTED)


def _height(point: Point) -> float:
    """The increase; a loss that overflowed leaves a gap."""
    return point.increase if math.isfinite(point.increase) else math.nan


def _scale(axes: "Axes", axis: Literal["x", "y"], found: Sensitivity) -> None:
    """Logarithmic, but linear as far from zero as most of the errors reach."""
    from matplotlib.ticker import NullLocator

    points = [point for curve in (*found.blocks, *found.kinds) for point in curve.points]
    errors = sorted(point.error for point in points if math.isfinite(point.error))
    reach = max(errors[len(errors) * 3 // 4] if errors else 0.0, LEAST)
    set_scale, drawn = (axes.set_xscale, axes.xaxis) if axis == "x" else (axes.set_yscale, axes.yaxis)
    set_scale("symlog", linthresh=reach, linscale=0.5)
    end = 1.6 * max((point.increase for point in points if math.isfinite(point.increase)), default=1.0)
    steps = (step * 10.0**decade for decade in range(-5, 4) for step in (1, 3))
    drawn.set_ticks([0.0, *(step for step in steps if 1.5 * reach < step < end)])
    (axes.set_xlim if axis == "x" else axes.set_ylim)(None, max(end, 2 * reach))
    drawn.set_major_formatter(lambda value, _: f"{value:g}")
    drawn.set_minor_locator(NullLocator())
    axes.grid(axis=axis, color=LINE, linewidth=0.6)
    drawn.set_label_text("increase of the loss (nats per token)")


def level_color(found: Sensitivity, level: SparsityLevel) -> str:
    """From pale to deep as the share of zeros grows; patterns stand apart."""
    if isinstance(level, str):
        return PATTERN
    shares = [point.level for point in found.blocks[0].points if isinstance(point.level, float)]
    rank = shares.index(level) / (len(shares) - 1) if len(shares) > 1 else 1.0
    mixed = (round(pale + (deep - pale) * rank) for pale, deep in zip(PALE, DEEP, strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)


def _frame(axes: "Axes") -> None:
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(LINE)
    axes.tick_params(which="both", color=LINE, labelcolor=MUTED, labelsize=9)
    axes.xaxis.label.set(color=MUTED, fontsize=9.5)
    axes.yaxis.label.set(color=MUTED, fontsize=9.5)
