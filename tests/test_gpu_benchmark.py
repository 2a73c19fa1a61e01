"""The GPU's benchmark as far as a machine without one can tell: who ran which node, tables, time, errors, a dry run."""

import importlib
import inspect
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer

from benchmarks import gpu_section
from benchmarks.distillation_order import Part
from benchmarks.gpu import MODELS, begun, checked, share_of
from benchmarks.gpu_distill import BUDGETS, LEAST, MOST, batch_of, fitting
from benchmarks.gpu_order import Request, Results
from benchmarks.gpu_placement import compare, counted
from benchmarks.gpu_section import SECTIONS, carried_out, run_section
from benchmarks.gpu_speed import in_order, kinds_of, settings_of
from benchmarks.gpu_tables import gpu_tables
from benchmarks.gpu_variants import GPU_VARIANTS, OURS, PLAIN_KERNELS, REFERENCES
from benchmarks.page import write_page
from benchmarks.prepare import KINDS

ROOT = Path(__file__).resolve().parent.parent
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


def event(name: str, operator: str, provider: str) -> dict[str, Any]:
    return {"cat": "Node", "name": f"{name}_kernel_time", "args": {"op_name": operator, "provider": provider}}


EVENTS: list[dict[str, Any]] = [
    {"cat": "Session", "name": "model_run", "args": {}},
    event("attention", "GroupQueryAttention", CUDA),
    event("attention", "GroupQueryAttention", CUDA),
    event("shape", "Shape", CPU),
    event("sum", "CumSum", CPU),
    event("copy", "MemcpyToHost", CUDA),
    {"cat": "Node", "name": "attention_fence_before", "args": {"op_name": "GroupQueryAttention"}},
]
STATIC = {"attention": CUDA, "shape": CPU, "sum": CUDA, "gone": CUDA}


def test_a_node_that_ran_elsewhere_than_the_table_says_is_named() -> None:
    found = compare(EVENTS, STATIC)
    assert found["differences"] == [{"node": "sum", "operator": "CumSum", "profile": CPU, "static": CUDA}]
    assert found["same"] == 2
    assert found["only_in_profile"] == {f"MemcpyToHost on {CUDA}": 1}
    assert found["only_in_static"] == {CUDA: 1}


def test_a_node_that_ran_often_is_one_node() -> None:
    assert counted(EVENTS) == {
        CPU: {"CumSum": 1, "Shape": 1},
        CUDA: {"GroupQueryAttention": 1, "MemcpyToHost": 1},
    }


def workload(seconds: list[float]) -> dict[str, Any]:
    return {"seconds": seconds, "first": [1], "tokens": [[1], [2]], "same": 3, "reason": ""}


def variant(title: str, seconds: list[float] | None, reason: str = "") -> dict[str, Any]:
    load = [{"import": 1.0, "open": 2.0, "first_token": 2.5, "peak": 1e9}] if seconds else []
    return {
        "title": title,
        "reason": reason,
        "load": load,
        "check": [1, 2],
        "weight_bytes": 125_000_000,
        "gpu_memory": 700 << 20,
        "workloads": {"decode-128-1": workload(seconds), "prefill-128-4": workload([])} if seconds else {},
    }


def run() -> dict[str, Any]:
    """A result as it would be stored."""
    figures = {"prefill": {"kl": 1.2e-6, "log_probability": 0.012}, "decode": {"error": "RuntimeError: no kernel"}}
    parity = {
        "float16": {"verdict": "accepted", "figures": figures, "error": ""},
        "int8": {"error": "PrepareError: no space"},
    }
    placed = {"profile": counted(EVENTS), "static": "", "error": ""} | compare(EVENTS, STATIC)
    unknown = {"profile": counted(EVENTS), "static": "no table", "error": ""}
    student = {"tokens": 300_000, "batch": 8, "learning_rate": 1e-3, "trained": 5.0, "tokens_per_second": 2e5}
    variants = {
        "eager": variant("PyTorch eager, fp16", [0.008, 0.008, 0.008]),
        "compile": variant("torch.compile, fp16, CUDA graphs", [0.002, 0.004, 0.008]),
        "genai-int8": variant("onnxruntime-genai, its own int8 model", None, "has no gpt2"),
        "float-graph": variant("demitasse fp16, CUDA graphs", [0.001, 0.002, 0.004]),
    }
    return {
        "kind": "gpu",
        "date": "2026-01-02",
        "machine": dict.fromkeys(("processor", "cores", "memory", "extensions", "system"), "?") | {"gpu": "a GPU"},
        "sections": {
            "parity": {"seconds": 30.0, "error": "", "model": "novels-gpt2", "rows": parity},
            "placement": {"seconds": 9.0, "error": "", "rows": {"float16": placed, "int8": unknown}},
            "distill": {
                "seconds": 60.0,
                "error": "",
                "model": "novels-gpt2",
                "layers": 3,
                "teacher": 84.21,
                "stopped": "1,000,000 tokens did not fit into the 60 s",
                "rows": {"300000": student | {"perplexity": 126.3, "ratio": 1.5}},
            },
            "speed": {
                "seconds": 99.0,
                "error": "ended after 99 s",
                "rows": {"gpt2-124m": {"float32_bytes": 5e8, "variants": variants, "left_out": [], "error": ""}},
            },
        },
    }


def cells(table: Any) -> dict[str, tuple[str, ...]]:
    return {row[0]: row[1:] for row in table.rows}


def test_tables_say_what_was_measured_and_why_the_rest_was_not() -> None:
    tables = gpu_tables(run())
    assert cells(tables["sections"][0])["speed"] == ("99.00 s", "ended after 99 s")
    parity = cells(tables["parity"][0])
    assert parity["float16"][:3] == ("accepted", "1.2e-06\n0.012", "RuntimeError: no kernel")
    assert parity["int8"][0] == "PrepareError: no space"
    placed, differing = tables["placement"]
    assert cells(placed)["float16"][:3] == ("CPU 2 (1 CumSum, 1 Shape)\nCUDA 2", "2", "1")
    assert cells(placed)["int8"][1] == "n/a (no table)"
    assert differing.rows == (("float16", "sum", "CumSum", CPU, CUDA),)
    assert cells(tables["distill"][0])["0.3 M"][-2:] == ("126.30", "1.500x")
    assert "did not fit into the 60 s" in tables["distill"][0].title


def test_speed_is_paired_within_blocks() -> None:
    footprint, decode, prefill, ratios = gpu_tables(run())["speed of gpt2-124m"]
    assert cells(footprint)["onnxruntime-genai, its own int8 model"][0] == "n/a (has no gpt2)"
    assert cells(footprint)["demitasse fp16, CUDA graphs"][:4] == ("125 MB", "2.00 s", "2.50 s", "734 MB")
    assert cells(decode)["torch.compile, fp16, CUDA graphs"] == ("250",)
    assert cells(prefill)["PyTorch eager, fp16"] == ("n/a (no time)",)
    assert ratios.title == "Times as fast as torch.compile, fp16, CUDA graphs"
    assert ratios.rows == (("demitasse fp16, CUDA graphs", "2x (2 to 2)"),)


def test_the_page_has_the_gpu_where_there_are_results(tmp_path: Path) -> None:
    (tmp_path / "gpu.json").write_text(json.dumps(run()))
    write_page(tmp_path, tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert "## On a GPU" in page
    assert "### GPU: speed of gpt2-124m" in page
    assert "| demitasse fp16, CUDA graphs | 2x (2 to 2) |" in page


def test_variants_name_files_and_take_the_knobs_that_they_are_given() -> None:
    assert len(OURS) == 10
    assert set(REFERENCES) < set(GPU_VARIANTS)
    for name, one in GPU_VARIANTS.items():
        assert one.files == "checkpoint" or one.files in KINDS, name
        module, _, runner = one.runner.partition(":")
        known = inspect.signature(getattr(importlib.import_module(module), runner)).parameters
        assert set(one.knobs) <= set(known), name
    assert len({one.title for one in GPU_VARIANTS.values()}) == len(GPU_VARIANTS)
    fast = [one for one in GPU_VARIANTS.values() if one.knobs.get("keys") == PLAIN_KERNELS]
    assert len(fast) == 2
    assert all("32" in one.files for one in fast)
    assert "genai_int8" not in kinds_of("gpt2-124m")


def request_for(work: Path, **knobs: Any) -> Request:
    return Request(**{"work": work, "tell": lambda what: None, "seconds": 60.0, "models": MODELS} | knobs)


def test_batch_1_is_timed_before_larger_batches(tmp_path: Path) -> None:
    ordered = in_order(settings_of(request_for(tmp_path)))
    assert [one.key for one in ordered[:4]] == ["decode-128-1", "decode-900-1", "prefill-128-1", "prefill-512-1"]
    assert [one.batch for one in ordered] == sorted(one.batch for one in ordered)
    assert len(ordered) == 16


def test_sections_share_the_time_that_is_left() -> None:
    first = share_of(list(SECTIONS), 480.0)
    assert 80 < first < 110
    assert share_of(["distill", "speed"], 400.0) > 100
    assert share_of(["parity"], 400.0) == 400.0
    assert share_of(["parity", "placement"], 100.0) == pytest.approx(100 * 0.2 / 0.27)


@pytest.mark.parametrize("tokens", BUDGETS)
def test_a_run_has_hundreds_of_steps(tokens: int) -> None:
    batch = batch_of(tokens)
    assert LEAST <= batch <= MOST
    assert batch & (batch - 1) == 0
    assert 100 < tokens // (256 * batch) < 1300


def test_a_run_is_cut_to_the_time_that_is_left() -> None:
    assert fitting(50, 0.0, 1.0) == 50
    assert fitting(10_000_000, 1e6, 100.0) == 10_000_000
    assert fitting(100_000_000, 1e6, 65.0) == 50_000_000
    assert fitting(1000, 1e6, 5.0) == 0


def test_an_unknown_section_or_model_is_refused_before_anything_runs() -> None:
    assert checked("speed,parity", MODELS)[0] == ["parity", "speed"]
    assert checked("", MODELS)[0] == list(SECTIONS)
    with pytest.raises(typer.BadParameter, match="--only sped: expected one of parity"):
        checked("sped", MODELS)
    with pytest.raises(typer.BadParameter, match="--model gpt2-12m"):
        checked("", ("gpt2-12m",))


def test_a_section_that_fails_keeps_its_rows_and_its_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(request: Request, part: Part) -> None:
        part.row("one", lambda: {"figure": 1})
        raise RuntimeError("no\nmemory")

    monkeypatch.setitem(gpu_section.SECTIONS, "parity", fails)
    out = tmp_path / "gpu.json"
    run_section("parity", request_for(tmp_path), out)
    stored = json.loads(out.read_text())["sections"]["parity"]
    assert stored["error"] == "RuntimeError: no memory"
    assert stored["rows"] == {"one": {"figure": 1}}


def test_results_of_another_gpu_are_put_aside(tmp_path: Path) -> None:
    results = Results(tmp_path / "gpu.json")
    begun(results, {"gpu": "one", "system": "a"}).section("parity")["rows"] = {"float16": {}}
    results.keep()
    assert begun(results, {"gpu": "one", "system": "b"}).section("parity")["rows"]
    assert "rows" not in begun(results, {"gpu": "another", "system": "b"}).section("parity")
    assert json.loads((tmp_path / "gpu.earlier.json").read_text())["machine"]["gpu"] == "one"


def test_a_section_whose_process_dies_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_section.sys, "executable", "/bin/false")
    out = tmp_path / "gpu.json"
    assert carried_out("parity", request_for(tmp_path), out) == "died with 1: nothing on stderr"
    assert json.loads(out.read_text())["sections"]["parity"]["error"] == "died with 1: nothing on stderr"


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "seconds", "error"), [("parity", -8.0, "ended after 2 s"), ("none", 60.0, "KeyError")]
)
def test_a_section_that_fails_or_takes_too_long_ends(tmp_path: Path, name: str, seconds: float, error: str) -> None:
    out, started = tmp_path / "gpu.json", time.monotonic()
    assert carried_out(name, request_for(tmp_path, seconds=seconds, dry=True), out).startswith(error)
    assert time.monotonic() - started < 60
    assert json.loads(out.read_text())["sections"][name]["seconds"] > 0


@pytest.mark.thorough
def test_a_dry_run_goes_through_every_section(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry-run", "--model", "smollm2-135m", "--work", str(tmp_path)]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert answer.stdout.splitlines()[-4:] == [f"{name}: done" for name in SECTIONS]
    sections = json.loads((tmp_path / "gpu.json").read_text())["sections"]
    assert all(row["error"] == "" for name in ("parity", "distill") for row in sections[name]["rows"].values())
    figures = [figure for row in sections["parity"]["rows"].values() for figure in row["figures"].values()]
    assert len(figures) == 7 * 6
    assert all(figure["kl"] < 0.05 for figure in figures)
    for name in OURS:
        ours = sections["speed"]["rows"]["smollm2-135m"]["variants"][name]
        assert ours["reason"] == "", name
        assert ours["workloads"]["decode-24-1"]["seconds"], name
