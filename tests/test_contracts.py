"""The promises that hold over every package, registry, stage, recipe and page; each test finds some or fails."""

import ast
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from compress import Stage, StageInput, TextSource, inspect_checkpoint
from compress.calibration import inputs_of
from compress.distillation.distill import BETWEEN_LAYERS, STORABLE, LossName
from compress.distillation.layers import LAYER_LOSSES
from compress.pruning.prune import PruneConfig
from compress.pruning.sparsify import CRITERIA, Amount, choose
from compress.quantize import SCHEMES, QuantizeConfig
from compress.training.losses import LOSSES, WITH_STORED_TEACHER, Chunk
from evaluation.measurement import METRICS
from recipes import load_recipe
from recipes.stages import STAGES

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("compress", "export", "evaluation", "recipes")
MAY_IMPORT = {
    "compress": {"compress"},
    "export": {"export", "compress"},
    "evaluation": {"evaluation"},
    "recipes": {"recipes", "compress", "export", "evaluation"},
}
HEAVY = ("torch", "transformers", "onnx", "onnxruntime", "onnx_ir", "mobius", "matplotlib", "scipy", "bitsandbytes")
KNOBS: dict[str, dict[str, Any]] = {
    "train": {"tokens": 1024, "length": 32, "batch": 8},
    "prune": {"sparsity": 0.5},
    "slim": {"ffn": 0.75, "layers": 2, "heads": 0.5},
    "distill": {"layers": 2, "tokens": 1024, "length": 32, "batch": 8},
    "quantize": {"embeddings": True},
    "export": {"parity_tokens": 32},
}


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: expected absolute imports"
            yield str(node.module).split(".")[0]


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_run_one_way(package: str) -> None:
    files = modules(package)
    assert len(files) >= 5
    for file in files:
        ours = set(imported(file)) & {*PACKAGES, "tests", "benchmarks"}
        assert ours <= MAY_IMPORT[package], f"{file.relative_to(ROOT)} imports {ours - MAY_IMPORT[package]}"


@pytest.mark.parametrize("package", [*PACKAGES, "recipes.cli", "recipes.stages"])
def test_importing_a_package_imports_nothing_heavy(package: str) -> None:
    code = f"import sys, {package}; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert answer.stdout.split() == []


def test_files_and_functions_stay_short_and_say_what_they_are() -> None:
    files = [file for package in PACKAGES for file in modules(package)]
    assert len(files) > 40
    for file in files:
        text = file.read_text(encoding="utf-8")
        tree = ast.parse(text)
        assert ast.get_docstring(tree) or not text.strip(), f"{file}: expected prose at its head"
        assert len(text.splitlines()) <= 400, f"{file} has {len(text.splitlines())} lines"
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                assert length <= 60, f"{file}: {node.name} has {length} lines"


def test_no_room_is_called_after_a_dependency_or_after_nothing() -> None:
    names = {file.stem for package in PACKAGES for file in modules(package)}
    assert not names & {"utils", "common", "core", "onnx", "torch", "transformers", "numpy", "yaml"}


def test_registries_and_the_knobs_that_name_their_entries_agree() -> None:
    assert set(get_args(PruneConfig.model_fields["criterion"].annotation)) == set(CRITERIA)
    assert set(get_args(LossName)) == {*LOSSES, *LAYER_LOSSES}
    assert set(LAYER_LOSSES) == BETWEEN_LAYERS
    assert WITH_STORED_TEACHER == STORABLE
    assert set(get_args(QuantizeConfig.model_fields["scheme"].annotation)) == set(SCHEMES)
    assert all(kind == stage.kind for kind, stage in STAGES.items())
    assert all(metric.summary and metric.better in {"lower", "higher"} for metric in METRICS.values())


@pytest.mark.parametrize("name", sorted(CRITERIA))
def test_every_criterion_scores_each_weight_and_changes_none(name: str) -> None:
    weight_OI = torch.randn(6, 8)
    copy_OI = weight_OI.clone()
    inputs, amount = inputs_of(torch.randn(20, 8), CRITERIA[name].reads), Amount(sparsity=0.25)
    score_OI = CRITERIA[name].score(weight_OI, inputs)
    pruned_OI = CRITERIA[name].prune(weight_OI, inputs, choose(amount))
    assert score_OI.shape == pruned_OI.shape == weight_OI.shape
    assert torch.isfinite(score_OI).all()
    assert score_OI.min() >= 0
    assert int((pruned_OI == 0).sum()) == 12
    assert torch.equal(weight_OI, copy_OI)
    assert CRITERIA[name].summary


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_every_loss_is_told_position_by_position_with_its_slope(name: str) -> None:
    """Its slope is its derivative where log q may change freely, and says what it is."""
    log_q_NV, log_p_NV = (torch.randn(3, 5, dtype=torch.float64).log_softmax(-1) for _ in range(2))
    value_N, slope_NV = LOSSES[name](Chunk(log_q_NV, log_p_NV, None, torch.tensor([0, 4, 2]), 0.1))
    assert value_N.shape == (3,)
    assert slope_NV.shape == (3, 5)
    assert (value_N >= 0).all()
    assert LOSSES[name].__doc__


@pytest.mark.parametrize("name", sorted(LAYER_LOSSES))
def test_every_loss_between_layers_says_what_it_is(name: str) -> None:
    assert LAYER_LOSSES[name].__doc__


def source_for(stage: Stage[Any], gpt2: Path, int8: Path) -> Path:
    return int8 if stage.takes == frozenset({"int8"}) or stage.leaves == "onnx" else gpt2


@pytest.fixture(scope="module")
def int8(gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("int8")
    stage = STAGES["quantize"]
    scratch = tmp_path_factory.mktemp("scratch")
    stage.run(stage.config(embeddings=True), StageInput(source=gpt2, out=out, scratch=scratch))
    return out


@pytest.mark.parametrize("kind", sorted(STAGES))
def test_every_stage_keeps_the_contract(
    kind: str,
    gpt2: Path,
    int8: Path,
    text_file: Path,
    tmp_path: Path,
    folder_digest: Callable[[Path], dict[str, str]],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """It changes no input, prints nothing, leaves the form it says, and gives the same bytes when it is run again."""
    stage = STAGES[kind]
    source = source_for(stage, gpt2, int8)
    (tmp_path / "text").mkdir()
    text = TextSource(file=Path(shutil.copy(text_file, tmp_path / "text")))  # what else is shared may grow meanwhile
    inputs = {folder: folder_digest(folder) for folder in (source, gpt2, tmp_path / "text")}
    results = []
    for attempt in ("first", "second"):
        out, scratch = tmp_path / attempt / "out", tmp_path / attempt / "scratch"
        out.mkdir(parents=True)
        scratch.mkdir()
        given = StageInput(
            source=source, out=out, scratch=scratch, seed=3, teacher=gpt2, train_text=text, calibration_text=text
        )
        facts = stage.run(stage.config(**KNOBS[kind]), given)
        assert isinstance(facts, dict)
        assert facts
        results.append(folder_digest(out))
    assert capfd.readouterr() == ("", "")
    assert all(folder_digest(folder) == digest for folder, digest in inputs.items())
    assert results[0] == results[1]
    left = "onnx" if (tmp_path / "first" / "out" / "model.onnx").is_file() else inspect_checkpoint(out).form
    assert left == stage.leaves


def test_every_shipped_recipe_loads() -> None:
    names = sorted(file.stem for file in (ROOT / "recipes").glob("*.yaml"))
    assert {"quickstart", "smollm2-135m", "teacher"} <= set(names)
    for name in names:
        recipe = load_recipe(name)
        assert recipe.name == name
        assert recipe.stages
        assert recipe.gate, f"{name}: expected a gate: a recipe that judges nothing releases everything"
