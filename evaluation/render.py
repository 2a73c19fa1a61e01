"""A report written down: files that say the same, for people by the templates in `templates/`, for programs otherwise.

report.json   all of it            report.md     for a pull request
report.html   one page that loads nothing, for whoever signs the release
junit.xml, bom.json, model_card.md, metrics.prom     see `formats/`
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation import table
from evaluation.charts import CHARTS
from evaluation.escaping import visible
from evaluation.evaluation_view import evaluations, lost_most
from evaluation.formats import FORMATS
from evaluation.gate import GateResult, describe_limit
from evaluation.pages import filled
from evaluation.report import Report, gate_counts, headline


def write_report(report: Report, folder: Path) -> list[Path]:
    """Write every file of `FILES` and return their paths; each file is replaced as a whole."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {folder / name: write(report) for name, write in FILES.items()}
    for path, text in texts.items():
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            unfinished.write_text(text, encoding="utf-8")
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
    return list(texts)


def render_json(report: Report) -> str:
    """The report for programs, by the schema in `templates/report.schema.json`."""
    return report.as_json()


def render_schema() -> str:
    """JSON Schema of report.json."""
    schema = Report.model_json_schema(mode="serialization")
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return json.dumps(schema, indent=1, sort_keys=True) + "\n"


def render_markdown(report: Report) -> str:
    """The report for a pull request or a terminal."""
    return filled("report.md.j2", **_values(report))


def render_html(report: Report) -> str:
    """The report as one page: styles and charts stand in it, nothing is loaded from elsewhere."""
    drawn = {heading: chart(report) for heading, chart in CHARTS.items()}
    charts = {heading: svg for heading, svg in drawn.items() if svg}
    page = visible(filled("report.html.j2", **_values(report), charts=charts))
    return page.replace(" %", "\N{NO-BREAK SPACE}%")


FILES: dict[str, Callable[[Report], str]] = {
    "report.json": render_json,
    "report.md": render_markdown,
    "report.html": render_html,
    **FORMATS,
}
"""File name -> how it is written."""


@dataclass(frozen=True, kw_only=True)
class Ruler:
    """Where a gate's interval lies about its limit, in percent of a line's length."""

    limit: float
    value: float
    low: float
    high: float
    allowed_from: float
    allowed_to: float


def ruler(result: GateResult) -> Ruler | None:
    """The drawing beside a gate; None where nothing was measured."""
    if result.value is None:
        return None
    low, high = (result.value, result.value) if result.interval is None else (result.interval.low, result.interval.high)
    bound = result.limit.bound
    span = max(high, bound) - min(low, bound) or abs(bound) or 1.0
    start, length = min(low, bound) - 0.25 * span, 1.5 * span
    at = {
        name: 100 * (value - start) / length
        for name, value in {"b": bound, "v": result.value, "l": low, "h": high}.items()
    }
    allowed = (0.0, at["b"]) if result.limit.upper else (at["b"], 100.0)
    return Ruler(
        limit=at["b"], value=at["v"], low=at["l"], high=at["h"], allowed_from=allowed[0], allowed_to=allowed[1]
    )


def _values(report: Report) -> dict[str, Any]:
    return {
        "report": report,
        "verdict": report.verdict or "NOT GATED",
        "headline": headline(report.verdict, len(report.sanity_warnings)),
        "gate_counts": gate_counts(report.gates),
        "bought": table.what_it_bought(report),
        "sanity_warnings": {table.name_of(metric): reason for metric, reason in report.sanity_warnings.items()},
        "evaluations": evaluations(report),
        "lost": lost_most(report),
        "columns": table.table_columns(report),
        "headings": list(table.table_columns(report).values()),
        "rows": table.table_rows(report),
        "gates": [
            {
                "name": table.name_of(result.metric),
                "limit": describe_limit(result.metric, result.limit),
                "measured": table.describe_gate(result),
                "ruler": ruler(result),
                "result": result,
            }
            for result in report.gates
        ],
    }
