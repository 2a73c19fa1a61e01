"""`demitasse gate RUN`: a finished run is judged again from its raw samples, by its own gates or a recipe's."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from recipes.commands.tracking_options import Register, Track

RUN = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, with report.json and artifacts.")]
RECIPE = Annotated[
    str | None,
    typer.Option("--recipe", metavar="RECIPE", help="Apply the gates of this recipe.", show_default="the run's own"),
]
BANDWIDTH = Annotated[
    float | None,
    typer.Option(
        "--memory-bandwidth",
        min=0,
        metavar="GB/S",
        help="What the memory gives: a latency that needs more is flagged.",
        show_default="as the report says",
    ),
]
OUT = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Write the report of this judgment.", show_default=False)
]
DEBUG = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def gate_command() -> Callable[..., None]:
    """The command, for `cli.py`."""
    return gate


def gate(
    run: RUN,
    recipe: RECIPE = None,
    out: OUT = None,
    memory_bandwidth: BANDWIDTH = None,
    track: Track = None,
    register: Register = None,
    debug: DEBUG = False,
) -> None:
    """Judge a finished run again from its raw samples; no model is run.

    The same gates give the same verdict; if they do not, a file was changed, and the exit code is 5.
    """
    from recipes.session import session

    with session(debug=debug) as terminal:
        from evaluation.formats.tracking import TrackingError
        from evaluation.render import write_report
        from recipes.judging import judge_run
        from recipes.loader import load_gates
        from recipes.outcome import show_report
        from recipes.tracking import Tracking, conclude

        if recipe is not None and register is not None:
            raise TrackingError(
                "--register: goes by the run's own gates, not by those of --recipe; leave one of them out"
            )
        tracking = Tracking(uri=track, register=register)
        tracking.check()
        gates = None if recipe is None else load_gates(recipe)
        bandwidth = None if memory_bandwidth is None else memory_bandwidth * 1e9
        judged = judge_run(run, gates, bandwidth=bandwidth)
        if out is not None:
            write_report(judged.report, out)
        folder = judged.report.folder or run
        show_report(terminal.console, judged.report.model_copy(update={"folder": out or folder}))
        for line in (*judged.differences, *judged.notes):
            terminal.say(f"note: {line}")
        raise SystemExit(conclude(terminal, judged.report, folder, tracking))
