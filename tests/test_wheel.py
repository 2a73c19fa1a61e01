"""What is shipped is enough and typed: a wheel that is installed apart runs the quickstart where there is no clone."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
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


@pytest.mark.thorough
@pytest.mark.alone
def test_the_python_examples_are_clean_under_mypy_strict(site: Path, tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="mypy checks the examples")
    venv.create(tmp_path / "venv")
    (packages,) = (tmp_path / "venv" / "lib").glob("python3*/site-packages")
    (packages / "all.pth").write_text(f"{site}\n{sysconfig.get_path('purelib')}\n", encoding="utf-8")
    folder = tmp_path / "user"
    folder.mkdir()
    for page in (ROOT / "README.md", ROOT / "docs" / "api.md"):
        for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)):
            (folder / f"{page.stem.lower()}_{number}.py").write_text(code, encoding="utf-8")
    examples = sorted(file.name for file in folder.iterdir())
    assert len(examples) >= 5
    command = [sys.executable, "-m", "mypy", "--strict", "--python-executable", tmp_path / "venv" / "bin" / "python"]
    environment = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "MYPYPATH"}}
    done = subprocess.run(
        list(map(str, [*command, *examples])), cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"no issues found in {len(examples)} source files" in done.stdout
