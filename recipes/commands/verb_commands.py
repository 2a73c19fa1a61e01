"""The commands train, prune, distill, quantize, export and evaluate: their options are made from the configs."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.markup import escape

from compress.stage import Stage
from compress.text import TextSource
from recipes.commands.options import OptionError, build, command, keyword, parameters, yaml_value
from recipes.schema import BenchmarkConfig, EvaluateConfig

READS, WRITES = "What it reads", "What it writes"
SHARED = ("model", "out", "train_text", "calibration_text", "teacher", "seed", "debug")
DEBUG = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
OUT = Annotated[
    Path,
    typer.Option("--out", metavar="DIR", help="A new folder; it appears when it is complete.", rich_help_panel=WRITES),
]
SEED = Annotated[int, typer.Option("--seed", metavar="INTEGER", help="Seed of everything random.")]
FOLDER_HELP = "A model's folder; it is only read."


def stage_command(stage: Stage[Any]) -> Callable[..., None]:
    """`demitasse KIND MODEL --out DIR` with the stage's knobs."""
    return command(
        stage.kind, _documentation(stage), [*_shared(stage), *parameters(stage.config, "Knobs")], _runner(stage)
    )


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
        keyword("debug", DEBUG, False),
    ]


def _required(name: str, annotation: object) -> Any:
    from inspect import Parameter

    return keyword(name, annotation, Parameter.empty)


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


def _runner(stage: Stage[Any]) -> Callable[..., None]:
    def run(**given: Any) -> None:
        from recipes.processes import Other, crew
        from recipes.session import session

        with session(debug=given["debug"], goes_on=True, shared=stage.parallel) as terminal, crew() as mates:
            from recipes.outcome import facts_table, shown_path
            from recipes.verbs import Order, carry_out, help_order

            order = Order(
                stage=stage,
                config=build(stage.config, {name: value for name, value in given.items() if name not in SHARED}),
                source=given["model"],
                out=given["out"],
                teacher=given["teacher"],
                train_text=text_source("--train-text", given["train_text"]),
                calibration_text=text_source("--calibration-text", given["calibration_text"]),
                seed=given["seed"],
            )
            if isinstance(mates, Other):
                mates.follow(help_order(order))
                return
            started = time.monotonic()
            facts = carry_out(order, terminal.progress, log_to=terminal.log_to, crew=mates)
            terminal.console.print(facts_table(facts))
            terminal.say(f"{stage.kind}: {shown_path(order.out)} is complete ({time.monotonic() - started:.1f} s)")

    return run


def text_source(option: str, text: str | None) -> TextSource | None:
    """A file's name, or a mapping such as {dataset: org/name, revision: ...}.

    Raises:
        OptionError: it is neither.
    """
    if text is None:
        return None
    try:
        value = yaml_value(text) if text.lstrip().startswith("{") else text
        return TextSource.model_validate(value)
    except (ValidationError, ValueError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise OptionError(f"{option}: {reason.removeprefix('Value error, ')}") from error


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
        keyword("debug", DEBUG, False),
        *parameters(EvaluateConfig, "Quality"),
        keyword("benchmark", Annotated[bool, latency], False),
        *parameters(BenchmarkConfig, "Latency"),
    ]
    return command(
        "evaluate", "Measure a checkpoint or a bundle: quality, size, memory and, if asked, latency.", params, _evaluate
    )


def _evaluate(**given: Any) -> None:
    from recipes.session import session

    with session(debug=given["debug"]) as terminal:
        from recipes.appraise import Appraisal, appraise
        from recipes.outcome import show_figures

        test = text_source("--test-text", given["test_text"])
        assert test is not None  # the option is required
        appraisal = Appraisal(
            model=given["model"],
            baseline=given["baseline"],
            out=given["out"],
            test=test,
            quality=build(EvaluateConfig, _picked(given, EvaluateConfig.model_fields)),
            benchmark=build(BenchmarkConfig, _picked(given, BenchmarkConfig.model_fields))
            if given["benchmark"]
            else None,
            seed=given["seed"],
        )
        show_figures(terminal.console, appraise(appraisal, terminal.progress, log_to=terminal.log_to))


def _picked(given: Mapping[str, Any], names: Mapping[str, object]) -> dict[str, Any]:
    return {name: given[name] for name in names}
