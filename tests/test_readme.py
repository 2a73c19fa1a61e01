"""What the pages tell a user to type works as printed.

The commands are run in an empty folder, in the order of the pages, with fewer tokens, windows and blocks than the
recipe has: what is tested is that they run, not how good the result is.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from recipes import load_recipe

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SMALL = [
    "distill.tokens=4096",
    "evaluate.windows=16",
    "benchmark.blocks=3",
    "benchmark.stage_blocks=0",
    "benchmark.tokens=4",
    "gate=null",
]
LONG = ("demitasse run teacher", "demitasse run smollm2-", "demitasse run prune-smollm2-135m")
"""Commands that need an hour, or a model that is not in the repository: the recipe and the overrides are loaded."""


def blocks(language: str) -> list[str]:
    return [block for page in PAGES for block in re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)]


def commands() -> list[str]:
    text = "\n".join(blocks("sh")).replace("\\\n", " ")
    return list(dict.fromkeys(re.sub(r"\s+#.*", "", line).strip() for line in text.splitlines() if line.strip()))


def demitasse(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    binary = Path(sys.executable).parent / "demitasse"
    return subprocess.run(
        [str(binary), *arguments], cwd=folder, capture_output=True, text=True, check=False, timeout=500
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a small quickstart has been run."""
    folder = tmp_path_factory.mktemp("user")
    sets = [part for change in SMALL for part in ("--set", change)]
    finished = demitasse(["run", "quickstart", *sets], folder)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return folder


def load_as_typed(line: str, folder: Path) -> None:
    """Load the recipe that a command names with the overrides it gives, its placeholders replaced by what exists."""
    (folder / "text.txt").write_text("Some text of a user's own.\n")
    bundle = str(ROOT / "recipes" / "models" / "novels-gpt2")
    words = [word.replace("FOLDER", bundle).replace("FILE", str(folder / "text.txt")) for word in shlex.split(line)]
    changes = [words[index + 1] for index, word in enumerate(words) if word == "--set"]
    assert load_recipe(words[2], changes).gate


def test_every_make_target_exists() -> None:
    named = {line.split()[1] for line in commands() if line.startswith("make ")}
    assert {"quickstart", "test"} <= named
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert named <= targets


def test_every_command_runs(folder: Path) -> None:
    lines = [line.removeprefix(".venv/bin/") for line in commands()]
    ours = [line for line in lines if line.startswith("demitasse ")]
    assert len(ours) >= 8
    for line in ours:
        if line == "demitasse run quickstart":
            continue  # the fixture has run it, smaller
        if line.startswith(LONG):
            load_as_typed(line, folder)
            continue
        finished = demitasse(shlex.split(line)[1:], folder)
        assert finished.returncode == 0, f"{line}\n{finished.stdout}{finished.stderr}"
        assert "Traceback" not in finished.stdout + finished.stderr


def test_the_python_example_runs(folder: Path) -> None:
    examples = blocks("python")
    assert examples
    for code in examples:
        assert 'load_recipe("quickstart")' in code
        small = code.replace('load_recipe("quickstart")', f'load_recipe("quickstart", {SMALL!r})')
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        answer = subprocess.run(
            [sys.executable, "-c", small], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert answer.returncode == 0, answer.stderr


def test_the_recipe_shown_is_the_recipe_run() -> None:
    assert (ROOT / "recipes" / "quickstart.yaml").read_text() in blocks("yaml")


def test_every_link_leads_somewhere() -> None:
    links = [(page, link) for page in PAGES for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text())]
    assert len(links) >= 5
    for page, link in links:
        assert (page.parent / link).exists(), f"{page.name}: {link}"
