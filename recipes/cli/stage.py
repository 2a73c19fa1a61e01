"""`demitasse prune MODEL --out DIR` and its like, `demitasse evaluate` and `demitasse sensitivity`."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from compress.checkpoints.weight_files import passed_over
from compress.pruning.config import SensitivityConfig
from compress.stage import Stage
from compress.text import TextSource
from recipes.cli.console import metadata_table, show_figures
from recipes.cli.options import OptionError, build, yaml_value
from recipes.cli.sensitivity_tables import show_sensitivity
from recipes.cli.terminal import Terminal
from recipes.config.errors import shown_path
from recipes.config.recipe import BenchmarkConfig, EvaluateConfig
from recipes.engine.evaluation import EvaluationRequest
from recipes.engine.evaluation import evaluate as evaluate_model
from recipes.engine.launcher import Launcher
from recipes.engine.sensitivity import SensitivityRequest
from recipes.engine.sensitivity import sensitivity as measure
from recipes.engine.single import StageRequest, run_stage


def run(
    terminal: Terminal,
    *,
    stage: Stage[Any],
    model: Path | None,
    out: Path,
    train_text: str | None,
    calibration_text: str | None,
    teacher: Path | None,
    seed: int,
    store: Path | None,
    launcher: str | None = None,
    **knobs: Any,
) -> None:
    """Run a stage and show what it says of its work."""
    request = StageRequest(
        stage=stage,
        config=build(stage.config, knobs),
        source=model,
        out=out,
        teacher=teacher,
        train_text=text_source("--train-text", train_text),
        calibration_text=text_source("--calibration-text", calibration_text),
        seed=seed,
        store=store,
        launcher=None if launcher is None else Launcher(command=launcher, place=out.absolute().parent),
    )
    note = None if model is None else passed_over(model)
    if note is not None:
        terminal.say(f"note: {note}")
    started = time.monotonic()
    metadata = run_stage(request, terminal.progress, log_to=terminal.log_to)
    terminal.console.print(metadata_table(metadata))
    terminal.say(f"{stage.kind}: {shown_path(out)} is complete ({time.monotonic() - started:.1f} s)")


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


def evaluate(
    terminal: Terminal,
    *,
    model: Path,
    out: Path,
    test_text: str,
    baseline: Path | None,
    seed: int,
    store: Path | None,
    benchmark: bool,
    **knobs: Any,
) -> None:
    """Measure a model and show the figures."""
    test = text_source("--test-text", test_text)
    assert test is not None  # the option is required
    request = EvaluationRequest(
        model=model,
        baseline=baseline,
        out=out,
        test=test,
        quality=build(EvaluateConfig, _picked(knobs, EvaluateConfig.model_fields)),
        benchmark=build(BenchmarkConfig, _picked(knobs, BenchmarkConfig.model_fields)) if benchmark else None,
        seed=seed,
        store=store,
    )
    show_figures(terminal.console, evaluate_model(request, terminal.progress, log_to=terminal.log_to))


def _picked(given: Mapping[str, Any], names: Mapping[str, object]) -> dict[str, Any]:
    return {name: given[name] for name in names}


def sensitivity(
    terminal: Terminal, *, model: Path, text: str, out: Path | None, store: Path | None, **knobs: Any
) -> None:
    """See what each part of a model can bear, and show it."""
    source = text_source("--text", text)
    assert source is not None  # the option is required
    request = SensitivityRequest(model=model, text=source, out=out, config=build(SensitivityConfig, knobs), store=store)
    found = measure(request, terminal.progress, log_to=terminal.log_to)
    show_sensitivity(terminal.console, found)
    if out is not None:
        terminal.say(f"picture: {shown_path(out / 'sensitivity.png')}")
