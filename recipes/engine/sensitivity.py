"""What each block and kind of linear of a model can bear, as a step: `demitasse sensitivity MODEL --text FILE`.

The folder that it leaves holds sensitivity.json, .png and .svg. Losses are noted as they are taken, so that the same
command goes on where it was stopped.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from compress.checkpoints.config import context_length, read_config
from compress.checkpoints.folder import load_tokenizer
from compress.pruning.config import SensitivityConfig
from compress.pruning.sensitivity import Sensitivity
from compress.stage import FormatName, Progress
from compress.text import TextSource
from recipes.engine.model_source import digest_folder
from recipes.engine.output import RequestError, check_out, engine_for, publish
from recipes.engine.sensitivity_picture import draw
from recipes.engine.steps import Engine, Step
from recipes.formats import format_of
from recipes.runs.store import versions

RESULT = "sensitivity.json"
VERSION = 1
TAKES: frozenset[FormatName] = frozenset({"dense"})
LIBRARIES = ("torch", "transformers", "tokenizers")


@dataclass(frozen=True, kw_only=True)
class SensitivityRequest:
    """What was asked for."""

    model: Path
    text: TextSource
    out: Path | None
    """None: nothing is kept."""
    config: SensitivityConfig
    store: Path | None = None
    """Where the result is kept and found; None: it is made for `out` alone."""


def sensitivity(
    request: SensitivityRequest, progress: Progress, *, log_to: Callable[[Path], None] = lambda folder: None
) -> Sensitivity:
    """Measure, and write what was found where a folder was asked for.

    Raises:
        RequestError: it cannot be done as asked.
    """
    _check(request)
    if request.out is not None:
        return _obtained(request, request.out, progress, log_to)
    with TemporaryDirectory(prefix="demitasse-") as place:
        return _obtained(request, Path(place) / "out", progress, lambda folder: None)


def _obtained(
    request: SensitivityRequest, out: Path, progress: Progress, log_to: Callable[[Path], None]
) -> Sensitivity:
    with engine_for(out, progress, store=request.store, log_to=log_to) as (engine, work):
        files = engine.obtain(_step(request, engine)).files
        found = Sensitivity.read(files / RESULT)
        publish(files, out, work)
    return found


def _step(request: SensitivityRequest, engine: Engine) -> Step:
    identity = {
        "version": VERSION,
        "model": digest_folder(request.model),
        "text": request.text.digest(),
        "knobs": request.config.model_dump(mode="json", exclude_defaults=True),
        "libraries": versions(LIBRARIES),
    }

    def make(files: Path, scratch: Path) -> dict[str, Any]:
        from compress.models.calibration import calibration_rows
        from compress.pruning.ablation import measure_sensitivity

        config = request.config
        rows = config.rows + config.held_out
        ids_NT = calibration_rows(request.text, load_tokenizer(request.model), rows, config.length)
        notes = scratch / "notes.json"
        found = measure_sensitivity(request.model, ids_NT, config, notes=notes, progress=engine.progress)
        found.write(files / RESULT)
        for ending in ("png", "svg"):
            draw(found, files / f"sensitivity.{ending}")
        return {}

    return Step(kind="sensitivity", identity=identity, make=make)


def _check(request: SensitivityRequest) -> None:
    """Refuse early what cannot work."""
    format = format_of(request.model)
    problems = [] if format in TAKES else [f"{request.model}: expected a dense model, got one that is {format}"]
    problems += check_out(request.out, request.model) if request.out is not None else []
    if request.text.file is not None and not request.text.file.is_file():
        problems.append(f"--text: expected an existing file, got {str(request.text.file)!r}")
    longest = context_length(read_config(request.model)) if format in TAKES else None
    if longest is not None and request.config.length > longest:
        expected = f"expected at most {longest} tokens, all that the model can read at once"
        problems.append(f"--length: {expected}, got {request.config.length}")
    if problems:
        raise RequestError("\n".join(problems))
