"""Two candidates side by side, paired: `demitasse compare A B`.

Both runs must have scored the same windows of the same test text and started from the same baseline; then every
document is its own control, and B / A has a far narrower interval than either figure. What is counted is divided as it
is. The latencies were taken in two sessions, each paired with the same baseline, so their ratio is a ratio of ratios:

    log(B / A) = log(B / baseline) - log(A / baseline)        half-widths add as the root of the sum of squares

which holds where the baseline behaved alike against both, on the same machine.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from compress.errors import DemitasseError
from evaluation.measurement import Comparison, Interval, Measurement, Ratio, Value, metric_of
from evaluation.quality import TokenScores
from recipes.engine.rejudge import Stored
from recipes.measure.quality import TOKENS_FILE, figures_of
from recipes.runs.records import Artifact
from recipes.runs.report_file import read_report

MACHINE = ("processor", "cores", "threads")
"""What must be alike in two reports so that their latencies may be held against each other."""


class CompareError(DemitasseError):
    """Two runs cannot be held against each other; the message says why, and the way out."""


class Pair(Value):
    """One metric of both candidates."""

    metric: str
    first: Measurement
    second: Measurement
    ratio: Ratio | None = None
    """Second / first; None for what compares with the baseline by itself."""
    how: str = ""
    """How the ratio came about."""


class SideBySide(Value):
    """Two candidates, metric by metric."""

    schema_version: int = 1
    first: str
    second: str
    """Their folders, as they were named."""
    baseline: str
    """The key of what both started from."""
    pairs: list[Pair]

    def __repr__(self) -> str:
        shown = (f"{pair.metric} {pair.ratio.value:.4g}x" for pair in self.pairs if pair.ratio is not None)
        return f"SideBySide({self.second} / {self.first}: {', '.join(shown)})"

    __str__ = __repr__


@dataclass(frozen=True)
class _Candidate:
    name: str
    stored: Stored
    measured: dict[str, Measurement]
    quality: Artifact


def compare_runs(first: Path, second: Path) -> SideBySide:
    """Hold the last artifacts of two finished runs against each other.

    Raises:
        CompareError: they are not paired.
        ReportError, RejudgeError, IntegrityError: a run cannot be read, or is not what was stored.
    """
    one, other = (_candidate(folder, stored) for folder, stored in _verified(first, second))
    _check_paired(one, other)
    ratios = _quality_ratios(one, other) | _latency_ratios(one, other)
    pairs = []
    for metric in one.measured:
        if metric in other.measured:
            ratio, how = ratios.get(metric) or _counted(metric, one, other)
            pairs.append(
                Pair(metric=metric, first=one.measured[metric], second=other.measured[metric], ratio=ratio, how=how)
            )
    return SideBySide(first=str(first), second=str(second), baseline=one.stored.baseline.key, pairs=pairs)


def _verified(*folders: Path) -> list[tuple[Path, Stored]]:
    """The results of every run, all of them read before anything is worked out."""
    found = [(folder, Stored(read_report(folder))) for folder in folders]
    for _, stored in found:
        stored.verify()
    return found


def _candidate(folder: Path, stored: Stored) -> _Candidate:
    measured, _ = stored.measure_final()
    return _Candidate(
        name=str(folder),
        stored=stored,
        measured={found.metric: found for found in measured},
        quality=stored.result("quality", stored.report.final),
    )


def _check_paired(one: _Candidate, other: _Candidate) -> None:
    """The same baseline, the same test text, cut alike."""
    reasons = []
    if one.stored.baseline.key != other.stored.baseline.key:
        reasons.append("they have different baselines")
    for key, what in (
        ("test", "they were measured on different test texts"),
        ("evaluate", "the text was cut or noised otherwise"),
    ):
        if one.quality.identity[key] != other.quality.identity[key]:
            reasons.append(what)
    if reasons:
        raise CompareError(
            f"{one.name} and {other.name} are not paired: {'; '.join(reasons)}; "
            "run both with the same model, data.test and evaluate"
        )


def _quality_ratios(one: _Candidate, other: _Candidate) -> dict[str, tuple[Ratio | None, str]]:
    folders = [candidate.quality.files for candidate in (other, one)]
    scores, against = (TokenScores.load(folder / TOKENS_FILE) for folder in folders)
    if scores.digest != against.digest:
        raise CompareError(
            f"{one.name} and {other.name} are not paired: their tokens differ, so the tokenizers must; no ratio of "
            "their perplexities means anything"
        )
    found = figures_of(*folders, seed=one.quality.identity["seed"])
    own: dict[str, tuple[Ratio | None, str]] = {
        metric: (None, "each to the baseline") for metric in one.measured if metric_of(metric).relative
    }
    return {**own, **{pair.metric: (pair.ratio, _how(pair)) for pair in found if pair.metric not in own}}


def _how(pair: Measurement) -> str:
    return pair.invalid or f"paired by {metric_of(pair.metric).more.removesuffix('s')}, {pair.samples} of them"


def _latency_ratios(one: _Candidate, other: _Candidate) -> dict[str, tuple[Ratio | None, str]]:
    timed = [metric for metric in one.measured if metric_of(metric).more == "blocks" and metric in other.measured]
    machines = [{name: candidate.stored.report.environment.get(name) for name in MACHINE} for candidate in (one, other)]
    if machines[0] != machines[1]:
        return dict.fromkeys(timed, (None, "timed on different machines: not comparable"))
    sessions = [candidate.stored.session for candidate in (one, other)]
    workloads = {session.protocol.workloads for session in sessions if session is not None}
    if len(workloads) > 1:
        return dict.fromkeys(timed, (None, "timed with different prompts or numbers of tokens: not comparable"))
    how = "each paired with the baseline in its own session"
    return {metric: (_divided(other.measured[metric].ratio, one.measured[metric].ratio), how) for metric in timed}


def _divided(above: Ratio | None, below: Ratio | None) -> Ratio | None:
    """The ratio of two independent ratios."""
    if above is None or below is None:
        return None
    return Ratio(
        value=above.value / below.value,
        interval=_combined(above, below, "interval"),
        bounds=_combined(above, below, "bounds"),
    )


def _combined(above: Comparison, below: Comparison, which: str) -> Interval | None:
    one: Interval | None = getattr(above, which)
    other: Interval | None = getattr(below, which)
    if one is None or other is None or min(one.low, other.low) <= 0:
        return None
    center = math.log(above.value / below.value)
    down = math.hypot(math.log(above.value / one.low), math.log(other.high / below.value))
    up = math.hypot(math.log(one.high / above.value), math.log(below.value / other.low))
    return Interval(low=math.exp(center - down), high=math.exp(center + up), confidence=one.confidence)


def _counted(metric: str, one: _Candidate, other: _Candidate) -> tuple[Ratio | None, str]:
    first, second = one.measured[metric], other.measured[metric]
    if first.invalid or second.invalid or not first.value:
        return None, "one of them is invalid or zero"
    return Ratio(value=second.value / first.value), "counted" if first.interval is None else "unpaired"
