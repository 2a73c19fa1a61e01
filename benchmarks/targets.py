"""What demitasse is held to, and whether a run shows it.

A target is a ratio that should be at least (or at most) a limit. Ratios of times are paired: peer / ours within each
block, the median over blocks, a bootstrap interval over blocks. PASS: the whole interval is within the limit. close:
the ratio is, but its interval reaches beyond. short: the ratio is not.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.variants import OURS, VARIANTS
from evaluation.measurement import Interval
from evaluation.statistics import median_interval

DECODE_WORKLOADS = ("decode-128-1", "decode-900-1")
PREFILL_WORKLOADS = ("prefill-128-1", "prefill-512-1")
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
    variants = model["variants"]
    for workload in DECODE_WORKLOADS:
        for peer, limit in DECODE_AT_LEAST.get(model["family"], {}).items():
            yield _against(variants, peer, workload, limit)
    for workload in DECODE_WORKLOADS:
        yield _of_floor(model, workload)
    for workload in PREFILL_WORKLOADS:
        for peer, limit in PREFILL_AT_LEAST.items():
            yield _against(variants, peer, workload, limit)
    share = variants[OURS]["weight_bytes"] / model["float32_bytes"] if variants[OURS]["weight_bytes"] else None
    yield Outcome(
        what="weights of the bundle / float32",
        limit=BUNDLE_AT_MOST,
        value=share,
        at_least=False,
        reason=variants[OURS]["reason"],
    )
    if model["family"] in OPEN_AT_MOST:
        seconds = np.array([load["open"] for load in variants[OURS]["load"]])
        yield Outcome(
            what="opening the bundle",
            limit=OPEN_AT_MOST[model["family"]],
            value=float(np.median(seconds)) if len(seconds) else None,
            interval=median_interval(seconds) if len(seconds) else None,
            at_least=False,
            unit=" s",
            reason=variants[OURS]["reason"],
        )


def _against(variants: Json, peer: str, workload: str, limit: float) -> Outcome:
    kind, tokens, _ = workload.split("-")
    what = f"{kind} at {tokens} tokens, against {VARIANTS[peer].title}"
    ratio, interval, reason = paired_ratio(variants, peer, OURS, workload)
    return Outcome(what=what, limit=limit, value=ratio, interval=interval, reason=reason)


def _of_floor(model: Json, workload: str) -> Outcome:
    _, tokens, _ = workload.split("-")
    what = f"decode at {tokens} tokens, share of the memory floor's speed"
    seconds, floor = np.array(seconds_of(model["variants"], OURS, workload)), np.array(floor_seconds(model, workload))
    if not len(seconds) or not len(floor):
        return Outcome(what=what, limit=FLOOR_AT_LEAST, value=None, reason=reason_of(model["variants"], OURS, workload))
    share = floor / seconds
    return Outcome(what=what, limit=FLOOR_AT_LEAST, value=float(np.median(share)), interval=median_interval(share))


def floor_seconds(model: Json, workload: str) -> list[float]:
    """The time that reading our weights once would have taken, in each block of a decode workload."""
    share = model["variants"].get(OURS, {"weight_bytes": 0})["weight_bytes"] / model["floor_bytes"]
    return (
        []
        if not share
        else [seconds * share for seconds in model["floor"]["workloads"].get(workload, {}).get("seconds", [])]
    )


def seconds_of(variants: Json, name: str, workload: str) -> list[float]:
    """One figure per block; [] where the variant has none."""
    found = variants.get(name, {}).get("workloads", {}).get(workload, {})
    return [] if found.get("reason") else list(found.get("seconds", []))


def reason_of(variants: Json, name: str, workload: str) -> str:
    """Why a variant has no figure in a workload."""
    variant = variants.get(name, {"reason": "not in this run"})
    return str(variant["reason"] or variant["workloads"].get(workload, {}).get("reason") or "not in this run")


def paired_ratio(variants: Json, slower: str, faster: str, workload: str) -> tuple[float | None, Interval | None, str]:
    """Median over blocks of (one variant's seconds / another's), its interval, and why there is none."""
    above, below = np.array(seconds_of(variants, slower, workload)), np.array(seconds_of(variants, faster, workload))
    if not len(above) or not len(below):
        missing = slower if not len(above) else faster
        return None, None, f"{VARIANTS[missing].title}: {reason_of(variants, missing, workload)}"
    ratio = above / below
    return float(np.median(ratio)), median_interval(ratio), ""
