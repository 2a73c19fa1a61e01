"""What a command shows while it works: progress bars with the time left on a terminal, plain lines elsewhere.

`Terminal` puts together the two consoles, the progress and the file of the libraries' output (`library_output.py`).
Results go to standard output, progress and errors to standard error - except that bars share standard output's console
where that is a terminal, because two writers on one screen would draw over each other.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, ProgressColumn, TaskID, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bar
from rich.progress import Task as BarRow
from rich.text import Text

from compress.stage import Progress, Task
from evaluation.escaping import visible
from recipes.cli.library_output import LIBRARIES, LibraryOutput

PLAIN_WIDTH = 140
"""Columns where there is no terminal to ask, so that a table in a log is not folded."""
EARLY = 0.02
"""Share of a task before which nothing is said about the time that is left: beginnings are slow."""
QUIET_SECONDS = 30.0
"""Seconds between two plain lines about one task; a shorter task is not worth a line."""


@dataclass(frozen=True)
class Terminal:
    """Where a command talks to its user."""

    console: Console
    """Standard output: results."""
    errors: Console
    """Standard error."""
    progress: Progress
    library_output: LibraryOutput

    def log_to(self, folder: Path) -> None:
        """Keep the libraries' output in `folder`."""
        self.library_output.move_to(folder / LIBRARIES)

    def say(self, line: str) -> None:
        """One line of plain text on standard output."""
        self.console.print(escape(line), soft_wrap=True, highlight=False)

    def ask(self, question: str) -> bool:
        """Whether the user, asked on standard error, says yes; no answer is no."""
        self.errors.print(escape(f"{question} [y/N]: "), end="", highlight=False)
        return sys.stdin is not None and sys.stdin.readline().strip().lower() in {"y", "yes"}

    def complain(self, text: str) -> None:
        """An error message on standard error."""
        self.errors.print(f"[bold red]error:[/] {escape(text)}", soft_wrap=True, highlight=False)


@contextmanager
def open_terminal() -> Iterator[Terminal]:
    """The terminal, with the libraries' output kept away from it."""
    with LibraryOutput() as library_output:
        console, errors = console_on(library_output.out), console_on(library_output.err)
        screen = console if console.is_terminal else errors
        progress: Progress = Bars(screen) if screen.is_terminal else Lines(lambda line: errors.print(escape(line)))
        yield Terminal(console, errors, progress, library_output)


class PlainConsole(Console):
    """A console on which no text that is shown is obeyed: only rich itself writes control characters.

    Square brackets are markup, which `inline` takes from a text that is not ours.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)


def inline(text: str) -> str:
    """A text that is not ours inside a line of rich's markup: without markup, and no line of its own."""
    return escape(text.replace("\n", "\\n"))


def console_on(stream: TextIO) -> Console:
    """A console that keeps its width where there is no terminal to fold lines for; ":x:" is no picture in it."""
    quiet: Any = {"file": stream, "highlight": False, "emoji": False}
    console = PlainConsole(**quiet)
    return console if console.is_terminal else PlainConsole(**quiet, width=PLAIN_WIDTH)


@dataclass
class Pace:
    """How long a task will still take: as long for each unit as those took that were done here, in whole rounds."""

    clock: Callable[[], float]
    total: float
    done: float
    """Units, those of an earlier run among them."""
    steady: float
    """Units of a round; 0: each step tells as much as any other."""
    first: float = field(init=False)
    started: float = field(init=False)
    known: float = field(init=False)
    """`done` at the end of the last whole round, and below, when that was."""
    known_at: float = field(init=False)

    def __post_init__(self) -> None:
        self.first = self.known = self.done
        self.started = self.known_at = self.clock()

    def advance(self, amount: float) -> None:
        self.done += amount
        if self.done - self.known >= self.steady:
            self.known, self.known_at = self.done, self.clock()

    def left(self) -> str:
        """Such as "12:05 left"; empty where nobody knows: too early, or a step takes longer than was thought."""
        gained = self.known - self.first
        if gained <= 0 or gained < EARLY * self.total:
            return ""
        each = (self.known_at - self.started) / gained
        seconds = each * (self.total - self.known) - (self.clock() - self.known_at)
        return f"{clock_time(seconds)} left" if seconds >= 0 else ""


class Bars:
    """Progress as bars with the time left; they vanish when their work is done."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TaskProgressColumn(),
            _Left(),
            TextColumn("[dim]{task.fields[note]}"),
            console=console,
            transient=True,
            redirect_stdout=False,  # what libraries print while a bar stands goes to the log, as ever
            redirect_stderr=False,
        )
        self._clock = clock
        self._open = 0

    @contextmanager
    def task(self, label: str, total: float, done: float = 0.0, *, steady: float = 0.0) -> Iterator[Task]:
        pace = Pace(self._clock, total, done, steady)
        number = self._bar.add_task(_on_a_bar(label), total=total, note="", pace=pace)
        self._bar.update(number, completed=done)
        self._open += 1
        self._bar.start()
        try:
            yield _BarTask(lambda amount, note: self._advance(number, pace, amount, note))
        finally:
            self._open -= 1
            self._bar.remove_task(number)
            if not self._open:
                self._bar.stop()

    def _advance(self, number: TaskID, pace: Pace, amount: float, note: str) -> None:
        pace.advance(amount)
        if note:
            self._bar.update(number, note=_on_a_bar(note))
        self._bar.advance(number, amount)


def _on_a_bar(text: str) -> str:
    """Bars show what they are told past the console."""
    return escape(visible(text))


class _Left(ProgressColumn):
    """The time that is left."""

    max_refresh = 0.5

    def render(self, task: BarRow) -> Text:
        pace: Pace = task.fields["pace"]
        return Text(pace.left(), style="progress.remaining")


@dataclass(frozen=True)
class _BarTask:
    update: Callable[[float, str], None]

    def advance(self, amount: float = 1.0, note: str = "") -> None:
        self.update(amount, note)


@dataclass(frozen=True)
class Lines:
    """Progress as plain lines, a few for a long task and none for a short one."""

    write: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic

    @contextmanager
    def task(self, label: str, total: float, done: float = 0.0, *, steady: float = 0.0) -> Iterator[Task]:
        yield _LineTask(self, label, Pace(self.clock, total, done, steady), written=self.clock())


@dataclass
class _LineTask:
    lines: Lines
    label: str
    pace: Pace
    written: float
    note: str = ""

    def advance(self, amount: float = 1.0, note: str = "") -> None:
        self.pace.advance(amount)
        self.note = note or self.note
        now = self.lines.clock()
        if now - self.written >= QUIET_SECONDS:
            self.written = now
            self.lines.write(self._line())

    def _line(self) -> str:
        pace = self.pace
        share = min(pace.done / pace.total, 1.0) if pace.total > 0 else 1.0
        return "  ".join(part for part in (self.label, f"{share:.0%}", pace.left(), self.note) if part)


def clock_time(seconds: float) -> str:
    """Seconds as "0:42", "12:05" or "1:02:03"."""
    minutes, second = divmod(max(round(seconds), 0), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
