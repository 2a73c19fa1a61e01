"""The page: well-formed, escaped, complete, and looked at by a real browser, wide and narrow."""

import shutil
import subprocess
from html import escape
from pathlib import Path
from xml.etree import ElementTree

import pytest
from matplotlib import image
from reports import REPORTS, Page
from rich_report import HOSTILE

from evaluation.charts import CHARTS, INKS, latency_chart, size_chart
from evaluation.evaluation_view import evaluations, lost_most
from evaluation.render import render_html, render_markdown
from evaluation.report import Report, Source
from evaluation.table import table_rows
from evaluation.units import MINUS, format_value

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.parametrize("verdict", REPORTS)
def test_html_is_well_formed_and_loads_nothing(verdict: str) -> None:
    text = render_html(REPORTS[verdict])
    page = Page(text)
    assert page.open == []
    assert page.loaded == []
    assert "url(http" not in text
    assert "@import" not in text
    assert "<script" not in text


def test_html_escapes_what_a_stage_said() -> None:
    text = render_html(REPORTS["INVALID"])
    assert "&lt;b&gt;" in text
    assert "x &amp; y" in text
    assert "NaN &lt;here&gt;" in text


def test_every_figure_stands_in_markdown_and_html() -> None:
    report = REPORTS["PASS"]
    texts = render_markdown(report), render_html(report)
    cells = [cell for row in table_rows(report) for cell in row.cells if cell.value]
    assert len(cells) == 10
    for text in texts:
        for cell in cells:
            assert cell.value in text
            assert cell.ratio in text
            assert cell.ratio_interval in text


def test_charts_are_svg_in_the_colors_of_the_page() -> None:
    for chart in (size_chart(REPORTS["PASS"]), latency_chart(REPORTS["PASS"])):
        assert ElementTree.fromstring(chart).tag.endswith("svg")
        assert "var(--accent)" in chart
        assert not any(ink in chart for ink in INKS)
    assert size_chart(REPORTS["PASS"]) == size_chart(REPORTS["PASS"])
    assert "gate 44.2" in size_chart(REPORTS["PASS"])


def test_a_finished_run_has_every_chart_recipe_and_hash_in_its_page(rich_run: Report) -> None:
    report = rich_run
    source = Source(role="test", name="test.txt", digest="cd" * 32, license="MIT")
    text = render_html(report.model_copy(update={"sources": [source]}))
    drawn = {heading: chart(report) for heading, chart in CHARTS.items()}
    assert [heading for heading, svg in drawn.items() if not svg] == ["Zeros, tensor by tensor"]
    for row in report.rows:
        assert row.name in drawn["Quality against speed"]
    for heading, svg in drawn.items():
        assert heading in text or not svg
        assert svg == "" or ElementTree.fromstring(svg).tag.endswith("svg")
    assert "export: {provider: cpu}" in text
    assert report.final.hashes["model.onnx"] in text
    assert "cd" * 32 in text
    assert len(text.encode()) < 2e6
    assert Page(text).open == []


def test_named_evaluations_stand_in_their_own_tables_with_what_they_say_beside(rich_run: Report) -> None:
    report = rich_run
    found = {one.name: one for one in evaluations(report)}
    assert list(found) == ["sentiment", "summaries", "hellaswag"]
    accuracy = found["sentiment"].lines[0]
    there = report.final.measurement("sentiment/accuracy")
    assert there is not None
    assert there.change is not None
    assert accuracy.name == "Accuracy"
    assert accuracy.final.value == format_value("sentiment/accuracy", there.value)
    assert accuracy.against.removeprefix(MINUS) == f"{-100 * there.change.value:.1f} points"
    assert [sum(map(sum, matrix.counts)) for matrix in found["sentiment"].matrices] == [200, 200]
    assert [sample.baseline != sample.final for sample in found["summaries"].samples] == [True] * 3
    texts = html_of(report), render_markdown(report)
    for text in (text.replace("\N{NO-BREAK SPACE}", " ") for text in texts):
        for one in found.values():
            for line in one.lines:
                assert line.name in text
                assert line.final.value in text
                assert line.between in text


def test_texts_of_models_and_users_are_escaped(rich_run: Report) -> None:
    text = html_of(rich_run)
    assert HOSTILE not in text
    assert text.count("&lt;script&gt;alert(") >= 7
    assert "<script" not in text
    assert "&lt;neither&gt;" in text
    assert Page(text).open == []


def test_what_lost_most_is_told_with_its_text(rich_run: Report) -> None:
    lost = lost_most(rich_run)
    assert lost is not None
    assert [one.token for one in lost.tokens] == [" Heathcliff", "\u21b5", "\u2423", "<b>"]
    assert (lost.tokens[0].baseline, lost.tokens[0].final) == ("74.1 %", "3.34 %")
    assert list(lost.groups) == ["Tokens of the vocabulary", "Tokens before it in the window", "Documents"]
    assert [group.name for group in lost.groups["Tokens before it in the window"]][:3] == ["1", "2 to 3", "4 to 7"]
    assert lost.groups["Documents"][0].loss[:-1] == "1.492"
    assert "<mark> Heathcliff</mark>" in html_of(rich_run)
    assert lost_most(REPORTS["PASS"]) is None
    assert "What lost most" not in render_html(REPORTS["PASS"])


def browse(page: Path, profile: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Open a page in a headless browser of its own profile; what the page logs comes on standard error."""
    assert CHROMIUM is not None
    quiet = (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--enable-logging=stderr",
        f"--user-data-dir={profile}",
    )
    command = [CHROMIUM, *quiet, *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)


def console_of(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: no browser to open the page in")
def test_the_page_opens_in_a_browser_without_an_error_and_shows_its_verdict_and_charts(
    rich_run: Report, tmp_path: Path
) -> None:
    assert rich_run.folder is not None
    page, picture = rich_run.folder / "report.html", tmp_path / "page.png"
    shown = browse(page, tmp_path / "profile", "--dump-dom", "--window-size=1280,1400", f"--screenshot={picture}")
    assert '<p class="word">FAIL</p>' in shown.stdout
    assert shown.stdout.count("<svg") == len(CHARTS) - 1
    for heading in ("sentiment", "summaries", "hellaswag", "What lost most"):
        assert f"<h2>{heading}</h2>" in shown.stdout
    assert console_of(shown) == []
    pixels = image.imread(picture)
    assert pixels.shape[:2] == (1400, 1280)
    shades = {tuple((color * 255).astype(int)) for color in pixels[::7, ::7, :3].reshape(-1, 3)}
    assert len(shades) > 20, "expected a page with text, colors and charts, got a blank one"


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: no browser to open the page in")
def test_nothing_hangs_over_the_edge_of_a_phone_and_the_check_for_errors_would_find_one(
    rich_run: Report, tmp_path: Path
) -> None:
    page, inner = tmp_path / "phone.html", escape(html_of(rich_run))
    page.write_text(
        f'<iframe id="phone" style="width:390px;height:800px;border:0" srcdoc="{inner}"></iframe>'
        "<script>onload = () => { const page = document.getElementById('phone').contentDocument.documentElement;"
        "document.title = `${page.scrollWidth} of ${page.clientWidth}`; console.error('found'); }</script>",
        encoding="utf-8",
    )
    shown = browse(page, tmp_path / "profile", "--dump-dom", "--hide-scrollbars", "--virtual-time-budget=4000")
    assert "<title>390 of 390</title>" in shown.stdout, "expected a page as wide as the phone"
    assert len(console_of(shown)) == 1


def html_of(report: Report) -> str:
    """The page that was written."""
    assert report.folder is not None
    return (report.folder / "report.html").read_text(encoding="utf-8")
