"""What a command shows: the time that is left, told when it is known."""

import random
from collections.abc import Callable
from io import StringIO

import pytest
from rich.console import Console

from compress.stage import Progress
from recipes.commands.terminal import Bars, Lines

SECONDS = {"baseline": 10.8, "prune": 12.3, "distill": 10.1, "quantize": 18.5, "export": 1.7}
"""What a turn of each arm takes."""
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
    clock, arms, order = Clock(), list(SECONDS), random.Random(5)
    progress, look = show(clock)
    turns = [arm for _ in range(BLOCKS) for arm in order.sample(arms, len(arms))][done:]
    told = []
    with progress.task("benchmark", len(turns) + done, done, steady=len(arms)) as task:
        for number, arm in enumerate(turns, start=1):
            clock.now += SECONDS[arm]
            task.advance(note=arm)
            left = seconds_left(look())
            if number < len(arms):
                assert left is None
            elif left is not None:
                told.append(left)
                assert left == pytest.approx(sum(SECONDS[arm] for arm in turns[number:]), abs=1.0)
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
