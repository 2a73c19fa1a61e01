"""One stage by itself: `demitasse prune MODEL --out DIR`, with the knobs of a recipe.

MODEL --check--> the stage as a step, in the command's own store or a shared one --publish--> DIR
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.stage import Progress, Stage, StageConfig, StageInputName, StageMetadata
from compress.text import TextSource
from recipes.engine.launcher import Launcher
from recipes.engine.model_source import digest_folder
from recipes.engine.output import CURVES, RequestError, check_out, engine_for, publish
from recipes.engine.plan import unfit_batch
from recipes.engine.provenance import license_of
from recipes.engine.stages import TEACHES, obtain_stage, stage_step
from recipes.formats import format_of

TEXT_OPTIONS: dict[StageInputName, str] = {"train_text": "--train-text", "calibration_text": "--calibration-text"}


@dataclass(frozen=True, kw_only=True)
class StageRequest:
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
    store: Path | None = None
    """Where the result is kept and found; None: it is made for `out` alone."""
    launcher: Launcher | None = None

    @property
    def texts(self) -> dict[StageInputName, TextSource | None]:
        return {"train_text": self.train_text, "calibration_text": self.calibration_text}


def run_stage(
    request: StageRequest, progress: Progress, *, log_to: Callable[[Path], None] = lambda folder: None
) -> StageMetadata:
    """Run the stage; `request.out` is complete when this returns.

    Args:
        log_to: told the folder that is worked in.

    Raises:
        RequestError: it cannot be done as asked, or another process is at it.
        StageError: the stage refuses.
    """
    _check(request)
    parent = "nothing" if request.source is None else digest_folder(request.source)
    step = stage_step(
        request.stage,
        request.config,
        parent=parent,
        teacher=parent if request.teacher is None else digest_folder(request.teacher),
        texts=request.texts,
        seed=request.seed,
        lineage=({"source": parent},),
    )
    with engine_for(request.out, progress, store=request.store, log_to=log_to) as (engine, work):
        artifact = obtain_stage(
            engine,
            step,
            source=request.source,
            teacher=request.teacher or request.source,
            logs=work / CURVES,
            launcher=request.launcher,
        )
        license = "" if request.source is None else license_of(request.source)
        publish(artifact.files, request.out, work, beside=[work / CURVES], license=license)
    return artifact.metadata


def _check(request: StageRequest) -> None:
    """Refuse early what cannot work, all of it at once."""
    problems = [*check_out(request.out, request.source), *_about_source(request), *_about_inputs(request)]
    launcher = request.launcher
    if launcher is not None and request.stage.parallel:
        wrong = unfit_batch(request.stage, request.config, launcher.size())
        problems += [f"--batch: {wrong}"] if wrong is not None else []
    if problems:
        raise RequestError("\n".join(problems))


def _about_source(request: StageRequest) -> list[str]:
    takes, kind = request.stage.takes, request.stage.kind
    wanted = " or ".join(sorted(takes - {"nothing"}))
    if request.source is None:
        return [] if "nothing" in takes else [f"{kind}: expected a model ({wanted}), got none"]
    format = format_of(request.source)
    return [] if format in takes else [f"{request.source}: {kind} takes {wanted}, but this model is {format}"]


def _about_inputs(request: StageRequest) -> list[str]:
    needed = request.stage.inputs_read(request.config)
    problems = [
        f"{request.stage.kind}: reads a text with these knobs; give {option} FILE"
        for material, option in TEXT_OPTIONS.items()
        if material in needed and request.texts[material] is None
    ]
    for material, text in request.texts.items():
        if text is not None and text.file is not None and not text.file.is_file():
            problems.append(f"{TEXT_OPTIONS[material]}: expected an existing file, got {str(text.file)!r}")
    teacher = {} if request.teacher is None else {"teacher": request.teacher}
    for name, folder in (teacher | request.stage.folders(request.config)).items():
        if format_of(folder) not in TEACHES:
            problems.append(f"--{name}: expected a dense model, got {str(folder)!r}")
    return problems
