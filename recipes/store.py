"""The run store: folders of results under the key of everything that went into them.

    <root>/prune-3f9a2c41d07be588/artifact.json   complete if and only if it exists: key, identity, hash of each file
    <root>/prune-3f9a2c41d07be588/files/...       what the stage left
    <root>/.work/prune-3f9a2c41d07be588/          under way: new/ (thrown away after a kill), scratch/ (kept), lock

A key is the sha256 of the canonical JSON of an identity: stage kind and version, knobs, the parent's key, digests of
what is read, seed, versions of the libraries that compute. A result is made in `new/`, every file is hashed and flushed
to the disk, artifact.json is written last, and one rename puts the folder into place; so a kill at any instant leaves
either the whole result or none, and a scratch folder from which a training stage goes on. One process at a time makes
a result: the lock belongs to the open file, so the kernel drops it with a dead process and nothing stays locked.

Not covered: file systems without `flock`; two machines that share one.
"""

import fcntl
import hashlib
import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from recipes.failures import GOES_ON, is_ours, of_the_system

FORMAT = 1
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
"""Process id of another run, or "" -> what is shown while it is waited for."""


def _patient(holder: str) -> AbstractContextManager[None]:
    return nullcontext()


def canonical(value: Any) -> str:
    """The one JSON text of a value: keys sorted, no blanks, ASCII, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest_of(value: Any) -> str:
    """sha256 (hex) of a value's canonical JSON."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def digest_file(file: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


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
        record = _read_record(folder)
        if record.get("key") != key:
            raise _broken(folder / RECORD, f"belongs to another result ({record.get('key')})")
        _verify(folder, record["files"])
        return _artifact(folder, record, reused=True)

    def obtain(self, kind: str, identity: Mapping[str, Any], make: Make, *, waiting: Waiting = _patient) -> Artifact:
        """The result of an identity: the stored one, or the one that `make` leaves, which is then stored.

        `waiting` is entered with the process id of another run for as long as that one is making the same result.

        Raises:
            IntegrityError: the stored one is broken.
            StoreError: the store cannot be written.
        """
        key = digest_of(identity)
        work = self.root / ".work" / self.name(kind, key).name
        found = self.find(kind, key)
        if found is not None and not work.exists():  # a kill after the rename leaves `work` to be cleaned up
            return found
        with _writing(kind), _locked(work, waiting):
            found = self.find(kind, key)  # another run may have made it meanwhile
            if found is None:
                self._make(kind, key, identity, make, work)
            shutil.rmtree(work, ignore_errors=True)
        return found or _artifact(self.name(kind, key), _read_record(self.name(kind, key)), reused=False)

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


def _read_record(folder: Path) -> dict[str, Any]:
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise _broken(folder / RECORD, f"cannot be read ({error})") from error
    known = {"format", "key", "kind", "files", "facts", "seconds"}
    if not isinstance(record, dict) or not known <= record.keys() or record["format"] != FORMAT:
        raise _broken(folder / RECORD, f"is not of format {FORMAT}")
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
    """Hold the lock of one result; the file in it names the holder's process."""
    descriptor = _try_lock(work)
    if isinstance(descriptor, str):
        with waiting(descriptor):
            while isinstance(descriptor, str):
                time.sleep(_WAIT)
                descriptor = _try_lock(work)
    try:
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _try_lock(work: Path) -> int | str:
    """The open, locked file, or the process id of the one who holds it."""
    work.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(work / "lock", os.O_RDWR | os.O_CREAT, 0o666)
    except FileNotFoundError:  # the former holder was done this instant and removed the folder
        return ""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_nlink:  # none left: the former holder was done and removed the file
            return descriptor
        holder = ""
    except BlockingIOError:
        holder = os.pread(descriptor, 32, 0).decode()
    os.close(descriptor)
    return holder


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
