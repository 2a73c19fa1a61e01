"""What a measurement of quality tells beside its figures, read from the files that it left, for the report.

items-<name>.npz   a named evaluation: its metadata, such as the protocol, a confusion matrix, texts
errors.json        what lost most against the baseline (`evaluation.quality.worst_tokens`)
"""

import json
from pathlib import Path
from typing import Any

from evaluation.quality.per_example import PerExample

ITEMS, ERRORS = "items-", "errors.json"


def findings(files: Path) -> dict[str, Any]:
    """The fields of a report's row that a measurement of quality left in a folder."""
    return {"evaluations": _evaluations(files), "worst_tokens": _worst_tokens(files)}


def _evaluations(files: Path) -> dict[str, dict[str, Any]]:
    """Name of each evaluation -> its kind and its metadata."""
    found = {file.stem.removeprefix(ITEMS): PerExample.load(file) for file in sorted(files.glob(f"{ITEMS}*.npz"))}
    return {name: {"kind": items.kind, "items": len(items), **items.metadata} for name, items in found.items()}


def _worst_tokens(files: Path) -> dict[str, Any]:
    """What lost most; empty for the baseline."""
    file = files / ERRORS
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return found
