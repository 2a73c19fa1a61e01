"""A report written down, three files that say the same, by the templates in `templates/`:

report.json for programs, report.md for a pull request, report.html (one file that loads nothing) for people.
"""

import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation import table, units
from evaluation.charts import latency_chart, size_chart
from evaluation.gate import GateResult, describe_limit
from evaluation.report import Report, gate_counts, headline

if TYPE_CHECKING:
    from jinja2 import Environment

FILES = ("report.json", "report.md", "report.html")
TEMPLATES = Path(__file__).parent / "templates"
LONGEST_FACT = 160
"""Characters of a fact that is shown whole."""


def write_report(report: Report, folder: Path) -> list[Path]:
    """Write report.json, report.md and report.html and return their paths; each file is replaced as a whole."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = (report.model_dump_json(indent=2) + "\n", render_markdown(report), render_html(report))
    paths = [folder / name for name in FILES]
    for path, text in zip(paths, texts, strict=True):
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            unfinished.write_text(text, encoding="utf-8")
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
    return paths


def render_markdown(report: Report) -> str:
    """The report for a pull request or a terminal."""
    return _environment().get_template("report.md.j2").render(_values(report))


def render_html(report: Report) -> str:
    """The report as one page: styles and charts stand in it, nothing is loaded from elsewhere."""
    charts = {"size_chart": size_chart(report), "latency_chart": latency_chart(report)}
    return _environment().get_template("report.html.j2").render(_values(report) | charts)


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
        "headline": headline(report.verdict, len(report.suspicions)),
        "gate_counts": gate_counts(report.gates),
        "bought": table.what_it_bought(report),
        "columns": table.table_columns(report),
        "rows": table.table_rows(report),
        "gates": [
            {
                "name": table.NAMES.get(result.metric, result.metric),
                "limit": describe_limit(result.metric, result.limit),
                "measured": table.describe_gate(result),
                "ruler": ruler(result),
                "result": result,
            }
            for result in report.gates
        ],
    }


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "cell": table.cell_of,
        "duration": units.format_duration,
        "metric_name": lambda metric: table.NAMES.get(metric, metric),
        "plain": _plain,
        "pipe_safe": lambda text: str(text).replace("|", "\\|").replace("\n", " "),
    }
    return environment


def _plain(value: Any) -> str:
    """A fact or a knob as short text."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: units.DASH}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= LONGEST_FACT else _in_short(value)


def _in_short(value: Any) -> str:
    """What a long fact comes to; the whole of it stands in report.json."""
    if isinstance(value, dict) and all(isinstance(number, int | float) for number in value.values()):
        return f"{len(value)} values from {_plain(min(value.values()))} to {_plain(max(value.values()))}"
    if isinstance(value, dict):
        return "; ".join(f"{name}: {_plain(inner)}" for name, inner in value.items())
    if all(isinstance(entry, dict) for entry in value):
        return _course(value)
    return f"{len(value)}, from {_plain(value[0])} to {_plain(value[-1])}"


def _course(entries: list[dict[str, Any]]) -> str:
    """First and last of every figure that a series of entries holds."""
    courses = []
    for name in dict.fromkeys(name for entry in entries for name in entry):
        found = [entry[name] for entry in entries if name in entry]
        courses.append(f"{name.replace('_', ' ')} {_plain(found[0])} to {_plain(found[-1])}")
    return f"{len(entries)} entries: {', '.join(courses)}"
