"""What a stage is: it takes a folder of one format and leaves a new folder of one format.

A stage reads its source folder and the inputs it declares, and fills an empty output folder. It never prints,
never touches the run store and never changes its source; what it wants to say it returns as metadata (plain JSON) for
the report, and what takes long it reports through `Progress`. Its `version` is raised whenever the same knobs begin
to give other numbers, because the version is part of the key under which results are reused.

Formats:  "nothing"    no checkpoint yet
          "dense"      a plain Hugging Face folder
          "quantized"  the same in a format of quantized weights that transformers loads with that format's library
          "onnx"       a bundle for ONNX Runtime
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

from compress.errors import DemitasseError
from compress.knobs import Knobs
from compress.text import TextSource

FormatName = Literal["nothing", "dense", "quantized", "onnx"]
StageInputName = Literal["train_text", "calibration_text", "teacher"]
StageMetadata = dict[str, Any]
Config = TypeVar("Config", bound="StageConfig")


class StageConfig(Knobs):
    """The knobs of one stage: frozen, keyword-only, unknown keys refused."""


class StageError(DemitasseError):
    """A stage cannot do what it was asked; the message names the thing, what was expected and the way out."""


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its class where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class Task(Protocol):
    """One piece of long work, under way."""

    def advance(self, amount: float = 1.0, note: str = "") -> None:
        """Say that `amount` more units are done; `note` is a short live figure such as "loss 3.21"."""


class Progress(Protocol):
    """Where long work reports to: a progress bar on a terminal, or nothing."""

    def task(self, label: str, total: float, done: float = 0.0, *, steady: float = 0.0) -> AbstractContextManager[Task]:
        """Open a task of `total` units, `done` of which were finished earlier (a resumed run).

        Where units differ in what they take and come in rounds, `steady` is the units of a round: the time that is
        left is told from whole rounds alone.
        """


class Silent:
    """The `Progress` (and its `Task`) that shows nothing."""

    def advance(self, amount: float = 1.0, note: str = "") -> None:
        return None

    def task(
        self, label: str, total: float, done: float = 0.0, *, steady: float = 0.0
    ) -> AbstractContextManager["Silent"]:
        return nullcontext(self)


@dataclass(frozen=True, kw_only=True)
class StageInput:
    """Everything a stage may read and the two folders it may write."""

    source: Path | None
    """The checkpoint to work on; None only for a stage that takes "nothing". Read-only."""
    out: Path
    """An existing empty folder; when `run` returns it holds a complete checkpoint."""
    scratch: Path
    """An existing folder that outlives a kill: a training stage keeps its checkpoints here and resumes from them."""
    seed: int = 0
    teacher: Path | None = None
    """A dense checkpoint: the source of the whole recipe."""
    train_text: TextSource | None = None
    calibration_text: TextSource | None = None
    decode_seconds: Callable[[Path], float] | None = None
    """Seconds per decoded token of a dense checkpoint's shape on the runtime that will serve it, once measured; None
    where nothing can measure it.
    """
    logs: Path | None = None
    """Where curves are written while training, for TensorBoard; None: into `scratch`."""
    lineage: tuple[StageMetadata, ...] = ()
    """What made the source: its key first, then kind and knobs of every earlier stage; a bundle's manifest says it."""
    progress: Progress = field(default_factory=Silent)


PASSES = {"nothing": 0.0, "norms": 1.0, "gram": 2.0}
"""What is noted of a linear's inputs (`compress.models.calibration.Reads`) -> passes that it costs: a Gram matrix takes
about as many products as the linears.
"""


@dataclass(frozen=True, kw_only=True)
class Stage(Generic[Config]):
    """A kind of stage: the handle under which recipes, the command line and the run store know it."""

    kind: str
    """Its YAML key and its verb on the command line."""
    summary: str
    """One line for `demitasse --help` and `demitasse methods`."""
    version: int
    config: type[Config]
    takes: frozenset[FormatName]
    leaves: FormatName
    run: Callable[[Config, StageInput], StageMetadata]
    inputs_read: Callable[[Config], frozenset[StageInputName]] = lambda config: frozenset()
    """The inputs that these knobs make it read."""
    folders: Callable[[Config], dict[str, Path]] = lambda config: {}
    """Further checkpoints that these knobs make it read, by the knob that names them."""
    tokens_run: Callable[[Config, int, int], float] = lambda config, context, layers: 0.0
    """(knobs, the model's context, its layers) -> about how many tokens of calibration text go through the whole model;
    a pass that does as much again beside it counts twice. A plan's time is told from it.
    """
    times_decoding: Callable[[Config], bool] = lambda config: False
    """Whether these knobs make it time decode steps, so that another machine comes to another result."""
    libraries: tuple[str, ...] = ()
    """Distributions whose versions change the numbers, and so are part of an artifact's key."""
    left_out: Callable[[Config], frozenset[str]] = lambda config: frozenset()
    """Of these, what these knobs never import; for a plan's time alone."""
    parallel: bool = False
    """Whether every process of a launch takes part in `run`; else the first one runs it and the others wait."""
