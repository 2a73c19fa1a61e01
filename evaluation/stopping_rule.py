"""Measuring on until a gate is decided: what to measure more, how much of it, and when to stop.

    judge(looks=LOOKS) -> next_round -> measure that much more -> judge(looks=LOOKS) -> ... at most LOOKS times

Each look at the figures is one more chance of a wrong verdict, so the bounds of every look, the first one too, are
widened for `LOOKS` of them (`statistics.widened`). To need few looks, a round at least doubles what there is. It stops
when every gate is decided, when one already fails or is invalid (the rest cannot save the release), when the samples
that are needed are beyond any practical number, or when the time is up.

While latencies are taken the gates on them are looked at too (`StoppingRule`): after `BLOCKS_BEFORE_LOOKING` blocks and
then at even factors up to all that were planned, `LOOKS` times in all, with bounds that are widened for these looks.
What is decided far from its limit needs a few blocks, and what lies near it gets all of them.

Not covered: learning from the rounds how fast samples come; the caller says what one costs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evaluation.gate import GateResult, Limit, judge, overall
from evaluation.latency import Session, latency_measurements
from evaluation.measurement import Value, metric_of

LOOKS = 4
BLOCKS_BEFORE_LOOKING = 4
"""Before the first look; three are the fewest that give a figure, and one may be disturbed."""


def blocks_at_looks(most: int) -> tuple[int, ...]:
    """After how many blocks of at most `most` the gates are looked at: (4, 6, 10, 15) of 15."""
    if most <= BLOCKS_BEFORE_LOOKING:
        return (most,)
    factor = (most / BLOCKS_BEFORE_LOOKING) ** (1 / (LOOKS - 1))
    return tuple(sorted({round(BLOCKS_BEFORE_LOOKING * factor**look) for look in range(LOOKS)}))


@dataclass(frozen=True, kw_only=True)
class StoppingRule:
    """When the timing of what is gated may end."""

    gates: Mapping[str, Limit]
    """What the last variant is judged by. Those that more blocks decide count here; without any, all blocks are
    taken."""
    blocks: tuple[int, ...]
    """After how many blocks these gates are looked at; the last number is the most there may be."""
    looks: int
    """For how many looks the bounds are widened."""

    def reason(self, session: Session) -> str:
        """Why the blocks that are taken are enough; empty: go on."""
        if session.taken >= self.blocks[-1]:
            return f"all {self.blocks[-1]} blocks are taken"
        timed = {metric: limit for metric, limit in self.gates.items() if metric_of(metric).more == "blocks"}
        if not timed or session.taken not in self.blocks:
            return ""
        last = session.variants[-1]
        dead = next((variant for variant in (session.baseline, last) if session.error(variant)), None)
        if dead is not None:
            return f"{dead} did not run, so no gate on latency can be decided"
        found = {one.metric: one for one in latency_measurements(session)[last]}
        verdicts = {result.verdict for result in judge(timed, found, looks={"blocks": self.looks})}
        if "INVALID" in verdicts:  # too busy a machine, which may pass
            return ""
        if "FAIL" in verdicts:
            return "a gate on latency has failed"
        return "" if "INCONCLUSIVE" in verdicts else "every gate on latency is decided"


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
