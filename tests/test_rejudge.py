"""A finished run gives the same verdict again, tells of every change, and can be held against another."""

import json
from pathlib import Path

import pytest
from conftest import Demitasse
from finished_runs import BASE, finish
from forging import edit_report, edit_sealed

from compress.digests import digest_of
from evaluation.gate import Limit
from recipes.config.loader import load_gates
from recipes.engine.compare import CompareError, compare_runs
from recipes.engine.rejudge import ChangedError, RejudgeError, judge_run
from recipes.runs.records import RECORD, IntegrityError
from recipes.runs.report_file import ReportError


@pytest.fixture
def run(tmp_path: Path) -> Path:
    finish(tmp_path / "run")
    return tmp_path / "run"


def stored(run: Path, kind: str, index: int = 0) -> Path:
    return sorted((run / "artifacts").glob(f"{kind}-*"))[index]


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")


def test_the_same_gates_on_the_same_samples_give_the_same_verdict_and_figures(tmp_path: Path) -> None:
    for name, cost, verdict in (("good", 0.03, "PASS"), ("bad", 0.2, "FAIL"), ("open", 0.0953, "INCONCLUSIVE")):
        report = finish(tmp_path / name, cost=cost)
        assert report.verdict == verdict
        again = judge_run(tmp_path / name)
        assert again.report.verdict == verdict
        assert again.report.gates == report.gates
        assert again.report.final.measurements == report.final.measurements
        assert (again.differences, again.notes) == ((), ())


def test_other_gates_are_put_to_the_same_figures(run: Path, tmp_path: Path) -> None:
    strict = judge_run(run, {"perplexity": Limit(max_ratio=1.001), "gpu_memory": Limit(at_most=1)})
    assert [result.verdict for result in strict.report.gates] == ["FAIL", "INVALID"]
    assert strict.report.exit_code == 4
    file = tmp_path / "gates.yaml"
    file.write_text("gate:\n  decode_latency: {at_most: 0.01}\n")
    assert judge_run(run, load_gates(file)).report.verdict == "PASS"


@pytest.mark.parametrize("kind", ["export", "quality", "latency"])
def test_a_changed_file_is_told(run: Path, kind: str) -> None:
    file = next((stored(run, kind) / "files").iterdir())
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(IntegrityError, match="was changed"):
        judge_run(run)


def test_a_changed_record_or_a_missing_artifact_is_told(run: Path) -> None:
    change(stored(run, "quality") / RECORD, '"seed": 5', '"seed": 6')
    with pytest.raises(IntegrityError, match="was changed"):
        judge_run(run)
    stored(run, "export").rename(run / "elsewhere")
    with pytest.raises(IntegrityError, match="expected the artifact 'export'"):
        judge_run(run)


def test_an_edited_figure_in_a_record_is_told_whatever_asks(run: Path, demitasse: Demitasse) -> None:
    """The size that was counted stands in the record alone."""
    for record in (run / "artifacts").glob("footprint-*/artifact.json"):
        change(record, '"value": ', '"value": 1')
    code, _, errors = demitasse("gate", run)
    assert code == 5
    assert "artifact.json: was changed (its seal does not hold) since it was stored" in errors
    assert demitasse("store", "verify", run)[0] == 5


@pytest.mark.parametrize("measurements", [None, [7], [{"metric": "parameters"}], {"metric": "parameters"}])
def test_a_sealed_record_without_measurements_is_told(run: Path, measurements: object) -> None:
    for record in (run / "artifacts").glob("footprint-*/artifact.json"):
        edit_sealed(record, lambda content: content["metadata"].update(measurements=measurements))
    with pytest.raises(IntegrityError, match="it holds no measurements"):
        judge_run(run)


def test_an_edited_report_is_told(run: Path, demitasse: Demitasse) -> None:
    change(run / "report.json", '"max_ratio": 1.1', '"max_ratio": 9.1')
    code, _, errors = demitasse("gate", run)
    assert code == 5
    assert errors.count("\n") == 1
    assert "report.json: expected a report as it was written, but its seal does not hold" in errors


def test_a_report_with_another_verdict_is_told(tmp_path: Path) -> None:
    finish(tmp_path, cost=0.2)
    edit_report(tmp_path, lambda report: report.update(verdict="PASS"))
    with pytest.raises(ChangedError, match="says PASS, but its samples give FAIL"):
        judge_run(tmp_path)


def test_a_report_with_another_figure_is_told_of(run: Path) -> None:
    edit_report(run, lambda report: report["rows"][-1]["measurements"][0].update(value=1.0))
    (difference,) = judge_run(run).differences
    assert difference.startswith("perplexity of export: the report has")


def test_missing_samples_and_missing_reports_are_refused(run: Path, tmp_path: Path) -> None:
    stored(run, "latency").rename(run / "elsewhere")
    with pytest.raises(RejudgeError, match="expected the raw latency samples of 'baseline', got nothing"):
        judge_run(run)
    with pytest.raises(ReportError, match="cannot be read"):
        judge_run(tmp_path)


def test_a_figure_without_raw_samples_is_invalid(run: Path) -> None:
    added = {"metric": "gpu_memory", "value": 1.0, "samples": 1, "method": "said"}
    edit_report(run, lambda report: report["rows"][-1]["measurements"].append(added))
    again = judge_run(run, {"gpu_memory": Limit(at_most=2)})
    assert again.report.verdict == "INVALID"
    assert again.notes == ("gpu_memory: no raw samples of it were kept",)


def test_a_report_that_names_no_samples_or_anothers_is_refused(run: Path) -> None:
    edit_report(run, lambda report: report["rows"][-1]["samples"].pop("quality"))
    with pytest.raises(RejudgeError, match="expected the raw quality samples of 'export', got nothing"):
        judge_run(run)
    edit_report(run, lambda report: report["rows"][-1].update(samples=report["rows"][0]["samples"]))
    with pytest.raises(IntegrityError, match="holds samples of another artifact than 'export'"):
        judge_run(run)


def test_the_command_ends_in_the_verdicts_exit_code(demitasse: Demitasse, run: Path, tmp_path: Path) -> None:
    code, said, _ = demitasse("gate", run, "--memory-bandwidth", "0.000001", "--out", tmp_path / "again")
    assert code == 0
    assert "Every gate holds, but one figure is too good" in said
    assert "too good  decode_latency" in said
    assert "Blocks over time" in (tmp_path / "again" / "report.html").read_text(encoding="utf-8")
    gates = tmp_path / "gates.yaml"
    gates.write_text("gate: {perplexity: {max_ratio: 1.001}}\n")
    assert demitasse("gate", run, "--recipe", gates)[0] == 1
    gates.write_text("gate: {perplexity: {ratio: 1.001}}\n")
    code, _, errors = demitasse("gate", run, "--recipe", gates)
    assert code == 2
    assert "got the unknown key 'ratio'" in errors
    (stored(run, "latency") / "files" / "latency.json").write_text("{}")
    code, _, errors = demitasse("gate", run)
    assert code == 5
    assert "was changed" in errors


def test_two_candidates_are_paired_by_document(tmp_path: Path) -> None:
    finish(tmp_path / "a", cost=0.03, speed=0.25)
    finish(tmp_path / "b", cost=0.05, speed=0.2, seed=9)
    pairs = {pair.metric: pair for pair in compare_runs(tmp_path / "a", tmp_path / "b").pairs}
    perplexity = pairs["perplexity"].ratio
    assert perplexity is not None
    assert perplexity.interval is not None
    assert perplexity.value == pytest.approx(pairs["perplexity"].second.value / pairs["perplexity"].first.value)
    assert 1.0 < perplexity.interval.low < perplexity.value < perplexity.interval.high < 1.05
    own = pairs["perplexity"].first.interval
    assert own is not None
    assert (
        perplexity.interval.high - perplexity.interval.low < (own.high - own.low) / pairs["perplexity"].first.value / 3
    )
    decode = pairs["decode_latency"].ratio
    assert decode is not None
    assert decode.interval is not None
    assert decode.interval.low < 0.8 < decode.interval.high
    assert pairs["weight_bytes"].ratio is not None
    assert pairs["weight_bytes"].ratio.value == 1
    assert pairs["agreement"].ratio is None


def test_unpaired_runs_are_refused_with_the_reason(tmp_path: Path) -> None:
    finish(tmp_path / "a")
    finish(tmp_path / "text", text=2)
    finish(tmp_path / "base", base=digest_of("another"))
    with pytest.raises(CompareError, match="different test texts"):
        compare_runs(tmp_path / "a", tmp_path / "text")
    with pytest.raises(CompareError, match="different baselines"):
        compare_runs(tmp_path / "a", tmp_path / "base")


def test_compare_prints_a_table_and_writes_json(demitasse: Demitasse, tmp_path: Path) -> None:
    finish(tmp_path / "a")
    finish(tmp_path / "b", cost=0.05, seed=9)
    code, said, _ = demitasse("compare", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "both.json")
    assert code == 0
    assert "Perplexity" in said
    assert "paired by document, 40 of them" in said
    assert json.loads((tmp_path / "both.json").read_text())["baseline"] == BASE
    finish(tmp_path / "c", text=2)
    code, _, errors = demitasse("compare", tmp_path / "a", tmp_path / "c")
    assert code == 2
    assert "not paired" in errors
