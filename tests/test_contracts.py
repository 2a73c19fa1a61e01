"""The promises that hold over every package, registry, stage, recipe and page; each test finds some or fails."""

import ast
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest
import torch

from compress import Stage, StageInput, TextSource, inspect_checkpoint
from compress.distillation.config import LAYER_LOSSES
from compress.models.calibration import inputs_of
from compress.pruning.config import CRITERIA
from compress.pruning.criteria import pruned
from compress.pruning.masks import choose
from compress.pruning.sparsity import Amount
from compress.training.config import LOSSES
from compress.training.losses import Chunk
from evaluation.measurement import METRICS
from recipes import load_recipe
from recipes.config.stages import STAGES

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


ROOMS = ("config", "runs", "formats", "measure", "engine", "cli")
"""Of recipes/, each of which may import itself and those before it."""
ROOTS = {"__init__.py"}
IN_FUNCTIONS = 40


def imports_of(file: Path) -> Iterator[tuple[str, bool]]:
    """(module of ours, whether it is imported inside of a function) of each import, those for types counted too."""

    def walk(node: ast.AST, inside: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ImportFrom) and str(child.module).partition(".")[0] in (*PACKAGES, "benchmarks"):
                yield from ((found, inside) for found in _modules_named(child))
            yield from walk(child, inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))

    return walk(ast.parse(file.read_text(encoding="utf-8")), False)


def _modules_named(node: ast.ImportFrom) -> set[str]:
    home = ROOT / str(node.module).replace(".", "/")
    inner = {f"{node.module}.{name.name}" for name in node.names if (home / f"{name.name}.py").is_file()}
    return inner or {str(node.module)}


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_rooms_of_recipes_import_one_way() -> None:
    looked_at = 0
    for file in modules("recipes"):
        room = file.relative_to(ROOT / "recipes").parts[0]
        if room in ROOTS:
            continue
        assert room in ROOMS, f"{file}: a room that the design does not know"
        for module, _ in imports_of(file):
            if module.startswith("recipes."):
                other = module.split(".")[1]
                assert ROOMS.index(other) <= ROOMS.index(room), f"{name_of(file)} imports {module}"
                looked_at += 1
    assert looked_at > 100


def test_no_imports_run_in_a_circle_and_few_hide_in_functions() -> None:
    graph: dict[str, set[str]] = {}
    hidden = []
    for file in (file for package in (*PACKAGES, "benchmarks") for file in modules(package)):
        found = list(imports_of(file))
        graph[name_of(file)] = {module for module, _ in found} - {name_of(file)}
        if not name_of(file).startswith("benchmarks"):
            hidden += [(name_of(file), module) for module, inside in found if inside]
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle
    assert len(hidden) <= IN_FUNCTIONS, hidden


@pytest.mark.parametrize("package", [*PACKAGES, "recipes.cli.app", "recipes.config.stages"])
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
    assert all(kind == stage.kind for kind, stage in STAGES.items())
    assert all(metric.summary and metric.better in {"lower", "higher"} for metric in METRICS.values())
    assert not LOSSES.keys() & LAYER_LOSSES.keys()


@pytest.mark.parametrize("name", sorted(CRITERIA))
def test_every_criterion_scores_each_weight_and_changes_none(name: str) -> None:
    weight_OI = torch.randn(6, 8)
    copy_OI = weight_OI.clone()
    inputs, amount = inputs_of(torch.randn(20, 8), CRITERIA[name].reads), Amount(sparsity=0.25)
    score_OI = CRITERIA[name].score(weight_OI, inputs)
    pruned_OI = pruned(CRITERIA[name], weight_OI, inputs, choose(amount))
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
    value_N, slope_NV = LOSSES[name].function(Chunk(log_q_NV, log_p_NV, None, torch.tensor([0, 4, 2]), 0.1))
    assert value_N.shape == (3,)
    assert slope_NV.shape == (3, 5)
    assert (value_N >= 0).all()
    assert LOSSES[name].summary


@pytest.mark.parametrize("name", sorted(LAYER_LOSSES))
def test_every_loss_between_layers_says_what_it_is(name: str) -> None:
    assert LAYER_LOSSES[name].summary


def source_for(stage: Stage[Any], gpt2: Path, int8: Path) -> Path:
    return int8 if stage.takes == frozenset({"quantized"}) or stage.leaves == "onnx" else gpt2


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
    """It changes no input, prints nothing, leaves the format it says, and gives the same bytes when it is run again."""
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
        metadata = stage.run(stage.config(**KNOBS[kind]), given)
        assert isinstance(metadata, dict)
        assert metadata
        results.append(folder_digest(out))
    assert capfd.readouterr() == ("", "")
    assert all(folder_digest(folder) == digest for folder, digest in inputs.items())
    assert results[0] == results[1]
    left = "onnx" if (tmp_path / "first" / "out" / "model.onnx").is_file() else inspect_checkpoint(out).format
    assert left == stage.leaves


def test_every_shipped_recipe_loads() -> None:
    names = sorted(file.stem for file in (ROOT / "recipes").glob("*.yaml"))
    assert {"quickstart", "smollm2-135m", "teacher"} <= set(names)
    for name in names:
        recipe = load_recipe(name)
        assert recipe.name == name
        assert recipe.stages
        assert recipe.gate, f"{name}: expected a gate: a recipe that judges nothing releases everything"
