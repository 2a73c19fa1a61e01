"""The report's recipe, hashes and licenses are those of the files."""

import hashlib
import shutil
from pathlib import Path

import pytest

from recipes.config.loader import load_recipe
from recipes.engine.model_source import NOTHING, resolve
from recipes.engine.provenance import license_of, recipe_text, sources_of


def test_the_recipe_is_told_with_its_overrides() -> None:
    recipe = load_recipe("quickstart", ["prune.sparsity=0.4", "seed=3"])
    assert recipe.path is not None
    assert recipe_text(recipe) == "# --set prune.sparsity=0.4\n# --set seed=3\n" + recipe.path.read_text()
    made = recipe.model_copy(update={"path": None, "text": "seed: 3\n"})
    assert recipe_text(made) == "# --set prune.sparsity=0.4\n# --set seed=3\nseed: 3\n"


def test_what_was_read_has_the_hash_of_its_file() -> None:
    recipe = load_recipe("quickstart")
    found = {source.role: source for source in sources_of(recipe, resolve(recipe))}
    assert list(found) == ["model", "train", "calibration", "test"]
    assert recipe.data.test.file is not None
    assert found["test"].digest == hashlib.sha256(recipe.data.test.file.read_bytes()).hexdigest()
    assert recipe.model is not None
    assert recipe.model.folder is not None
    weights = recipe.model.folder / "model.safetensors"
    assert found["model"].digest == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert found["model"].license == ""


def test_a_recipe_that_starts_from_nothing_has_no_model() -> None:
    assert [source.role for source in sources_of(load_recipe("teacher"), NOTHING)] == ["train", "calibration", "test"]


@pytest.mark.parametrize(
    ("text", "stated"),
    [
        ("---\nlicense: apache-2.0\ntags: [a]\n---\n# A model", "apache-2.0"),
        ("---\ntags: [a]\n---\n", ""),
        ("---\n: [\n---\n", ""),
        ("# A model\nlicense: mit\n", ""),
    ],
)
def test_a_license_is_what_the_front_matter_states(text: str, stated: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(text)
    assert license_of(tmp_path) == stated
    shutil.rmtree(tmp_path)
    assert license_of(tmp_path) == ""
