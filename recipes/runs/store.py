"""The run store: folders of results under the key of everything that went into them.

    <root>/prune-3f9a2c41d07be588/artifact.json   complete if and only if it exists (`records.py`)
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

import importlib.metadata
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from compress.digests import digest_of
from recipes.runs.failures import GOES_ON, is_ours, of_the_system
from recipes.runs.records import (
    RECORD,
    Artifact,
    Note,
    StoreError,
    flush,
    name_of,
    read_artifact,
    read_note,
    verify_files,
    write_note,
    write_record,
)

RUNS = ".runs"
PRUNING, READING = "prune.lock", "process-"
_WAIT = 0.2

Make = Callable[[Path, Path], dict[str, Any]]
"""(empty folder to fill, scratch folder that outlives a kill) -> metadata."""
Waiting = Callable[[str], AbstractContextManager[Any]]
"""Process of another run ("1234 on HOST", or "") -> what is shown while it is waited for."""


def _patient(holder: str) -> AbstractContextManager[None]:
    return nullcontext()


def versions(libraries: tuple[str, ...]) -> dict[str, str]:
    """Installed versions of distributions, without importing them; "absent" where there is none."""
    found: dict[str, str] = {}
    for library in sorted(libraries):
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            found[library] = "absent"
    return found


@dataclass(frozen=True)
class Store:
    """A run store in a folder, which is made when the first result is."""

    root: Path
    option: str = field(default="--out", compare=False)
    """Of the command, which names another place."""

    def name(self, kind: str, key: str) -> Path:
        return self.root / name_of(kind, key)

    def has(self, kind: str, key: str) -> bool:
        """Whether the result is there, without a look at its files."""
        return (self.name(kind, key) / RECORD).is_file()

    def find(self, kind: str, key: str) -> Artifact | None:
        """The result under a key, every file verified, or None.

        Raises:
            IntegrityError: its record or a file was changed, a file is missing, was added, or became a link.
        """
        return self.read(self.name(kind, key).name) if self.has(kind, key) else None

    def read(self, name: str) -> Artifact:
        """The result of that name, every file verified.

        Raises:
            IntegrityError: as in `find`; or there is none.
        """
        artifact = read_artifact(self.root / name)
        verify_files(artifact)
        return artifact

    def verify_if_there(self, name: str) -> None:
        """Read every byte of a result that nothing needs any more, and that a run refers to all the same.

        Raises:
            IntegrityError: it is there, and is not what was stored.
        """
        if os.path.lexists(self.root / name):
            self.read(name)

    def seen_from(self, folder: Path) -> str:
        """Where it is: relative to a folder that holds it, else absolute."""
        inside = self.root.is_relative_to(folder)
        return self.root.relative_to(folder).as_posix() if inside else str(self.root.absolute())

    def note_run(self, folder: Path, results: Iterable[str]) -> None:
        """Note which results the run in a folder is about, so that `prune` keeps them while that folder is there.

        Raises:
            StoreError: the store cannot be written.
        """
        note = replace(_note_of(folder), results=tuple(sorted(results)))
        with _writing("store", self.option):
            write_note(note, self.root / RUNS)

    def noted(self, folder: Path) -> set[str]:
        """The results that the run in a folder was last about."""
        file = self.root / RUNS / _note_of(folder).name
        return set(read_note(file).results) if os.path.lexists(file) else set()

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
        with _writing(kind, self.option), _locked(work, waiting):
            found = self.find(kind, key)  # another run may have made it meanwhile
            if found is None:
                self._make(kind, key, identity, make, work)
            shutil.rmtree(work, ignore_errors=True)
        return found or read_artifact(self.name(kind, key), reused=False)

    def _make(self, kind: str, key: str, identity: Mapping[str, Any], make: Make, work: Path) -> None:
        new, scratch, place = work / "new", work / "scratch", self.name(kind, key)
        shutil.rmtree(new, ignore_errors=True)
        (new / "files").mkdir(parents=True)
        scratch.mkdir(exist_ok=True)
        start = time.monotonic()
        try:
            metadata = make(new / "files", scratch)
            seconds = time.monotonic() - start
            write_record(new, kind=kind, key=key, identity=identity, metadata=metadata, seconds=seconds)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            if not any(scratch.iterdir()):  # nothing to go on from
                shutil.rmtree(work, ignore_errors=True)
            raise
        shutil.rmtree(place, ignore_errors=True)  # a leftover without artifact.json, which is no result
        new.rename(place)
        flush(self.root)


def _note_of(folder: Path) -> Note:
    """What says which run a note is about."""
    return Note(folder=str(folder.absolute()), host=socket.gethostname())


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
def _writing(kind: str, option: str) -> Iterator[None]:
    """A disk that cannot be written becomes one clear message, also where a library wraps the system's error."""
    try:
        yield
    except Exception as error:
        reason = "" if is_ours(error) else of_the_system(error).replace("--out", option)
        if not reason:
            raise
        raise StoreError(f"{kind}: {reason}; {GOES_ON}") from error
