"""The folder or file that a command was told to leave: it appears when it is complete, and nothing is overwritten.

.OUT.partial/   the command's own store, where no other is given: gone once OUT is there, kept after a kill, so that
                the same command goes on from it
.OUT.lock       held meanwhile
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from compress.errors import DemitasseError
from compress.stage import Progress
from export.manifest import is_bundle
from export.readme import write_readme
from recipes.engine.steps import Engine
from recipes.runs.records import CARD, flush
from recipes.runs.store import Store

CURVES = "tensorboard"
"""Where what was trained keeps its curves."""


class RequestError(DemitasseError):
    """What was asked for cannot be done; one line per reason, with what to do."""


def check_out(out: Path, source: Path | None) -> list[str]:
    """What is wrong with writing `out`."""
    if out.exists() and not out.is_dir():
        return [f"--out {out}: expected a folder, got a file; name a new folder"]
    if out.is_dir() and any(out.iterdir()):
        return [f"--out {out}: the folder is not empty, and nothing is overwritten; name a new folder or remove it"]
    if source is not None and (_inside(out, source) or _inside(source, out)):
        return [f"--out {out}: expected a folder apart from the model {source}, which is never written to"]
    return []


def _inside(inner: Path, outer: Path) -> bool:
    """Whether a path is another one or lies below it."""
    return inner.resolve().is_relative_to(outer.resolve())


@contextmanager
def engine_for(
    out: Path, progress: Progress, *, store: Path | None = None, log_to: Callable[[Path], None] = lambda folder: None
) -> Iterator[tuple[Engine, Path]]:
    """An engine over `store`, or over one of its own, and a folder to prepare `out` in.

    Args:
        log_to: told the folder that is worked in.

    Raises:
        RequestError: another process writes the same.
    """
    work, lock = out.parent / f".{out.name}.partial", FileLock(out.parent / f".{out.name}.lock")
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise RequestError(f"{work}: another process is writing here; wait for it, or name another --out") from None
    try:
        if out.is_dir() and (problems := check_out(out, None)):  # another process may have left it meanwhile
            raise RequestError("\n".join(problems))
        work.mkdir(exist_ok=True)
        log_to(work)
        kept = Store(work / "store") if store is None else Store(store, option="--store")
        with kept.in_use():
            yield Engine(store=kept, progress=progress), work
        shutil.rmtree(work)
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def publish(made: Path, out: Path, work: Path, beside: Sequence[Path] = (), *, license: str = "") -> None:
    """Give what was made its name; it is written through to the disk. What lies in a store of others is copied.

    Args:
        beside: folders, if they are there, that go into it.
        license: of the model that it was made of, as far as its owner states one; a bundle's README.md tells it.
    """
    if not made.is_relative_to(work):
        copy = work / "copy"
        shutil.rmtree(copy, ignore_errors=True)  # of a command that was killed
        shutil.copytree(made, copy)
        (copy / CARD).unlink(missing_ok=True)  # it tells the verdict of somebody's run
        made = copy
    if is_bundle(made):
        write_readme(made, license=license)
    for file in (path for folder in (made, *beside) for path in folder.rglob("*") if path.is_file()):
        flush(file)
    flush(made)
    made.replace(out)
    for folder in beside:  # not before: a stored result with a file more is a broken one
        if folder.is_dir():
            folder.rename(out / folder.name)
    flush(out)
    flush(out.parent)
