"""What a report says about where things came from: the recipe as run, and what it read, with hashes and licenses.

A license is what the owner stated: the `license` in the front matter of the model's README.md, as on the hub. Where
nobody stated one it stays empty; nothing is guessed from a name.
"""

from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from compress.digests import digest_file
from compress.text import TextSource
from evaluation.report import Source
from recipes.config.recipe import Recipe
from recipes.engine import model_source as models

FENCE = "---"


def recipe_text(recipe: Recipe) -> str:
    """The recipe's file, or what one would say, below the overrides; empty for a recipe that was made by itself."""
    overrides = [f"# --set {text}\n" for text in dict.fromkeys(recipe.where.overrides.values())]
    return "".join([*overrides, recipe.text if recipe.path is None else recipe.path.read_text(encoding="utf-8")])


def sources_of(recipe: Recipe, source: models.Source) -> list[Source]:
    """The model and the texts of a recipe; the model's hash is that of its weights, where they are one file."""
    found: list[Source] = []
    if recipe.model is not None and source.checkpoint is not None:
        weights = source.checkpoint.files
        found.append(
            Source(
                role="model",
                name=str(recipe.model),
                digest=digest_file(weights[0]) if len(weights) == 1 else "",
                license=license_of(source.checkpoint.folder),
            )
        )
    texts: dict[str, TextSource | None] = dict(recipe.data)
    for role in ("train", "calibration", "test"):
        text = texts[role]
        if text is not None:
            digest = "" if text.file is None else digest_file(text.file)
            found.append(Source(role=role, name=str(text), digest=digest))
    return found


def license_of(folder: Path) -> str:
    """The license that a model's README.md states in its front matter, or empty."""
    file = folder / "README.md"
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    if not text.startswith(FENCE):
        return ""
    try:
        stated = YAML(typ="safe", pure=True).load(text.split(FENCE, 2)[1])
    except YAMLError:
        return ""
    return str(stated.get("license", "")) if isinstance(stated, dict) else ""
