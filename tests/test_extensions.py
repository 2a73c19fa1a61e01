"""A package of somebody else's brings a stage and a metric: installed, recipes and gates name them like ours."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Share

ROOT = Path(__file__).resolve().parent.parent
PROJECT = """\
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "tint"
version = "1.0"
[project.entry-points."demitasse.stages"]
tint = "tint:TINT"
[project.entry-points."demitasse.metrics"]
surprises = "tint:SURPRISES"
[tool.setuptools]
py-modules = ["tint"]
"""
MODULE = '''\
"""A stage that copies, and the share of tokens that cost more than so many nats."""
import shutil

from compress import Stage, StageConfig
from evaluation.measurement import Metric
from evaluation.quality import TokenMetric


class TintConfig(StageConfig):
    shade: float = 0.5
    """How dark."""


def tint(config, given):
    shutil.copytree(given.source, given.out, dirs_exist_ok=True)
    return {"shade": config.shade}


TINT = Stage(
    kind="tint",
    summary="copy a model",
    version=1,
    config=TintConfig,
    takes=frozenset({"dense"}),
    leaves="dense",
    run=tint,
)
SURPRISES = TokenMetric(
    metric=Metric(name="Surprises", unit="share", better="lower", summary="share above 4 nats", more="documents"),
    of_tokens=lambda scores: (scores.nll > 4.0).astype(float),
)
'''
RECIPE = """\
model: {model}
data: {{test: {text}}}
stages: [{{tint: {{shade: 0.25}}}}]
evaluate: {{window: 32, windows: 16}}
gate: {{surprises: {{max_ratio: 1.01}}}}
"""


@pytest.fixture(scope="module")
def site(shared: Share) -> Path:
    """A folder with the package installed."""
    pytest.importorskip("setuptools", reason="setuptools builds the package")

    def install(folder: Path) -> None:
        source = folder / "source"
        source.mkdir(parents=True)
        (source / "pyproject.toml").write_text(PROJECT)
        (source / "tint.py").write_text(MODULE)
        alone = ["--no-build-isolation", "--no-deps", "--no-index", "--quiet"]
        asked = ["install", source, "--target", folder / "site", *alone]
        subprocess.run([sys.executable, "-m", "pip", *map(str, asked)], check=True)

    return shared("extension", install) / "site"


def demitasse(*arguments: object, site: Path | None) -> tuple[int, str]:
    """A command in a process of its own: its exit code and what it said."""
    paths = [str(path) for path in (site, ROOT) if path is not None]
    command = [sys.executable, "-c", "from recipes.cli.app import main; main()", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.thorough
def test_a_stage_and_a_metric_of_another_package_run_and_judge(
    site: Path, gpt2: Path, text_file: Path, tmp_path: Path
) -> None:
    file = tmp_path / "tinted.yaml"
    file.write_text(RECIPE.format(model=gpt2, text=text_file))
    code, said = demitasse("run", file, "--out", tmp_path / "run", site=site)
    assert (code, "PASS" in said) == (0, True), said
    report = (tmp_path / "run" / "report.json").read_text()
    assert '"shade": 0.25' in report
    assert "Surprises" in (tmp_path / "run" / "report.md").read_text()
    code, said = demitasse("gate", tmp_path / "run", site=site)
    assert (code, "PASS" in said) == (0, True), said
    code, said = demitasse("plan", file, site=None)
    assert code == 2
    assert "got 'tint'" in said
    assert "got the unknown key 'surprises'" in said


def test_a_knob_of_another_package_has_its_option(site: Path) -> None:
    code, said = demitasse("tint", "--help", site=site)
    assert (code, "--shade" in said, "How dark." in said) == (0, True, True), said


@pytest.mark.parametrize(
    ("entry", "wrong"),
    [
        ("nothing:AT_ALL", "expected nothing:AT_ALL to be there, got ModuleNotFoundError"),
        ("os:sep", "expected a Stage, got str"),
    ],
)
def test_a_package_whose_stage_cannot_be_used_is_named(entry: str, wrong: str, tmp_path: Path) -> None:
    info = tmp_path / "broken-2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 2.0\n")
    (info / "entry_points.txt").write_text(f"[demitasse.stages]\nspoil = {entry}\n")
    code, said = demitasse("methods", site=tmp_path)
    assert code == 2
    (line,) = said.strip().splitlines()
    assert line.startswith(f"error: broken 2.0: entry point 'spoil' of demitasse.stages: {wrong}")
