"""`demitasse run RECIPE` and `demitasse plan RECIPE`."""

from collections.abc import Sequence
from pathlib import Path

from recipes.cli.console import show_plan, show_report, show_row
from recipes.cli.terminal import Terminal
from recipes.cli.tracking import conclude
from recipes.config.loader import load_recipe
from recipes.engine.plan import plan as plan_recipe
from recipes.engine.runner import run as run_recipe
from recipes.engine.tracking import Tracking
from recipes.runs.folder import run_folder


def run(
    terminal: Terminal,
    *,
    recipe: str,
    out: Path | None,
    settings: Sequence[str],
    until_decided: float,
    track: str | None,
    register: str | None,
    store: Path | None,
    launcher: str | None,
) -> int:
    """Run a recipe and show what came of it; the exit code."""
    tracking = Tracking(uri=track, register=register)
    tracking.check()
    loaded = load_recipe(recipe, settings)
    terminal.log_to(run_folder(loaded.name, out))
    report = run_recipe(
        loaded,
        out=out,
        store=store,
        progress=terminal.progress,
        on_row=lambda row: show_row(terminal.console, row),
        launcher=launcher,
        until_decided=until_decided,
    )
    show_report(terminal.console, report)
    return conclude(terminal, report, run_folder(loaded.name, out), tracking)


def plan(
    terminal: Terminal,
    *,
    recipe: str,
    out: Path | None,
    settings: Sequence[str],
    store: Path | None,
    launcher: str | None,
) -> None:
    """Show what a run would do."""
    show_plan(terminal.console, plan_recipe(load_recipe(recipe, settings), out, store=store, launcher=launcher))
