"""`demitasse gate RUN`: a finished run is judged again from its raw samples, by its own gates or a recipe's; with
--measure what is pending of it is taken first.
"""

from pathlib import Path

from evaluation.render import write_report
from recipes.cli.console import show_report
from recipes.cli.terminal import Terminal
from recipes.cli.tracking import conclude
from recipes.config.loader import load_gates
from recipes.engine.finish import finish_run
from recipes.engine.rejudge import RejudgeError, judge_run
from recipes.engine.tracking import Tracking
from recipes.engine.tracking_server import TrackingError


def gate(
    terminal: Terminal,
    *,
    run: Path,
    recipe: str | None,
    out: Path | None,
    memory_bandwidth: float | None,
    measure: bool,
    model: Path | None,
    track: str | None,
    register: str | None,
) -> int:
    """Judge a run and show the report; the exit code."""
    if recipe is not None and register is not None:
        raise TrackingError("--register: goes by the run's own gates, not by those of --recipe; leave one of them out")
    tracking = Tracking(uri=track, register=register)
    tracking.check()
    gates = None if recipe is None else load_gates(recipe)
    if model is not None and not measure:
        raise RejudgeError("--model: says where the model lies that --measure times; give both")
    if measure:
        finish_run(run, model=model, progress=terminal.progress, log=terminal.say)
    bandwidth = None if memory_bandwidth is None else memory_bandwidth * 1e9
    judged = judge_run(run, gates, bandwidth=bandwidth)
    folder = judged.report.folder or run
    if out is not None:
        store = str((folder / judged.report.store).absolute())  # as it is seen from elsewhere
        write_report(judged.report.model_copy(update={"store": store}), out)
    show_report(terminal.console, judged.report.model_copy(update={"folder": out or folder}))
    for line in (*judged.differences, *judged.notes):
        terminal.say(f"note: {line}")
    return conclude(terminal, judged.report, folder, tracking)
