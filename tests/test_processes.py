"""Processes of ours find what is installed before the user's own files, and end with who started them."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recipes.engine.launcher import Launcher
from recipes.engine.worker import _restarts_left
from recipes.measure.variant_client import COMMAND
from recipes.runs.folder import make_writable
from recipes.runs.processes import ROOT, environment, python_module, search_path
from recipes.runs.store import Store, StoreError

NAMES = ("compress", "export", "tokenize", "profile")


@pytest.fixture
def users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that a user works in, with files of common names."""
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('the user's {name}')", encoding="utf-8")
    (tmp_path / "recipes").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_process_never_imports_the_users_files(users: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", ["", str(users), *sys.path])  # as in an interpreter that was started there
    assert search_path().split(os.pathsep)[-1] == str(users)  # whom stages of the user's own may still be with
    code = f"import {', '.join(NAMES)}, recipes; print([m.__file__ for m in (compress, export, recipes)])"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(str(ROOT)) == 3


def test_the_process_of_a_variant_and_a_worker_start_beside_the_users_files(users: Path) -> None:
    done = subprocess.run(COMMAND, input="{}", env=environment(), capture_output=True, text=True, check=False)
    assert "the user's" not in done.stderr
    assert "validation error" in done.stderr  # of our own: an order was expected
    words = Launcher(command="srun -n 2")._words(Path("x"))
    assert words == ["srun", "-n", "2", *python_module("recipes.engine.worker", "x")]
    assert "-P" in words


def test_a_readme_example_runs_beside_a_folder_of_recipes(users: Path) -> None:
    (users / "compress.py").unlink()
    (users / "export.py").unlink()
    (users / "tokenize.py").unlink()
    (users / "profile.py").unlink()
    (users / "script.py").write_text("from recipes import load_recipe, run; print(run.__module__)", encoding="utf-8")
    variables = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "script.py"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "recipes.engine.runner", done.stderr


def test_a_worker_ends_with_its_launcher_even_in_a_long_call(tmp_path: Path) -> None:
    """The launcher is killed, so nobody tells the worker, which computes outside of Python."""
    worker = (
        "import ctypes, os, pathlib, sys; from recipes.engine.worker import end_with_parent; end_with_parent();"
        "pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); ctypes.CDLL(None).sleep(600)"
    )
    launcher = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {worker!r}, sys.argv[1]])"
    file = tmp_path / "pid"
    process = subprocess.Popen([sys.executable, "-c", launcher, str(file)], env=environment())
    until(lambda: file.is_file() and bool(file.read_text()))
    process.kill()
    process.wait()
    until(lambda: not _lives(int(file.read_text())))


def until(condition: object) -> None:
    for _ in range(1200):
        if condition():  # type: ignore[operator]
            return
        time.sleep(0.1)
    raise AssertionError("it did not happen")


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{process}/stat")
    return not status.is_file() or status.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize(("count", "most", "left"), [(None, None, False), (0, 0, False), (0, 2, True), (2, 2, False)])
def test_a_worker_knows_whether_it_is_started_again(
    count: int | None, most: int | None, left: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("RESTART_COUNT", count), ("MAX_RESTARTS", most)):
        if value is None:
            monkeypatch.delenv(f"TORCHELASTIC_{name}", raising=False)
        else:
            monkeypatch.setenv(f"TORCHELASTIC_{name}", str(value))
    assert _restarts_left() is left


def test_a_folder_that_is_tried_is_left_as_it_was(tmp_path: Path) -> None:
    """Killed at any change of the file system: nothing with a name is left."""
    code = (
        "import os, signal, sys; from pathlib import Path; from recipes.runs.folder import make_writable;"
        "sys.addaudithook(lambda event, _: event == 'os.remove' and os.kill(os.getpid(), signal.SIGKILL));"
        "make_writable(Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], env=environment(), check=False)
    assert list((tmp_path / "run").iterdir()) == []
    make_writable(tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize("option", ["--out", "--store"])
def test_a_full_disk_names_the_option_that_moves_the_store(option: str, tmp_path: Path) -> None:
    def full(files: Path, scratch: Path) -> dict[str, object]:
        raise OSError(28, "No space left on device", str(files))

    with pytest.raises(StoreError, match=f"name another folder with {option}"):
        Store(tmp_path, option=option).obtain("copy", {}, full)
