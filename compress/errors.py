"""The one base of every error that is meant for the user, and the exit code that a command ends in with it.

    2 recipe, usage or bad input    4 nothing was proven    5 broken integrity

The message names the thing, what was expected, what came and the way out; it needs no traceback. Any other exception is
a fault of ours or of a library's.
"""


class DemitasseError(Exception):
    """What demitasse raises where it cannot do what it was asked: `except DemitasseError` catches all of it.

    Its text is for the user, one line a reason.
    """

    exit_code: int = 2
    """What a command ends in with it: 2 bad input, 4 nothing was proven, 5 a stored file was changed."""
