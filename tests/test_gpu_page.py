"""docs/gpu.md against the code: what it shows and names is what there is. Its `sh` commands run in test_readme.py."""

import json
import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
import typer.main

from export.placement.kernel_table import path_of
from export.placement.place import Placement
from export.runtime.session import KEYS
from recipes import load_recipe
from recipes.cli.app import application
from recipes.measure.latency import PENDING

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "gpu.md").read_text(encoding="utf-8")
VERSION = "1.31.1"
"""Of ONNX Runtime, whose table the page quotes."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def commands() -> list[str]:
    """Those with placeholders, and those in the text."""
    lines = [re.sub(r"\s+#.*", "", line) for block in blocks("text") for line in block.splitlines()]
    return [line for line in (*lines, *re.findall(r"`([^`\n]+)`", PAGE)) if line.startswith("demitasse ")]


def test_commands_are_found() -> None:
    assert {shlex.split(line)[1] for line in commands()} >= {"export", "verify", "gate", "generate", "doctor"}


@pytest.mark.parametrize("line", dict.fromkeys(commands()))
def test_command_has_the_options_shown(line: str) -> None:
    _, name, *words = shlex.split(line)
    command = typer.main.get_command(application()).commands[name]  # type: ignore[attr-defined]  # a group has them
    options = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= options


def test_recipe_loads(tmp_path: Path) -> None:
    [recipe] = blocks("yaml")
    (tmp_path / "gpu.yaml").write_text(recipe, encoding="utf-8")
    for name in ("valid.txt", "test.txt"):
        (tmp_path / name).write_text("Some text of a user's own.\n", encoding="utf-8")
    model = Path(__file__).resolve().parent.parent / "recipes" / "models" / "novels-gpt2"
    stages = load_recipe(tmp_path / "gpu.yaml", {"model": model}).stages
    assert [stage.kind for stage in stages] == ["quantize", "export"]


def test_manifest_shown_has_what_a_manifest_has() -> None:
    [shown] = map(json.loads, blocks("json"))
    assert shown["placement"].keys() == {field.name for field in fields(Placement)} | {"provider"}
    assert shown["arithmetic"] == {"proven": "cpu float16", "pending": "cuda"}
    assert f"decode_latency: {PENDING}\n" in PAGE


def test_what_is_named_is_what_the_code_and_the_table_have() -> None:
    table = json.loads(path_of(VERSION).read_text(encoding="utf-8"))
    assert all(f"`{key}={value}`" in PAGE for key, value in KEYS["cuda"].items())
    assert _listed(table["architectures"], "and") in PAGE
    sizes, groups = (_listed(table["xqa"][key], "or") for key in ("head_sizes", "groups"))
    assert f"{sizes} wide, {groups} query heads" in PAGE
    assert all(taken["block_size"] == [32] for name, taken in table["fast"].items() if "2 bits" not in name)


def _listed(words: list[object], last: str) -> str:
    *others, end = map(str, words)
    return f"{', '.join(others)} {last} {end}"
