"""The run store: keys, reuse, integrity, and that a kill at any instant leaves a whole result or none."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from forging import edit_sealed

from compress import StageError
from compress.digests import canonical, digest_of, unsealed
from recipes.runs.records import CARD, RECORD, IntegrityError, StoreError
from recipes.runs.store import Store, versions

ROOT = Path(__file__).resolve().parent.parent
IDENTITY = {"kind": "copy", "knobs": {"text": "hello"}}


def fill(files: Path, scratch: Path) -> dict[str, Any]:
    (files / "deep").mkdir()
    (files / "model.bin").write_bytes(b"weights")
    (files / "deep" / "config.json").write_text("{}", encoding="utf-8")
    return {"words": 1}


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")


def record(files: Path) -> Path:
    return files.parent / RECORD


def linked(path: Path) -> None:
    """The same content, behind a link."""
    outside = next(above for above in path.parents if above.name == "artifacts").parent
    path.symlink_to(path.rename(outside / path.name))


def piped(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def refuse(files: Path, scratch: Path) -> dict[str, Any]:
    raise AssertionError("a stored result is not made again")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "artifacts")


def test_canonical_json_is_the_same_for_equal_values() -> None:
    assert canonical({"b": 1.0, "a": [1, "ü"]}) == '{"a":[1,"\\u00fc"],"b":1.0}'
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": "1"})
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical(float("nan"))


def test_versions_come_without_an_import() -> None:
    found = versions(("pydantic", "no-such-library"))
    assert found["no-such-library"] == "absent"
    assert found["pydantic"][0].isdecimal()


def test_a_result_is_made_once(store: Store) -> None:
    made = store.obtain("copy", IDENTITY, fill)
    again = store.obtain("copy", dict(reversed(IDENTITY.items())), refuse)
    assert (made.reused, again.reused) == (False, True)
    assert (again.files / "model.bin").read_bytes() == b"weights"
    assert (again.key, again.metadata, again.digest, again.bytes) == (digest_of(IDENTITY), {"words": 1}, made.digest, 9)
    assert sorted(path.name for path in store.root.iterdir()) == [".work", made.folder.name]
    assert not any((store.root / ".work").iterdir())


def test_another_identity_is_another_result(store: Store) -> None:
    first = store.obtain("copy", IDENTITY, fill)
    second = store.obtain("copy", {**IDENTITY, "seed": 1}, fill)
    assert first.folder != second.folder
    assert not second.reused


def test_a_card_may_be_added_and_changed_and_nothing_else_may(store: Store) -> None:
    made = store.obtain("copy", IDENTITY, fill)
    for text in ("a model card", "another verdict"):
        (made.files / CARD).write_text(text, encoding="utf-8")
        assert store.obtain("copy", IDENTITY, fill).reused
    (made.files / "deep" / CARD).write_text("no card", encoding="utf-8")
    with pytest.raises(IntegrityError, match=r"deep/README.md: was added since"):
        store.find("copy", made.key)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda files: (files / "model.bin").write_bytes(b"weighty"), "model.bin: was changed: expected sha256 "),
        (lambda files: (files / "deep" / "config.json").unlink(), "deep/config.json: is missing since"),
        (lambda files: (files / "extra.bin").touch(), "extra.bin: was added since"),
        (lambda files: record(files).write_text("{"), "artifact.json: was changed (its text: expected JSON"),
        (lambda files: record(files).write_text("{}"), "artifact.json: was changed (it has no seal)"),
        (lambda files: edit(record(files), '"words": 1', '"words": 2'), "artifact.json: was changed (its seal"),
        (lambda files: edit(record(files), '"words": 1', '"words":  1'), "artifact.json: was changed (its seal"),
        (lambda files: edit_sealed(record(files), lambda told: told.pop("metadata")), "it is no record of format 2"),
        (
            lambda files: edit_sealed(record(files), lambda told: told["identity"].update(seed=1)),
            "is not the digest of",
        ),
        (lambda files: edit_sealed(record(files), lambda told: told.update(kind="prune")), "belongs to another result"),
        (lambda files: linked(files / "model.bin"), "model.bin: became a link since"),
        (lambda files: linked(files / "deep"), "deep: became a link since"),
        (lambda files: linked(files), "files: became a link since"),
        (lambda files: linked(record(files)), "artifact.json: became a link since"),
        (lambda files: linked(files.parent), ": became a link since"),
        (lambda files: piped(files / "model.bin"), "model.bin: became no plain file since"),
    ],
)
def test_a_broken_result_is_an_error_that_names_the_file(store: Store, damage: Any, complaint: str) -> None:
    made = store.obtain("copy", IDENTITY, fill)
    damage(made.files)
    with pytest.raises(IntegrityError) as caught:
        store.obtain("copy", IDENTITY, refuse)
    assert complaint in str(caught.value)
    assert str(caught.value).endswith(f"since it was stored; remove {made.folder} and run again to make it anew")
    assert caught.value.exit_code == 5


def test_a_folder_without_its_record_is_no_result(store: Store) -> None:
    made = store.obtain("copy", IDENTITY, fill)
    (made.folder / RECORD).unlink()
    again = store.obtain("copy", IDENTITY, fill)
    assert not again.reused
    assert again.digest == made.digest


def test_a_failure_leaves_nothing_but_the_scratch_folder(store: Store) -> None:
    def fail(files: Path, scratch: Path) -> dict[str, Any]:
        (files / "half").touch()
        (scratch / "checkpoint").touch()
        raise StageError("no")

    def go_on(files: Path, scratch: Path) -> dict[str, Any]:
        assert (scratch / "checkpoint").is_file()
        assert not any(files.iterdir())
        return fill(files, scratch)

    with pytest.raises(StageError):
        store.obtain("copy", IDENTITY, fail)
    assert [path.name for path in store.root.iterdir()] == [".work"]
    store.obtain("copy", IDENTITY, go_on)
    assert not any((store.root / ".work").iterdir())


def test_a_full_disk_is_one_clear_message(store: Store) -> None:
    def fill_the_disk(files: Path, scratch: Path) -> dict[str, Any]:
        Path("/dev/full").write_text("x", encoding="utf-8")
        return {}

    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(
        StoreError, match=r"^copy: the disk is full; free some space, or name another folder .* goes on"
    ):
        store.obtain("copy", IDENTITY, fill_the_disk)
    assert not any((store.root / ".work").iterdir())


def test_a_place_that_cannot_be_written_is_one_clear_message(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="Not a directory"):
        Store(tmp_path / "file").obtain("copy", IDENTITY, fill)


def test_a_link_is_refused(store: Store) -> None:
    def link(files: Path, scratch: Path) -> dict[str, Any]:
        (files / "model.bin").symlink_to("/etc/hostname")
        return {}

    with pytest.raises(StoreError, match="a stage left a link"):
        store.obtain("copy", IDENTITY, link)


KILLED = textwrap.dedent(
    """
    import os, signal, sys
    from pathlib import Path
    from recipes.runs.store import Store

    EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.scandir", "os.truncate", "fcntl.flock"}

    def make(files, scratch):
        step = len(list(scratch.glob("[01]")))
        for number in range(step, 2):  # as a training stage: each step is kept, and the next run goes on after it
            (scratch / f".{number}").write_text(str(number), encoding="utf-8")
            (scratch / f".{number}").rename(scratch / str(number))
        for number in range(2):
            (files / str(number)).write_text((scratch / str(number)).read_text(encoding="utf-8"), encoding="utf-8")
        return {}

    def child(root, fatal):
        count = 0

        def watch(event, arguments):
            nonlocal count
            if event in EVENTS:
                count += 1
                if count == fatal:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        store = Store(root)
        for name in ("first", "second"):
            store.obtain("step", {"name": name}, make)
        os._exit(0)

    def spawn(root, fatal):
        process = os.fork()
        if not process:
            child(root, fatal)
        return os.waitpid(process, 0)[1]

    base, fatal = Path(sys.argv[1]), 1
    while True:
        root = base / str(fatal)
        status = spawn(root, fatal)
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL, status
        for folder in root.glob("step-*"):  # whatever stands in its place is whole
            assert (folder / "artifact.json").is_file(), (fatal, folder)
        assert spawn(root, 0) == 0, fatal
        fatal += 1
    print(fatal - 1)
    """
)


def test_a_kill_at_any_instant_leaves_a_whole_result_or_none(tmp_path: Path, folder_digest: Any) -> None:
    """SIGKILL just before every single change of the file system; the next run always ends with the same files."""
    finished = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    kills = int(finished.stdout)
    assert kills > 40
    never_killed = _files(folder_digest, tmp_path / str(kills + 1))
    assert len(never_killed) == 6
    for number in range(1, kills + 1):
        assert _files(folder_digest, tmp_path / str(number)) == never_killed, number
        assert not any((tmp_path / str(number) / ".work").iterdir())


def _files(folder_digest: Any, root: Path) -> dict[str, str]:
    """Hash of every file, and of a record without its duration."""
    digests: dict[str, str] = folder_digest(root)
    for name in digests:
        if name.endswith(RECORD):
            told = unsealed((root / name).read_bytes())
            digests[name] = digest_of({key: value for key, value in told.items() if key != "seconds"})
    return digests


def _obtain_slowly(root: Path, queue: Any, started: Any, go: Any) -> None:
    def make(files: Path, scratch: Path) -> dict[str, Any]:
        started.set()
        go.wait(20)
        return fill(files, scratch)

    queue.put(Store(root).obtain("copy", IDENTITY, make).reused)


def test_two_runs_at_once_make_it_once(store: Store) -> None:
    context = multiprocessing.get_context("fork")
    queue, started, go = context.Queue(), context.Event(), context.Event()
    other = context.Process(target=_obtain_slowly, args=(store.root, queue, started, go))
    other.start()
    assert started.wait(20)
    waited_for: list[str] = []

    class Waiting:
        def __init__(self, holder: str) -> None:
            waited_for.append(holder)

        def __enter__(self) -> None:
            go.set()

        def __exit__(self, *error: object) -> None:
            return None

    found = store.obtain("copy", IDENTITY, refuse, waiting=Waiting)
    other.join(20)
    assert (found.reused, queue.get(timeout=20)) == (True, False)
    assert waited_for == [f"{other.pid} on {socket.gethostname()}"]


def test_the_lock_of_a_dead_process_is_taken_over(store: Store) -> None:
    context = multiprocessing.get_context("fork")
    queue, started, go = context.Queue(), context.Event(), context.Event()
    other = context.Process(target=_obtain_slowly, args=(store.root, queue, started, go))
    other.start()
    assert started.wait(20)
    assert other.pid is not None
    os.kill(other.pid, signal.SIGKILL)
    other.join(20)
    assert list((store.root / ".work").glob("*.lock"))
    assert not store.obtain("copy", IDENTITY, fill, waiting=refuse).reused  # type: ignore[arg-type]  # never called
