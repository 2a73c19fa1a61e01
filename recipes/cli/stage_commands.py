"""The commands whose options are made from configs: every stage by itself, `evaluate` and `sensitivity`."""

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from compress.pruning.config import SensitivityConfig
from compress.stage import Stage
from recipes.cli.options import DEBUG, LAUNCHER, STORE, carry, command, keyword, parameters
from recipes.config.recipe import BenchmarkConfig, EvaluateConfig

READS, WRITES = "What it reads", "What it writes"
OUT = Annotated[
    Path,
    typer.Option("--out", metavar="DIR", help="A new folder; it appears when it is complete.", rich_help_panel=WRITES),
]
SEED = Annotated[int, typer.Option("--seed", metavar="INTEGER", help="Seed of everything random.")]
FOLDER_HELP = "A model's folder; it is only read."


def stage_command(stage: Stage[Any]) -> Callable[..., None]:
    """`demitasse KIND MODEL --out DIR` with the stage's knobs."""
    work = partial(carry, "recipes.cli.stage:run", goes_on=True, stage=stage)
    return command(stage.kind, _documentation(stage), [*_shared(stage), *parameters(stage.config, "Knobs")], work)


def _documentation(stage: Stage[Any]) -> str:
    takes = " or ".join(sorted(stage.takes - {"nothing"}))
    return escape(f"{stage.summary}\n\nTakes a {takes} model, leaves a {stage.leaves} one.")


def _shared(stage: Stage[Any]) -> list[Any]:
    optional = "nothing" in stage.takes
    about = FOLDER_HELP + (" Left out: start from nothing." if optional else "")
    argument = typer.Argument(metavar="MODEL", help=escape(about), show_default=False)
    model = (
        keyword("model", Annotated[Path | None, argument])
        if optional
        else _required("model", Annotated[Path, argument])
    )
    return [
        model,
        _required("out", OUT),
        keyword("train_text", _text("--train-text", "The text to train on, where it trains.")),
        keyword("calibration_text", _text("--calibration-text", "The text to look at, where the knobs need one.")),
        keyword("teacher", _folder("--teacher", "The model to learn from, where it distills.  [default: MODEL]")),
        keyword("seed", SEED, 0),
        keyword("store", STORE),
        *([keyword("launcher", LAUNCHER)] if stage.parallel else []),
        keyword("debug", DEBUG, False),
    ]


def _required(name: str, annotation: object) -> Any:
    return keyword(name, annotation, inspect.Parameter.empty)


def _text(option: str, about: str) -> object:
    panel: Any = {"rich_help_panel": READS, "show_default": False}
    return Annotated[
        str | None, typer.Option(option, metavar="FILE", help=f"{about} A .txt, .jsonl or .parquet file.", **panel)
    ]


def _folder(option: str, about: str) -> object:
    return Annotated[
        Path | None,
        typer.Option(option, metavar="MODEL", help=escape(about), rich_help_panel=READS, show_default=False),
    ]


def evaluate_command() -> Callable[..., None]:
    """`demitasse evaluate MODEL --out DIR` with the options of a recipe's `evaluate` and `benchmark`."""
    model = Annotated[
        Path, typer.Argument(metavar="MODEL", help="A checkpoint's or a bundle's folder; it is only read.")
    ]
    baseline = _folder("--baseline", "What it is held against; left out, only MODEL itself is measured.")
    test = Annotated[
        str, typer.Option("--test-text", metavar="FILE", help="The text to measure on.", rich_help_panel=READS)
    ]
    latency = typer.Option("--benchmark/--no-benchmark", help="Measure latency too.", rich_help_panel="Latency")
    params = [
        _required("model", model),
        _required("out", OUT),
        _required("test_text", test),
        keyword("baseline", baseline),
        keyword("seed", SEED, 0),
        keyword("store", STORE),
        keyword("debug", DEBUG, False),
        *parameters(EvaluateConfig, "Quality"),
        keyword("benchmark", Annotated[bool, latency], False),
        *parameters(BenchmarkConfig, "Latency"),
    ]
    return command(
        "evaluate",
        "Measure a checkpoint or a bundle: quality, size, memory and, if asked, latency.",
        params,
        partial(carry, "recipes.cli.stage:evaluate"),
    )


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
        keyword("model", model, inspect.Parameter.empty),
        keyword("text", text, inspect.Parameter.empty),
        keyword("out", out),
        keyword("store", STORE),
        keyword("debug", DEBUG, False),
        *parameters(SensitivityConfig, "Knobs"),
    ]
    return command(
        "sensitivity", "See what each block and each kind of linear of a model can bear.", params, _sensitivity
    )


def _sensitivity(**given: Any) -> None:
    carry("recipes.cli.stage:sensitivity", goes_on=given["out"] is not None, **given)
