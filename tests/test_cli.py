"""The command line: what it offers, how it fails, what it leaves behind."""

import hashlib
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import Demitasse

from compress import StageError
from recipes.cli.methods import REGISTRIES, methods
from recipes.cli.options import option_name
from recipes.cli.terminal import Lines, clock_time
from recipes.config.stages import STAGES
from recipes.runs.failures import Terminated, exit_code, message

HEAVY = {"torch", "transformers", "onnx", "onnxruntime", "mobius", "scipy", "matplotlib", "bitsandbytes", "datasets"}
COMMANDS = [
    "run",
    "plan",
    "gate",
    "compare",
    "generate",
    "verify",
    "evaluate",
    "sensitivity",
    "schema",
    "methods",
    "doctor",
    *STAGES,
]


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file below a folder."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


# ---- what it offers


def test_help_of_every_command_imports_nothing_heavy() -> None:
    code = f"""
import contextlib, io, sys
from recipes.cli.app import main
for arguments in [["--help"], *([name, "--help"] for name in {COMMANDS!r})]:
    sys.argv, said = ["demitasse", *arguments], io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(said):
        main()
    assert "Usage:" in said.getvalue(), arguments
print(sorted({HEAVY!r} & sys.modules.keys()))
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


@pytest.mark.parametrize("kind", STAGES)
def test_every_knob_of_a_stage_is_an_option(kind: str, demitasse: Demitasse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    code, shown, _ = demitasse(kind, "--help")
    fields = STAGES[kind].config.model_fields
    assert code == 0
    assert len(fields) >= 3
    assert [name for name in fields if option_name(name) not in shown] == []


def test_schema_is_json_that_knows_every_stage(demitasse: Demitasse) -> None:
    code, shown, _ = demitasse("schema")
    assert code == 0
    stages = json.loads(shown)["properties"]["stages"]["items"]["oneOf"]
    assert set(STAGES) <= {key for item in stages for key in item.get("properties", {})}


def test_methods_give_one_line_to_every_entry(demitasse: Demitasse) -> None:
    listed = dict(methods())
    assert listed.keys() == REGISTRIES.keys()
    assert all(line for entries in listed.values() for _, line in entries)
    code, shown, _ = demitasse("methods")
    assert code == 0
    assert all(name in shown for entries in listed.values() for name, _ in entries)


def test_version(demitasse: Demitasse) -> None:
    assert demitasse("--version")[:2] == (0, "demitasse 0.1.0\n")


# ---- how it fails


def test_unknown_recipe_is_one_message_without_traceback(demitasse: Demitasse) -> None:
    code, out, err = demitasse("run", "quikstart")
    assert (code, out) == (2, "")
    assert err.startswith("error: quikstart: expected a recipe file")
    assert "Traceback" not in err


def test_debug_shows_the_traceback(demitasse: Demitasse) -> None:
    code, _, err = demitasse("run", "nothing.yaml", "--debug")
    assert code == 2
    assert "Traceback" in err
    assert "RecipeError" in err


def test_wrong_option_is_a_usage_error(demitasse: Demitasse) -> None:
    code, _, err = demitasse("prune", "model", "--out", "there", "--sparsty", "0.5")
    assert code == 2
    assert "--sparsity" in err


def test_options_are_checked_all_at_once(demitasse: Demitasse, tmp_path: Path) -> None:
    code, _, err = demitasse("prune", tmp_path, "--out", tmp_path / "new", "--sparsity", "3", "--scope", "layr")
    assert code == 2
    assert "--sparsity: expected less than 1, got 3" in err
    assert "--scope: expected 'row', 'layer' or 'global', got 'layr'; did you mean 'layer'?" in err


def test_generate_and_verify_refuse_what_is_no_bundle(demitasse: Demitasse, tmp_path: Path) -> None:
    for arguments in (("verify", tmp_path), ("generate", tmp_path, "Once upon a time")):
        code, _, err = demitasse(*arguments)
        assert code == 2
        assert str(tmp_path) in err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (KeyboardInterrupt(), 130),
        (Terminated(), 143),
        (StageError("no"), 2),
        (OSError(28, "No space left on device", "/there/model.safetensors"), 2),
        (RuntimeError("IoError(Os { code: 28, message: No space left on device })"), 2),
        (ZeroDivisionError("a bug"), 4),
    ],
)
def test_exit_codes(error: BaseException, code: int) -> None:
    assert exit_code(error) == code


def test_broken_integrity_is_5() -> None:
    from export import BundleIntegrityError
    from recipes.runs.records import IntegrityError

    assert exit_code(IntegrityError("changed")) == 5
    assert exit_code(BundleIntegrityError("changed")) == 5


def test_full_disk_is_named_with_the_way_out() -> None:
    error = OSError(28, "No space left on device", "/there/model.safetensors")
    assert message(error) == (
        "/there/model.safetensors: the disk is full; free some space, or name another folder with --out"
    )


WAITING = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job is started with it ignored
from recipes.cli.session import session
with session(debug=False, goes_on=True) as terminal:
    terminal.library_output.err.write("ready\\n")
    terminal.library_output.err.flush()
    with terminal.progress.task("wait", total=1):
        time.sleep(600)
"""


@pytest.mark.parametrize(
    ("sent", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_signals_end_with_a_clear_line(sent: signal.Signals, code: int, word: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WAITING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "ready\n"
        process.send_signal(sent)
        _, said = process.communicate(timeout=300)
    assert process.returncode == code
    assert said.startswith(f"{word}; ")
    assert "run the same command again" in said
    assert "Traceback" not in said


# ---- a recipe


RECIPE = """
model: {model}
data: {{test: {text}}}
stages:
  - prune: {{sparsity: 0.5}}
evaluate: {{window: 32, windows: 16}}
gate:
  perplexity: {{max_ratio: {ratio}}}
"""


def test_run_ends_in_a_table_and_a_verdict(
    gpt2: Path, text_file: Path, tmp_path: Path, demitasse: Demitasse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recipes.measure.footprint.probe", lambda *_, **__: 5)  # a process each, tested elsewhere
    recipe, out = tmp_path / "tiny.yaml", tmp_path / "run"
    recipe.write_text(RECIPE.format(model=gpt2, text=text_file, ratio=2.0))
    code, said, err = demitasse("plan", recipe, "--out", out)
    assert (code, err) == (0, "")
    assert "to do" in said
    code, said, err = demitasse("run", recipe, "--out", out)
    assert (code, err) == (0, "")
    assert all(word in said for word in ("baseline", "prune", "Perplexity", "Weights", "PASS", "report.html"))
    own = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \[\d+\]| ) ")
    assert all(own.match(line) for line in (out / "log.txt").read_text().splitlines()), "no line is of a library"
    assert (out / "libraries.txt").is_file()
    code, said, _ = demitasse("plan", recipe, "--out", out)
    assert "every stage is cached" in said
    code, said, _ = demitasse("run", recipe, "--out", out, "--set", "gate.perplexity.max_ratio=0.5")
    assert code == 1
    assert "reused" in said
    assert "FAIL" in said


# ---- the terminal


CHATTERING = """
import os, subprocess, sys
from pathlib import Path
from recipes.cli.library_output import LibraryOutput
with LibraryOutput() as library_output:
    os.write(1, b"early\\n")
    library_output.move_to(Path(sys.argv[1]))
    print("from Python")
    os.write(2, b"from C\\n")
    subprocess.run([sys.executable, "-c", "print('from a child')"], check=True)
    library_output.out.write("result\\n")
    library_output.err.write("notice\\n")
print("afterwards")
"""


def test_chatter_reaches_the_log_and_not_the_terminal(tmp_path: Path) -> None:
    log = tmp_path / "run" / "libraries.txt"
    said = subprocess.run([sys.executable, "-c", CHATTERING, str(log)], capture_output=True, text=True, check=True)
    assert (said.stdout, said.stderr) == ("result\nafterwards\n", "notice\n")
    assert sorted(log.read_text().splitlines()[1:]) == ["early", "from C", "from Python", "from a child"]


def test_plain_progress_says_how_long_it_will_take() -> None:
    now, written = [0.0], list[str]()
    lines = Lines(written.append, clock=lambda: now[0])
    with lines.task("train", total=100, done=20) as task:
        for _ in range(4):
            now[0] += 20.0
            task.advance(10, note="loss 3.2")
    assert written == ["train  40%  2:00 left  loss 3.2", "train  60%  1:20 left  loss 3.2"]


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (42.4, "0:42"), (725, "12:05"), (3723, "1:02:03")])
def test_clock_time(seconds: float, text: str) -> None:
    assert clock_time(seconds) == text


def test_bars_are_drawn_on_a_terminal() -> None:
    from io import StringIO

    from rich.console import Console

    from recipes.cli.terminal import Bars

    drawn = StringIO()
    bars = Bars(Console(file=drawn, force_terminal=True, width=100))
    with bars.task("distill [x]", total=10) as outer, bars.task("inner", total=1):
        outer.advance(5, note="loss 3.2")
        print("a library's library_output", file=sys.stderr)
        while "loss 3.2" not in drawn.getvalue():  # the bars are drawn ten times a second, or when there is time
            time.sleep(0.05)
    assert "distill [x]" in drawn.getvalue()
    assert "50%" in drawn.getvalue()
    assert "loss 3.2" in drawn.getvalue()
    assert "library_output" not in drawn.getvalue()
