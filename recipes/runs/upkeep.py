"""What a store holds, what for, whether it is whole, and what no run refers to: `demitasse store list|verify|prune`.

A result is in use while the folder of a run whose report is about it is there (`Store.note_run`); of a run on another
machine it cannot be told, so its results stay, and so does all that lies in the folder of a run itself when that was
moved. What is under way is never touched: a store that something works in is not pruned.
"""

import shutil
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from recipes.runs.records import RECORD, IntegrityError, StoreError, read_artifact, read_note
from recipes.runs.store import PRUNING, READING, RUNS, Store

GONE = ".gone"
"""How the name of a result ends that is being removed."""


@dataclass(frozen=True, kw_only=True)
class Held:
    """A result that a store holds."""

    name: str
    kind: str
    bytes: int
    seconds: float
    runs: tuple[Path, ...]
    """Folders of the runs that are about it."""


def open_store(root: Path) -> Store:
    """The store in a folder, or in that of a run.

    Raises:
        StoreError: there is none.
    """
    for folder in (root, root / "artifacts"):
        if any(folder.glob(f"*/{RECORD}")) or (folder / RUNS).is_dir():
            return Store(folder)
    raise StoreError(f"{root}: expected a store of results or the folder of a run, got neither")


def held(store: Store) -> Iterator[Held]:
    """Every result, by name.

    Raises:
        IntegrityError: a record cannot be read.
    """
    runs = _runs(store)
    for name in _names(store):
        result = read_artifact(store.root / name)
        yield Held(
            name=name,
            kind=result.kind,
            bytes=result.bytes,
            seconds=result.seconds,
            runs=tuple(folder for folder, results in runs.items() if name in results),
        )


def _names(store: Store) -> list[str]:
    return sorted(file.parent.name for file in store.root.glob(f"*/{RECORD}") if not file.parent.name.startswith("."))


def _runs(store: Store) -> dict[Path, set[str]]:
    """Folder of every run that is still there -> names of the results that it is about."""
    here = socket.gethostname()
    notes = [read_note(file) for file in sorted((store.root / RUNS).glob("*.json")) if not file.name.startswith(".")]
    found = {Path(note.folder): set(note.results) for note in notes if note.host != here or Path(note.folder).is_dir()}
    around = store.root.absolute().parent
    if (around / "report.json").is_file() and around not in found:  # a run that was moved, or copied
        found[around] = set(_names(store))
    return found


def broken(store: Store, names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(name, what is wrong with it, empty where nothing is) for each of these results, every byte read."""
    for name in names:
        try:
            store.read(name)
        except IntegrityError as error:
            yield name, str(error)
        else:
            yield name, ""


def free(store: Store, results: Iterable[Held]) -> int:
    """Remove these results, except those that a run came to need since they were listed; the bytes that are free.

    Raises:
        StoreError: something works in the store.
    """
    work = store.root / ".work"
    work.mkdir(exist_ok=True)
    with _alone(work / PRUNING):
        for lock in sorted(work.glob("*.lock")):
            if lock.name != PRUNING:
                with _alone(lock):
                    if lock.name.startswith(READING):  # of a process that was killed
                        lock.unlink()
        for leftover in store.root.glob(f".*{GONE}"):
            shutil.rmtree(leftover)
        needed = set[str]().union(*_runs(store).values())
        freed = [result for result in results if result.name not in needed]
        for result in freed:
            folder = store.root / result.name
            gone = folder.with_name(f".{folder.name}{GONE}")  # one rename first: a kill leaves no half of a result
            folder.rename(gone)
            shutil.rmtree(gone)
    return sum(result.bytes for result in freed)


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    try:
        with FileLock(lock, blocking=False):
            yield
    except Timeout:
        raise StoreError(f"{lock.parent.parent}: something works in it ({lock.stem}); wait until it is done") from None
