"""A command whose streams are closed, full or unread, and what no session sees: the exit code is never 1."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

PASS = "lambda: (print('said' * 5000), sys.exit(0))"
"""A command that says more than a buffer holds, and passes."""


def ended(command: str, redirection: str = "", before: str = "") -> tuple[int, str]:
    """The exit code of a command under a shell's redirection, and what is seen of it."""
    code = f"import sys\nfrom recipes.cli.streams import ended\n{before}\nsys.exit(ended({command}))"
    shell = f'"$0" -c "$1" {redirection}'
    done = subprocess.run(
        ["bash", "-c", shell, sys.executable, code], capture_output=True, text=True, check=False, timeout=60
    )
    return done.returncode, done.stdout[-300:] + done.stderr


@pytest.mark.parametrize("command", [PASS, "lambda: print('said')"])
def test_output_on_a_full_disk_is_no_pass(command: str) -> None:
    code, said = ended(command, "> /dev/full")
    assert code == 2
    assert said.splitlines() == [
        "error: standard output: cannot be written (No space left on device); lead it to a place that can be"
    ]


@pytest.mark.parametrize("command", [PASS, "lambda: print('said')"])
def test_a_reader_that_has_gone_ends_a_command_as_sigpipe_does(command: str) -> None:
    code, said = ended(command, "| true; exit ${PIPESTATUS[0]}", before="import time; time.sleep(0.2)")
    assert (code, said) == (141, "")


@pytest.mark.parametrize("redirection", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-", "2> /dev/full"])
def test_where_nobody_listens_the_verdict_is_the_exit_code(redirection: str) -> None:
    for verdict in (0, 1, 3):
        command = f"lambda: (print('said'), print('warned', file=sys.stderr), sys.exit({verdict}))"
        assert ended(command, redirection)[0] == verdict


def test_no_file_takes_the_place_of_a_closed_stream(tmp_path: Path) -> None:
    """A file that was opened as descriptor 1 would be written to by whoever prints."""
    file = tmp_path / "weights"
    command = f"lambda: (open({str(file)!r}, 'wb'), __import__('os').system('echo said; echo said >&2'))"
    assert ended(command, ">&- 2>&-")[0] == 0
    assert file.read_bytes() == b""


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        ("KeyboardInterrupt()", 130, "interrupted"),
        (
            "type('PanicException', (BaseException,), {})('called on None')",
            4,
            "unexpected PanicException: called on None",
        ),
        ("OSError(28, 'No space left', 'x')", 2, "x: the disk is full"),
        ("SystemExit('a reason')", 2, "a reason"),
    ],
)
def test_whatever_is_raised_is_one_line_and_a_code_that_is_not_1(raised: str, code: int, said: str) -> None:
    found, line = ended("command", before=f"command = lambda: (_ for _ in ()).throw({raised})")
    assert found == code
    assert said in line
    assert len(line.splitlines()) == 1


def demitasse(shell: str, folder: Path) -> tuple[int, str]:
    """The command itself in a shell, in a folder."""
    program = f'{sys.executable} -c "from recipes.cli.app import main; main()"'
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", shell.replace("demitasse", program)],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=environment,
        timeout=120,
    )
    return done.returncode, done.stdout + done.stderr


def test_a_page_of_which_only_the_head_is_read(tmp_path: Path) -> None:
    for command in ("schema", "--help"):
        assert demitasse(f"demitasse {command} | true; exit ${{PIPESTATUS[0]}}", tmp_path) == (141, "")


def test_no_folder_for_temporary_files_is_one_line(tmp_path: Path) -> None:
    code, said = demitasse("ulimit -f 0; demitasse schema 2>&1 | cat; exit ${PIPESTATUS[0]}", tmp_path)
    assert (code, said.count("\n")) == (2, 1)
    assert said.startswith("error: no folder for temporary files can be written; name one")


def test_a_working_directory_that_is_gone_is_one_line(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    code, said = demitasse("rmdir ../gone; demitasse methods", gone)
    assert (code, said) == (2, "error: the working directory is gone; change to one that exists\n")
