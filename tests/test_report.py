"""The report says the same in JSON, Markdown and HTML, and can be read back."""

import json
import math
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from finished_runs import finish
from matplotlib import image

import evaluation
from evaluation.charts import CHARTS, INKS, latency_chart, size_chart
from evaluation.charts.trade import pareto
from evaluation.gate import EXIT_CODES, Limit, Verdict, judge, overall
from evaluation.measurement import JUDGED, METRICS, Interval, Measurement, Ratio
from evaluation.render import FILES, TEMPLATES, render_html, render_markdown, render_schema, ruler, write_report
from evaluation.report import HEADLINES, SCHEMA_VERSION, Report, ReportError, Row, Source, headline, read_report
from evaluation.table import COLUMNS, name_of, table_columns, table_rows, what_it_bought
from evaluation.units import format_duration, format_interval, format_ratio, format_value

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def sampled(metric: str, value: float, ratio: float | None = None) -> Measurement:
    def around(center: float, share: float, confidence: float) -> Interval:
        return Interval(low=center * (1 - share), high=center * (1 + share), confidence=confidence)

    relative = None
    if ratio is not None:
        relative = Ratio(value=ratio, interval=around(ratio, 0.01, 0.95), bounds=around(ratio, 0.008, JUDGED))
    return Measurement(
        metric=metric,
        value=value,
        samples=12,
        method="a test",
        interval=around(value, 0.05, 0.95),
        bounds=around(value, 0.04, JUDGED),
        ratio=relative,
    )


def counted(metric: str, value: float, ratio: float | None = None) -> Measurement:
    relative = None if ratio is None else Ratio(value=ratio)
    return Measurement(metric=metric, value=value, samples=1, method="counted", ratio=relative)


BROKEN = Measurement(metric="perplexity", value=math.nan, samples=12, method="a test", invalid="NaN <here>")


def make_report(limits: dict[str, Limit] | None = None, perplexity: Measurement | None = None) -> Report:
    perplexity = perplexity or sampled("perplexity", 43.0, 1.07)
    rows = [
        Row(
            name="baseline",
            kind="baseline",
            form="dense",
            measurements=[
                counted("weight_bytes", 27.3e6),
                sampled("perplexity", 40.2),
                sampled("prefill_latency", 0.04),
                sampled("decode_latency", 0.0038),
            ],
        ),
        Row(
            name="prune",
            kind="prune",
            form="dense",
            key="ab" * 32,
            knobs={"sparsity": 0.3, "pattern": None},
            facts={"tensors": 1024, "layers": ["a", "b"], "<b>": "x & y"},
            seconds=200.0,
            reused=True,
            measurements=[counted("weight_bytes", 27.3e6, 1.0), sampled("perplexity", 48.0, 1.2)],
        ),
        Row(
            name="export",
            kind="export",
            form="onnx",
            seconds=12.0,
            measurements=[
                counted("weight_bytes", 6.4e6, 0.234),
                perplexity,
                sampled("prefill_latency", 0.012, 0.3),
                sampled("decode_latency", 0.0009, 0.24),
            ],
        ),
    ]
    gates = judge(limits or {}, {found.metric: found for found in rows[-1].measurements})
    return Report(
        recipe="recipes/test.yaml",
        name="a test",
        rows=rows,
        gates=gates,
        verdict=overall(gates),
        environment={"machine": "two cores"},
        created=datetime(2026, 1, 5, 9, 30, tzinfo=UTC),
    )


REPORTS: dict[str, Report] = {
    "PASS": make_report({"perplexity": Limit(max_ratio=1.1), "weight_bytes": Limit(at_most=7e6)}),
    "FAIL": make_report({"perplexity": Limit(max_ratio=1.05), "weight_bytes": Limit(at_most=7e6)}),
    "INCONCLUSIVE": make_report({"perplexity": Limit(max_ratio=1.07), "weight_bytes": Limit(at_most=7e6)}),
    "INVALID": make_report({"perplexity": Limit(max_ratio=1.1), "weight_bytes": Limit(at_most=7e6)}, perplexity=BROKEN),
    "NOT GATED": make_report(),
}


class Page(HTMLParser):
    """Checks that tags are closed in order, and collects what would be loaded."""

    VOID = frozenset({"meta", "link", "br", "img", "use"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.loaded += [value or "" for name, value in attributes if name in ("src", "href") and tag != "use"]

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


@pytest.mark.parametrize("verdict", REPORTS)
def test_every_file_tells_the_verdict(verdict: str, tmp_path: Path) -> None:
    report = REPORTS[verdict]
    assert (report.verdict or "NOT GATED") == verdict
    paths = write_report(report, tmp_path / "new")
    assert [path.name for path in paths] == list(FILES)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(FILES)
    assert len(paths) == 7
    assert paths[1].read_text(encoding="utf-8").startswith(f"# a test: {verdict}\n")
    assert f'<p class="word">{verdict}</p>' in paths[2].read_text(encoding="utf-8")
    for path in paths[3:]:
        assert (report.verdict or "NOT GATED") in path.read_text(encoding="utf-8") or path.suffix == ".prom"


@pytest.mark.parametrize("verdict", ["PASS", "NOT GATED"])
def test_json_reads_back_as_it_was(verdict: str, tmp_path: Path) -> None:
    report = REPORTS[verdict]
    write_report(report, tmp_path)
    assert read_report(tmp_path) == report.model_copy(update={"folder": tmp_path})
    assert read_report(tmp_path / "report.json").rows == report.rows
    assert str(tmp_path) not in (tmp_path / "report.json").read_text(encoding="utf-8")


def test_nan_survives_json(tmp_path: Path) -> None:
    write_report(REPORTS["INVALID"], tmp_path)
    found = read_report(tmp_path).measurement("export", "perplexity")
    assert found is not None
    assert math.isnan(found.value)
    assert found.invalid == BROKEN.invalid


@pytest.mark.parametrize("content", ["", "{}", "[1", "[1]", '{"recipe": 3}', f'{{"schema_version": {SCHEMA_VERSION}}}'])
def test_what_is_no_report_is_refused(content: str, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    with pytest.raises(ReportError, match="cannot be read"):
        read_report(file)
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ReportError, match="expected a report"):
        read_report(file)


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


def test_markdown_tables_are_rectangular() -> None:
    for verdict, report in REPORTS.items():
        tables = re.findall(r"(?:^\|.*\|\n)+", render_markdown(report), flags=re.MULTILINE)
        assert len(tables) == (1 if verdict == "NOT GATED" else 2)
        for table in tables:
            assert len({line.count("|") for line in table.splitlines()}) == 1


def test_charts_are_svg_in_the_colors_of_the_page() -> None:
    for chart in (size_chart(REPORTS["PASS"]), latency_chart(REPORTS["PASS"])):
        assert ElementTree.fromstring(chart).tag.endswith("svg")
        assert "var(--accent)" in chart
        assert not any(ink in chart for ink in INKS)
    assert size_chart(REPORTS["PASS"]) == size_chart(REPORTS["PASS"])
    assert "gate 44.2" in size_chart(REPORTS["PASS"])


def test_the_pareto_front_is_what_nothing_beats_on_both_axes() -> None:
    assert pareto([(3, 1), (1, 3), (2, 2), (3, 3), (2, 4), (1, 3)]) == [(1, 3), (2, 2), (3, 1)]


def test_charts_leave_out_what_was_not_measured() -> None:
    assert "export" not in size_chart(REPORTS["INVALID"])
    bare = REPORTS["PASS"].model_copy(update={"rows": [Row(name="baseline", kind="baseline", form="dense")]})
    assert size_chart(bare) == ""
    assert latency_chart(bare) == ""
    assert Page(render_html(bare)).open == []
    assert "baseline" in render_markdown(bare)


def test_columns_without_a_figure_are_left_out() -> None:
    report = REPORTS["PASS"]
    assert "agreement" not in table_columns(report)
    assert [len(row.cells) for row in table_rows(report)] == [len(table_columns(report))] * 3
    assert [row.reused for row in table_rows(report)] == [False, True, False]


def test_what_it_bought_names_gain_and_loss() -> None:
    figures = [(item.figure, item.meaning) for item in what_it_bought(REPORTS["PASS"])]
    assert [figure[:-1] for figure, _ in figures[:3]] == ["4.3", "4.2", "3.3"]
    assert figures[3] == ("+7.0 %", "perplexity")
    slower = sampled("decode_latency", 0.0076, 2.0)
    rows = [REPORTS["PASS"].rows[0], Row(name="export", kind="export", form="onnx", measurements=[slower])]
    (item,) = what_it_bought(REPORTS["PASS"].model_copy(update={"rows": rows}))
    assert item.meaning == "slower decoding"


def test_ruler_keeps_the_order_of_the_numbers() -> None:
    found = [drawn for result in REPORTS["FAIL"].gates if (drawn := ruler(result)) is not None]
    assert len(found) == 2
    failed, passed = found
    assert 0 < failed.limit < failed.low <= failed.value <= failed.high < 100
    assert passed.value < passed.limit == passed.allowed_to
    assert ruler(REPORTS["INVALID"].gates[0]) is None


def test_rows_are_found_by_name() -> None:
    report = REPORTS["PASS"]
    assert report.measurement("prune", "weight_bytes") == counted("weight_bytes", 27.3e6, 1.0)
    assert report.measurement("prune", "decode_latency") is None
    assert report.final.name == "export"
    with pytest.raises(KeyError, match="expected one of baseline, prune, export, got 'quantize'"):
        report.row("quantize")


def test_every_verdict_has_a_headline_and_an_exit_code() -> None:
    verdicts: list[Verdict | None] = [*EXIT_CODES, None]
    assert set(HEADLINES) == set(verdicts)
    assert len({headline(verdict) for verdict in verdicts}) == len(verdicts)
    expected: dict[str, int] = {str(verdict): code for verdict, code in EXIT_CODES.items()} | {"NOT GATED": 0}
    assert {name: report.exit_code for name, report in REPORTS.items()} == expected


def test_every_metric_has_a_name_and_can_be_written() -> None:
    assert name_of("perplexity") == "Perplexity"
    assert name_of("typos/perplexity") == "typos: Perplexity"
    assert set(COLUMNS) <= set(METRICS)
    for metric in METRICS:
        assert "e+" not in format_value(metric, 98_765.0)
        assert format_value(metric, math.nan).startswith("nan")


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("weight_bytes", 27_300_000, "27.3 MB"),
        ("weight_bytes", 999, "999 B"),
        ("weight_bytes", 0, "0 B"),
        ("parameters", 124_000_000, "124 M"),
        ("decode_latency", 0.00093, "0.930 ms"),
        ("decode_latency", 0.0000093, "9.30 \N{MICRO SIGN}s"),
        ("prefill_latency", 1.25, "1.25 s"),
        ("agreement", 0.871, "87.1 %"),
        ("agreement", 1.0, "100 %"),
        ("kl_divergence", 0.0312, "0.0312 nat"),
        ("perplexity", 6996.2, "6,996"),
        ("perplexity", 23.41, "23.4"),
    ],
)
def test_values_read_well(metric: str, value: float, text: str) -> None:
    assert format_value(metric, value) == text


def test_intervals_have_the_unit_of_their_value() -> None:
    assert format_interval("decode_latency", Interval(low=0.00095, high=0.00105), 0.001) == "0.950 to 1.05"
    assert format_ratio(0.25)[:-1] == "0.250"
    assert format_ratio(12.34)[:-1] == "12.3"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.83, "0.8 s"), (42, "42 s"), (59.7, "1 min 00 s"), (200, "3 min 20 s"), (3900, "1 h 05 min")],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_the_public_face_is_sorted_and_complete() -> None:
    assert evaluation.__all__ == sorted(
        evaluation.__all__, key=lambda name: (not name.isupper(), name[0].islower(), name)
    )
    assert all(getattr(evaluation, name) is not None for name in evaluation.__all__)
    with pytest.raises(AttributeError):
        evaluation.nothing  # noqa: B018 (the access itself is under test)


def test_importing_it_loads_nothing_heavy() -> None:
    heavy = "torch transformers onnx onnxruntime matplotlib scipy jinja2"
    code = f"import sys, evaluation; sys.exit(' '.join(set('{heavy}'.split()) & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_long_facts_are_told_in_short() -> None:
    history = [{"step": step, "loss": 5.0 - step / 100, "tokens": step * 4096} for step in range(50)]
    tensors = {f"transformer.h.{layer}.mlp.c_fc": 0.29 + layer / 1000 for layer in range(20)}
    facts = {
        "history": history,
        "sparsity": tensors,
        "names": sorted(tensors),
        "coverage": {"int8": sorted(tensors), "bytes": 7},
    }
    rows = [row.model_copy(update={"facts": facts}) for row in REPORTS["PASS"].rows]
    page = render_markdown(REPORTS["PASS"].model_copy(update={"rows": rows}))
    assert "- history: 50 entries: step 0 to 49, loss 5 to 4.51, tokens 0 to 200,704\n" in page
    assert "- sparsity: 20 values from 0.29 to 0.309\n" in page
    assert "- names: 20, from transformer.h.0.mlp.c_fc to transformer.h.9.mlp.c_fc\n" in page
    assert "- coverage: int8: 20, from transformer.h.0.mlp.c_fc to transformer.h.9.mlp.c_fc; bytes: 7\n" in page


def test_the_schema_that_ships_is_the_reports_own_and_holds_for_every_report() -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed: nothing to check a schema with")
    schema = json.loads((TEMPLATES / "report.schema.json").read_text(encoding="utf-8"))
    assert schema == json.loads(render_schema())
    for report in REPORTS.values():
        jsonschema.Draft202012Validator(schema).validate(json.loads(FILES["report.json"](report)))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema).validate({"schema_version": 1})


def test_what_is_too_good_is_told_before_anything_else() -> None:
    report = make_report({"perplexity": Limit(max_ratio=1.1)}, perplexity=sampled("perplexity", 36.0, 0.9))
    assert report.verdict == "PASS"
    assert list(report.suspicions) == ["perplexity"]
    text = render_html(report)
    assert text.index("but one figure is too good") < text.index("TOO GOOD") < text.index("<h2>Gates</h2>")
    assert "## Too good" in render_markdown(report)
    assert "TOO GOOD</span>" not in render_html(REPORTS["PASS"])


def test_a_finished_run_has_every_chart_recipe_and_hash_in_its_page(tmp_path: Path) -> None:
    report = finish(tmp_path)
    source = Source(role="test", name="test.txt", digest="cd" * 32, license="MIT")
    text = render_html(report.model_copy(update={"sources": [source]}))
    drawn = {heading: chart(report) for heading, chart in CHARTS.items()}
    assert [heading for heading, svg in drawn.items() if not svg] == ["Zeros, tensor by tensor"]
    for heading, svg in drawn.items():
        assert heading in text or not svg
        assert svg == "" or ElementTree.fromstring(svg).tag.endswith("svg")
    assert "export: {provider: cpu}" in text
    assert report.final.hashes["model.onnx"] in text
    assert "cd" * 32 in text
    assert len(text.encode()) < 2e6
    assert Page(text).open == []


def test_zeros_are_drawn_where_tensors_differ() -> None:
    tensors = {f"layer {index}": {"asked": 0.5, "sparsity": 0.4 + index / 50} for index in range(8)}
    rows = [row.model_copy(update={"facts": {"tensors": tensors}}) for row in REPORTS["PASS"].rows]
    assert "tensors of" in CHARTS["Zeros, tensor by tensor"](REPORTS["PASS"].model_copy(update={"rows": rows}))


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
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def console_of(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: no browser to open the page in")
def test_the_page_opens_in_a_browser_without_an_error_and_shows_its_verdict_and_charts(tmp_path: Path) -> None:
    finish(tmp_path / "run")
    page, picture = tmp_path / "run" / "report.html", tmp_path / "page.png"
    shown = browse(page, tmp_path / "profile", "--dump-dom")
    assert '<p class="word">PASS</p>' in shown.stdout
    assert shown.stdout.count("<svg") >= 6
    assert console_of(shown) == []
    browse(page, tmp_path / "profile", "--window-size=1280,1400", f"--screenshot={picture}")
    pixels = image.imread(picture)
    assert pixels.shape[:2] == (1400, 1280)
    shades = {tuple((color * 255).astype(int)) for color in pixels[::7, ::7, :3].reshape(-1, 3)}
    assert len(shades) > 20, "expected a page with text, colors and charts, got a blank one"


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: no browser to open the page in")
def test_nothing_hangs_over_the_edge_of_a_phone_and_the_check_for_errors_would_find_one(tmp_path: Path) -> None:
    page, inner = tmp_path / "phone.html", escape(finish_page(tmp_path / "run"))
    page.write_text(
        f'<iframe id="phone" style="width:390px;height:800px;border:0" srcdoc="{inner}"></iframe>'
        "<script>onload = () => { const page = document.getElementById('phone').contentDocument.documentElement;"
        "document.title = `${page.scrollWidth} of ${page.clientWidth}`; console.error('found'); }</script>",
        encoding="utf-8",
    )
    shown = browse(page, tmp_path / "profile", "--dump-dom", "--hide-scrollbars", "--virtual-time-budget=4000")
    assert "<title>390 of 390</title>" in shown.stdout, "expected a page as wide as the phone"
    assert len(console_of(shown)) == 1


def finish_page(folder: Path) -> str:
    finish(folder)
    return (folder / "report.html").read_text(encoding="utf-8")
