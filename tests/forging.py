"""What a forger does: a stored file edited, and sealed again. The tests of what seals cannot find use it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compress.digests import sealed, unsealed
from evaluation.report import REPORT, UNSEALED, seal_of


def edit_sealed(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Edit a record, a note or a manifest, and seal it again."""
    content = unsealed(file.read_bytes())
    change(content)
    file.write_text(sealed(content), encoding="utf-8")


def edit_report(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Edit the report of a run, and seal it again."""
    content = json.loads((run / REPORT).read_text(encoding="utf-8"))
    change(content)
    text = json.dumps(content | {"seal": ""}, indent=2) + "\n"
    (run / REPORT).write_text(text.replace(UNSEALED, f'"seal": "{seal_of(text)}"', 1), encoding="utf-8")
