"""The set-up: what is installed is pinned, what is shipped is packaged, and make sets up exactly when it must."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PINNED = re.compile(r"[A-Za-z0-9_.\-]+==[A-Za-z0-9_.\-]+")


def lines_of(file: str) -> list[str]:
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def pins() -> dict[str, str]:
    pairs = (line.split("==") for line in lines_of("constraints.txt"))
    return {canonicalize_name(name): version for name, version in pairs}


def requirements() -> list[Requirement]:
    project = PROJECT["project"]
    return [Requirement(text) for text in [*project["dependencies"], *project["optional-dependencies"]["dev"]]]


def test_constraints_pin_exactly_and_name_no_host() -> None:
    lines = lines_of("constraints.txt")
    assert len(lines) > 50
    assert [line for line in lines if not PINNED.fullmatch(line)] == []
    assert "torch==2.13.0" in lines


def test_every_dependency_is_pinned_within_its_range() -> None:
    pinned = pins()
    assert len(requirements()) > 20
    for requirement in requirements():
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement


def test_what_is_installed_is_what_is_pinned() -> None:
    installed = {
        canonicalize_name(found.name): found.version.partition("+")[0] for found in importlib.metadata.distributions()
    }
    pinned = pins()
    assert {name: installed[name] for name in pinned.keys() & installed.keys() if pinned[name] != installed[name]} == {}


def test_every_dependency_says_what_for() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if re.match(r'\s+"[a-z][\w.-]*[<>=]', line)]
    assert len(lines) >= len(requirements())
    assert [line for line in lines if not re.search(r'",\s*# .{5,}', line)] == []


def test_every_package_is_found() -> None:
    from setuptools import find_packages

    found = find_packages(str(ROOT), include=PROJECT["tool"]["setuptools"]["packages"]["find"]["include"])
    tops = ["compress", "evaluation", "export", "recipes"]
    there = {
        str(file.parent.relative_to(ROOT)).replace(os.sep, ".")
        for top in tops
        for file in (ROOT / top).rglob("__init__.py")
    }
    assert sorted(found) == sorted(there)
    assert {"compress.training", "export.passes"} <= there


def test_everything_that_is_shipped_is_package_data() -> None:
    data = PROJECT["tool"]["setuptools"]["package-data"]
    for package, globs in data.items():
        covered = {file for glob in globs for file in (ROOT / package).glob(glob) if file.is_file()}
        covered |= {
            file for glob in globs for file in (ROOT / package).glob(glob.replace("**", "**/*")) if file.is_file()
        }
        shipped = {
            file
            for file in (ROOT / package).rglob("*")
            if file.is_file() and file.suffix not in {".py", ".pyc"} and "__pycache__" not in file.parts
        }
        assert shipped, package
        assert shipped - covered == set()


def test_license_and_version() -> None:
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    version = PROJECT["project"]["version"]
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert importlib.metadata.version("demitasse") == version


def test_ci_script_is_a_program_that_runs_make_test() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert "make --no-print-directory test" in script.read_text(encoding="utf-8")


# ---- make, with a stand-in for Python that notes what it was asked for

STAND_IN = """#!/bin/sh
echo "$@" >> "$CALLS"
case "$*" in
  "-m venv --clear .venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
  *"pip install"*) exit "${PIP_EXIT:-0}" ;;
esac
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    stand_in = tmp_path / "python"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    return tmp_path


def set_up(clone: Path, stamp: str = "installed", **environment: str) -> tuple[int, list[str]]:
    """Run the set-up: make's exit code, and what Python was asked for."""
    calls = clone / "calls"
    calls.write_text("")
    command = ["make", "-C", str(clone), f"PYTHON={clone / 'python'}", f".venv/{stamp}"]
    done = subprocess.run(
        command, env=os.environ | {"CALLS": str(calls), **environment}, capture_output=True, check=False
    )
    return done.returncode, calls.read_text().splitlines()


def installs(calls: list[str]) -> int:
    return sum("pip install" in call for call in calls)


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@needs_make
def test_set_up_runs_once_and_again_only_after_a_change(clone: Path) -> None:
    code, calls = set_up(clone)
    assert (code, installs(calls)) == (0, 1)
    assert "--constraint constraints.txt" in calls[-1]
    assert set_up(clone) == (0, [])
    later = (clone / ".venv" / "installed").stat().st_mtime + 10
    os.utime(clone / "constraints.txt", (later, later))
    code, calls = set_up(clone)
    assert (code, installs(calls)) == (0, 1)
    assert "-m venv --clear .venv" not in calls


@needs_make
def test_quickstart_installs_what_it_needs_and_tests_what_they_need_too(clone: Path) -> None:
    code, calls = set_up(clone)
    assert (code, calls[-1].split("--editable ")[1].split()[0]) == (0, ".")
    code, calls = set_up(clone, "installed-dev")
    assert (code, calls[-1].split("--editable ")[1].split()[0]) == (0, ".[dev]")
    assert set_up(clone) == (0, [])
    assert set_up(clone, "installed-dev") == (0, [])


@needs_make
def test_set_up_that_was_cut_short_is_taken_up_again(clone: Path) -> None:
    assert set_up(clone, PIP_EXIT="1")[0] != 0
    code, calls = set_up(clone)
    assert (code, installs(calls)) == (0, 1)


@needs_make
def test_set_up_without_python_says_so(clone: Path) -> None:
    done = subprocess.run(
        ["make", "-C", str(clone), "PYTHON=", ".venv/installed"], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "needs Python 3.11 or newer" in done.stderr
