"""How long it takes: the figure of each variant, how single steps are spread, and how the blocks ran over time.

The last two are drawn from the raw samples: an ECDF (the share of steps that took at most so long) shows the tail that
a median hides, and the blocks over time show drift, which both variants should share. They show the baseline and what
ships; stages between, which took part in a few blocks, are left out. Hollow: a block that was left out because the
machine was disturbed.
"""

from typing import TYPE_CHECKING

import numpy as np

from evaluation.charts.frame import ACCENT, INK, SECOND, SOFT, key, new_figure, to_svg, valid
from evaluation.escaping import visible
from evaluation.latency import Session
from evaluation.latency.figures import kept_blocks
from evaluation.measurement import Measurement
from evaluation.report import Report
from evaluation.units import format_value, scale_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLES = {"decode_latency": "Decode, per token", "prefill_latency": "Prefill"}
COLORS = (SECOND, ACCENT)
"""Of the baseline and of what ships."""


def latency_chart(report: Report) -> str:
    """Prefill and decode latency of every variant that was timed, with intervals; empty if fewer than two were."""
    timed = {metric: _timed(report, metric) for metric in TITLES}
    timed = {metric: rows for metric, rows in timed.items() if len(rows) >= 2}
    if not timed:
        return ""
    figure, panels = new_figure(len(timed))
    for axes, (metric, rows) in zip(panels, timed.items(), strict=True):
        _bars(axes, metric, rows, TITLES[metric])
    figure.subplots_adjust(hspace=0.6)
    return to_svg(figure, "Latency of the baseline and of what ships")


def spread_chart(report: Report) -> str:
    """ECDF of the single decode steps of the baseline and of what ships; empty where no raw samples are at hand."""
    steps = {} if report.session is None else _steps(report.session)
    if not steps:
        return ""
    figure, (axes,) = new_figure()
    factor, unit = scale_of("decode_latency", max(float(np.median(times)) for times in steps.values()))
    longest = max(float(np.quantile(times, 0.995)) for times in steps.values()) / factor
    for place, ((variant, times), color) in enumerate(zip(steps.items(), COLORS, strict=False)):
        ordered = np.sort(times) / factor
        share = np.arange(1, len(ordered) + 1) / len(ordered)
        axes.step(ordered, 100 * share, where="post", color=color, linewidth=1.6)
        middle = float(np.median(ordered))
        side, align = (8, "left") if middle < longest / 2 else (-8, "right")
        axes.annotate(
            f"{variant}\n{len(ordered):,} steps", (middle, 60 - 25 * place), xytext=(side, 0),
            textcoords="offset points", ha=align, va="center", fontsize=9.5, color=color,
        )  # fmt: skip
    axes.set_xlim(0, longest * 1.1)
    axes.set_xlabel(f"time of one decode step ({unit})")
    axes.set_ylabel("share of steps (%)")
    return to_svg(figure, "Share of decode steps that took at most so long")


def blocks_chart(report: Report) -> str:
    """Median decode step of every block, in the order they ran; empty where no raw samples are at hand."""
    session = report.session
    if session is None or not _steps(session):
        return ""
    figure, (axes,) = new_figure()
    first = min(trial.started for trial in session.trials)
    medians = [float(np.median(times)) for times in _steps(session).values()]
    factor, unit = scale_of("decode_latency", max(medians))
    for variant, color in zip(_drawn(session), COLORS, strict=False):
        kept = kept_blocks(session, variant).blocks
        trials = [trial for trial in session.of(variant).values() if trial.workloads and trial.workloads[0].steps]
        at = [(trial.started - first).total_seconds() for trial in trials]
        times = [float(np.median(trial.workloads[0].steps)) / factor for trial in trials]
        axes.plot(at, times, color=color, linewidth=1, alpha=0.6)
        for x, y, trial in zip(at, times, trials, strict=True):
            axes.plot([x], [y], "o", markersize=5, color=color if trial.block in kept else "none", mec=color)
        axes.plot([], [], "o-", markersize=5, color=color, label=variant)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("seconds since the first block")
    axes.set_ylabel(f"median decode step ({unit})")
    key(axes, loc="best")
    return to_svg(figure, "Median decode step of every block over time")


def _steps(session: Session) -> "dict[str, np.ndarray[tuple[int], np.dtype[np.float64]]]":
    """The single decode steps of the variants that are drawn, in seconds; variants without any are left out."""
    steps = {
        variant: np.array(
            [
                time
                for trial in session.of(variant).values()
                for workload in trial.workloads[:1]
                for time in workload.steps
            ]
        )
        for variant in _drawn(session)
    }
    return {variant: times for variant, times in steps.items() if len(times)}


def _drawn(session: Session) -> list[str]:
    """The baseline and what ships."""
    return list(dict.fromkeys((session.variants[0], session.variants[-1])))


def _timed(report: Report, metric: str) -> list[tuple[str, Measurement]]:
    return [(row.name, found) for row in report.rows if (found := valid(row, metric)) is not None]


def _bars(axes: "Axes", metric: str, rows: list[tuple[str, Measurement]], title: str) -> None:
    longest = max(measurement.value for _, measurement in rows)
    factor, unit = scale_of(metric, longest)
    for place, (_, measurement) in enumerate(rows):
        value = end = measurement.value / factor
        face = ACCENT if place == len(rows) - 1 else SOFT
        axes.barh([place], [value], height=0.62, color=face, edgecolor=ACCENT, linewidth=1)
        if measurement.interval is not None:
            end = measurement.interval.high / factor
            axes.plot([measurement.interval.low / factor, end], [place, place], color=INK, linewidth=1.6)
        axes.annotate(
            format_value(metric, measurement.value), (end, place), xytext=(6, 0), textcoords="offset points",
            va="center", fontsize=9.5, color=INK,
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [visible(name) for name, _ in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, longest / factor * 1.28)
    axes.set_title(f"{title} ({unit})", loc="left", fontsize=10, color=INK)
