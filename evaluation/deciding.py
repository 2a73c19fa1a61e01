"""Measuring on until a gate is decided: what to measure more, how much of it, and when to stop.

    judge(looks=LOOKS) -> next_round -> measure that much more -> judge(looks=LOOKS) -> ... at most LOOKS times

Each look at the figures is one more chance of a wrong verdict, so the bounds of every look, the first one too, are
widened for `LOOKS` of them (`statistics.widened`). To need few looks, a round at least doubles what there is. It stops
when every gate is decided, when one already fails or is invalid (the rest cannot save the release), when the samples
that are needed are beyond any practical number, or when the time is up.

Not covered: learning from the rounds how fast samples come; the caller says what one costs.
"""

from collections.abc import Mapping, Sequence

from evaluation.gate import GateResult, overall
from evaluation.measurement import Value, metric_of

LOOKS = 4


class Round(Value):
    """What to do next."""

    more: dict[str, int]
    """How many more samples of each kind ("documents", "blocks") to take; empty: stop."""
    reason: str
    """Why these, or why to stop, in a sentence."""


def next_round(
    results: Sequence[GateResult],
    *,
    have: Mapping[str, int],
    seconds_each: Mapping[str, float],
    seconds_left: float,
    looks_left: int,
) -> Round:
    """What to measure more so that the gates are decided.

    Args:
        results: of `judge(..., looks=LOOKS)` on all samples so far.
        have: how many samples of each kind there are; "documents" only if there is more test text to take.
        seconds_each: what one more sample of each kind takes.
        looks_left: how many of `LOOKS` have not been used.
    """
    verdict = overall(results)
    if verdict != "INCONCLUSIVE":
        return _stop(
            "nothing is open" if verdict in {"PASS", None} else f"a gate is {verdict} whatever else is measured"
        )
    if looks_left < 1:
        return _stop(f"all {LOOKS} looks are used up, and the bounds were widened for no more")
    open_gates = [result for result in results if result.verdict == "INCONCLUSIVE"]
    hopeless = [result.metric for result in open_gates if result.more is None]
    if hopeless:
        return _stop(f"no practical number of samples decides {', '.join(hopeless)}")
    wanted: dict[str, int] = {}
    for result in open_gates:
        kind = metric_of(result.metric).more
        if kind not in have:
            return _stop(f"{result.metric} needs more {kind or 'samples'}, and there are none to take")
        wanted[kind] = max(wanted.get(kind, 0), result.more or 0, have[kind])
    return _within(wanted, seconds_each, seconds_left)


def _within(wanted: Mapping[str, int], seconds_each: Mapping[str, float], seconds_left: float) -> Round:
    """As much of each kind as the time allows, all cut by the same share."""
    if seconds_left <= 0:
        return _stop("the time is up")
    seconds = sum(count * seconds_each[kind] for kind, count in wanted.items())
    share = min(1.0, seconds_left / seconds) if seconds > 0 else 1.0
    more = {kind: int(count * share) for kind, count in wanted.items()}
    if not all(more.values()):
        return _stop("the time is up: it does not suffice for one more sample of each kind that is needed")
    told = " and ".join(f"{count:,} more {kind}" for kind, count in more.items())
    return Round(
        more=more, reason=told if share == 1 else f"{told}, {share:.0%} of what would decide: the time is short"
    )


def _stop(reason: str) -> Round:
    return Round(more={}, reason=reason)
