"""Results of speculation.py as a table."""

from typing import Any

import numpy as np

from benchmarks.tables import Table, format_times
from evaluation.statistics import median_interval

Json = dict[str, Any]
COLUMNS = ("answers", "prompts", "tokens", "tokens per pass", "speed", "lowest prompt", "highest prompt", "target")
TARGETS = {"prose": 0.97}
COPIES = 1.5
"""Times as fast as without drafts, at least, where the answer copies."""


def speculation_tables(run: Json) -> dict[str, list[Table]]:
    """A row a kind of text."""
    kinds = dict.fromkeys(answer["kind"] for answer in run["answers"])
    rows = tuple(_row(kind, [answer for answer in run["answers"] if answer["kind"] == kind]) for kind in kinds)
    title = f"{run['settings']['bundle']}, times as fast as plain greedy decoding"
    return {"speculation": [Table(title=title, columns=COLUMNS, rows=rows)]}


def _row(kind: str, answers: list[Json]) -> tuple[str, ...]:
    plain, ngram = (np.array([answer["seconds"][name] for answer in answers]) for name in ("plain", "ngram"))
    blocks = plain.sum(axis=0) / ngram.sum(axis=0)
    prompts = np.median(plain / ngram, axis=1)
    speed, target = float(np.median(blocks)), TARGETS.get(kind, COPIES)
    tokens, passes = (sum(answer[name] for answer in answers) for name in ("tokens", "passes"))
    return (
        kind,
        str(len(answers)),
        str(tokens),
        f"{(tokens - len(answers)) / max(1, passes):.2f}",
        format_times(speed, median_interval(blocks)),
        f"{prompts.min():.2f}x",
        f"{prompts.max():.2f}x",
        f"at least {target}x: {'PASS' if speed >= target else 'short'}",
    )
