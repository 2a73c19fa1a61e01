"""The frame of every command: the terminal is opened, what goes wrong becomes one message and an exit code."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compress.training.launch import launch
from recipes.commands.terminal import Terminal, open_terminal
from recipes.failures import Terminated, exit_code, message, terminable
from recipes.outcome import shown_path


@contextmanager
def session(*, debug: bool, goes_on: bool = False, shared: bool = False) -> Iterator[Terminal]:
    """A terminal for one command; `goes_on` where running it again takes up its work.

    Of several processes that were launched together, the first one alone carries out a command that is not `shared`.

    Raises:
        SystemExit: with the exit code of what went wrong, once its message is shown.
    """
    if not (shared or launch().first):
        raise SystemExit(0)
    with terminable(), open_terminal() as terminal:
        try:
            yield terminal
        except BrokenPipeError:  # the reader has gone (`demitasse schema | head`)
            raise SystemExit(0) from None
        except (Exception, KeyboardInterrupt, Terminated) as error:
            _tell(terminal, error, debug=debug, goes_on=goes_on)
            raise SystemExit(exit_code(error)) from None


def _tell(terminal: Terminal, error: BaseException, *, debug: bool, goes_on: bool) -> None:
    if debug:
        terminal.errors.print("".join(traceback.format_exception(error)), markup=False, soft_wrap=True)
    log = terminal.chatter.file
    text = message(error, goes_on=goes_on, log=Path(shown_path(log)) if log else None)
    if isinstance(error, KeyboardInterrupt | Terminated):
        terminal.errors.print(text, markup=False, soft_wrap=True)
    else:
        terminal.complain(text)
