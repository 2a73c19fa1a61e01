"""A result is made once: a step says what it is and how it is made, the engine finds it in the store or makes it.

Everything that takes long is a step: a stage, a measurement, a timing, what a model's matrices can bear. One identity,
one lock, one way to resume (the scratch folder of its key) and one way to publish, whatever command asks for it.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from threading import RLock
from typing import Any

from compress.digests import digest_of
from compress.stage import Progress, Silent
from recipes.runs.folder import LOGGER
from recipes.runs.records import Artifact, StoreError
from recipes.runs.store import Store

_MAKING = RLock()
"""Results are made one at a time in a process: random numbers, threads and what libraries patch belong to all of it."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A result to be had."""

    kind: str
    identity: Mapping[str, Any]
    """Everything that it depends on."""
    make: Callable[[Path, Path], dict[str, Any]]
    """(empty folder to fill, scratch folder that outlives a kill) -> metadata."""
    of: str = ""
    """What the result is of, for the log: a stage's name in its recipe, the row that is measured; "": nothing more."""

    @property
    def key(self) -> str:
        return digest_of(self.identity)


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Carries out steps in a store."""

    store: Store
    progress: Progress = field(default_factory=Silent)
    log: Callable[[str], None] = LOGGER.info
    run: Path | None = None
    """The folder of the run that the results are for, if they are for one."""
    used: set[str] = field(default_factory=set)
    """Names of the results so far."""
    known: set[str] = field(default_factory=set)
    """Names of those of the run's last report, which is there until the next one is written."""

    def obtain(self, step: Step) -> Artifact:
        """The step's result: the stored one, or a new one.

        Raises:
            IntegrityError: the stored one is broken.
            StoreError: the store cannot be written.
        """
        waiting = self._waiting(step.kind)

        def make(files: Path, scratch: Path) -> dict[str, Any]:
            with _MAKING:
                return step.make(files, scratch)

        found = self.store.obtain(step.kind, step.identity, make, waiting=waiting)
        if found.folder.name not in self.used:
            what = step.kind if step.of in {"", step.kind} else f"{step.kind} of {step.of}"
            self.log(f"{what}: {found.folder.name} {'reused' if found.reused else f'made in {found.seconds:.1f} s'}")
        self.use(found.folder.name)
        return found

    def use(self, name: str) -> None:
        """Note that the run needs a result."""
        if name in self.used:
            return
        self.used.add(name)
        if self.run is not None:
            self.known.update(self.store.noted(self.run))
            self._note(self.run, self.used | self.known)

    def settle(self) -> None:
        """Note that the run's report is written: it is about these results and no others."""
        if self.run is not None:
            self._note(self.run, self.used)

    def _note(self, run: Path, results: set[str]) -> None:
        try:
            self.store.note_run(run, results)
        except StoreError as error:  # results that are there can be read all the same
            self.log(f"not noted in the store, which may therefore lose them to `store prune`: {error}")

    def _waiting(self, kind: str) -> Callable[[str], AbstractContextManager[Any]]:
        def wait(holder: str) -> AbstractContextManager[Any]:
            self.log(f"{kind}: waiting for process {holder}, which is making it")
            return self.progress.task(f"{kind}: waiting for process {holder}", total=1)

        return wait
