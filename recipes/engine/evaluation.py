"""A checkpoint or a bundle measured outside of a recipe: `demitasse evaluate MODEL --test-text FILE --out DIR`.

The same measurements as in a run (`quality.py`), against a baseline where one is named. The folder holds the report
and the raw samples of quality when it appears.
"""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from compress.stage import Progress
from compress.text import TextSource
from evaluation.render import write_report
from evaluation.report import BASELINE, Report
from recipes.config.evaluations import name_problems
from recipes.config.recipe import BenchmarkConfig, DataConfig, EvaluateConfig, NoiseConfig, Recipe
from recipes.engine.measuring import Measuring, Subject
from recipes.engine.model_source import digest_folder
from recipes.engine.output import RequestError, check_out, engine_for, publish
from recipes.engine.preflight import evaluation_problems
from recipes.engine.sequential import Patience
from recipes.formats import FORMATS, LIBRARIES, format_of
from recipes.measure.peak_memory import DECODED
from recipes.runs.environment import environment

MODEL = "model"


@dataclass(frozen=True, kw_only=True)
class EvaluationRequest:
    """What is to be measured, and how."""

    model: Path
    baseline: Path | None
    """None: only the model itself is measured, and it stands in the baseline's row."""
    out: Path
    test: TextSource
    quality: EvaluateConfig
    benchmark: BenchmarkConfig | None
    """None: no latency."""
    seed: int = 0
    store: Path | None = None
    """Where measurements are kept and found; None: they are taken for `out` alone."""


def evaluate(
    request: EvaluationRequest, progress: Progress, *, log_to: Callable[[Path], None] = lambda folder: None
) -> Report:
    """Measure and write the report into `request.out`.

    Raises:
        RequestError: it cannot be done as asked.
    """
    _check(request)
    recipe = Recipe(
        name=request.model.resolve().name,
        data=DataConfig(test=request.test),
        evaluate=request.quality,
        benchmark=request.benchmark,
        seed=request.seed,
    )
    with engine_for(request.out, progress, store=request.store, log_to=log_to) as (engine, work):
        measuring = Measuring(engine=engine, recipe=recipe, patience=Patience(recipe=recipe))
        measuring.begin(recipe)
        for name, folder in _named(request).items():
            measuring.measure(_subject(name, folder))
        measuring.time()
        report = Report(
            recipe=f"demitasse evaluate {request.model}",
            name=recipe.name,
            rows=[row.model_copy(update={"samples": {}, "key": ""}) for row in measuring.rows],
            environment=environment(LIBRARIES, request.benchmark.threads if request.benchmark else None),
            created=datetime.now(UTC),
        )
        folder = work / "report"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        write_report(report, folder)
        for name, samples in measuring.samples.items():
            shutil.copytree(samples, folder / name)
        publish(folder, request.out, work)
    return report.model_copy(update={"folder": request.out})


def _check(request: EvaluationRequest) -> None:
    problems = [problem for folder in _named(request).values() for problem in check_out(request.out, folder)]
    if request.test.file is not None and not request.test.file.is_file():
        problems.append(f"--test-text: expected an existing file, got {str(request.test.file)!r}")
    quality = request.quality
    names = name_problems([named.name for named in quality.named], list(NoiseConfig.model_fields))
    problems += [problem for problem in names if problem]
    problems += evaluation_problems(quality.tasks, quality.labeled, quality.generation)
    problems += [problem for folder in _named(request).values() for problem in _too_long(request, folder)]
    if problems:
        raise RequestError("\n".join(dict.fromkeys(problems)))


def _too_long(request: EvaluationRequest, folder: Path) -> Iterator[str]:
    """What is asked that a model cannot read at once."""
    longest = FORMATS[format_of(folder)].sizes(folder).context
    if longest is None:
        return
    reads = f"expected at most {longest} tokens, all that {folder} can read at once"
    if request.quality.window > longest:
        yield f"--window: {reads}, got {request.quality.window}"
    benchmark = request.benchmark
    if benchmark is not None and benchmark.prompt + (decoded := max(benchmark.tokens, DECODED)) > longest:
        yield f"--prompt: {reads}, got {benchmark.prompt} of the prompt and {decoded} decoded"


def _named(request: EvaluationRequest) -> dict[str, Path]:
    """What is measured, the baseline first."""
    return {BASELINE: request.model} if request.baseline is None else {BASELINE: request.baseline, MODEL: request.model}


def _subject(name: str, folder: Path) -> Subject:
    return Subject(name=name, kind=name, key=digest_folder(folder), format=format_of(folder), folder=folder)
