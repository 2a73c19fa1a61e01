"""`demitasse sensitivity MODEL --text FILE`: what each block and kind of linear can bear, as a table and a picture.

What is looked at comes from the knobs of `compress/pruning/sensitivity.py`. With --out the losses are noted as they are
taken, so that the same command goes on where it was stopped; the folder holds sensitivity.json, .png and .svg when it
appears.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from inspect import Parameter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compress.pruning.sensitivity import SensitivityConfig
from compress.stage import Progress
from compress.text import TextSource
from recipes.commands.options import build, command, keyword, parameters
from recipes.commands.verb_commands import DEBUG, FOLDER_HELP, READS, WRITES, text_source

if TYPE_CHECKING:
    from compress.pruning.sensitivity import Sensitivity

RESULT = "sensitivity.json"
LogTo = Callable[[Path], None]


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What was asked for."""

    model: Path
    text: TextSource
    out: Path | None
    config: SensitivityConfig


def sensitivity_command() -> Callable[..., None]:
    """The command, its knobs made from the config."""
    model = Annotated[Path, typer.Argument(metavar="MODEL", help=FOLDER_HELP, show_default=False)]
    about = "The text to look at; never the one that a release is judged on. A .txt, .jsonl or .parquet file."
    text = Annotated[str, typer.Option("--text", metavar="FILE", help=about, rich_help_panel=READS)]
    written = "A new folder for the table as JSON and the picture; it appears when it is complete."
    out = Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help=written, rich_help_panel=WRITES, show_default=False),
    ]
    params = [
        keyword("model", model, Parameter.empty),
        keyword("text", text, Parameter.empty),
        keyword("out", out),
        keyword("debug", DEBUG, False),
        *parameters(SensitivityConfig, "Knobs"),
    ]
    return command("sensitivity", "See what each block and each kind of linear of a model can bear.", params, _run)


def _run(**given: Any) -> None:
    from recipes.session import session

    with session(debug=given["debug"], goes_on=given["out"] is not None) as terminal:
        from recipes.commands.sensitivity_view import show_sensitivity
        from recipes.outcome import shown_path

        text = text_source("--text", given["text"])
        assert text is not None  # the option is required
        knobs = {name: given[name] for name in SensitivityConfig.model_fields}
        survey = Survey(model=given["model"], text=text, out=given["out"], config=build(SensitivityConfig, knobs))
        found = carry_out(survey, terminal.progress, log_to=terminal.log_to)
        show_sensitivity(terminal.console, found)
        if survey.out is not None:
            terminal.say(f"picture: {shown_path(survey.out / 'sensitivity.png')}")


def carry_out(survey: Survey, progress: Progress, *, log_to: LogTo = lambda folder: None) -> "Sensitivity":
    """Measure, and write what was found where a folder was asked for.

    Raises:
        VerbError: it cannot be done as asked.
    """
    from recipes.verbs import look_of, publish, work_folder

    _check(survey)
    if survey.out is None:
        return _measure(survey, None, progress)
    identity = json.dumps({"model": look_of(survey.model), "text": survey.text.digest()})
    with work_folder(survey.out.parent / f".{survey.out.name}.partial", identity) as work:
        log_to(work)
        found = _measure(survey, work / "notes.json", progress)
        _write(found, work / "report")
        publish(work / "report", survey.out)
    return found


def _check(survey: Survey) -> None:
    """Refuse early what cannot work."""
    from compress.checkpoint import context_length, read_config
    from recipes.verbs import VerbError, check_out, form_of

    form = form_of(survey.model)
    problems = [] if form == "dense" else [f"{survey.model}: expected a dense model, got one that is {form}"]
    problems += check_out(survey.out, survey.model) if survey.out is not None else []
    if survey.text.file is not None and not survey.text.file.is_file():
        problems.append(f"--text: expected an existing file, got {str(survey.text.file)!r}")
    longest = context_length(read_config(survey.model)) if form == "dense" else None
    if longest is not None and survey.config.length > longest:
        expected = f"expected at most {longest} tokens, all that the model can read at once"
        problems.append(f"--length: {expected}, got {survey.config.length}")
    if problems:
        raise VerbError("\n".join(problems))


def _measure(survey: Survey, notes: Path | None, progress: Progress) -> "Sensitivity":
    from compress.calibration import calibration_rows
    from compress.checkpoint import load_tokenizer
    from compress.pruning.sensitivity import measure_sensitivity

    config = survey.config
    rows = config.rows + config.held_out
    ids_NT = calibration_rows(survey.text, load_tokenizer(survey.model), rows, config.length)
    return measure_sensitivity(survey.model, ids_NT, config, notes=notes, progress=progress)


def _write(found: "Sensitivity", folder: Path) -> None:
    from recipes.commands.sensitivity_view import draw

    folder.mkdir(exist_ok=True)
    found.write(folder / RESULT)
    for ending in ("png", "svg"):
        draw(found, folder / f"sensitivity.{ending}")
