"""Names that somebody wrote: what was perhaps meant, and a package's face, whose names are loaded when asked for."""

import difflib
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module


def did_you_mean(word: object, choices: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing where no choice is close."""
    folded = {choice.casefold(): choice for choice in choices}
    close = difflib.get_close_matches(str(word).casefold(), list(folded), n=1, cutoff=0.6)
    return f"; did you mean {folded[close[0]]!r}?" if close else ""


def face(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """A package's `__getattr__` and `__dir__`: each name is loaded from its module when it is first asked for.

    Args:
        homes: name -> the module that defines it.
    """

    def load(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}{did_you_mean(name, homes)}")
        return getattr(import_module(homes[name]), name)

    return load, lambda: sorted(homes)
