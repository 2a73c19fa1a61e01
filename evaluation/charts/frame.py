"""What every chart of the report shares: an inline SVG that takes its colors from the page, for light, dark and print.

Matplotlib draws with stand-in colors (`INKS`), which are then replaced by the page's CSS variables; text stays text.
"""

import io
from typing import TYPE_CHECKING, Any

from evaluation.escaping import visible
from evaluation.measurement import Measurement
from evaluation.report import Row

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
    "#070707": "var(--second)",
}
INK, MUTED, LINE, ACCENT, LIMIT, SOFT, SECOND = INKS
WIDTH, HEIGHT = 5.6, 3.5
"""Inches of a figure; the page scales it to its column."""


def valid(row: Row, metric: str) -> Measurement | None:
    """What was measured on a row, unless it cannot be trusted."""
    found = row.measurement(metric)
    return None if found is None or found.invalid else found


def new_figure(panels: int = 1, *, height: float = HEIGHT) -> "tuple[Figure, list[Axes]]":
    """A figure of panels, one below the other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), facecolor="none")
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


def key(axes: "Axes", **placed: Any) -> None:
    """A legend without a frame, in the page's colors."""
    axes.legend(frameon=False, fontsize=9, labelcolor=INK, **placed)


def to_svg(figure: "Figure", title: str) -> str:
    """The figure as an <svg> element that scales with its column and names itself to screen readers."""
    import matplotlib
    from matplotlib.text import Text

    for label in figure.findobj(Text):
        label.set_text(visible(label.get_text()))
        label.set_parse_math(False)  # a dollar in a name is no formula
    buffer = io.StringIO()
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": title, "font.family": "sans-serif"}
    with matplotlib.rc_context(style):
        figure.savefig(buffer, format="svg", bbox_inches="tight", pad_inches=0.05, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for ink, variable in INKS.items():
        text = text.replace(ink, variable)
    return text.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
