"""`demitasse schema`, `methods` and `doctor`."""

import json

from recipes.cli.console import show_finding, show_list
from recipes.cli.doctor import examine
from recipes.cli.methods import methods as all_methods
from recipes.cli.terminal import Terminal
from recipes.config.recipe import json_schema
from recipes.config.stages import STAGES


def schema(terminal: Terminal) -> None:
    """Print the JSON Schema of recipes."""
    terminal.library_output.out.write(json.dumps(json_schema(STAGES), indent=2) + "\n")


def methods(terminal: Terminal) -> None:
    """List every method."""
    for heading, entries in all_methods():
        show_list(terminal.console, heading, entries)


def doctor(terminal: Terminal) -> int:
    """Look at this machine; the exit code."""
    missing = 0
    for finding in examine():
        show_finding(terminal.console, finding)
        missing += finding.status == "missing"
    terminal.say(f"{missing} things to mend" if missing else "ready")
    return 2 if missing else 0
