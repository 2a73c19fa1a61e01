"""The doctor: what it looks at, and that its findings are about this machine."""

import importlib.metadata
import os
import sys
from pathlib import Path

import pytest

from recipes.cli import doctor
from recipes.cli.doctor import CHECKS, Finding, advice_for, captured_stderr, examine, tiny_model, why_not


@pytest.fixture(scope="module")
def findings() -> dict[str, Finding]:
    return {finding.subject: finding for finding in examine()}


def test_every_dependency_has_the_version_that_is_installed(findings: dict[str, Finding]) -> None:
    for name in ("torch", "transformers", "pydantic", "ruamel.yaml"):
        assert findings[name].found == importlib.metadata.version(name)
        assert findings[name].status == "ok"


def test_what_everything_needs_is_there(findings: dict[str, Finding]) -> None:
    for subject in ("Python", "CPU", "memory", "disk", "CPUExecutionProvider", "8-bit quantizer"):
        assert findings[subject].status != "missing", findings[subject]


def test_what_is_not_right_comes_with_advice(findings: dict[str, Finding]) -> None:
    assert len(findings) > len(CHECKS)
    assert [finding for finding in findings.values() if finding.status == "missing" and not finding.advice] == []


def test_a_provider_counts_only_when_it_computes() -> None:
    assert why_not("CPUExecutionProvider", tiny_model()) == ""
    assert why_not("CPUExecutionProvider", b"no model") != ""


def test_a_version_out_of_range_is_missing_with_the_command_that_mends_it() -> None:
    finding = doctor._library("numpy", ">=99", lambda version: False)
    assert finding.status == "missing"
    assert finding.advice == 'pip install "numpy>=99" -c constraints.txt'
    assert doctor._library("no-such-thing", ">=1", lambda version: True).found == "not installed"


def test_a_gpu_that_cannot_be_used_is_missing() -> None:
    reason = "libcublasLt.so.13: cannot open shared object file: No such file or directory"
    assert doctor._provider("CUDAExecutionProvider", reason, wanted=True).status == "missing"
    assert doctor._provider("CUDAExecutionProvider", reason, wanted=False).status == "note"
    assert "CUDA" in advice_for(reason)


def test_captured_stderr_holds_what_c_code_writes(capfd: pytest.CaptureFixture[str]) -> None:
    with captured_stderr() as said:
        os.write(2, b"from C\n")
    assert said == ["from C\n"]
    assert capfd.readouterr().err == ""


def test_first_line_leaves_out_where_in_the_library_it_was_said() -> None:
    place = "\x1b[1;31m2026-01-01 [E:onnxruntime:, x.cc:2043 Get] [ONNXRuntimeError] : 1 : FAIL : "
    text = f"{place}Failed to load library a.so with error: b.so: no\x1b[m"
    assert doctor._first_line(text) == "b.so: no"
    assert doctor._first_line("\n  plain words\nmore") == "plain words"


@pytest.mark.skipif(not Path("/proc/cpuinfo").is_file(), reason="the flags of the CPU stand in /proc on Linux only")
def test_cpu_flags() -> None:
    assert len(doctor._cpu_flags()) > 3


def test_python_is_named(findings: dict[str, Finding]) -> None:
    assert sys.executable in findings["Python"].found
