"""The front as a picture: how fast each variant decodes, what its rounding costs, how large it is.

Each disc is a variant: to the right is faster, below is closer to the float model, its area is its weights' bytes.
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
        figure = Figure(figsize=(12.0, 5.2), facecolor="white", layout="constrained")
        for axes, key in zip(figure.subplots(1, len(DECODE), sharey=True), DECODE, strict=True):
            _draw_panel(axes, model, key, text)
        figure.suptitle(f"{name}: tokens per second against KL on {text}; area is bytes", x=0.01, ha="left", color=INK)
        figure.savefig(file, dpi=110)


def _draw_panel(axes: "Axes", model: Json, key: str, text: str) -> None:
    largest = max(model["sizes"].values())
    for name in FRONT:
        seconds, kl = seconds_of(model["variants"], name, key), kl_of(model, name, text)
        if not seconds or not math.isfinite(kl):
            continue
        place, color = (1 / float(np.median(seconds)), kl), OWN if name in OF_OURS else PEER
        axes.scatter(*place, s=AREA * model["sizes"][name] / largest, color=color, alpha=0.55, linewidth=0)
        title = VARIANTS[name].title.replace("onnxruntime-genai, its own", "genai").replace("demitasse ", "")
        axes.annotate(title, place, xytext=(7, 5), textcoords="offset points", fontsize=8, color=color)
    axes.set_yscale("log")
    axes.margins(x=0.2, y=0.1)
    axes.grid(color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_title(f"after {key.split('-')[1]} tokens", loc="left", fontsize=10.5, color=INK)
    axes.set_xlabel("tokens per second, batch 1")
    axes.set_ylabel("KL to the float model, nats per token")
