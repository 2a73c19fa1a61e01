"""Every file of the report set of a real run, each read by a reader that is not ours or checked by its schema.

The run is small but whole (named_run.py): a recipe with named evaluations and noise, exported, measured in PyTorch and
through ONNX Runtime.
"""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evaluation.pages import TEMPLATES
from evaluation.render import FILES
from evaluation.report import Report
from export import verify_bundle
from export.readme import usage
from recipes.engine.rejudge import judge_run
from recipes.runs.report_file import read_report

pytest.importorskip("sacrebleu")


def folder_of(report: Report) -> Path:
    assert report.folder is not None
    return report.folder


def check_json(text: str, report: Report) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed: nothing to check a schema with")
    schema = json.loads((TEMPLATES / "report.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(schema).validate(json.loads(text))
    assert read_report(folder_of(report)).rows == report.rows


def check_markdown(text: str, report: Report) -> None:
    from markdown_it import MarkdownIt

    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    tables = [token for token in tokens if token.type == "table_open"]
    assert len(tables) == 2 + 4  # stages, gates, and a table for each named evaluation and noise
    headings = [after.content for token, after in itertools.pairwise(tokens) if token.type == "heading_open"]
    assert {"Gates", "pronoun", "lines", "typos", "truncation"} <= set(headings)


def check_html(text: str, report: Report) -> None:
    from reports import Page

    assert Page(text).open == []
    assert Page(text).loaded == []
    assert len(text.encode()) < 2e6
    for heading in ("pronoun", "lines", "typos", "What lost most", "Where the bytes went, by part of the model"):
        assert f"<h2>{heading}</h2>" in text


def check_junit(text: str, report: Report) -> None:
    junitparser = pytest.importorskip("junitparser", reason="junitparser is not installed: no reader of JUnit files")
    read = junitparser.JUnitXml.fromstring(text.encode())
    assert (read.tests, read.failures, read.errors) == (5, 0, 0)


def check_bom(text: str, report: Report) -> None:
    validation = pytest.importorskip("cyclonedx.validation.json", reason="cyclonedx-python-lib is not installed")
    from cyclonedx.schema import SchemaVersion

    assert validation.JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    model = json.loads(text)["metadata"]["component"]
    assert {file["name"]: file["hashes"][0]["content"] for file in model["components"]} == report.final.hashes


def check_card(text: str, report: Report) -> None:
    from huggingface_hub import ModelCard
    from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

    card = ModelCard(text)
    assert card.data.model_name == report.name
    name, results = model_index_to_eval_results(eval_results_to_model_index(report.name, card.data.eval_results))
    assert name == report.name
    told = {(result.dataset_config or result.dataset_name, result.metric_type): result for result in results}
    assert {("test.txt", "perplexity"), ("typos", "perplexity"), ("pronoun", "accuracy"), ("lines", "bleu")} <= set(
        told
    )
    for place, metric in (("test.txt", "perplexity"), ("pronoun", "accuracy")):
        found = report.final.measurement(metric if place == "test.txt" else f"{place}/{metric}")
        assert found is not None
        assert told[place, metric].metric_value == pytest.approx(found.value, abs=1e-6)
    assert all(result.verified is False for result in results)


def check_prometheus(text: str, report: Report) -> None:
    parser = pytest.importorskip("prometheus_client.parser", reason="prometheus_client is not installed")
    samples = [sample for family in parser.text_string_to_metric_families(text) for sample in family.samples]
    accuracy = report.final.measurement("pronoun/accuracy")
    assert accuracy is not None
    assert accuracy.value in {
        sample.value
        for sample in samples
        if sample.name == "demitasse_accuracy_ratio" and sample.labels["artifact"] == report.final.name
    }


CHECKS: dict[str, Callable[[str, Report], None]] = {
    "report.json": check_json,
    "report.md": check_markdown,
    "report.html": check_html,
    "junit.xml": check_junit,
    "bom.json": check_bom,
    "model_card.md": check_card,
    "metrics.prom": check_prometheus,
}


def test_every_file_of_the_set_has_a_check() -> None:
    assert set(CHECKS) == set(FILES)


@pytest.mark.parametrize("name", CHECKS)
def test_a_real_runs_file_keeps_its_schema(name: str, named_run: Report) -> None:
    CHECKS[name]((folder_of(named_run) / name).read_text(encoding="utf-8"), named_run)


def test_the_card_lies_in_the_bundle_that_stays_whole(named_run: Report) -> None:
    final = folder_of(named_run) / "final"
    assert named_run.verdict == "PASS"
    card = (folder_of(named_run) / "model_card.md").read_text("utf-8")
    assert (final / "README.md").read_text(encoding="utf-8") == f"{card}\n{usage(final)}"
    verify_bundle(final)
    assert "README.md" not in named_run.final.hashes
    judged = judge_run(folder_of(named_run))
    assert (judged.report.verdict, judged.differences) == ("PASS", ())


def test_every_stage_tells_what_its_weights_take(named_run: Report) -> None:
    for row in named_run.rows:
        found = row.measurement("weight_bytes")
        assert found is not None
        held = sum(size for sizes in row.weights.values() for size in sizes.values())
        graph = sum(file.stat().st_size for file in (folder_of(named_run) / "final").glob("model.onnx"))
        assert 0 <= found.value - held <= (graph if row.format == "onnx" else 0)
        assert set(row.weights) >= {"embeddings", "attention", "mlp", "norms"}


def test_what_lost_most_and_named_evaluations_are_in_the_rows(named_run: Report) -> None:
    kinds: dict[str, Any] = {name: told["kind"] for name, told in named_run.final.evaluations.items()}
    assert kinds == {"pronoun": "labeled", "lines": "generation"}
    assert named_run.final.worst_tokens["tokens"]
    assert named_run.rows[0].worst_tokens == {}
