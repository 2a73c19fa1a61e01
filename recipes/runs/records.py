"""A result as it lies in the store, and the note of a run: how they are written, and the one place where they are read.

    prune-3f9a2c41d07be588/artifact.json   sealed: key, identity, sha256 and size of each file, metadata
    prune-3f9a2c41d07be588/files/...       what the stage left
    .runs/8c1f0e2a9b7d4456.json            sealed: a run folder, and the results that its report is about

What is read must be what was written, to the byte: the seal holds, the key is the digest of the identity and names the
folder, every file has its hash, none was added, and nothing is a link, since that would be followed to what nobody
sealed. What may be added to a result, and changed, is `CARD`, and beside a bundle what was proven of it on a GPU.
"""

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from compress.checkpoints.json_file import JsonError, parse_json, read_plain
from compress.digests import SEAL, SEALED_LIMIT, digest_file, digest_of, read_sealed, sealed, unsealed
from compress.errors import DemitasseError
from evaluation.measurement import Measurement
from export.manifest import PROOF

FORMAT = 2
RECORD = "artifact.json"
CARD = "README.md"
"""The one file that may be added to a result, and changed: what people read about it, which nothing computes with."""
ADDED_PROOF = re.compile(rf"{re.escape(PROOF)}|\.{re.escape(PROOF)}\.\d+")
"""A bundle's proof, and what a kill left of one that was being written."""
SHORT = 16
"""Digits of a key that stand in the name of its folder."""


class _File(BaseModel):
    """What a record says of a file."""

    model_config = ConfigDict(strict=True)
    sha256: str
    bytes: int


class _Record(BaseModel):
    """What a record holds, of whatever has a seal."""

    model_config = ConfigDict(strict=True)
    key: str
    kind: str
    identity: dict[str, Any]
    files: dict[str, _File]
    metadata: dict[str, Any]
    seconds: float


class StoreError(DemitasseError):
    """The run store cannot be read or written; the message names the path and the way out."""


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
    identity: dict[str, Any]
    """Everything that it depends on; the key is its digest."""
    metadata: dict[str, Any]
    entries: dict[str, dict[str, Any]]
    """Path inside `files` -> its sha256 and its size in bytes."""
    seconds: float
    """How long it took to make."""
    reused: bool

    @property
    def files(self) -> Path:
        return self.folder / "files"

    @property
    def hashes(self) -> dict[str, str]:
        """Path inside `files` -> sha256."""
        return {name: entry["sha256"] for name, entry in self.entries.items()}

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(entry["bytes"] for entry in self.entries.values())

    @property
    def digest(self) -> str:
        """sha256 over the names and hashes of all files."""
        return digest_of(self.hashes)


def read_artifact(folder: Path, *, reused: bool = True) -> Artifact:
    """The result in a folder of a store by its record; its files are another question (`verify_files`).

    Raises:
        IntegrityError: the record is not what was written, or belongs elsewhere.
        StoreError: another version wrote it.
    """
    for place in (folder, folder / RECORD):
        if place.is_symlink():
            raise _broken(folder, place, "became a link")
    record = _read_record(folder)
    if digest_of(record.identity) != record.key:
        raise _broken(folder, folder / RECORD, "was changed (its key is not the digest of its identity)")
    if folder.name != name_of(record.kind, record.key):
        raise _broken(folder, folder / RECORD, f"belongs to another result ({record.kind} {record.key})")
    return Artifact(
        key=record.key,
        kind=record.kind,
        folder=folder,
        identity=record.identity,
        metadata=record.metadata,
        entries={name: file.model_dump() for name, file in record.files.items()},
        seconds=record.seconds,
        reused=reused,
    )


def measurements_of(artifact: Artifact) -> list[Measurement]:
    """What was measured, of a result that holds measurements.

    Raises:
        IntegrityError: its record has none, or something else in their place.
    """
    try:
        return [Measurement.model_validate(values) for values in artifact.metadata["measurements"]]
    except (KeyError, TypeError, ValueError) as error:
        told = f"was changed (it holds no measurements: {type(error).__name__})"
        raise _broken(artifact.folder, artifact.folder / RECORD, told) from error


def name_of(kind: str, key: str) -> str:
    """The name of a result's folder."""
    return f"{kind}-{key[:SHORT]}"


def _read_record(folder: Path) -> _Record:
    file, content = folder / RECORD, b""
    try:
        content = read_plain(file, SEALED_LIMIT)
        record = unsealed(content)
    except ValueError as error:
        _refuse_other_version(file, content)
        raise _broken(folder, file, f"was changed ({error})") from error
    if record.get("format") != FORMAT:
        raise _other_version(file, record.get("format"))
    try:
        return _Record.model_validate(record)
    except ValidationError as error:
        raise _broken(folder, file, f"was changed (it is no record of format {FORMAT})") from error


def _refuse_other_version(file: Path, content: bytes) -> None:
    """Records were not always sealed."""
    try:
        record = parse_json(content, str(file))
    except JsonError:
        return
    if isinstance(record, dict) and SEAL not in record and record.get("format", FORMAT) != FORMAT:
        raise _other_version(file, record["format"])


def _other_version(file: Path, format: object) -> StoreError:
    return StoreError(
        f"{file}: written by another version of demitasse (format {format}, this one reads {FORMAT}); name another "
        "store, or run that version"
    )


def _broken(folder: Path, file: Path, what: str) -> IntegrityError:
    return IntegrityError(f"{file}: {what} since it was stored; remove {folder} and run again to make it anew")


def verify_files(artifact: Artifact) -> None:
    """Read every byte of a result.

    Raises:
        IntegrityError: a file is missing, was changed, was added, or became a link.
    """
    folder, files = artifact.folder, artifact.files
    there = _plain_files(folder)
    for name, entry in artifact.entries.items():
        file = files / name
        if name not in there:
            raise _broken(folder, file, "is missing")
        if file.stat().st_size != entry["bytes"] or digest_file(file) != entry["sha256"]:
            expected = f"expected sha256 {entry['sha256'][:SHORT]}..., {entry['bytes']} bytes"
            raise _broken(folder, file, f"was changed: {expected}")
    for name in sorted(there - artifact.entries.keys()):
        if is_added_later(name):
            continue
        raise _broken(folder, files / name, "was added")


def is_added_later(name: str) -> bool:
    """Whether a file of a result, by its path inside, may come after it was stored."""
    return name == CARD or ADDED_PROOF.fullmatch(name.rpartition("/")[2]) is not None


def _plain_files(folder: Path) -> set[str]:
    """Paths inside `files`."""
    files, found = folder / "files", set[str]()
    for path in (files, *files.rglob("*")) if os.path.lexists(files) else ():
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode) and path != files:
            found.add(path.relative_to(files).as_posix())
        elif not stat.S_ISDIR(mode):
            raise _broken(folder, path, "became a link" if stat.S_ISLNK(mode) else "became no plain file")
    return found


def write_record(
    folder: Path, *, kind: str, key: str, identity: Mapping[str, Any], metadata: Mapping[str, Any], seconds: float
) -> None:
    """Hash the files of a new result, force all of it onto the disk, and write its record last.

    Raises:
        StoreError: it holds a link.
    """
    record = {
        "format": FORMAT,
        "key": key,
        "kind": kind,
        "identity": dict(identity),
        "files": _hash_and_flush(folder / "files"),
        "metadata": metadata,
        "seconds": round(seconds, 3),
    }
    _write(folder / RECORD, sealed(record))
    flush(folder)


def _hash_and_flush(folder: Path) -> dict[str, dict[str, Any]]:
    """Hash every file and force it, and every folder, onto the disk."""
    entries: dict[str, dict[str, Any]] = {}
    for file in sorted(folder.rglob("*")):
        if file.is_symlink():
            raise StoreError(f"{file}: a stage left a link, which a stored result may not hold")
        if file.is_file():
            flush(file)
            if is_added_later(file.relative_to(folder).as_posix()):
                continue
            entries[file.relative_to(folder).as_posix()] = {"sha256": digest_file(file), "bytes": file.stat().st_size}
        else:
            flush(file)
    flush(folder)
    return entries


def _write(file: Path, text: str) -> None:
    with file.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


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
        probe.unlink(missing_ok=True)


@dataclass(frozen=True, kw_only=True)
class Note:
    """The results that a run is about."""

    folder: str
    """Of the run."""
    host: str
    """The machine that the folder is on."""
    results: tuple[str, ...] = ()
    """Names, sorted."""

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{digest_of({'folder': self.folder, 'host': self.host})[:SHORT]}.json"


def read_note(file: Path) -> Note:
    """The note of a run.

    Raises:
        IntegrityError: it is not what was written.
    """
    try:
        if file.is_symlink():
            raise ValueError("it became a link")
        content = read_sealed(file)
        note = Note(folder=content["folder"], host=content["host"], results=tuple(content["results"]))
        if note.name != file.name:
            raise ValueError("it belongs to another run")
        return note
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            f"{file}: expected what a run is about, but it was changed or cannot be read ({error}); remove it, and run "
            "the recipe again to have it noted anew"
        ) from error


def write_note(note: Note, folder: Path) -> None:
    """Write it as a whole, or leave it where it is that already."""
    file = folder / note.name
    if file.is_file() and read_note(file) == note:
        return
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    _write(unfinished, sealed({"folder": note.folder, "host": note.host, "results": note.results}))
    unfinished.replace(file)
