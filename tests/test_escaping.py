"""Names and texts of others stay text in every file of a report, on a terminal and in a log."""

import io
import logging
import re
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest
from markdown_it import MarkdownIt
from reports import Page

from evaluation.escaping import markdown, visible
from evaluation.gate import Limit, judge, overall
from evaluation.render import FILES
from evaluation.report import Report, Source
from recipes.cli.console import metadata_table, show_report, show_row
from recipes.cli.terminal import Bars, PlainConsole, console_on
from recipes.runs.folder import Log

MARKUP = '# <img src=x onerror="alert(1)"> [a](http://b.example) ![c](d) | `e` **f** &lt; www.g.example'
CONTROL = "\x1b[31m\x9b2J\x07\r\x00\u202egnp\u2066\ud800\ufffe\x85\u2028"
TAGS = "[red]h[/red] [link=http://i.example]j[/link] :warning: [/]"
HOSTILE = f"{MARKUP} {CONTROL} {TAGS} $k_{{$\n\n## l\n2030-01-01 00:00:00 [1] verdict PASS"
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe]")


def named(report: Report, text: str) -> Report:
    """The report in which everything that others may name is named so."""
    told = {"metadata": {text: text, "b": [text]}, "knobs": {text: text}, "hashes": {text: text}}
    rows = [row.model_copy(update={"name": f"{row.name} {text}", **told}) for row in report.rows]
    owned = [
        found.model_copy(update={"metric": f"{text}/accuracy", "method": text}) if "/" in found.metric else found
        for found in rows[-1].measurements
    ]
    rows[-1] = rows[-1].model_copy(update={"measurements": owned, "evaluations": {}, "worst_tokens": {}})
    gates = judge({f"{text}/accuracy": Limit(at_least=2.0), text: Limit(at_most=1.0)}, {})
    names = dict.fromkeys(("name", "recipe", "recipe_text", "timing"), text)
    more = {
        "rows": rows,
        "gates": [gate.model_copy(update={"detail": text}) for gate in gates],
        "verdict": overall(gates),
        "sources": [Source(role="model", name=text, digest="ab", license=text)],
        "environment": {text: text, "processor": text},
    }
    return report.model_copy(update={**names, **more})


def in_markdown(text: str) -> Counter[str]:
    """What a reader of Markdown finds; a card's metadata apart."""
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    tokens = parser.parse(text.rpartition("\n---\n\n")[2])
    return Counter(part.type for token in tokens for part in (token, *(token.children or [])))


@pytest.mark.parametrize("name", ["report.md", "model_card.md"])
def test_markdown_of_hostile_names_has_no_other_marks_than_that_of_harmless_ones(name: str, rich_run: Report) -> None:
    text, harmless = (FILES[name](named(rich_run, given)) for given in (HOSTILE, "harmless"))
    assert in_markdown(text) == in_markdown(harmless)
    assert in_markdown(text)["tr_open"] > 5
    assert re.search(r"(?<!\\)://|www\.", text.rpartition("\n---\n\n")[2]) is None
    assert OBEYED.search(text) is None


def test_markdown_shows_the_text_itself() -> None:
    for text in (MARKUP, "1. a", "- b", "> c", "--", "a_b __c__", "~~d~~", "\\[e](f) \\| g", "&amp; & &#60;", "`"):
        (shown,) = (token for token in MarkdownIt("commonmark").parse(markdown(text)) if token.type == "inline")
        assert "".join(part.content for part in shown.children or []) == text
        assert {part.type for part in shown.children or []} <= {"text", "text_special"}


def test_the_cards_metadata_is_yaml_that_holds_the_names(rich_run: Report) -> None:
    from ruamel.yaml import YAML

    text = MARKUP + TAGS + CONTROL.translate({0xD800: None, 0xFFFE: None})
    card = FILES["model_card.md"](named(rich_run, text))
    metadata = YAML(typ="safe", pure=True).load(card.split("\n---\n")[0].removeprefix("---\n"))
    assert metadata["license"] == text.lower()
    assert metadata["model-index"][0]["name"] == text


def test_junit_is_xml_whatever_the_names(rich_run: Report) -> None:
    text = FILES["junit.xml"](named(rich_run, HOSTILE))
    suite = ElementTree.fromstring(text.encode())[0]
    assert MARKUP in suite.get("name", "")
    assert "\\x1b[31m" in suite.get("name", "")
    assert len(suite.findall("testcase")) == 2
    assert OBEYED.search(text) is None


def test_the_page_runs_and_loads_nothing_whatever_the_names(rich_run: Report) -> None:
    text = FILES["report.html"](named(rich_run, HOSTILE))
    assert (Page(text).open, Page(text).loaded) == ([], [])
    assert "<img" not in text
    assert OBEYED.search(text) is None


def test_a_terminal_obeys_no_name(rich_run: Report) -> None:
    report, shown = named(rich_run, HOSTILE), io.StringIO()
    console = console_on(shown)
    show_row(console, report.rows[1])
    show_report(console, report)
    console.print(metadata_table({HOSTILE: HOSTILE}))
    text = shown.getvalue()
    assert OBEYED.search(text) is None
    assert text.count(TAGS.partition(" ")[0]) > 5
    assert ":warning:" in text
    assert not [line for line in text.splitlines() if line.startswith(("2030", "## l"))]


def test_bars_obey_no_name() -> None:
    shown = io.StringIO()
    bars = Bars(PlainConsole(file=shown, force_terminal=True, color_system=None, width=400))
    with bars.task(f"{TAGS} \x9b2J", total=2) as task:
        task.advance(note=f"{TAGS} \x07")
        bars._bar.refresh()
    assert "[red]h[/red]" in shown.getvalue()
    assert "\x9b" not in shown.getvalue()
    assert "\x07" not in shown.getvalue()


def test_a_name_begins_no_line_of_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = Log(tmp_path / "log.txt")
    with caplog.at_level(logging.INFO, "demitasse"):
        log(f"text {HOSTILE} is short")
    written = (tmp_path / "log.txt").read_text(encoding="utf-8")
    for text in (written, caplog.records[0].getMessage()):
        assert OBEYED.search(text) is None
        assert not re.search(r"^2030", text, flags=re.MULTILINE)


def test_visible_leaves_letters_of_every_script_alone() -> None:
    text = "a\tb\nü “x” \N{ARABIC LETTER BEH}\N{ZERO WIDTH JOINER}\N{HEBREW LETTER ALEF}\N{NO-BREAK SPACE}%"
    assert visible(text) == text
