"""The frame of every command: the terminal is opened, what goes wrong becomes one message and an exit code."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compress.errors import DemitasseError
from compress.registry import lazy
from compress.training.launch import launch
from recipes.cli.streams import ReaderGoneError
from recipes.cli.terminal import Terminal, open_terminal
from recipes.config.errors import shown_path
from recipes.runs.failures import Terminated, exit_code, message, terminable


@contextmanager
def session(*, debug: bool, goes_on: bool = False) -> Iterator[Terminal]:
    """A terminal for one command; `goes_on` where running it again takes up its work.

    Raises:
        SystemExit: with the exit code of what went wrong, once its message is shown.
    """
    here = launch()
    if not here.first:
        raise SystemExit(0)
    with terminable(), open_terminal() as terminal:
        try:
            _check_alone(here.world)
            _check_place()
            yield terminal
        except (SystemExit, ReaderGoneError):
            raise
        except BaseException as error:  # a panic of a library's Rust is no Exception
            _tell(terminal, error, debug=debug, goes_on=goes_on)
            raise SystemExit(exit_code(error)) from None


def carry(place: str, *, debug: bool, goes_on: bool = False, **given: Any) -> None:
    """Do a command's work: call what stands at "module:function" with a terminal and what was given.

    Raises:
        SystemExit: as `session`; or with the exit code that the function gives.
    """
    with session(debug=debug, goes_on=goes_on) as terminal:
        code: int | None = lazy(place)(terminal, **given)
        terminal.library_output.out.flush()  # while what goes wrong with it can still be told
    raise SystemExit(code or 0)


class LaunchedError(DemitasseError):
    """A command was started several times over."""


def _check_alone(world: int) -> None:
    if world > 1:
        raise LaunchedError(
            f"expected one process, got one of {world}; start the command once and name what starts its training: "
            '--launcher "torchrun --nproc-per-node 4"'
        )


class PlaceError(DemitasseError):
    """The working directory is gone."""


def _check_place() -> None:
    """Refuse where PyTorch's libraries would end the process without a word."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise PlaceError("the working directory is gone; change to one that exists") from None


def _tell(terminal: Terminal, error: BaseException, *, debug: bool, goes_on: bool) -> None:
    if debug:
        terminal.errors.print("".join(traceback.format_exception(error)), markup=False, soft_wrap=True)
    log = terminal.library_output.file
    text = message(error, goes_on=goes_on, log=Path(shown_path(log)) if log else None)
    if isinstance(error, KeyboardInterrupt | Terminated):
        terminal.errors.print(text, markup=False, soft_wrap=True)
    else:
        terminal.complain(text)
