"""`demitasse store list|verify|prune [DIR]`: what a store holds and what for; every byte of it; what no run needs."""

from pathlib import Path

from rich.table import Table

from evaluation.units import format_duration, format_value
from recipes.cli.terminal import Terminal, inline
from recipes.config.errors import shown_path
from recipes.runs.records import IntegrityError
from recipes.runs.upkeep import Held, broken, free, held, open_store


def list_results(terminal: Terminal, *, root: Path) -> None:
    """Show what a store holds."""
    terminal.console.print(_table(list(held(open_store(root)))))


def verify(terminal: Terminal, *, root: Path) -> int:
    """Read every byte; the exit code."""
    store = open_store(root)
    sizes = {result.name: result.bytes for result in held(store)}
    problems = []
    with terminal.progress.task("verify", total=sum(sizes.values())) as task:
        for name, problem in broken(store, sizes):
            task.advance(sizes[name])
            problems += [problem] if problem else []
    for problem in problems:
        terminal.complain(problem)
    terminal.say(f"{len(sizes) - len(problems)} of {len(sizes)} results are what was stored")
    return IntegrityError.exit_code if problems else 0


def prune(terminal: Terminal, *, root: Path, yes: bool) -> None:
    """Remove what no run refers to."""
    store = open_store(root)
    unused = [result for result in held(store) if not result.runs]
    if not unused:
        terminal.say("every result is one that a run refers to")
        return
    size = format_value("disk_bytes", sum(result.bytes for result in unused))
    terminal.console.print(_table(unused))
    terminal.say(f"{len(unused)} results that no run refers to, {size}")
    if yes or terminal.ask("remove them?"):
        terminal.say(f"{format_value('disk_bytes', free(store, unused))} are free")


def _table(results: list[Held]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 3, 0, 0))
    for heading in ("Result", "Size", "Made in"):
        table.add_column(heading, no_wrap=True, justify="left" if heading == "Result" else "right")
    table.add_column("Runs")
    for result in results:
        runs = ", ".join(inline(shown_path(folder)) for folder in result.runs)
        size = format_value("disk_bytes", result.bytes)
        table.add_row(inline(result.name), size, format_duration(result.seconds), runs or "[dim]none[/]")
    return table
