"""What a part of the model is worth, where a stage measured it before it cut: the metadata of `prune`, `slim`,
`distill`.

    sensitivity   every block pruned alone: what the loss rises by, at every level, with its standard error
    influence     every block: 1 - mean cosine between what enters and what leaves it; hollow: the block was left out
    gone          blocks left out one after the other: what each cost, in nats per token

A run whose stages measured none of it has no chart.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from evaluation.charts.frame import ACCENT, INK, LIMIT, MUTED, SECOND, key, new_figure, to_svg
from evaluation.report import Report, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Draw = Callable[["Axes", Row], None]
LEVELS = (MUTED, ACCENT, SECOND, LIMIT, INK)
HEIGHT = 2.6
"""Inches of a panel."""


def sensitivity_chart(report: Report) -> str:
    """A panel for each stage that measured what its parts are worth; empty where none did."""
    measured = [(row, draw) for row in report.rows if (draw := _how(row)) is not None]
    if not measured:
        return ""
    figure, panels = new_figure(len(measured), height=0.6 + HEIGHT * len(measured))
    for axes, (row, draw) in zip(panels, measured, strict=True):
        draw(axes, row)
        axes.set_title(row.name, loc="left", fontsize=10, color=INK)
        axes.locator_params(axis="x", integer=True)
    figure.subplots_adjust(hspace=0.55)
    return to_svg(figure, "What each block is worth, as the stages measured it")


def _how(row: Row) -> Draw | None:
    if _blocks(row):
        return _draw_sensitivity
    depth = _depth(row)
    return _draw_influence if depth.get("influence") else _draw_gone if depth.get("gone") else None


def _draw_sensitivity(axes: "Axes", row: Row) -> None:
    blocks = _blocks(row)
    for place, color in zip(range(len(blocks[0]["points"])), LEVELS, strict=False):
        points = [block["points"][place] for block in blocks]
        level = points[0]["level"]
        axes.errorbar(
            range(1, len(blocks) + 1),
            [point["increase"] for point in points],
            yerr=[point["error"] for point in points],
            fmt="o-", markersize=4, linewidth=1.2, color=color,
            label=level if isinstance(level, str) else f"{level:.0%} zeros".replace("%", " %"),
        )  # fmt: skip
    axes.set_xlabel("block, from the first to the last")
    axes.set_ylabel("loss when pruned alone\n(nats per token)")
    key(axes, loc="best")


def _draw_influence(axes: "Axes", row: Row) -> None:
    influence, kept = _depth(row)["influence"], set(row.metadata.get("kept_layers", ()))
    for layer, share in enumerate(influence):
        face = ACCENT if not kept or layer in kept else "none"
        axes.bar([layer + 1], [share], color=face, edgecolor=ACCENT, linewidth=1, width=0.75)
    axes.set_xlabel("block, from the first to the last; hollow: left out")
    axes.set_ylabel("influence (1 - cosine)")


def _draw_gone(axes: "Axes", row: Row) -> None:
    gone = _depth(row)["gone"]
    costs = [entry["loss_after"] - entry["loss_before"] for entry in gone]
    axes.bar(range(1, len(gone) + 1), costs, color=ACCENT, width=0.6)
    for place, (entry, cost) in enumerate(zip(gone, costs, strict=True), 1):
        axes.annotate(
            f"block {int(entry['layer']) + 1}", (place, max(cost, 0)), xytext=(0, 3), textcoords="offset points",
            ha="center", fontsize=9, color=INK,
        )  # fmt: skip
    axes.margins(y=0.2)
    axes.set_xlim(0.3, max(len(gone), 2) + 0.7)
    axes.set_xlabel("blocks in the order they were left out")
    axes.set_ylabel("loss that it cost\n(nats per token)")


def _blocks(row: Row) -> list[dict[str, Any]]:
    found = row.metadata.get("sensitivity")
    return list(found.get("blocks", ())) if isinstance(found, dict) else []


def _depth(row: Row) -> dict[str, Any]:
    found = row.metadata.get("depth")
    return found if isinstance(found, dict) else {}
