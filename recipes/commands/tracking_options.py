"""The options of the commands that log to MLflow; what they do is in `tracking.py`, which imports more."""

from typing import Annotated

import typer

Track = Annotated[
    str | None,
    typer.Option(
        "--track",
        metavar="URI",
        help="Log the report to this MLflow server (http://...) or folder.",
        show_default=False,
    ),
]
Register = Annotated[
    str | None,
    typer.Option(
        "--register",
        metavar="NAME",
        help="Register what ships under this name there, if it passed and nothing is too good.",
        show_default=False,
    ),
]
