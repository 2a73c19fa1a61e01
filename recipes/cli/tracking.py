"""The end of a command that logs to MLflow.

Exit code: the verdict's own; 2 for a PASS that could not be logged, because whoever waits for the registered model
must not read it as a release.
"""

from pathlib import Path

from evaluation.report import Report
from recipes.cli.terminal import Terminal
from recipes.engine.tracking import Tracking, log_run
from recipes.engine.tracking_server import TrackingError
from recipes.runs.failures import BAD_INPUT


def conclude(terminal: Terminal, report: Report, folder: Path, tracking: Tracking) -> int:
    """Log the run in `folder`, if that is asked for; what happened is told, and the command's exit code returned."""
    if tracking.uri is None:
        return report.exit_code
    try:
        terminal.say(log_run(report, folder, tracking))
    except TrackingError as error:
        terminal.complain(str(error))
        return report.exit_code or BAD_INPUT
    return report.exit_code
