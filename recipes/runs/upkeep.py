"""What a store holds, what for, whether it is whole, and what no run refers to: `demitasse store list|verify|prune`.

A result is in use while the folder of a run whose report is about it is there (`Store.note_run`). What is under way is
never touched: a store that something works in is not pruned.
"""

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from recipes.runs.store import RECORD, RUNS, IntegrityError, Store, StoreError, read_record


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
    for file in sorted(store.root.glob(f"*/{RECORD}")):
        record, name = read_record(file.parent), file.parent.name
        yield Held(
            name=name,
            kind=record["kind"],
            bytes=sum(entry["bytes"] for entry in record["files"].values()),
            seconds=record["seconds"],
            runs=tuple(folder for folder, results in runs.items() if name in results),
        )


def _runs(store: Store) -> dict[Path, set[str]]:
    """Folder of every run that is still there -> names of the results that it is about."""
    noted = [json.loads(file.read_text(encoding="utf-8")) for file in sorted((store.root / RUNS).glob("*.json"))]
    found = {Path(content["folder"]): set(content["results"]) for content in noted}
    return {folder: results for folder, results in found.items() if folder.is_dir()}


def broken(store: Store, names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(name, what is wrong with it, empty where nothing is) for each of these results, every byte read."""
    for name in names:
        try:
            record = read_record(store.root / name)
            store.find(record["kind"], record["key"])
        except IntegrityError as error:
            yield name, str(error)
        else:
            yield name, ""


def free(store: Store, results: Iterable[Held]) -> None:
    """Remove these results.

    Raises:
        StoreError: something works in the store.
    """
    for lock in sorted((store.root / ".work").glob("*.lock")):
        try:
            with FileLock(lock, blocking=False):
                pass
        except Timeout:
            raise StoreError(f"{store.root}: something works in it ({lock.stem}); wait until it is done") from None
    for result in results:
        folder = store.root / result.name
        gone = folder.with_name(f".{folder.name}.gone")  # one rename first: a kill leaves no half of a result
        folder.rename(gone)
        shutil.rmtree(gone)
