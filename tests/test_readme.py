"""What the pages tell a user to type works as printed.

Commands run in this process, in an empty folder, with the first pages of the texts, fewer tokens and windows than the
recipe has, and without timing (test_stage_latency.py times a run, in processes of its own): what is tested is that they
run, not how good the result is. What a page says of a finished quickstart is run on one, in the order of the pages.
"""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import Demitasse, Share

from compress import FormatName
from recipes import load_recipe
from recipes.measure import footprint

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SMALLER = ["distill.length=64", "evaluate.window=64", "benchmark=null"]
FEWER = ["distill.tokens=1024", "evaluate.windows=16", "gate=null"]
LONG = ("demitasse run teacher", "demitasse run smollm2-", "demitasse run prune-smollm2-135m")
"""Commands that need an hour, or a model that is not in the repository: the recipe and the overrides are loaded."""


def blocks(language: str) -> list[str]:
    return [block for page in PAGES for block in re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)]


def commands() -> list[str]:
    text = "\n".join(blocks("sh")).replace("\\\n", " ")
    lines = [re.sub(r"\s+#.*", "", line).strip().removeprefix(".venv/bin/") for line in text.splitlines()]
    return list(dict.fromkeys(line for line in lines if line))


OURS = [line for line in commands() if line.startswith("demitasse ")]
QUICKSTART = "demitasse run quickstart"
OF_THE_QUICKSTART = [line for line in OURS if "runs/quickstart" in line or line == QUICKSTART]
OTHERS = [line for line in OURS if line not in OF_THE_QUICKSTART]


@pytest.fixture(scope="session")
def smaller(shared: Share) -> list[str]:
    """What makes a recipe of the novels small."""

    def cut(folder: Path) -> None:
        folder.mkdir()
        for name in ("train.txt", "valid.txt", "test.txt"):
            text = (ROOT / "recipes" / "data" / "novels" / name).read_text(encoding="utf-8")
            (folder / name).write_text(text[:80_000], encoding="utf-8")

    folder = shared("first-pages", cut)
    texts = {"train": "train.txt", "calibration": "valid.txt", "test": "test.txt"}
    return [*(f"data.{role}={folder / name}" for role, name in texts.items()), *SMALLER]


@pytest.fixture
def run_as_typed(demitasse: Demitasse, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., str]:
    """`run_as_typed(line, changes)`: run a command in an empty folder; what it says."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(footprint, "probe", probe_int8_alone)

    def run(line: str, changes: list[str]) -> str:
        code, out, err = demitasse(*shlex.split(line)[1:], *(part for change in changes for part in ("--set", change)))
        assert code == 0, f"{line}\n{out}{err}"
        assert "Traceback" not in out + err
        return out

    return run


PROBE = footprint.probe


def probe_int8_alone(artifact: Path, format: FormatName, *, prompt: int, threads: int) -> int:
    """Peak memory takes a process each, which a run of test_stage_latency.py starts for the other formats."""
    return PROBE(artifact, format, prompt=prompt, threads=threads) if format == "quantized" else 5


def load_as_typed(line: str, folder: Path) -> None:
    """Load the recipe that a command names with the overrides it gives, its placeholders replaced by what exists."""
    (folder / "text.txt").write_text("Some text of a user's own.\n")
    bundle = str(ROOT / "recipes" / "models" / "novels-gpt2")
    words = [word.replace("FOLDER", bundle).replace("FILE", str(folder / "text.txt")) for word in shlex.split(line)]
    changes = [words[index + 1] for index, word in enumerate(words) if word == "--set"]
    assert load_recipe(words[2], changes).stages


def test_every_make_target_exists() -> None:
    named = {line.split()[1] for line in commands() if line.startswith("make ")}
    assert {"quickstart", "test"} <= named
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert named <= targets


def test_commands_are_found() -> None:
    assert QUICKSTART in OURS
    assert len(OF_THE_QUICKSTART) >= 4
    assert len(OTHERS) >= 12


def test_the_quickstart_runs_and_so_does_what_is_said_of_it(
    run_as_typed: Callable[..., str], smaller: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    small = [*FEWER, *smaller]
    assert "perplexity" in run_as_typed(QUICKSTART, small)
    for line in OF_THE_QUICKSTART:
        if line != QUICKSTART:
            run_as_typed(line, [])
    stored = sorted((tmp_path / "runs" / "quickstart" / "artifacts").iterdir())
    examples = blocks("python")
    assert len(examples) >= 4
    for code in examples:
        with suppress(SystemExit):
            exec(code.replace('load_recipe("quickstart")', f'load_recipe("quickstart", {small!r})'), {})
        said = capfd.readouterr().out
        if code == examples[0]:
            assert re.fullmatch(r"None \d\.\d+\n", said), "expected no verdict, and a ratio"
        assert said or "gate.verdict" in code, "a recipe without gates has none to tell of"
    assert sorted((tmp_path / "runs" / "quickstart" / "artifacts").iterdir()) == stored, "expected that all is reused"


@pytest.mark.parametrize("line", [line for line in OTHERS if line.startswith("demitasse run ")])
def test_every_recipe_that_a_command_names_loads_as_typed(line: str, tmp_path: Path) -> None:
    load_as_typed(line, tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(line, marks=pytest.mark.thorough if line.startswith("demitasse run ") else ())
        for line in OTHERS
        if not line.startswith(LONG)
    ],
)
def test_every_other_command_runs(
    line: str, run_as_typed: Callable[..., str], smaller: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(footprint, "probe", lambda *_, **__: 5)  # the quickstart starts what is not started elsewhere
    run_as_typed(line, smaller if line.startswith("demitasse run ") else [])


def test_the_recipe_shown_is_the_recipe_run() -> None:
    assert (ROOT / "recipes" / "quickstart.yaml").read_text() in blocks("yaml")


def test_every_link_leads_somewhere() -> None:
    links = [(page, link) for page in PAGES for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text())]
    assert len(links) >= 5
    for page, link in links:
        assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_page_of_the_api_is_what_the_docstrings_say() -> None:
    pytest.importorskip("griffe2md")
    made = subprocess.run([sys.executable, "docs/make_api.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (ROOT / "docs" / "api.md").read_text(encoding="utf-8") == made.stdout, "run `make docs`"
