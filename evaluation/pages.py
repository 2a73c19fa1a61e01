"""The templates of `templates/`, filled so that whatever is put into one is shown as text.

Escaping is no template's own business: a place where it was forgotten would not be seen.
"""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation import table, units
from evaluation.escaping import markdown

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"
LONGEST_METADATA = 160
"""Characters of a fact that is shown whole."""


def filled(template: str, **values: Any) -> str:
    """A template of HTML or Markdown with its values."""
    return _environment(template.endswith(".md.j2")).get_template(template).render(values)


@cache
def _environment(in_markdown: bool) -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    as_text: Callable[..., Any] | None = markdown if in_markdown else None
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=not in_markdown,
        finalize=as_text,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "cell": table.cell_of,
        "duration": units.format_duration,
        "metric_name": table.name_of,
        "plain": _plain,
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
    return text if len(text) <= LONGEST_METADATA else _in_short(value)


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
        if not isinstance(found[0], list | dict):
            courses.append(f"{name.replace('_', ' ')} {_plain(found[0])} to {_plain(found[-1])}")
    return f"{len(entries)} entries: {', '.join(courses)}"
