"""How a Python process of ours is started: what is installed comes first on its path, the user's own folders last.

Python puts the folder of a script, or the one that it is started in, before everything else, its own library too; a
`tokenize.py` or `compress.py` of the user's would be imported in place of what is meant. A process of ours finds what
its parent found, in the same order, but for those folders.
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The folder that our packages lie in."""


def python_module(module: str, *arguments: str) -> list[str]:
    """The command that runs a module in a process of its own."""
    return [sys.executable, "-P", "-m", module, *arguments]


def environment(**settings: str) -> dict[str, str]:
    """The environment of a process of ours, also where a launcher between starts Python."""
    return os.environ | {"PYTHONPATH": search_path(), "PYTHONSAFEPATH": "1"} | settings


def search_path() -> str:
    """PYTHONPATH of a process of ours."""
    users = {os.getcwd(), str(Path(getattr(sys.modules["__main__"], "__file__", None) or ROOT / "x").resolve().parent)}
    users.discard(str(ROOT))
    found = list(dict.fromkeys(os.path.abspath(entry) for entry in sys.path if entry))
    first = [entry for entry in found if entry not in users]
    ours = [] if str(ROOT) in first else [str(ROOT)]
    return os.pathsep.join([*first, *ours, *(entry for entry in found if entry in users)])
