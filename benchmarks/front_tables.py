"""The front's stored results as tables: quality of every variant, and for each peer the fastest of ours that is as
good: whose KL, row by row beside the peer's, is on no text shown to be above it (95 %).

Intervals of quality are of the mean over rows (Student's t, paired with PyTorch's rows), of speed over blocks.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.tables import Table, format_bytes, format_times, grid_table
from benchmarks.targets import paired_ratio, seconds_of
from benchmarks.variants import FRONT, OURS, VARIANTS
from evaluation.measurement import Interval

Json = dict[str, Any]
DECODE = ("decode-128-1", "decode-900-1")
OF_OURS = tuple(name for name in FRONT if VARIANTS[name].runner.endswith(":Demitasse"))
OF_OTHERS = tuple(name for name in FRONT if name not in OF_OURS)
assert OURS in OF_OURS


def front_tables(model: Json) -> list[Table]:
    """Every table of one model."""
    tables = [quality_table(model)]
    if model["variants"]:
        keys = list(dict.fromkeys(key for variant in model["variants"].values() for key in variant["workloads"]))
        tables += [grid_table(model, "decode", keys), grid_table(model, "prefill", keys), against_table(model)]
    return [table for table in tables if table.rows]


def quality_table(model: Json) -> Table:
    """Bytes, and on each text KL, agreement and perplexity, of each variant."""
    texts = list(dict.fromkeys(text for found in model["quality"].values() for text in found))
    heads = [f"{text}: {what}" for text in texts for what in ("KL", "same token", "perplexity")]
    rows = []
    for name in _by_kl(model, texts):
        cells = [cell for text in texts for cell in _cells(model["quality"][name].get(text))]
        rows.append((VARIANTS[name].title, format_bytes(model["sizes"][name]), *cells))
    return Table(title="Quality and size", columns=("variant", "weights", *heads), rows=tuple(rows))


def _by_kl(model: Json, texts: list[str]) -> list[str]:
    return sorted(model["quality"], key=lambda name: kl_of(model, name, texts[0]))


def kl_of(model: Json, name: str, text: str) -> float:
    """Mean KL of a variant on a text; infinite where it has none."""
    found = model["quality"].get(name, {}).get(text)
    return float(np.mean(found["kl"])) if found and found["kl"] and not found["reason"] else math.inf


def _cells(found: Json | None) -> Iterator[str]:
    if found is None or found["reason"]:
        yield from (f"n/a ({found['reason'] if found else 'not taken'})", "", "")
        return
    kl, between = mean_of(found["kl"])
    yield f"{kl:.4f} ({between.low:.4f} to {between.high:.4f})"
    yield f"{100 * np.mean(found['same']):.1f} %"
    log, apart = mean_of(np.subtract(found["nll"], found["reference"]))
    yield format_times(np.exp(log), Interval(low=np.exp(apart.low), high=np.exp(apart.high), confidence=0.95))


def mean_of(rows: Any) -> tuple[float, Interval]:
    """The mean over rows and its 95 % interval."""
    mean, half = float(np.mean(rows)), float(stats.t.ppf(0.975, len(rows) - 1) * stats.sem(rows))
    return mean, Interval(low=mean - half, high=mean + half, confidence=0.95)


def against_table(model: Json) -> Table:
    """For each peer the one of ours that decodes fastest among those that are as good on every text."""
    texts = list(dict.fromkeys(text for found in model["quality"].values() for text in found))
    rows = tuple(_against(model, peer, texts) for peer in OF_OTHERS if seconds_of(model["variants"], peer, DECODE[0]))
    columns = ("peer", "the fastest of ours as good", *(f"decode at {key.split('-')[1]}" for key in DECODE), "weights")
    return Table(title="Against each peer: as good, how fast, how large", columns=columns, rows=rows)


def as_good(model: Json, name: str, peer: str, text: str) -> bool:
    """Whether a variant's KL on a text is not shown to be above another's."""
    ours, theirs = (model["quality"].get(one, {}).get(text) for one in (name, peer))
    if not ours or not theirs or ours["reason"] or theirs["reason"]:
        return False
    return mean_of(np.subtract(ours["kl"], theirs["kl"]))[1].low <= 0


def _against(model: Json, peer: str, texts: list[str]) -> tuple[str, ...]:
    fit = [
        name
        for name in OF_OURS
        if seconds_of(model["variants"], name, DECODE[0]) and all(as_good(model, name, peer, text) for text in texts)
    ]
    if not fit:
        return VARIANTS[peer].title, "none", *("" for _ in DECODE), ""
    best = min(fit, key=lambda name: float(np.median(seconds_of(model["variants"], name, DECODE[0]))))
    times = []
    for key in DECODE:
        ratio, interval, reason = paired_ratio(model["variants"], peer, best, key)
        times.append(reason if ratio is None else format_times(ratio, interval))
    share = model["sizes"][best] / model["sizes"][peer]
    return VARIANTS[peer].title, VARIANTS[best].title, *times, f"{share:.2f}x"
