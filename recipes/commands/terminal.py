"""What a command shows while it works: progress bars with the time left on a terminal, plain lines elsewhere.

`Terminal` puts together the two consoles, the progress and the log of the libraries' chatter (`chatter.py`). Results go
to standard output, progress and errors to standard error - except that bars share standard output's console where that
is a terminal, because two writers on one screen would draw over each other.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from compress.stage import Progress, Task
from recipes.commands.chatter import Chatter

PLAIN_WIDTH = 140
"""Columns where there is no terminal to ask, so that a table in a log is not folded."""
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
    chatter: Chatter

    def log_to(self, folder: Path) -> None:
        """Keep the chatter in `folder`/log.txt."""
        self.chatter.move_to(folder / "log.txt")

    def say(self, line: str) -> None:
        """One line of plain text on standard output."""
        self.console.print(escape(line), soft_wrap=True, highlight=False)

    def complain(self, text: str) -> None:
        """An error message on standard error."""
        self.errors.print(f"[bold red]error:[/] {escape(text)}", soft_wrap=True, highlight=False)


@contextmanager
def open_terminal() -> Iterator[Terminal]:
    """The terminal, with the libraries' chatter kept away from it."""
    with Chatter() as chatter:
        console, errors = console_on(chatter.out), console_on(chatter.err)
        screen = console if console.is_terminal else errors
        progress: Progress = Bars(screen) if screen.is_terminal else Lines(lambda line: errors.print(escape(line)))
        yield Terminal(console, errors, progress, chatter)


def console_on(stream: TextIO) -> Console:
    """A console that keeps its width where there is no terminal to fold lines for."""
    console = Console(file=stream, highlight=False)
    return console if console.is_terminal else Console(file=stream, highlight=False, width=PLAIN_WIDTH)


class Bars:
    """Progress as bars with the time left; they vanish when their work is done."""

    def __init__(self, console: Console) -> None:
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TaskProgressColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("[dim]left  {task.fields[note]}"),
            console=console,
            transient=True,
            redirect_stdout=False,  # what libraries print while a bar stands goes to the log, as ever
            redirect_stderr=False,
        )
        self._open = 0

    @contextmanager
    def task(self, label: str, total: float, done: float = 0.0) -> Iterator[Task]:
        number = self._bar.add_task(escape(label), total=total, note="")
        self._bar.update(number, completed=done)
        self._open += 1
        self._bar.start()
        try:
            yield _BarTask(lambda amount, note: self._advance(number, amount, note))
        finally:
            self._open -= 1
            self._bar.remove_task(number)
            if not self._open:
                self._bar.stop()

    def _advance(self, number: TaskID, amount: float, note: str) -> None:
        if note:
            self._bar.update(number, note=escape(note))
        self._bar.advance(number, amount)


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
    def task(self, label: str, total: float, done: float = 0.0) -> Iterator[Task]:
        yield _LineTask(self, label, total, done, first=done, started=self.clock(), written=self.clock())


@dataclass
class _LineTask:
    lines: Lines
    label: str
    total: float
    done: float
    first: float
    started: float
    written: float
    note: str = field(default="")

    def advance(self, amount: float = 1.0, note: str = "") -> None:
        self.done, self.note = self.done + amount, note or self.note
        now = self.lines.clock()
        if now - self.written >= QUIET_SECONDS:
            self.written = now
            self.lines.write(self._line(now - self.started))

    def _line(self, seconds: float) -> str:
        share = min(self.done / self.total, 1.0) if self.total > 0 else 1.0
        gained = self.done - self.first
        left = f"{clock_time(seconds * (self.total - self.done) / gained)} left" if gained > 0 else ""
        return "  ".join(part for part in (self.label, f"{share:.0%}", left, self.note) if part)


def clock_time(seconds: float) -> str:
    """Seconds as "0:42", "12:05" or "1:02:03"."""
    minutes, second = divmod(max(round(seconds), 0), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
