"""What demitasse is held to, and whether a run shows it.

A target is a ratio that should be at least (or at most) a limit. Ratios of times are paired: peer / ours within each
block, the median over blocks, a bootstrap interval over blocks. PASS: the whole interval is within the limit. close:
the ratio is, but its interval reaches beyond. short: the ratio is not.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.arms import ARMS, OURS
from evaluation.measurement import Interval
from evaluation.statistics import median_interval

DECODE_CELLS = ("decode-128-1", "decode-900-1")
PREFILL_CELLS = ("prefill-128-1", "prefill-512-1")
DECODE_AT_LEAST: dict[str, dict[str, float]] = {
    "gpt2": {"llama.cpp": 1.4, "ort-fp32": 3.0, "eager": 7.0},
    "llama": {"llama.cpp": 1.2, "genai": 1.3, "ort-fp32": 3.0, "eager": 7.0},
}
"""How many times as fast ours decodes at batch 1, by model type and peer."""
PREFILL_AT_LEAST: dict[str, float] = {"llama.cpp": 1.0, "ort-fp32": 1.0}
FLOOR_AT_LEAST = 0.5
BUNDLE_AT_MOST = 0.27
OPEN_AT_MOST = {"gpt2": 0.5}
Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One target and what a run says to it."""

    what: str
    limit: float
    value: float | None
    interval: Interval | None = None
    at_least: bool = True
    unit: str = "x"
    reason: str = ""
    """Why there is no value."""

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "n/a"
        sign = 1.0 if self.at_least else -1.0
        if sign * self.value < sign * self.limit:
            return "short"
        worst = None if self.interval is None else (self.interval.low if self.at_least else self.interval.high)
        return "close" if worst is not None and sign * worst < sign * self.limit else "PASS"


def outcomes(model: Json) -> list[Outcome]:
    """Every target that applies to a model of a peers run on the CPU."""
    return list(_outcomes(model))


def _outcomes(model: Json) -> Iterator[Outcome]:
    arms = model["arms"]
    for cell in DECODE_CELLS:
        for peer, limit in DECODE_AT_LEAST.get(model["family"], {}).items():
            yield _against(arms, peer, cell, limit)
    for cell in DECODE_CELLS:
        yield _of_floor(model, cell)
    for cell in PREFILL_CELLS:
        for peer, limit in PREFILL_AT_LEAST.items():
            yield _against(arms, peer, cell, limit)
    share = arms[OURS]["weight_bytes"] / model["float32_bytes"] if arms[OURS]["weight_bytes"] else None
    yield Outcome(
        what="weights of the bundle / float32",
        limit=BUNDLE_AT_MOST,
        value=share,
        at_least=False,
        reason=arms[OURS]["reason"],
    )
    if model["family"] in OPEN_AT_MOST:
        seconds = np.array([load["open"] for load in arms[OURS]["load"]])
        yield Outcome(
            what="opening the bundle",
            limit=OPEN_AT_MOST[model["family"]],
            value=float(np.median(seconds)) if len(seconds) else None,
            interval=median_interval(seconds) if len(seconds) else None,
            at_least=False,
            unit=" s",
            reason=arms[OURS]["reason"],
        )


def _against(arms: Json, peer: str, cell: str, limit: float) -> Outcome:
    kind, tokens, _ = cell.split("-")
    what = f"{kind} at {tokens} tokens, against {ARMS[peer].title}"
    ratio, interval, reason = paired_ratio(arms, peer, OURS, cell)
    return Outcome(what=what, limit=limit, value=ratio, interval=interval, reason=reason)


def _of_floor(model: Json, cell: str) -> Outcome:
    _, tokens, _ = cell.split("-")
    what = f"decode at {tokens} tokens, share of the memory floor's speed"
    seconds, floor = np.array(seconds_of(model["arms"], OURS, cell)), np.array(floor_seconds(model, cell))
    if not len(seconds) or not len(floor):
        return Outcome(what=what, limit=FLOOR_AT_LEAST, value=None, reason=reason_of(model["arms"], OURS, cell))
    share = floor / seconds
    return Outcome(what=what, limit=FLOOR_AT_LEAST, value=float(np.median(share)), interval=median_interval(share))


def floor_seconds(model: Json, cell: str) -> list[float]:
    """The time that reading our weights once would have taken, in each block of a decode cell."""
    share = model["arms"][OURS]["weight_bytes"] / model["floor_bytes"]
    return (
        [] if not share else [seconds * share for seconds in model["floor"]["cells"].get(cell, {}).get("seconds", [])]
    )


def seconds_of(arms: Json, name: str, cell: str) -> list[float]:
    """One figure per block; [] where the arm has none."""
    found = arms.get(name, {}).get("cells", {}).get(cell, {})
    return [] if found.get("reason") else list(found.get("seconds", []))


def reason_of(arms: Json, name: str, cell: str) -> str:
    """Why an arm has no figure in a cell."""
    arm = arms.get(name, {"reason": "not in this run"})
    return str(arm["reason"] or arm["cells"].get(cell, {}).get("reason") or "not in this run")


def paired_ratio(arms: Json, slower: str, faster: str, cell: str) -> tuple[float | None, Interval | None, str]:
    """Median over blocks of (one arm's seconds / another's), its interval, and why there is none."""
    above, below = np.array(seconds_of(arms, slower, cell)), np.array(seconds_of(arms, faster, cell))
    if not len(above) or not len(below):
        missing = slower if not len(above) else faster
        return None, None, f"{ARMS[missing].title}: {reason_of(arms, missing, cell)}"
    ratio = above / below
    return float(np.median(ratio)), median_interval(ratio), ""
