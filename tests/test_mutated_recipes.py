"""Recipes with something else in some places: each is taken, or refused in lines that can be read, and nothing else."""

import copy
import json
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest
from conftest import ROOT

from recipes.config.errors import LONGEST, RecipeError
from recipes.config.loader import load_recipe
from recipes.config.yaml_text import parse_yaml

sys.path.append(str(ROOT / "tests" / "campaign"))
from mutate import ZOO, apply, changed, drawn_byte_op, drawn_path, drawn_tree_op

FULL = """\
model: model
data: {train: train.txt, calibration: {file: calibration.txt}, test: test.txt}
stages:
  - train: {learning_rate: 1e-3}
  - prune: {sparsity: 0.3, criterion: wanda, pattern: null}
  - slim: {layers: 2}
  - distill: {layers: 2}
  - quantize: {scheme: int8_group, group: 32}
  - export
evaluate:
  window: 64
  noise: {typos: 0.1, case: 0.1}
  tasks: [{name: hs, file: rows.jsonl, shots: 1}, {name: lambada_openai, limit: 3}]
  labeled: [{name: who, file: rows.jsonl, answers: {a: " yes", b: " no"}}]
  generation: [{name: lines, file: rows.jsonl, tokens: 3}]
benchmark: {prompt: 8, tokens: 8, threads: 1}
gate: {perplexity: {max_ratio: 1.1}, hs/accuracy: {at_least: 0.5}, decode_latency: {max_ratio: 0.5}}
seed: 3
launcher: "torchrun --nproc-per-node 2"
"""
TREE: Any = parse_yaml(FULL)[1]
MORE = ("~nosuch", "~nosuch/x", "\0", "2:4", [None], {"file": None}, ["prune"], [{"prune": None, "slim": 1}])
"""What people leave where a path, a text or a stage belongs, beside what the campaign puts there."""
COUNT = 150


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the recipe names."""
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "model").mkdir()
    for name in ("train.txt", "calibration.txt", "test.txt", "rows.jsonl"):
        (folder / name).write_text("text", encoding="utf-8")
    return folder


def taken_or_refused(file: Path, *settings: str) -> bool:
    """Whether it is taken; else every error is a line that can be read."""
    try:
        load_recipe(file, settings)
    except RecipeError as error:
        errors = error.errors
    else:
        return True
    assert errors
    assert all(line.strip() and len(line.splitlines()) == 1 and len(line) < LONGEST + 10 for line in errors)
    return False


def test_the_recipe_itself_is_taken(given: Path) -> None:
    file = given / "recipe.yaml"
    file.write_text(FULL, encoding="utf-8")
    assert taken_or_refused(file)


@pytest.mark.parametrize("seed", range(2))
def test_every_mutated_recipe_is_taken_or_refused(given: Path, seed: int) -> None:
    random, file, refused = Random(seed), given / f"mutated-{seed}.yaml", 0
    for _ in range(COUNT // 2):
        tree = copy.deepcopy(TREE)
        for _ in range(random.choice((1, 1, 2))):
            op = drawn_tree_op(random, file.name, TREE)
            if op["do"] == "set" and random.random() < 0.2:
                op["value"] = random.choice(MORE)
            tree = changed(op, tree)
        file.write_text(json.dumps(tree), encoding="utf-8")
        refused += not taken_or_refused(file)
    for _ in range(COUNT // 2):
        file.write_text(FULL, encoding="utf-8")
        apply(drawn_byte_op(random, file.name, len(FULL)), given)
        refused += not taken_or_refused(file)
    assert COUNT / 4 < refused < COUNT


def test_every_setting_is_taken_or_refused(given: Path) -> None:
    random, file = Random(0), given / "set.yaml"
    file.write_text(FULL, encoding="utf-8")
    for _ in range(COUNT):
        path, _ = drawn_path(random, TREE)
        value = random.choice((*ZOO, *MORE))
        taken_or_refused(file, f"{'.'.join(map(str, path))}={value if isinstance(value, str) else json.dumps(value)}")
