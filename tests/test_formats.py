"""The report in other programs' formats, each checked by a reader that is not ours, or by its published schema."""

import json
import math
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from conftest import Demitasse
from finished_runs import finish

from evaluation.formats import bom, junit, model_card, prometheus
from evaluation.formats.prometheus import SUFFIX, name_of
from evaluation.gate import EXIT_CODES, Limit, Verdict, judge, overall
from evaluation.measurement import METRICS
from evaluation.render import FILES
from evaluation.report import Report, Source
from recipes.engine.tracking_server import TrackingError, log_report, metrics_of, why_not_registered

SOURCES = [
    Source(role="model", name="org/model@0123", digest="ab" * 32, license="Apache-2.0"),
    Source(role="test", name="texts/test.txt", digest="cd" * 32, license="CC-BY-SA-3.0"),
]
LIMITS: dict[Verdict, Limit] = {
    "PASS": Limit(max_ratio=1.1),
    "FAIL": Limit(max_ratio=1.001),
    "INCONCLUSIVE": Limit(max_ratio=1.0305),
    "INVALID": Limit(at_least=1),
}


@pytest.fixture(scope="module")
def passed(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return finish(tmp_path_factory.mktemp("run")).model_copy(update={"sources": SOURCES})


def judged(report: Report, verdict: Verdict) -> Report:
    """The same report with a gate that ends so, and a name that must be escaped."""
    limits = {"perplexity": LIMITS[verdict], "weight_bytes": Limit(max_ratio=0.3)}
    gates = judge(limits, {found.metric: found for found in report.final.measurements})
    assert overall(gates) == verdict
    return report.model_copy(update={"gates": gates, "verdict": verdict, "name": 'a "run" <1> \\ & more'})


REPORTS = [*EXIT_CODES, None]


def variant(report: Report, verdict: Verdict | None) -> Report:
    return report.model_copy(update={"gates": [], "verdict": None}) if verdict is None else judged(report, verdict)


# ---- junit.xml: structure and attributes of Jenkins' junit-10.xsd

CHILDREN = {
    "testsuites": ["testsuite"],
    "testsuite": ["properties", "testcase", "system-out", "system-err"],
    "properties": ["property"],
    "testcase": ["skipped", "error", "failure", "system-out", "system-err"],
}
ATTRIBUTES = {
    "testsuites": {"name", "time", "tests", "failures", "disabled", "errors"},
    "testsuite": {"name", "tests", "failures", "errors", "time", "disabled", "skipped", "timestamp", "hostname", "id"},
    "testcase": {"name", "assertions", "time", "classname", "status"},
    "property": {"name", "value"},
    "failure": {"type", "message"},
    "error": {"type", "message"},
    "system-out": set[str](),
    "properties": set[str](),
}


@pytest.mark.parametrize("verdict", REPORTS)
def test_junit_has_a_case_per_gate_in_the_structure_that_is_documented(passed: Report, verdict: Verdict | None) -> None:
    report = variant(passed, verdict)
    root = ElementTree.fromstring(junit(report))
    assert root.tag == "testsuites"
    for element in root.iter():
        order = CHILDREN.get(element.tag, [])
        places = [order.index(child.tag) for child in element]
        assert places == sorted(places)
        assert set(element.attrib) <= ATTRIBUTES[element.tag]
    (suite,) = root
    cases = suite.findall("testcase")
    assert len(cases) == int(suite.attrib["tests"]) == len(report.gates)
    assert datetime.fromisoformat(suite.attrib["timestamp"]).replace(tzinfo=UTC) == report.created
    assert suite.attrib["name"] == report.name


@pytest.mark.parametrize(
    ("verdict", "failures", "errors"), [("PASS", 0, 0), ("FAIL", 1, 0), ("INCONCLUSIVE", 1, 0), ("INVALID", 0, 1)]
)
def test_a_reader_of_junit_finds_the_verdicts(passed: Report, verdict: Verdict, failures: int, errors: int) -> None:
    junitparser = pytest.importorskip("junitparser", reason="junitparser is not installed: no reader of JUnit files")
    report = judged(passed, verdict)
    read = junitparser.JUnitXml.fromstring(junit(report).encode())
    assert (read.tests, read.failures, read.errors) == (2, failures, errors)
    (suite,) = read
    first = next(iter(suite))
    assert [result.type for result in first.result] == ([] if verdict == "PASS" else [verdict])
    assert first.is_passed == (verdict == "PASS")


# ---- bom.json


@pytest.mark.parametrize("verdict", REPORTS)
def test_the_bill_of_materials_keeps_the_published_schema(passed: Report, verdict: Verdict | None) -> None:
    validation = pytest.importorskip("cyclonedx.validation.json", reason="cyclonedx-python-lib is not installed")
    from cyclonedx.schema import SchemaVersion

    text = bom(variant(passed, verdict))
    assert validation.JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    broken = text.replace('"machine-learning-model"', '"machine-learning-modle"')
    assert validation.JsonStrictValidator(SchemaVersion.V1_6).validate_str(broken) is not None


def test_the_bill_of_materials_names_model_files_licenses_texts_and_figures(passed: Report) -> None:
    content = json.loads(bom(passed))
    model = content["metadata"]["component"]
    assert model["type"] == "machine-learning-model"
    assert model["licenses"] == [{"license": {"name": "Apache-2.0"}}]
    assert {file["name"]: file["hashes"][0]["content"] for file in model["components"]} == passed.final.hashes
    assert model["pedigree"]["ancestors"][0]["name"] == "org/model@0123"
    assert [part["name"] for part in content["components"] if part["type"] == "data"] == ["texts/test.txt"]
    figures = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert "confidenceInterval" in figures[0]
    assert len(figures) == len(passed.final.measurements)
    assert bom(passed) == bom(passed)
    assert content["serialNumber"] != json.loads(bom(judged(passed, "FAIL")))["serialNumber"]


# ---- model_card.md


@pytest.mark.parametrize("verdict", REPORTS)
def test_the_hubs_own_reader_finds_the_figures_in_the_card(passed: Report, verdict: Verdict | None) -> None:
    from huggingface_hub import ModelCard

    report = variant(passed, verdict)
    card = ModelCard(model_card(report))
    assert card.data.pipeline_tag == "text-generation"
    assert (card.data.license, card.data.base_model) == ("apache-2.0", "org/model")
    perplexity = next(result for result in card.data.eval_results if result.metric_type == "perplexity")
    there = report.final.measurement("perplexity")
    assert there is not None
    assert perplexity.metric_value == pytest.approx(there.value, abs=1e-6)
    assert perplexity.dataset_name == "test.txt"
    assert card.data.model_name == report.name
    assert f"**{verdict or 'NOT GATED'}**" in card.text


def test_a_license_that_nobody_stated_is_left_out_and_told_of(passed: Report) -> None:
    bare = model_card(passed.model_copy(update={"sources": [SOURCES[0].model_copy(update={"license": ""})]}))
    assert "license:" not in bare
    assert "is not stated" in bare
    assert "license: apache-2.0" in model_card(passed)


# ---- metrics.prom


@pytest.mark.parametrize("verdict", REPORTS)
def test_prometheus_own_parser_reads_every_figure(passed: Report, verdict: Verdict | None) -> None:
    parser = pytest.importorskip("prometheus_client.parser", reason="prometheus_client is not installed")
    report = variant(passed, verdict)
    families = {family.name: family for family in parser.text_string_to_metric_families(prometheus(report))}
    for found in report.final.measurements:
        values = {
            sample.labels["bound"]: sample.value
            for sample in families[name_of(found.metric)].samples
            if sample.labels["artifact"] == report.final.name
        }
        assert values["value"] == found.value
        assert ("high" in values) == (found.interval is not None)
    verdicts = {sample.labels["verdict"]: sample.value for sample in families["demitasse_verdict"].samples}
    assert verdicts == {name: float(name == verdict) for name in EXIT_CODES}
    assert all(sample.labels["run"] == report.name for family in families.values() for sample in family.samples)
    assert all(family.type == "gauge" and family.documentation for family in families.values())


def test_what_is_invalid_has_no_sample(passed: Report) -> None:
    broken = passed.final.measurements[0].model_copy(update={"value": math.nan, "invalid": "NaN"})
    rows = [passed.final.model_copy(update={"measurements": [broken]})]
    text = prometheus(passed.model_copy(update={"rows": rows}))
    assert "nan" not in text.lower()
    assert "demitasse_perplexity" not in text


def test_every_metric_has_a_name_with_its_unit() -> None:
    assert {metric.unit for metric in METRICS.values()} <= set(SUFFIX)
    assert name_of("decode_latency") == "demitasse_decode_latency_seconds"
    assert name_of("weight_bytes") == "demitasse_weight_bytes"
    assert len({name_of(metric) for metric in METRICS}) == len(METRICS)


# ---- MLflow, and all of them


def test_only_what_passed_and_is_not_too_good_may_be_registered(passed: Report) -> None:
    assert why_not_registered(passed) == ""
    assert "FAIL" in why_not_registered(judged(passed, "FAIL"))
    good = passed.model_copy(update={"memory_bandwidth": 1000.0})
    assert good.sanity_warnings
    assert why_not_registered(good).startswith("too good")


def test_what_is_logged_has_its_interval(passed: Report) -> None:
    logged, found = metrics_of(passed), passed.final.measurement("perplexity")
    assert found is not None
    assert found.interval is not None
    assert (logged["perplexity_low"], logged["perplexity_high"]) == (found.interval.low, found.interval.high)
    assert logged["perplexity_ratio_low"] < logged["perplexity_ratio"] < logged["perplexity_ratio_high"]
    assert logged["weight_bytes_ratio"] == 0.25
    assert "weight_bytes_low" not in logged


def test_without_mlflow_the_way_out_is_told_before_anything_runs(
    passed: Report, monkeypatch: pytest.MonkeyPatch, demitasse: Demitasse
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(TrackingError, match="pip install"):
        log_report(passed, [])
    code, _, err = demitasse("run", "quickstart", "--track", "https://user:secret@server/")
    assert code == 2
    assert "--track https://server/: expected MLflow, which is not installed: pip install 'demitasse[tracking]'" in err
    assert "secret" not in err


def test_other_gates_than_the_runs_own_register_nothing(demitasse: Demitasse) -> None:
    code, _, err = demitasse("gate", "runs", "--recipe", "quickstart", "--track", "somewhere", "--register", "small")
    assert code == 2
    assert "--register: goes by the run's own gates" in err


def test_a_name_to_register_needs_a_server(demitasse: Demitasse) -> None:
    code, _, err = demitasse("run", "quickstart", "--register", "small")
    assert code == 2
    assert "--register small: expected --track" in err


@pytest.fixture
def mlflow() -> Any:
    return pytest.importorskip("mlflow", reason="mlflow is not installed: nothing to log to")


def test_mlflow_keeps_the_report_and_registers_what_passed(
    mlflow: Any, tmp_path: Path, demitasse: Demitasse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    run, server = tmp_path / "run", tmp_path / "kept"
    passed = finish(run)
    (run / "final").symlink_to(next((run / "artifacts").glob("export-*/files")))
    code, out, err = demitasse("gate", run, "--track", server, "--register", "small")
    assert code == 0
    assert "registered as small, version 1" in out + err
    client = mlflow.MlflowClient(tracking_uri=str(server), registry_uri=str(server))
    (version,) = client.search_model_versions("name='small'")
    logged = client.get_run(version.run_id)
    assert logged.data.metrics["perplexity"] == metrics_of(passed)["perplexity"]
    assert logged.data.tags["verdict"] == "PASS"
    assert {item.path for item in client.list_artifacts(version.run_id)} == {"model", *FILES}
    assert [item.path for item in client.list_artifacts(version.run_id, "model")] == ["model/model.onnx"]


def test_what_failed_is_logged_and_not_registered(
    mlflow: Any, tmp_path: Path, demitasse: Demitasse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    finish(tmp_path / "run", gates={"perplexity": Limit(max_ratio=1.001)})
    code, out, err = demitasse("gate", tmp_path / "run", "--track", tmp_path / "kept", "--register", "small")
    assert code == 1
    assert "small was not registered: the verdict is FAIL" in out + err
    client = mlflow.MlflowClient(tracking_uri=str(tmp_path / "kept"), registry_uri=str(tmp_path / "kept"))
    assert client.search_registered_models() == []


def test_a_server_that_cannot_be_reached_does_not_lose_the_run_and_is_no_release(
    mlflow: Any, tmp_path: Path, demitasse: Demitasse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    finish(tmp_path / "run")
    code, out, err = demitasse("gate", tmp_path / "run", "--track", "http://me:secret@127.0.0.1:9")
    assert code == 2
    assert "PASS" in out
    assert "http://127.0.0.1:9: not logged" in err
    assert f"demitasse gate {tmp_path / 'run'} --track URI" in err
    assert "secret" not in err
    finish(tmp_path / "failed", gates={"perplexity": Limit(max_ratio=1.001)})
    assert demitasse("gate", tmp_path / "failed", "--track", "http://127.0.0.1:9")[0] == 1
