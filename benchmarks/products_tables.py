"""Results of products.py as a table: a row a kernel, a column a shape."""

from typing import Any

import numpy as np

from benchmarks.tables import BREAK, Table, format_times
from evaluation.statistics import median_interval
from evaluation.units import format_number

REFERENCE = "8 bits, 64"
"""The kernel that all others are compared with."""


def products_tables(run: dict[str, Any]) -> dict[str, list[Table]]:
    """One table."""
    shapes = run["shapes"]
    names = list(next(iter(shapes.values())))
    rows = tuple((name, *(_cell(found, name) for found in shapes.values())) for name in names)
    return {"products": [Table(title="Microseconds a product", columns=("kernel", *shapes), rows=rows)]}


def _cell(found: dict[str, Any], name: str) -> str:
    seconds, reference = (np.array(found[one]["seconds"]) for one in (name, REFERENCE))
    ratio = reference / seconds
    speed = "" if name == REFERENCE else f"{BREAK}{format_times(float(np.median(ratio)), median_interval(ratio))}"
    return f"{format_number(float(np.median(seconds)) * 1e6)}{speed}"
