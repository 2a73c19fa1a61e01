"""The file of the libraries' output: what is folded in it, what stays as it was, and that no line is lost."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from recipes.cli.library_output import HEADING, LibraryOutput, fold, folded

REPEATED = 120
SPEAKING = f"""
import logging, os, subprocess, sys, warnings
from pathlib import Path
from recipes.cli.library_output import LibraryOutput
with LibraryOutput() as library_output:
    library_output.move_to(Path(sys.argv[1]))
    for _ in range({REPEATED}):
        logging.getLogger("library").warning("inputs will be cast")
    os.write(1, b"from C, once\\n")
    for _ in range({REPEATED}):
        os.write(2, b"from C, often\\n")
    subprocess.run([sys.executable, "-c", "print('inputs will be cast')"], check=True)
    {{last}}
"""


def speak(log: Path, last: str = "") -> int:
    return subprocess.run([sys.executable, "-c", SPEAKING.format(last=last), str(log)], check=False).returncode


def lines_of(log: Path) -> list[str]:
    """A heading without its time and process."""
    return ["==" if HEADING.match(f"{line}\n".encode()) else line for line in log.read_text().splitlines()]


def test_a_repeated_line_is_written_once_with_its_count(tmp_path: Path) -> None:
    log = tmp_path / "libraries.txt"
    assert speak(log) == 0
    assert lines_of(log) == [
        "==",
        f"inputs will be cast ({REPEATED + 1} times)",
        "from C, once",
        f"from C, often ({REPEATED} times)",
    ]


def test_a_killed_run_loses_no_line_and_is_folded_by_the_next(tmp_path: Path) -> None:
    log = tmp_path / "libraries.txt"
    assert speak(log, "os.kill(os.getpid(), 9)") == -signal.SIGKILL
    assert lines_of(log).count("inputs will be cast") == REPEATED + 1
    assert speak(log) == 0
    lines = lines_of(log)
    assert lines[: len(lines) // 2] == lines[len(lines) // 2 :], "each command has its lines in its own part"
    assert lines.count(f"inputs will be cast ({REPEATED + 1} times)") == 2


def test_a_log_is_left_alone_while_another_command_writes_to_it(tmp_path: Path) -> None:
    log = tmp_path / "libraries.txt"
    other = LibraryOutput()
    with other:
        other.move_to(log)
        assert speak(log) == 0
        os.write(1, b"from C, once\n")
        assert lines_of(log).count("inputs will be cast") == REPEATED + 1
    assert lines_of(log).count(f"inputs will be cast ({REPEATED + 1} times)") == 1
    assert lines_of(log).count("from C, once (2 times)") == 1


def test_a_child_that_outlives_its_command_is_heard(tmp_path: Path) -> None:
    log = tmp_path / "libraries.txt"
    wait = "import sys; sys.stdin.read(); print('late')"
    with LibraryOutput() as library_output:
        library_output.move_to(log)
        os.write(1, b"again and again\n" * REPEATED)
        child = subprocess.Popen([sys.executable, "-c", wait], stdin=subprocess.PIPE)
    child.communicate()
    assert lines_of(log) == ["==", f"again and again ({REPEATED} times)", "late"]


def test_a_log_that_was_removed_is_not_made_again(tmp_path: Path) -> None:
    log = tmp_path / "libraries.txt"
    with LibraryOutput() as library_output:
        library_output.move_to(log)
        os.write(1, b"said\n")
        log.unlink()
    assert not log.exists()


def test_counts_of_earlier_foldings_add_up() -> None:
    assert folded(b"cast\ncast\nother\n") == b"cast (2 times)\nother\n"
    assert folded(b"cast (2 times)\nother\ncast\ncast (5 times)\n") == b"cast (8 times)\nother\n"
    assert folded(b"cast (8 times)\nother\n") == b"cast (8 times)\nother\n"


def test_lines_that_differ_in_their_time_are_the_same() -> None:
    said = b"2026-01-05 10:00:00.123 [W:onnxruntime] slow\n2026-01-05 10:00:07.456 [W:onnxruntime] slow\n"
    assert folded(said) == b"2026-01-05 10:00:00.123 [W:onnxruntime] slow (2 times)\n"


def test_lines_that_belong_together_stay_together() -> None:
    warning = b"a.py:3: UserWarning: slow\n  warn('slow')\n"
    assert folded(warning * 2) == b"a.py:3: UserWarning: slow (2 times)\n  warn('slow')\n"
    table = b"Key | Status\n----+-------\na   | new\n\n"
    assert folded(table + table.replace(b"a ", b"b ")) == (
        b"Key | Status (2 times)\n----+-------\na   | new\n\n----+-------\nb   | new\n\n"
    )


def test_tracebacks_are_not_touched() -> None:
    first = b'Traceback (most recent call last):\n  File "a.py", line 1\nValueError: wrong\n'
    chained = first + b"\nDuring handling of the above exception, another exception occurred:\n\n" + first
    said = b"slow\nslow\n" + chained + chained
    assert folded(said) == b"slow (2 times)\n" + chained + chained


def test_a_line_that_was_cut_off_stays(tmp_path: Path) -> None:
    log = tmp_path / "libraries.txt"
    log.write_bytes(b"a long line\na long line\na long line\na long l")
    fold(log)
    assert log.read_bytes() == b"a long line (3 times)\na long l"
