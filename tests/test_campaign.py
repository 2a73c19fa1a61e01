"""The campaign itself: it sees what is wrong, it shrinks what fails, and the same seed draws the same cases."""

import os
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests" / "campaign"))

from attempt import PASSED, REFUSED, Ended, Finding, forked  # noqa: E402
from campaign import Case, shrunk  # noqa: E402
from kinds import KINDS, kind_of  # noqa: E402
from mutate import apply, drawn_tree_op  # noqa: E402

ENDED: dict[str, Any] = {"code": REFUSED, "out": "", "err": "error: no", "cpu": 1.0, "memory": 10**8, "hung": False}


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({}, []),
        ({"code": 0}, ["wrong"]),
        ({"code": 4}, ["unexpected"]),
        ({"code": -11}, ["unexpected"]),
        ({"err": ""}, ["unexpected"]),
        ({"err": "error: \x1b[31m"}, ["unexpected"]),
        ({"code": 4, "err": "error: unexpected KeyError: 'x'"}, ["unexpected"]),
        ({"code": 1, "err": "Traceback (most recent call last):\nKeyError"}, ["traceback"]),
        ({"code": -9, "hung": True}, ["hang"]),
        ({"memory": 3 * 10**9}, ["memory"]),
    ],
)
def test_what_is_wrong_is_seen(changes: dict[str, Any], what: list[str]) -> None:
    found = Ended(**ENDED | changes).findings((REFUSED,))
    assert [finding.what for finding in found] == what


def test_a_fork_tells_how_it_ended(tmp_path: Path) -> None:
    def fails() -> None:
        os.write(1, b"said")  # what pytest does to print does not reach a fork
        raise SystemExit(REFUSED)

    ended = forked(fails, tmp_path / "place")
    assert (ended.code, ended.out, ended.hung) == (REFUSED, "said", False)
    assert forked(lambda: None, tmp_path / "place").code == PASSED


class _Sevens:
    """Fails where one of the ops is 7."""

    name, count, unit, alone = "sevens", 1, "cases", False

    def prepare(self, place: Path) -> None: ...

    def draw(self, random: Random) -> Case:
        return {"ops": [random.randrange(10) for _ in range(20)] + [7]}

    def attempt(self, case: Case, place: Path) -> list[Finding]:
        return [Finding(what="wrong", text="a seven")] if 7 in case["ops"] else []


def test_a_failing_case_is_shrunk_to_what_makes_it_fail(tmp_path: Path) -> None:
    kind = _Sevens()
    case = kind.draw(Random(3))
    assert shrunk(kind, case, kind.attempt(case, tmp_path), tmp_path / "place") == {"ops": [7]}


def test_the_same_seed_draws_the_same_mutations_and_they_change_the_file(tmp_path: Path) -> None:
    tree = {"a": [1, 2, {"b": "text"}], "c": None}
    file = tmp_path / "file.json"
    changed = set()
    for seed in range(60):
        op = drawn_tree_op(Random(seed), file.name, tree)
        assert repr(op) == repr(drawn_tree_op(Random(seed), file.name, tree))  # NaN is not itself
        file.write_text('{"a": [1, 2, {"b": "text"}], "c": null}', encoding="utf-8")
        apply(op, tmp_path)
        changed.add(file.read_text(encoding="utf-8"))
    assert len(changed) > 30


@pytest.mark.parametrize("name", sorted(KINDS))
def test_every_kind_says_what_a_release_asks_of_it(name: str) -> None:
    kind = kind_of(name)
    assert kind.name == name
    assert kind.count > 0
    assert kind.unit


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["texts", "hidden"])
def test_the_campaign_runs(kind: str, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tests" / "campaign"), "--only", kind, "--count", "3", "--workers", "1"]
    ended = subprocess.run([*command, "--failures", str(tmp_path)], capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"{kind:<12}     3 " in ended.stdout
