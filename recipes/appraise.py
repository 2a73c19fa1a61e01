"""A checkpoint or a bundle measured outside of a recipe: `demitasse evaluate MODEL --test-text FILE --out DIR`.

The same measurements as in a run (`measure.py`), against a baseline where one is named. The report appears when it is
complete.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from compress.stage import Form, Progress
from compress.text import TextSource
from evaluation.measurement import Measurement
from evaluation.render import write_report
from evaluation.report import BASELINE, Report, Row
from recipes.machine import environment
from recipes.measure import (
    TOKENS_FILE,
    Baseline,
    compared,
    measure_footprint,
    measure_latency,
    measure_memory,
    measure_quality,
)
from recipes.quality.evaluations import evaluation_problems, name_problems
from recipes.quality.findings import findings
from recipes.quality.hidden_states import HiddenStates
from recipes.schema import BenchmarkConfig, EvaluateConfig, NoiseConfig, short_benchmark
from recipes.timing.latency import entrant_of
from recipes.verbs import VerbError, check_out, form_of, publish, work_folder

MODEL = "model"


@dataclass(frozen=True, kw_only=True)
class Appraisal:
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


def appraise(wanted: Appraisal, progress: Progress, *, log_to: Callable[[Path], None] = lambda folder: None) -> Report:
    """Measure and write the report into `wanted.out`.

    Raises:
        VerbError: it cannot be done as asked.
    """
    _check(wanted)
    with work_folder(wanted.out.parent / f".{wanted.out.name}.partial", identity="") as work:
        log_to(work)
        folder = work / "report"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        rows = _rows(wanted, folder, progress)
        report = Report(
            recipe=f"demitasse evaluate {wanted.model}",
            name=wanted.model.resolve().name,
            rows=rows,
            environment=environment(wanted.benchmark),
            created=datetime.now(UTC),
        )
        write_report(report, folder)
        publish(folder, wanted.out)
    return report.model_copy(update={"folder": wanted.out})


def _check(wanted: Appraisal) -> None:
    folders = [wanted.model, *([wanted.baseline] if wanted.baseline else [])]
    problems = [problem for folder in folders for problem in check_out(wanted.out, folder)]
    if wanted.test.file is not None and not wanted.test.file.is_file():
        problems.append(f"--test-text: expected an existing file, got {str(wanted.test.file)!r}")
    quality = wanted.quality
    names = name_problems([named.name for named in quality.named], list(NoiseConfig.model_fields))
    problems += [problem for problem in names if problem]
    problems += evaluation_problems(quality.tasks, quality.labeled, quality.generation)
    if problems:
        raise VerbError("\n".join(dict.fromkeys(problems)))


def _rows(wanted: Appraisal, folder: Path, progress: Progress) -> list[Row]:
    source = wanted.baseline or wanted.model
    baseline = Baseline(folder=source, form=form_of(source), scores=folder / BASELINE / TOKENS_FILE)
    form = form_of(wanted.model)
    hidden = HiddenStates()
    first = _measure(wanted, source, baseline.form, None, folder / BASELINE, progress, hidden)
    rows = [_row(BASELINE, baseline.form, first, folder)]
    if wanted.baseline is not None:
        figures = _measure(wanted, wanted.model, form, baseline, folder / MODEL, progress, hidden)
        rows.append(_row(MODEL, form, [compared(figure, rows[0]) for figure in figures], folder))
    if wanted.benchmark is None:
        return rows
    timed = [entrant_of(BASELINE, source, baseline.form), entrant_of(MODEL, wanted.model, form)]
    latency = measure_latency(
        timed[: len(rows)],
        config=wanted.benchmark,
        test=wanted.test,
        seed=wanted.seed,
        progress=progress,
    )
    return [row.model_copy(update={"measurements": [*row.measurements, *latency[row.name]]}) for row in rows]


def _row(name: str, form: Form, measurements: list[Measurement], folder: Path) -> Row:
    return Row(name=name, kind=name, form=form, measurements=measurements, **findings(folder / name))


def _measure(
    wanted: Appraisal,
    artifact: Path,
    form: Form,
    baseline: Baseline | None,
    out: Path,
    progress: Progress,
    hidden: HiddenStates,
) -> list[Measurement]:
    out.mkdir()
    quality = measure_quality(
        artifact,
        form,
        baseline=baseline,
        config=wanted.quality,
        test=wanted.test,
        out=out,
        progress=progress,
        label=f"measure {artifact.resolve().name}",
        seed=wanted.seed,
        hidden=hidden,
    )
    benchmark = wanted.benchmark or short_benchmark(wanted.quality)
    counted = measure_footprint(artifact, form, prompt=benchmark.prompt)
    if wanted.benchmark is None:  # else the timed processes tell their memory
        counted.append(measure_memory(artifact, form, prompt=benchmark.prompt, threads=benchmark.threads))
    return [*quality, *counted]
