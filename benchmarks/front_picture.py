"""The front as a picture: how fast each variant decodes, what its rounding costs, how large it is.

Each disc is a variant: to the right is faster, below is closer to the float model, its area is its weights' bytes, its
number stands beside its name.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.front_tables import DECODE, OF_OURS, kl_of
from benchmarks.targets import seconds_of
from benchmarks.variants import FRONT, VARIANTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Json = dict[str, Any]
INK, LINE, OWN, PEER = "#1f2933", "#d9dee3", "#0f6fb5", "#8a6d3b"
AREA = 260.0
"""Points squared of the largest disc."""


def draw(name: str, model: Json, file: Path) -> None:
    """One panel for each length of the text so far."""
    import matplotlib
    from matplotlib.figure import Figure

    text = next(iter(next(iter(model["quality"].values()))))
    with matplotlib.rc_context({"font.family": "sans-serif"}):
        figure = Figure(figsize=(13.0, 5.2), facecolor="white", layout="constrained")
        *panels, names = figure.subplots(1, len(DECODE) + 1, width_ratios=[*[1.0] * len(DECODE), 0.75])
        shown = [one for one in FRONT if model["quality"].get(one) and math.isfinite(kl_of(model, one, text))]
        shown.sort(key=lambda one: kl_of(model, one, text), reverse=True)
        for axes, key in zip(panels, DECODE, strict=True):
            _draw_panel(axes, model, key, text, shown)
        _draw_names(names, shown)
        figure.suptitle(f"{name}: tokens per second against KL on {text}; area is bytes", x=0.01, ha="left", color=INK)
        figure.savefig(file, dpi=110)


def _draw_panel(axes: "Axes", model: Json, key: str, text: str, shown: list[str]) -> None:
    largest = max(model["sizes"].values())
    for number, name in enumerate(shown, start=1):
        if not (seconds := seconds_of(model["variants"], name, key)):
            continue
        place = (1 / float(np.median(seconds)), kl_of(model, name, text))
        area = AREA * model["sizes"][name] / largest
        axes.scatter(*place, s=area, color=_color(name), alpha=0.45, linewidth=0)
        above = (0, 6 if number % 2 else -6)
        axes.annotate(
            str(number), place, xytext=above, textcoords="offset points", fontsize=8, ha="center", va="center"
        )
    axes.set_yscale("log")
    axes.margins(x=0.1, y=0.1)
    axes.grid(color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_title(f"after {key.split('-')[1]} tokens", loc="left", fontsize=10.5, color=INK)
    axes.set_xlabel("tokens per second, batch 1")
    axes.set_ylabel("KL to the float model, nats per token")


def _draw_names(axes: "Axes", shown: list[str]) -> None:
    axes.set_axis_off()
    for number, name in enumerate(shown, start=1):
        title = VARIANTS[name].title.replace("onnxruntime-genai, its own", "genai")
        axes.text(0, 1 - 0.065 * number, f"{number}  {title}", fontsize=9, color=_color(name), transform=axes.transAxes)


def _color(name: str) -> str:
    return OWN if name in OF_OURS else PEER
