"""The report says the same in JSON, Markdown and HTML, and can be read back."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
from reports import BROKEN, REPORTS, counted, make_report, sampled

from evaluation.gate import EXIT_CODES, Limit, Verdict
from evaluation.measurement import METRICS, Interval
from evaluation.pages import TEMPLATES
from evaluation.render import FILES, render_html, render_markdown, render_schema, ruler, write_report
from evaluation.report import HEADLINES, SCHEMA_VERSION, Row, headline
from evaluation.table import COLUMNS, name_of, table_columns, table_rows, what_it_bought
from evaluation.units import format_duration, format_interval, format_ratio, format_value
from recipes.runs.report_file import ReportError, read_report


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


def test_markdown_tables_are_rectangular() -> None:
    for verdict, report in REPORTS.items():
        tables = re.findall(r"(?:^\|.*\|\n)+", render_markdown(report), flags=re.MULTILINE)
        assert len(tables) == (1 if verdict == "NOT GATED" else 2)
        for table in tables:
            assert len({line.count("|") for line in table.splitlines()}) == 1


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
    rows = [REPORTS["PASS"].rows[0], Row(name="export", kind="export", format="onnx", measurements=[slower])]
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


def test_importing_it_loads_nothing_heavy() -> None:
    heavy = "torch transformers onnx onnxruntime matplotlib scipy jinja2"
    code = f"import sys, evaluation; sys.exit(' '.join(set('{heavy}'.split()) & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_long_facts_are_told_in_short() -> None:
    history = [{"step": step, "loss": 5.0 - step / 100, "tokens": step * 4096} for step in range(50)]
    tensors = {f"transformer.h.{layer}.mlp.c_fc": 0.29 + layer / 1000 for layer in range(20)}
    metadata = {
        "history": history,
        "sparsity": tensors,
        "names": sorted(tensors),
        "coverage": {"int8": sorted(tensors), "bytes": 7},
    }
    rows = [row.model_copy(update={"metadata": metadata}) for row in REPORTS["PASS"].rows]
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
    assert list(report.sanity_warnings) == ["perplexity"]
    text = render_html(report)
    assert text.index("but one figure is too good") < text.index("TOO GOOD") < text.index("<h2>Gates</h2>")
    assert "## Too good" in render_markdown(report)
    assert "TOO GOOD</span>" not in render_html(REPORTS["PASS"])
