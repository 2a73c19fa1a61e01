"""What the stages went through: the losses of those that train, and the share of zeros that each tensor was given."""

from typing import TYPE_CHECKING, Any

from evaluation.charts.frame import ACCENT, INK, LIMIT, LINE, MUTED, SECOND, key, new_figure, to_svg
from evaluation.report import Report, Row
from evaluation.units import scale_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINES = (ACCENT, SECOND, LIMIT, MUTED, INK)
SHARE = "sparsity"
"""The share of zeros, where a stage prunes while it trains: drawn on an axis of its own."""
NOT_LOSSES = frozenset({"step", "tokens", SHARE})
VARIES = 0.005
"""Shares of zeros that differ by less are one share for all, and not worth a picture."""


def loss_chart(report: Report) -> str:
    """Every loss over the tokens, a panel for each stage that trained; empty where none did."""
    trained = [(row, history) for row in report.rows if len(history := _history(row)) >= 2]
    if not trained:
        return ""
    figure, panels = new_figure(len(trained), height=0.6 + 2.6 * len(trained))
    for axes, (row, history) in zip(panels, trained, strict=True):
        names = dict.fromkeys(name for entry in history for name in entry if name not in NOT_LOSSES)
        factor, unit = scale_of("parameters", float(history[-1].get("tokens", history[-1].get("step", 0))))
        for name, color in zip(names, LINES, strict=False):
            axes.plot(*_course(history, name, factor), color=color, linewidth=1.5, label=name.replace("_", " "))
        _draw_zeros(axes, history, factor)
        axes.set_xlabel(f"tokens seen{f' ({unit})' if unit else ''}")
        axes.set_ylabel("nats per token")
        axes.set_title(row.name, loc="left", fontsize=10, color=INK)
        key(axes, loc="best")
    figure.subplots_adjust(hspace=0.55)
    return to_svg(figure, "Losses of the stages that train")


def _course(history: list[dict[str, Any]], name: str, factor: float) -> tuple[list[float], list[float]]:
    """Tokens seen, and a figure, of every entry that has it."""
    known = [entry for entry in history if name in entry]
    return [entry.get("tokens", entry.get("step", 0)) / factor for entry in known], [entry[name] for entry in known]


def _draw_zeros(axes: "Axes", history: list[dict[str, Any]], factor: float) -> None:
    tokens, shares = _course(history, SHARE, factor)
    if not shares:
        return
    beside = axes.twinx()
    beside.plot(tokens, [100 * share for share in shares], color=MUTED, linewidth=1, linestyle=(0, (3, 2)))
    beside.set_ylim(0, 105)
    beside.set_ylabel("zeros (%), dashed", color=MUTED, fontsize=9.5)
    beside.tick_params(color=LINE, labelcolor=MUTED, labelsize=9, length=3)
    beside.spines[["top", "left", "bottom"]].set_visible(False)
    beside.spines["right"].set_color(LINE)


def sparsity_chart(report: Report) -> str:
    """The share of zeros of every tensor, in the order of the model; empty where all have the same."""
    for row in report.rows:
        shares = _shares(row)
        if len(shares) >= 2 and max(shares) - min(shares) > VARIES:
            figure, (axes,) = new_figure(height=2.8)
            axes.bar(range(1, len(shares) + 1), [100 * share for share in shares], color=ACCENT, width=0.8)
            axes.set_xlabel(f"tensors of {row.name!r}, in the order of the model")
            axes.set_ylabel("zeros (%)")
            return to_svg(figure, "Share of zeros of every tensor: the sensitive ones keep more")
    return ""


def _history(row: Row) -> list[dict[str, Any]]:
    history = row.metadata.get("history")
    return [entry for entry in history if isinstance(entry, dict)] if isinstance(history, list) else []


def _shares(row: Row) -> list[float]:
    tensors = row.metadata.get("tensors")
    if not isinstance(tensors, dict):
        return []
    return [float(entry["sparsity"]) for entry in tensors.values() if isinstance(entry, dict) and "sparsity" in entry]
