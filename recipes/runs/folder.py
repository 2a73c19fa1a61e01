"""The folder of a run: where it and its store are, that it can be written, its log, the link to what came out, and the
model card in that.

The card lies in the bundle as README.md, but is no part of what the bundle's hashes seal: it tells the verdict, and
other gates on the same bundle give another one. The store and the bundle's own verification let this name be, and that
of what is proven later (`export.proof`).
"""

import logging
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryFile

from evaluation.escaping import visible
from export.manifest import is_bundle
from export.readme import usage
from recipes.runs.failures import Terminated, exit_code, is_ours, message, of_the_system
from recipes.runs.records import CARD, StoreError
from recipes.runs.store import Store

LOGGER = logging.getLogger("demitasse")
"""What is logged goes here, too, at level INFO; the error that ends a run at ERROR."""
LOGGER.addHandler(logging.NullHandler())  # without a handler Python would show errors itself


class Log:
    """The run folder's log: what was made, what was reused, how it ended; what is said again in a run is left out."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.said: set[str] = set()

    def __call__(self, text: str, level: int = logging.INFO) -> None:
        if text in self.said:
            return
        self.said.add(text)
        lines = visible(text).replace("\n", "\n  ")  # lines that belong together are kept together
        LOGGER.log(level, "%s", lines)
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} [{os.getpid()}] {lines}\n")

    @contextmanager
    def told(self) -> Iterator[None]:
        """An error that ends this is in the log; one that is not meant for the user with its traceback."""
        try:
            yield
        except BaseException as error:
            ends = isinstance(error, KeyboardInterrupt | Terminated) or is_ours(error) or bool(of_the_system(error))
            trace = "" if ends else "\n" + "".join(traceback.format_exception(error)).rstrip()
            with suppress(OSError):  # a full disk must not hide what went wrong
                self(f"ended with exit code {exit_code(error)}: {message(error)}{trace}", logging.ERROR)
            raise


@contextmanager
def writing() -> Iterator[None]:
    """A folder that cannot be written becomes one clear message."""
    try:
        yield
    except OSError as error:
        raise StoreError(of_the_system(error)) from error


def run_folder(name: str, out: str | Path | None) -> Path:
    """Where a run's report, log and results go: `out`, or runs/<name of the recipe> below the working directory."""
    return Path("runs") / name if out is None else Path(out)


def store_of(folder: Path, store: str | Path | None) -> Store:
    """The store of a run in this folder: `store`, or its own."""
    return Store(folder / "artifacts") if store is None else Store(Path(store).absolute(), option="--store")


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
