"""What a command shows: the time that is left, told when it is known; and gates, each on a line of 100 columns."""

import random
from collections.abc import Callable
from io import StringIO

import pytest
from rich.console import Console

from compress.stage import Progress
from evaluation.gate import GateResult, Limit, judge
from evaluation.measurement import Change, Interval, Measurement, Ratio, metric_of
from evaluation.units import TIMES
from recipes.cli.compare import show_side_by_side
from recipes.cli.console import show_gates
from recipes.cli.terminal import Bars, Lines
from recipes.engine.compare import Pair, SideBySide

SECONDS = {"baseline": 10.8, "prune": 12.3, "distill": 10.1, "quantize": 18.5, "export": 1.7}
"""What a trial of each variant takes."""
BLOCKS = 15


class Clock:
    """A clock that goes only when it is told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def seconds_left(shown: str) -> float | None:
    """The time in "... 12:05 left ..."."""
    before, found, _ = shown.partition(" left")
    if not found:
        return None
    parts = [int(part) for part in before.split()[-1].split(":")]
    return sum(part * 60**place for place, part in enumerate(reversed(parts)))


def on_lines(clock: Clock) -> tuple[Progress, Callable[[], str]]:
    written: list[str] = []
    lines = Lines(written.append, clock=clock)
    return lines, lambda: written.pop() if written else ""


def on_bars(clock: Clock) -> tuple[Progress, Callable[[], str]]:
    drawn = StringIO()
    bars = Bars(Console(file=drawn, force_terminal=True, color_system=None, width=100), clock=clock)

    def look() -> str:
        drawn.truncate(0)
        drawn.seek(0)
        bars._bar.refresh()
        return drawn.getvalue()

    return bars, look


SHOWN = pytest.mark.parametrize("show", [on_lines, on_bars])
Show = Callable[[Clock], tuple[Progress, Callable[[], str]]]


@SHOWN
@pytest.mark.parametrize("done", [0, 10])
def test_the_time_left_of_uneven_rounds_is_never_far_off(show: Show, done: int) -> None:
    clock, variants, order = Clock(), list(SECONDS), random.Random(5)
    progress, look = show(clock)
    trials = [variant for _ in range(BLOCKS) for variant in order.sample(variants, len(variants))][done:]
    told = []
    with progress.task("benchmark", len(trials) + done, done, steady=len(variants)) as task:
        for number, variant in enumerate(trials, start=1):
            clock.now += SECONDS[variant]
            task.advance(note=variant)
            left = seconds_left(look())
            if number < len(variants):
                assert left is None
            elif left is not None:
                told.append(left)
                assert left == pytest.approx(sum(SECONDS[variant] for variant in trials[number:]), abs=1.0)
    assert len(told) >= 10


@SHOWN
def test_the_first_steps_of_a_long_task_tell_nothing(show: Show) -> None:
    clock = Clock()
    progress, look = show(clock)
    with progress.task("train", 1000, 500) as task:
        for step in range(1, 40):
            clock.now += 30.0
            task.advance()
            left = seconds_left(look())
            assert left == (None if step < 20 else 30.0 * (500 - step))


@SHOWN
def test_a_step_of_a_short_task_tells_what_the_others_take(show: Show) -> None:
    clock = Clock()
    progress, look = show(clock)
    with progress.task("quantize", 3) as task:
        assert seconds_left(look()) is None
        clock.now += 40.0
        task.advance()
        assert seconds_left(look()) == 80


def test_bars_count_down_between_two_steps() -> None:
    clock = Clock()
    progress, look = on_bars(clock)
    with progress.task("quantize", 3) as task:
        clock.now += 40.0
        task.advance()
        clock.now += 15.0
        assert seconds_left(look()) == 65
        clock.now += 100.0
        assert seconds_left(look()) is None, "the step takes longer than was thought"


# ---- gates


LIMITS = {
    "hellaswag/accuracy_norm": Limit(min_ratio=0.95),
    "decode_latency": Limit(max_ratio=1.1),
    "prefill_latency": Limit(max_ratio=1.0),
    "perplexity": Limit(max_increase=0.6),
    "next_token_accuracy": Limit(at_least=0.5),
    "nonzero_parameters": Limit(at_most=50_000_000),
    "end_to_end_latency": Limit(max_ratio=0.5),
    "throughput": Limit(min_ratio=0.5),
}


RATIO = Ratio(value=1.04, interval=Interval(low=1.03, high=1.05))


def measured(metric: str, value: float, spread: float = 0.0) -> Measurement:
    """A figure that is 4 % more than the baseline's."""

    def around(center: float) -> Interval | None:
        return Interval(low=center * (1 - spread), high=center * (1 + spread)) if spread else None

    return Measurement(
        metric=metric,
        value=value,
        interval=around(value),
        ratio=Ratio(value=1.04, interval=around(1.04)),
        change=Change(value=0.04 * value, interval=around(0.04 * value)),
        samples=20,
        method="a test",
    )


def judged() -> list[GateResult]:
    """A gate of each kind of limit and each verdict."""
    figures = [
        measured("hellaswag/accuracy_norm", 0.61, 0.02),
        measured("decode_latency", 0.0123, 0.01),
        measured("prefill_latency", 0.0123, 0.06),
        measured("perplexity", 12.5, 0.03),
        measured("next_token_accuracy", 0.42, 0.01),
        measured("nonzero_parameters", 124_439_808),
    ]
    return judge(LIMITS, {figure.metric: figure for figure in figures})


def gate_lines(gates: list[GateResult], width: int = 100, **told: list[str]) -> list[str]:
    shown = StringIO()
    show_gates(Console(file=shown, width=width), [(gate.metric, gate) for gate in gates], **told)
    return shown.getvalue().replace(TIMES, "x").splitlines()


def test_each_gate_is_one_line_of_at_most_100_columns() -> None:
    gates = judged()
    assert {gate.verdict for gate in gates} == {"PASS", "FAIL", "INCONCLUSIVE", "INVALID"}
    lines = gate_lines(gates)[1 : 1 + len(gates)]
    for gate, line in zip(gates, lines, strict=True):
        assert len(line) <= 100
        assert "\N{HORIZONTAL ELLIPSIS}" not in line, "nothing is cut off"
        assert line.startswith(f"{gate.metric} ")
        assert line.rstrip().endswith(gate.verdict)
    for limit, line in zip(
        ["at least 0.950x", "at most 1.100x", "at most 1.000x", "at most +0.600", "at least 50.0 %", "at most 50.0 M"],
        lines,
        strict=False,
    ):
        assert f"  {limit}  " in line
    assert "  1.040x     1.030 to 1.050   PASS" in lines[1]


def test_only_what_is_not_decided_is_explained_and_once() -> None:
    gates = judged()
    below = gate_lines(gates)[1 + len(gates) :]
    by_metric = {gate.metric: gate for gate in gates}
    assert by_metric["prefill_latency"].verdict == "INCONCLUSIVE"
    assert below == [
        f"prefill_latency: {by_metric['prefill_latency'].detail.replace(TIMES, 'x')}",
        "end_to_end_latency, throughput: not measured on the final artifact",
    ]
    told = gate_lines(gates, told=["not measured on the final artifact"])
    assert told[-1] == below[0]


def test_how_two_runs_were_paired_is_said_once() -> None:
    pairs = [
        Pair(metric=metric, first=measured(metric, 12.5), second=measured(metric, 13.0), ratio=RATIO, how=how)
        for metric, how in {
            "perplexity": "paired by document, 40 of them",
            "weight_bytes": "counted",
            "bits_per_byte": "paired by document, 40 of them",
            "decode_latency": "each paired with the baseline in its own session",
        }.items()
    ]
    shown = StringIO()
    found = SideBySide(first="runs/a", second="runs/b", baseline="0", pairs=pairs)
    show_side_by_side(Console(file=shown, width=100), found)
    lines = shown.getvalue().splitlines()
    assert [line.split("   ")[0] for line in lines[1:5]] == [metric_of(pair.metric).name for pair in pairs]
    assert max(map(len, lines[:5])) <= 100
    assert lines[5:] == [
        "paired by document, 40 of them: perplexity, bits per byte",
        "counted: weights",
        "each paired with the baseline in its own session: decode latency per token",
    ]


def test_a_long_name_is_folded_and_nothing_else() -> None:
    name = "a-name-that-somebody-thought-of-for-an-evaluation-and-did-not-keep-short-enough/accuracy"
    lines = gate_lines(judge({name: Limit(at_least=0.5)}, {name: measured(name, 0.61, 0.02)}))
    assert "  at least 50.0 %   61.0 %     59.8 to 62.2    PASS" in lines[1]
    assert "".join(line.split(" ")[0] for line in lines[1:]) == name
