"""What is shipped is enough: a wheel that is installed apart runs the quickstart where there is no clone."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ("compress", "export", "evaluation", "recipes", "pyproject.toml", "README.md", "LICENSE")
SMALL = [
    "distill.tokens=1024",
    "distill.length=64",
    "evaluate.window=64",
    "evaluate.windows=16",
    "benchmark.prompt=16",
    "benchmark.tokens=4",
    "benchmark.blocks=3",
    "benchmark.stage_blocks=0",
    "benchmark.threads=1",
    "gate.perplexity.max_ratio=2",
    "gate.decode_latency=null",  # by so few blocks, on a machine that does other things too
]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """The folder that a wheel of this project is installed into."""
    setuptools = pytest.importorskip("setuptools", minversion="77", reason="setuptools 77 builds the wheel")
    assert setuptools
    source, wheels = tmp_path / "source", tmp_path / "wheels"
    source.mkdir()  # a build leaves files beside the sources, so it has a copy of them
    for name in SHIPPED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    pip("wheel", source, "--no-build-isolation", "--wheel-dir", wheels)
    (wheel,) = wheels.glob("demitasse-*.whl")
    pip("install", wheel, "--target", tmp_path / "site")
    shutil.rmtree(source)
    return tmp_path / "site"


def pip(*arguments: object) -> None:
    command = [sys.executable, "-m", "pip", *map(str, arguments), "--no-deps", "--no-index", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.thorough
@pytest.mark.alone
def test_an_installed_wheel_runs_the_quickstart_without_the_clone(site: Path, tmp_path: Path) -> None:
    folder, environment = tmp_path / "user", os.environ | {"PYTHONPATH": str(site), "COLUMNS": "200"}
    folder.mkdir()

    def run(*command: object) -> str:
        done = subprocess.run(
            list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    code = "import {0}; print({0}.__file__)"
    places = [run(sys.executable, "-c", code.format(package)).strip() for package in SHIPPED[:4]]
    assert all(Path(place).is_relative_to(site) for place in places), places
    said = run(site / "bin" / "demitasse", "run", "quickstart", *(part for one in SMALL for part in ("--set", one)))
    assert "PASS" in said
    assert (folder / "runs" / "quickstart" / "final" / "model.onnx").is_file()
    assert "whole" in run(site / "bin" / "demitasse", "verify", "runs/quickstart/final")
