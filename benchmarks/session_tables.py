"""Results of session_keys.py as a table."""

from typing import Any

import numpy as np

from benchmarks.tables import Table, format_times
from evaluation.statistics import median_interval


def session_tables(run: dict[str, Any]) -> dict[str, list[Table]]:
    """A row a key."""
    shipped, *others = run["seconds"].items()
    rows = []
    for name, seconds in others:
        ratio = np.array(shipped[1]) / np.array(seconds)
        rows.append((name, format_times(float(np.median(ratio)), median_interval(ratio))))
    return {"keys": [Table(title="Decoding, times as fast as shipped", columns=("key", "speed"), rows=tuple(rows))]}
