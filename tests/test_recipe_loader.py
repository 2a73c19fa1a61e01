"""What a right recipe becomes."""

import json
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from compress import DistillConfig, PruneConfig
from evaluation.measurement import METRICS
from recipes.config.errors import RecipeError
from recipes.config.loader import load_recipe, shipped_recipes
from recipes.config.recipe import BenchmarkConfig, EvaluateConfig, json_schema
from recipes.config.stages import STAGES


@pytest.fixture
def recipe_file(tmp_path: Path, text_file: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "test.txt").write_text("text", encoding="utf-8")
    file = tmp_path / "small.yaml"
    file.write_text(
        f"""\
model: model
data: {{train: {text_file}, test: test.txt}}
stages:
  - prune: {{sparsity: 0.5}}
  - prune: {{pattern: 2:4}}
  - distill: {{tokens: 500_000, learning_rate: 1e-4}}
  - quantize:
""",
        encoding="utf-8",
    )
    return file


def test_defaults_and_relative_paths(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file)
    assert recipe.name == "small"
    assert recipe.model is not None
    assert recipe.model.folder == recipe_file.parent / "model"
    assert recipe.data.test.file == recipe_file.parent / "test.txt"
    assert (recipe.evaluate, recipe.benchmark, recipe.gate, recipe.seed) == (EvaluateConfig(), None, {}, 0)


def test_yaml_1_2_scalars(recipe_file: Path) -> None:
    configs = [stage.config for stage in load_recipe(recipe_file).stages]
    assert configs[1] == PruneConfig(pattern="2:4")
    assert configs[2] == DistillConfig(tokens=500_000, learning_rate=1e-4)


def test_a_recipe_is_frozen(recipe_file: Path) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load_recipe(recipe_file).seed = 1  # type: ignore[misc]  # that it cannot be assigned is what is tested


def test_overrides(recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "mine.txt").write_text("mine", encoding="utf-8")
    monkeypatch.chdir(here)
    overrides = [
        "data.test=mine.txt",
        "distill.layers=2",
        "stages.1.sparsity=0.25",
        "benchmark.prompt=7",
        "data.train.field=x",
    ]
    recipe = load_recipe(recipe_file, overrides)
    assert recipe.data.test.file == here / "mine.txt"
    assert recipe.stages[2].config == DistillConfig(tokens=500_000, learning_rate=1e-4, layers=2)
    assert recipe.stages[0].config == PruneConfig(sparsity=0.25)
    assert recipe.benchmark == BenchmarkConfig(prompt=7)
    assert recipe.data.train is not None
    assert recipe.data.train.field == "x"


def test_an_override_of_null_takes_a_key_away(recipe_file: Path) -> None:
    assert load_recipe(recipe_file, ["benchmark.prompt=7", "benchmark=null"]).benchmark is None


def test_the_stage_that_is_one_of_several_needs_its_number(recipe_file: Path) -> None:
    with pytest.raises(RecipeError, match=r"expected one of stages\.1, stages\.2, got 'prune'"):
        load_recipe(recipe_file, ["prune.sparsity=0.1"])


def test_the_schema_knows_every_stage_section_and_metric() -> None:
    schema = json_schema()
    json.dumps(schema)
    items = schema["properties"]["stages"]["items"]["oneOf"]
    assert {kind for item in items for kind in item.get("properties", {})} == set(STAGES)
    assert set(schema["properties"]["gate"]["properties"]) == {name for name in METRICS if not METRICS[name].named}
    (pattern,) = schema["properties"]["gate"]["patternProperties"]
    assert re.search(pattern, "hellaswag/accuracy")
    assert not re.search(pattern, "hellaswag/weight_bytes")
    references = [part.split('"')[0] for part in json.dumps(schema).split("#/$defs/")[1:]]
    assert references
    assert set(references) <= set(schema["$defs"])


def test_shipped_recipes_are_found() -> None:
    assert {"quickstart", "smollm2-135m", "teacher"} <= set(shipped_recipes())
