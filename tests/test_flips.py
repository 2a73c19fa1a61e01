"""One bit flipped at random in anything that is judged, or that a bundle is made of, is found: exit code 5."""

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Demitasse, Share
from finished_runs import finish

from evaluation.report import REPORT, Report
from export import verify_bundle
from recipes.engine.compare import compare_runs
from recipes.engine.rejudge import judge_run
from recipes.runs.failures import exit_code
from recipes.runs.folder import make_writable
from recipes.runs.records import IntegrityError
from recipes.runs.store import RUNS, Store
from recipes.runs.upkeep import broken, held

FLIPS = 300
FOUND = r"since|not the bundle|a bundle's manifest|what a run is about|expected a report"


def flips(files: list[Path], count: int, seed: int) -> Iterator[Path]:
    """Each time another file among these has one bit that is not as it was; every file is as likely."""
    generator = random.Random(seed)
    for _ in range(count):
        file = generator.choice(files)
        content = file.read_bytes()
        changed = bytearray(content)
        changed[generator.randrange(len(changed))] ^= 1 << generator.randrange(8)
        file.write_bytes(changed)
        yield file
        file.write_bytes(content)


def assert_found(files: list[Path], look: Callable[[], Any], *, count: int = FLIPS, seed: int = 0) -> None:
    look()
    seen = set()
    for file in flips(files, count, seed):
        with pytest.raises(Exception, match=FOUND) as caught:
            look()
        assert exit_code(caught.value) == IntegrityError.exit_code, file
        assert "\n" not in str(caught.value)
        seen.add(file)
    assert len(seen) == len(files)
    look()


@pytest.fixture
def run(shared: Share, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shared("finished", finish), tmp_path / "run"))


def judged_files(run: Path) -> list[Path]:
    return [run / REPORT, *(file for file in sorted((run / "artifacts").glob("[a-z]*/**/*")) if file.is_file())]


def test_flips_in_what_a_verdict_is_judged_from(run: Path) -> None:
    files = judged_files(run)
    assert {file.suffix for file in files} >= {".json", ".npz", ".onnx"}
    assert_found(files, lambda: judge_run(run))


def test_flips_in_what_two_runs_are_compared_by(run: Path, tmp_path: Path) -> None:
    finish(tmp_path / "other", cost=0.05, seed=9)
    assert_found(judged_files(tmp_path / "other"), lambda: compare_runs(run, tmp_path / "other"), count=40, seed=1)


def test_flips_in_a_note_of_a_run_and_in_a_store_that_is_looked_after(run: Path) -> None:
    store = Store(run / "artifacts")
    names = [result.name for result in held(store)]
    store.note_run(run, names)
    assert_found(list((store.root / RUNS).iterdir()), lambda: list(held(store)), count=100, seed=2)
    for _ in flips(judged_files(run)[1:], 60, seed=3):
        assert sum(bool(problem) for _, problem in broken(store, names)) == 1


def test_flips_in_a_bundle(int8_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(int8_bundle, tmp_path / "bundle"))
    files = sorted(file for file in bundle.iterdir() if file.name != "README.md")  # for people, and sealed by nothing
    assert_found(files, lambda: verify_bundle(bundle), seed=4)
    assert_found([bundle / "manifest.json"], lambda: verify_bundle(bundle), count=135, seed=5)


def test_a_flip_in_a_manifest_ends_whatever_opens_the_bundle(
    int8_bundle: Path, tmp_path: Path, demitasse: Demitasse
) -> None:
    bundle = Path(shutil.copytree(int8_bundle, tmp_path / "bundle"))
    for _ in flips([bundle / "manifest.json"], 3, seed=6):
        code, _, errors = demitasse("generate", bundle, "It was")
        assert (code, errors.count("\n")) == (IntegrityError.exit_code, 1)


@pytest.mark.thorough
def test_flips_in_the_store_of_a_run_with_everything(named_run: Report, tmp_path: Path) -> None:
    assert named_run.folder is not None
    run = Path(shutil.copytree(named_run.folder, tmp_path / "run", symlinks=True))
    make_writable(run)
    files = [
        file
        for row in named_run.rows
        for name in (*row.samples.values(), *([f"{row.kind}-{row.key[:16]}"] if row.kind != "baseline" else []))
        for file in sorted((run / "artifacts" / name).rglob("*"))
        if file.is_file() and file.name != "README.md"
    ]
    assert_found([run / REPORT, *files], lambda: judge_run(run), seed=7)
