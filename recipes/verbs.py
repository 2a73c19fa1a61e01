"""A stage as a verb of its own, without a run store: `demitasse prune MODEL --out DIR`, with the knobs of a recipe.

    MODEL --check--> .DIR.partial/{checkpoint, scratch, log.txt, order.json} --rename--> DIR

DIR appears only when it is complete. What a kill leaves behind stays in .DIR.partial: the same order again goes on from
its scratch folder, another order starts afresh. The model is never written to.
"""

import fcntl
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compress.stage import Facts, Form, Progress, Stage, StageConfig, StageInput
from compress.text import TextSource
from export import bundle_folder
from recipes.processes import Alone, alone, run_along, unfit_batch
from recipes.store import flush
from recipes.timing.decoding import DecodeTimer

TEXT_OPTIONS = {"train_text": "--train-text", "calibration_text": "--calibration-text"}
MANIFEST = "manifest.json"
CURVES = "tensorboard"
"""Where what was trained keeps its curves."""


class VerbError(Exception):
    """A verb cannot be carried out; the message says why and what to do."""

    exit_code = 2


@dataclass(frozen=True, kw_only=True)
class Order:
    """What was asked for."""

    stage: Stage[Any]
    config: StageConfig
    source: Path | None
    out: Path
    teacher: Path | None = None
    """Default: the source."""
    train_text: TextSource | None = None
    calibration_text: TextSource | None = None
    seed: int = 0

    @property
    def work(self) -> Path:
        """The folder beside `out` that everything is written in first."""
        return self.out.parent / f".{self.out.name}.partial"

    def identity(self) -> str:
        """What must be the same for a killed order to go on."""
        texts = {"train_text": self.train_text, "calibration_text": self.calibration_text}
        folders = {"source": self.source, "teacher": self.teacher, **self.stage.folders(self.config)}
        return json.dumps(
            {
                "kind": self.stage.kind,
                "version": self.stage.version,
                "knobs": self.config.model_dump(mode="json"),
                "seed": self.seed,
                **{name: text and text.digest() for name, text in texts.items()},
                **{name: folder and look_of(folder) for name, folder in folders.items()},
            },
            sort_keys=True,
        )


def look_of(folder: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of change of every file: quick, and different after every change."""
    states = ((file, file.stat()) for file in sorted(folder.rglob("*")) if file.is_file())
    return [(str(file.relative_to(folder)), state.st_size, state.st_mtime_ns) for file, state in states]


def form_of(folder: Path) -> Form:
    """The form of what a folder holds.

    Raises:
        CheckpointError: it holds no checkpoint.
    """
    from compress.checkpoint import inspect_checkpoint

    return "onnx" if (bundle_folder(folder) / MANIFEST).is_file() else inspect_checkpoint(folder).form


def check(order: Order, processes: int = 1) -> None:
    """Refuse early what cannot work.

    Raises:
        VerbError: with everything that is wrong, one line each.
    """
    problems = [*_about_out(order), *_about_source(order), *_about_materials(order)]
    wrong = unfit_batch(order.stage, order.config, processes)
    if wrong is not None:
        problems.append(f"--batch: {wrong}")
    if problems:
        raise VerbError("\n".join(problems))


def check_out(out: Path, source: Path | None) -> list[str]:
    """What is wrong with writing `out`."""
    if out.exists() and not out.is_dir():
        return [f"--out {out}: expected a folder, got a file; name a new folder"]
    if out.is_dir() and any(out.iterdir()):
        return [f"--out {out}: the folder is not empty, and nothing is overwritten; name a new folder or remove it"]
    if source is not None and (inside(out, source) or inside(source, out)):
        return [f"--out {out}: expected a folder apart from the model {source}, which is never written to"]
    return []


def inside(inner: Path, outer: Path) -> bool:
    """Whether a path is another one or lies below it."""
    return inner.resolve().is_relative_to(outer.resolve())


def _about_out(order: Order) -> list[str]:
    return check_out(order.out, order.source)


def _about_source(order: Order) -> list[str]:
    takes, kind = order.stage.takes, order.stage.kind
    wanted = " or ".join(sorted(takes - {"nothing"}))
    if order.source is None:
        return [] if "nothing" in takes else [f"{kind}: expected a model ({wanted}), got none"]
    form = form_of(order.source)
    return [] if form in takes else [f"{order.source}: {kind} takes {wanted}, but this model is {form}"]


def _about_materials(order: Order) -> list[str]:
    needed = order.stage.materials(order.config)
    lacking = [material for material in TEXT_OPTIONS if material in needed and getattr(order, material) is None]
    problems = [
        f"{order.stage.kind}: reads a text with these knobs; give {TEXT_OPTIONS[name]} FILE" for name in lacking
    ]
    for name, option in TEXT_OPTIONS.items():
        text: TextSource | None = getattr(order, name)
        if text is not None and text.file is not None and not text.file.is_file():
            problems.append(f"{option}: expected an existing file, got {str(text.file)!r}")
    teacher = {} if order.teacher is None else {"teacher": order.teacher}
    for name, folder in (teacher | order.stage.folders(order.config)).items():
        if form_of(folder) != "dense":
            problems.append(f"--{name}: expected a dense model, got {str(folder)!r}")
    return problems


def carry_out(
    order: Order,
    progress: Progress,
    *,
    log_to: Callable[[Path], None] = lambda folder: None,
    crew: Alone | None = None,
) -> Facts:
    """Run the stage; `order.out` is complete when this returns.

    Args:
        log_to: told the folder that is worked in.
        crew: the processes that help (default: none).

    Raises:
        VerbError: another process is at it, or the order makes no sense.
        StageError: the stage refuses.
    """
    crew = crew or alone()
    check(order, crew.launch.world)
    with work_folder(order.work, order.identity()) as work:
        log_to(work)
        crew.meet(work)
        checkpoint, scratch = work / "checkpoint", work / "scratch"
        shutil.rmtree(checkpoint, ignore_errors=True)
        for folder in (checkpoint, scratch):
            folder.mkdir(exist_ok=True)
        given = StageInput(
            source=order.source,
            out=checkpoint,
            scratch=scratch,
            seed=order.seed,
            teacher=order.teacher or order.source,
            train_text=order.train_text,
            calibration_text=order.calibration_text,
            decode_seconds=DecodeTimer(scratch),
            logs=work / CURVES,
            progress=progress,
        )
        with crew.share(0, given) if order.stage.parallel else nullcontext():
            facts = order.stage.run(order.config, given)
        if (work / CURVES).is_dir():
            (work / CURVES).rename(checkpoint / CURVES)
        publish(checkpoint, order.out)
    return facts


def help_order(order: Order) -> Callable[[int, StageInput], None]:
    """How another process helps with an order."""

    def help_with(number: int, given: StageInput) -> None:
        texts = order.train_text, order.calibration_text
        given = replace(given, seed=order.seed, train_text=texts[0], calibration_text=texts[1])
        run_along(order.stage, order.config, given)

    return help_with


@contextmanager
def work_folder(work: Path, identity: str) -> Iterator[Path]:
    """A folder that is ours alone, kept when the work fails and removed when it is done; emptied for another order.

    Raises:
        VerbError: another process holds it.
    """
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise VerbError(f"{work}: another process is writing here; wait for it, or name another --out") from None
        _start_afresh_unless(work, identity)
        yield work
        shutil.rmtree(work)


def _start_afresh_unless(work: Path, identity: str) -> None:
    """Keep what an earlier try left only where it had the same identity."""
    note = work / "order.json"
    if note.is_file() and note.read_text(encoding="utf-8") == identity:
        return
    for item in work.iterdir():
        if item.is_dir():
            shutil.rmtree(item)
    note.write_text(identity, encoding="utf-8")


def publish(finished: Path, out: Path) -> None:
    """Write a folder through to the disk and give it its name; both are on one file system."""
    for file in (path for path in finished.rglob("*") if path.is_file()):
        flush(file)
    flush(finished)
    finished.replace(out)
    flush(out.parent)
