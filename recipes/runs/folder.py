"""The folder of a run: that it can be written, its log, the link to what came out, and the model card in that.

The card lies in the bundle as README.md, but is no part of what the bundle's hashes seal: it tells the verdict, and
other gates on the same bundle give another one. The store and the bundle's own verification let exactly this name be.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryFile

from export.manifest import is_bundle
from export.readme import usage
from recipes.runs.failures import of_the_system
from recipes.runs.records import CARD, StoreError


class Log:
    """The run folder's log: what was made, what was reused, how it ended."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __call__(self, text: str) -> None:
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} [{os.getpid()}] {text}\n")


@contextmanager
def writing() -> Iterator[None]:
    """A folder that cannot be written becomes one clear message."""
    try:
        yield
    except OSError as error:
        raise StoreError(of_the_system(error)) from error


def make_writable(folder: Path) -> None:
    """Make the run folder, and see that it can be written, before anything runs."""
    with writing():
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()  # it has no name where the system allows that, so a kill leaves nothing


def point_at(link: Path, target: Path) -> None:
    """A link to the last artifact's files, replaced as a whole; where there are no links, the report names the key."""
    unfinished = link.with_name(f".{link.name}.{os.getpid()}")
    with suppress(OSError):
        unfinished.symlink_to(os.path.relpath(target, link.parent))
        unfinished.replace(link)


def add_card(card: str, bundle: Path, folder: Path) -> None:
    """Put the model card, above how to run it, into a run's bundle; beside its report, if others share that."""
    place = bundle if bundle.is_relative_to(folder) else folder
    unfinished = folder / f".{CARD}.{os.getpid()}"  # where a kill leaves nothing that is added to a result
    if place == bundle and is_bundle(bundle):
        card = f"{card}\n{usage(bundle)}"
    try:
        unfinished.write_text(card, encoding="utf-8")
        unfinished.replace(place / CARD)
    finally:
        unfinished.unlink(missing_ok=True)
