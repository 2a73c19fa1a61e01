"""The run store: folders of results under the key of everything that went into them.

    <root>/prune-3f9a2c41d07be588/artifact.json   complete if and only if it exists: key, identity, hash of each file
    <root>/prune-3f9a2c41d07be588/files/...       what the stage left
    <root>/.work/prune-3f9a2c41d07be588/          under way: new/ (thrown away after a kill), scratch/ (kept)
    <root>/.work/prune-3f9a2c41d07be588.lock      held by who makes it; .process beside it says which process that is
    <root>/.work/process-....lock                 held by a process for as long as it reads or makes results
    <root>/.work/prune.lock                       held while results are removed; nothing begins meanwhile
    <root>/.runs/8c1f0e2a9b7d4456.json            a run folder, and the results that its report is about

A key is the sha256 of the canonical JSON of an identity: stage kind and version, knobs, the parent's key, digests of
what is read, seed, versions of the libraries that compute. A result is made in `new/`, every file is hashed and flushed
to the disk, artifact.json is written last, and one rename puts the folder into place; so a kill at any instant leaves
either the whole result or none, and a scratch folder from which a training stage goes on. One process at a time makes
a result: the lock belongs to the open file, so the kernel drops it with a dead process and nothing stays locked.

Where a file system has no locks, a file that says so takes their place (filelock). Not covered: two machines that share
a file system whose locks do not reach from one to the other.
"""

import json
import os
import shutil
import socket
import stat
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from compress.digests import digest_file, digest_of
from recipes.runs.failures import GOES_ON, is_ours, of_the_system

FORMAT = 1
RUNS = ".runs"
PRUNING, READING = "prune.lock", "process-"
RECORD = "artifact.json"
CARD = "README.md"
"""The one file that may be added to a result, and changed: what people read about it, which nothing computes with."""
_SHORT = 16
_WAIT = 0.2


class StoreError(Exception):
    """The run store cannot be read or written; the message names the path and the way out."""

    exit_code = 2


class IntegrityError(StoreError):
    """A result is not what was stored."""

    exit_code = 5


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A complete result."""

    key: str
    kind: str
    folder: Path
    """The folder in the store; `files` is what the stage left."""
    facts: dict[str, Any]
    hashes: dict[str, str]
    """Path inside `files` -> sha256."""
    bytes: int
    """Size of all files."""
    seconds: float
    """How long it took to make."""
    reused: bool

    @property
    def files(self) -> Path:
        return self.folder / "files"

    @property
    def digest(self) -> str:
        """sha256 over the names and hashes of all files."""
        return digest_of(self.hashes)


Make = Callable[[Path, Path], dict[str, Any]]
"""(empty folder to fill, scratch folder that outlives a kill) -> facts."""
Waiting = Callable[[str], AbstractContextManager[Any]]
"""Process of another run ("1234 on HOST", or "") -> what is shown while it is waited for."""


def _patient(holder: str) -> AbstractContextManager[None]:
    return nullcontext()


def versions(libraries: tuple[str, ...]) -> dict[str, str]:
    """Installed versions of distributions, without importing them; "absent" where there is none."""
    found: dict[str, str] = {}
    for library in sorted(libraries):
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            found[library] = "absent"
    return found


@dataclass(frozen=True)
class Store:
    """A run store in a folder, which is made when the first result is."""

    root: Path

    def name(self, kind: str, key: str) -> Path:
        return self.root / f"{kind}-{key[:_SHORT]}"

    def has(self, kind: str, key: str) -> bool:
        """Whether the result is there, without a look at its files."""
        return (self.name(kind, key) / RECORD).is_file()

    def find(self, kind: str, key: str) -> Artifact | None:
        """The result under a key, every file verified, or None.

        Raises:
            IntegrityError: a file is missing, was changed, or was added.
        """
        folder = self.name(kind, key)
        if not (folder / RECORD).is_file():
            return None
        record = read_record(folder)
        if record.get("key") != key:
            raise _broken(folder / RECORD, f"belongs to another result ({record.get('key')})")
        _verify(folder, record["files"])
        return _artifact(folder, record, reused=True)

    def seen_from(self, folder: Path) -> str:
        """Where it is: relative to a folder that holds it, else absolute."""
        inside = self.root.is_relative_to(folder)
        return self.root.relative_to(folder).as_posix() if inside else str(self.root.absolute())

    def note_run(self, folder: Path, results: Iterable[str]) -> None:
        """Note which results the run in a folder is about, so that `prune` keeps them while that folder is there.

        Raises:
            StoreError: the store cannot be written.
        """
        file, place = self._note_of(folder)
        content = place | {"results": sorted(results)}
        if file.is_file() and read_note(file) == content:
            return
        with _writing("store"):
            (self.root / RUNS).mkdir(parents=True, exist_ok=True)
            unfinished = file.with_name(f".{file.name}.{os.getpid()}")
            _write_record(unfinished, content)
            unfinished.replace(file)

    def noted(self, folder: Path) -> set[str]:
        """The results that the run in a folder was last about."""
        file, _ = self._note_of(folder)
        return set(read_note(file)["results"]) if file.is_file() else set()

    def _note_of(self, folder: Path) -> tuple[Path, dict[str, Any]]:
        """The file of a run's note, and what says which run it is."""
        place = {"folder": str(folder.absolute()), "host": socket.gethostname()}
        return self.root / RUNS / f"{digest_of(place)[:_SHORT]}.json", place

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Hold off `prune` while results are read and made.

        A store that cannot be written is not held: who can write it must know.
        """
        work = self.root / ".work"
        with suppress(OSError):
            work.mkdir(parents=True, exist_ok=True)
        if not os.access(work, os.W_OK):
            yield
            return
        mine = FileLock(work / f"{READING}{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.lock")
        with FileLock(work / PRUNING):
            mine.acquire()
        try:
            yield
        finally:
            Path(mine.lock_file).unlink(missing_ok=True)
            mine.release()

    def obtain(self, kind: str, identity: Mapping[str, Any], make: Make, *, waiting: Waiting = _patient) -> Artifact:
        """The result of an identity: the stored one, or the one that `make` leaves, which is then stored.

        `waiting` is entered with the process of another run for as long as that one is making the same result.

        Raises:
            IntegrityError: the stored one is broken.
            StoreError: the store cannot be written.
        """
        key = digest_of(identity)
        work = self.root / ".work" / self.name(kind, key).name
        found = self.find(kind, key)
        leftover = _lock_of(work).exists() and os.access(work.parent, os.W_OK)  # of a kill after the rename
        if found is not None and not leftover:
            return found
        with _writing(kind), _locked(work, waiting):
            found = self.find(kind, key)  # another run may have made it meanwhile
            if found is None:
                self._make(kind, key, identity, make, work)
            shutil.rmtree(work, ignore_errors=True)
        return found or _artifact(self.name(kind, key), read_record(self.name(kind, key)), reused=False)

    def _make(self, kind: str, key: str, identity: Mapping[str, Any], make: Make, work: Path) -> None:
        new, scratch, place = work / "new", work / "scratch", self.name(kind, key)
        shutil.rmtree(new, ignore_errors=True)
        (new / "files").mkdir(parents=True)
        scratch.mkdir(exist_ok=True)
        start = time.monotonic()
        try:
            facts = make(new / "files", scratch)
            record = {
                "format": FORMAT,
                "key": key,
                "kind": kind,
                "identity": dict(identity),
                "files": _hash_and_flush(new / "files"),
                "facts": facts,
                "seconds": round(time.monotonic() - start, 3),
            }
            _write_record(new / RECORD, record)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            if not any(scratch.iterdir()):  # nothing to go on from
                shutil.rmtree(work, ignore_errors=True)
            raise
        flush(new)
        shutil.rmtree(place, ignore_errors=True)  # a leftover without artifact.json, which is no result
        new.rename(place)
        flush(self.root)


def _artifact(folder: Path, record: Mapping[str, Any], *, reused: bool) -> Artifact:
    return Artifact(
        key=record["key"],
        kind=record["kind"],
        folder=folder,
        facts=record["facts"],
        hashes={name: entry["sha256"] for name, entry in record["files"].items()},
        bytes=sum(entry["bytes"] for entry in record["files"].values()),
        seconds=record["seconds"],
        reused=reused,
    )


def read_note(file: Path) -> dict[str, Any]:
    """The note of a run: its folder, its machine, its results."""
    try:
        note = json.loads(file.read_text(encoding="utf-8"))
        return {"folder": str(note["folder"]), "host": str(note["host"]), "results": list(note["results"])}
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise StoreError(
            f"{file}: expected what a run is about, and it cannot be read ({error}); remove it, and run the recipe "
            "again to have it noted anew"
        ) from error


def read_record(folder: Path) -> dict[str, Any]:
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise _broken(folder / RECORD, f"cannot be read ({error})") from error
    known = {"format", "key", "kind", "identity", "files", "facts", "seconds"}
    if isinstance(record, dict) and record.get("format", FORMAT) != FORMAT:
        raise StoreError(
            f"{folder / RECORD}: written by another version of demitasse (format {record['format']}, this one reads "
            f"{FORMAT}); name another store, or run that version"
        )
    if not isinstance(record, dict) or not known <= record.keys():
        raise _broken(folder / RECORD, f"is no record of format {FORMAT}")
    return record


def _write_record(file: Path, record: Mapping[str, Any]) -> None:
    with file.open("w", encoding="utf-8") as stream:
        json.dump(record, stream, indent=2, sort_keys=True)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())


def _verify(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    there = {
        file.relative_to(folder / "files").as_posix() for file in (folder / "files").rglob("*") if not file.is_dir()
    }
    for name, entry in files.items():
        file = folder / "files" / name
        if name not in there:
            raise _broken(file, "is missing")
        if file.stat().st_size != entry["bytes"] or digest_file(file) != entry["sha256"]:
            raise _broken(file, f"was changed: expected sha256 {entry['sha256'][:_SHORT]}..., {entry['bytes']} bytes")
    for name in sorted(there - files.keys() - {CARD}):
        raise _broken(folder / "files" / name, "was added")


def _broken(file: Path, what: str) -> IntegrityError:
    folder = (
        file.parent if file.name == RECORD else next(above for above in file.parents if above.name == "files").parent
    )
    return IntegrityError(f"{file}: {what} since it was stored; remove {folder} and run again to make it anew")


def _hash_and_flush(folder: Path) -> dict[str, dict[str, Any]]:
    """Hash every file and force it, and every folder, onto the disk."""
    entries: dict[str, dict[str, Any]] = {}
    for file in sorted(folder.rglob("*")):
        if file.is_symlink():
            raise StoreError(f"{file}: a stage left a link, which a stored result may not hold")
        if file.is_file():
            flush(file)
            entries[file.relative_to(folder).as_posix()] = {"sha256": digest_file(file), "bytes": file.stat().st_size}
        else:
            flush(file)
    flush(folder)
    return entries


def flush(path: Path) -> None:
    """Write a file or a folder's list of names through to the disk; a file gets the mode that the umask gives.

    safetensors leaves its files to their owner alone, but who serves a bundle is seldom who built it.
    """
    if path.is_file():
        path.chmod(_usual_mode(path.parent))
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _usual_mode(folder: Path) -> int:
    """The mode of a new file in a folder; asked of the system, as a folder may have rules that replace the umask."""
    probe = folder / f".mode.{os.getpid()}"
    descriptor = os.open(probe, os.O_RDONLY | os.O_CREAT, 0o666)
    try:
        return stat.S_IMODE(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)
        probe.unlink()


@contextmanager
def _locked(work: Path, waiting: Waiting) -> Iterator[None]:
    """Hold the lock of one result; a file beside it names the holder's process."""
    work.parent.mkdir(parents=True, exist_ok=True)
    lock, holder = FileLock(_lock_of(work)), work.with_name(f"{work.name}.process")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        with waiting(holder.read_text(encoding="utf-8") if holder.is_file() else ""):
            lock.acquire(poll_interval=_WAIT)
    try:
        holder.write_text(f"{os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        holder.unlink(missing_ok=True)
        _lock_of(work).unlink(missing_ok=True)
        lock.release()


def _lock_of(work: Path) -> Path:
    """The lock file of a work folder: it comes first and goes last."""
    return work.with_name(f"{work.name}.lock")


@contextmanager
def _writing(kind: str) -> Iterator[None]:
    """A disk that cannot be written becomes one clear message, also where a library wraps the system's error."""
    try:
        yield
    except Exception as error:
        reason = "" if is_ours(error) else of_the_system(error)
        if not reason:
            raise
        raise StoreError(f"{kind}: {reason}; {GOES_ON}") from error
