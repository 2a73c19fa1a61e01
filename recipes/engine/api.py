"""What the command line does, as functions for a pipeline or a notebook: paths as text or `Path`, knobs by name.

Each does what the command of its name does, and nothing is shown: results are returned, errors are raised as
`DemitasseError`. `load_recipe`, `plan` and `run` stand where they are defined; `recipes` offers all of them.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from os import PathLike
from pathlib import Path
from typing import Any

from compress.names import did_you_mean
from compress.pruning.config import SensitivityConfig
from compress.pruning.sensitivity import Sensitivity
from compress.stage import Progress, Silent, StageConfig, StageMetadata
from compress.text import TextSource
from evaluation.latency import Workload
from evaluation.machine import available_cores
from evaluation.report import Report
from export import BundleSummary, verify_bundle
from recipes.config.errors import RecipeError, one_of
from recipes.config.loader import config_of, load_gates
from recipes.config.recipe import BenchmarkConfig, EvaluateConfig, Stages
from recipes.engine import benchmark as benchmarks
from recipes.engine import evaluation, rejudge, single
from recipes.engine import sensitivity as sensitivities
from recipes.engine.compare import SideBySide, compare_runs
from recipes.engine.finish import finish_run
from recipes.engine.launcher import Launcher
from recipes.formats.text_generation import bundle_of

StrPath = str | PathLike[str]
Text = StrPath | Mapping[str, Any] | TextSource
"""A file, or a mapping such as {"dataset": "org/name", "revision": COMMIT}."""


def run_stage(
    kind: str,
    model: StrPath | None,
    *,
    out: StrPath,
    knobs: StageConfig | Mapping[str, Any] | None = None,
    train_text: Text | None = None,
    calibration_text: Text | None = None,
    teacher: StrPath | None = None,
    seed: int = 0,
    store: StrPath | None = None,
    launcher: str | None = None,
    progress: Progress | None = None,
    stages: Stages | None = None,
) -> StageMetadata:
    """One stage by itself, as `demitasse prune MODEL --out DIR`; what it says about its work.

    Args:
        kind: "prune", "slim", "distill", "quantize", "export", "train", or a stage of another package.
        model: the folder to work on, which is only read; None for a stage that makes a model.
        out: a new folder; it appears when it is complete.
        knobs: as in a recipe, such as {"sparsity": 0.5}.
        train_text: what it trains on, where it trains.
        calibration_text: what it looks at, where the knobs need one.
        teacher: the model to learn from (default: `model`).
        store: where the result is kept and found (default: it is made for `out` alone).
        launcher: the command that starts the processes of a training stage.

    Raises:
        RecipeError: there is no such stage, or a knob is wrong.
        RequestError: it cannot be done as asked.
        StageError: the stage refuses.
    """
    if stages is None:
        from recipes.config.stages import STAGES

        stages = STAGES
    if kind not in stages:
        raise RecipeError([f"expected a stage ({one_of(stages)}), got {kind!r}{did_you_mean(kind, stages)}"])
    request = single.StageRequest(
        stage=stages[kind],
        config=config_of(stages[kind].config, knobs, kind),
        source=_path(model),
        out=Path(out),
        teacher=_path(teacher),
        train_text=None if train_text is None else _text(train_text, "train_text"),
        calibration_text=None if calibration_text is None else _text(calibration_text, "calibration_text"),
        seed=seed,
        store=_path(store),
        launcher=None if launcher is None else Launcher(command=launcher, place=Path(out).absolute().parent),
    )
    return single.run_stage(request, progress or Silent())


def evaluate(
    model: StrPath,
    *,
    test: Text,
    out: StrPath,
    baseline: StrPath | None = None,
    quality: EvaluateConfig | Mapping[str, Any] | None = None,
    latency: BenchmarkConfig | Mapping[str, Any] | None = None,
    seed: int = 0,
    store: StrPath | None = None,
    progress: Progress | None = None,
) -> Report:
    """Measure a checkpoint or a bundle, as `demitasse evaluate`; the report is written into `out`, too.

    Args:
        test: the text to measure on.
        out: a new folder.
        baseline: what it is held against (default: only the model itself is measured).
        quality: a recipe's `evaluate`, such as {"window": 128, "windows": 64}.
        latency: a recipe's `benchmark`; {} for its defaults, None: nothing is timed.
        store: where measurements are kept and found (default: they are taken for `out` alone).

    Raises:
        RecipeError: a knob is wrong.
        RequestError: it cannot be done as asked.
    """
    request = evaluation.EvaluationRequest(
        model=Path(model),
        baseline=_path(baseline),
        out=Path(out),
        test=_text(test, "test"),
        quality=config_of(EvaluateConfig, quality, "quality"),
        benchmark=None if latency is None else config_of(BenchmarkConfig, latency, "latency"),
        seed=seed,
        store=_path(store),
    )
    return evaluation.evaluate(request, progress or Silent())


def benchmark(
    *models: StrPath,
    prompt: int | Iterable[int] = 128,
    tokens: int | Iterable[int] = 64,
    batch: int | Iterable[int] = 1,
    blocks: int = 10,
    threads: int | None = None,
    seed: int = 0,
    max_ratio: float | None = None,
    out: StrPath | None = None,
    progress: Progress | None = None,
) -> benchmarks.Result:
    """Time checkpoints, bundles or finished runs side by side, as `demitasse benchmark`; the first is the baseline.

    Args:
        prompt: tokens of the prompt; several give a grid, as do several `tokens` (new ones) and `batch` (rows).
        blocks: rounds in which every model takes its turn.
        threads: of each (default: every core).
        max_ratio: judge: at most so many times the baseline's latency.
        out: a .json file of every raw time; where it exists, the benchmark goes on.

    Raises:
        BenchmarkError: it cannot be done as asked.
    """
    grid = product(_several(batch), _several(prompt), _several(tokens))
    request = benchmarks.BenchmarkRequest(
        folders=tuple(map(Path, models)),
        workloads=tuple(Workload(prompt=length, tokens=new, batch=rows) for rows, length, new in grid),
        blocks=blocks,
        threads=threads or available_cores(),
        seed=seed,
        out=_path(out),
        margin=max_ratio,
    )
    return benchmarks.benchmark(request, progress or Silent())


def gate(
    run: StrPath,
    gates: Mapping[str, Any] | StrPath | None = None,
    *,
    bandwidth: float | None = None,
    measure: bool = False,
    model: StrPath | None = None,
) -> rejudge.Judged:
    """Judge a finished run again from its raw samples, as `demitasse gate`; no model is run.

    Args:
        gates: a metric's `Limit` or {"max_ratio": 1.1}, by metric; or a recipe (default: the run's own).
        bandwidth: bytes per second that the memory gives (default: what the report says).
        measure: first prove and time here, on a GPU, what is pending of a run whose bundle is for CUDA.
        model: where the model lies that the run began with, for that (default: where it lay).

    Raises:
        RecipeError: a gate is wrong.
        ProviderError, ParityError: there is no GPU, or the bundle computes something else there.
        ReportError, RejudgeError: there is no report, or no samples.
        IntegrityError: a stored file was changed, or the samples give another verdict than the report has.
    """
    limits = None if gates is None else load_gates(gates if isinstance(gates, Mapping) else Path(gates))
    if measure:
        finish_run(Path(run), model=_path(model))
    return rejudge.judge_run(Path(run), limits, bandwidth=bandwidth)


def compare(first: StrPath, second: StrPath) -> SideBySide:
    """Two finished runs of the same baseline and test text side by side, paired, as `demitasse compare`.

    Raises:
        CompareError: they are not paired.
        ReportError, RejudgeError, IntegrityError: a run cannot be read, or is not what was stored.
    """
    return compare_runs(Path(first), Path(second))


def verify(bundle: StrPath, *, replay: bool = True, allow_pending: bool = False) -> BundleSummary:
    """Check that a bundle is whole and computes here what its checkpoint did, as `demitasse verify`.

    Args:
        bundle: a folder that export left, or a run's folder.
        replay: run it on the rows that it carries, too; on a GPU that proves what was pending of a bundle for one.
        allow_pending: take a bundle a part of whose proof is pending.

    Raises:
        BundleError: the folder is no bundle.
        BundleIntegrityError: something in it changed.
        ParityError: it computes something else here.
        PendingError: what it computes on a GPU was not proven yet.
    """
    from export.proof import check_nothing_pending, prove_here

    summary = verify_bundle(bundle_of(Path(bundle)))
    if replay:
        prove_here(summary.folder, summary.provider, summary.parity["self_test"]["kl"])
    if not allow_pending:
        check_nothing_pending(summary.folder)
    return summary


def sensitivity(
    model: StrPath,
    *,
    text: Text,
    out: StrPath | None = None,
    knobs: SensitivityConfig | Mapping[str, Any] | None = None,
    store: StrPath | None = None,
    progress: Progress | None = None,
) -> Sensitivity:
    """What each block and kind of linear of a model can bear, as `demitasse sensitivity`.

    Args:
        text: the text to look at; never the one that a release is judged on.
        out: a new folder for the table and the picture (default: nothing is kept).

    Raises:
        RecipeError: a knob is wrong.
        RequestError: it cannot be done as asked.
    """
    request = sensitivities.SensitivityRequest(
        model=Path(model),
        text=_text(text, "text"),
        out=_path(out),
        config=config_of(SensitivityConfig, knobs, "sensitivity"),
        store=_path(store),
    )
    return sensitivities.sensitivity(request, progress or Silent())


def _path(given: StrPath | None) -> Path | None:
    return None if given is None else Path(given)


def _text(given: Text, name: str) -> TextSource:
    if isinstance(given, TextSource | Mapping):
        return config_of(TextSource, given, name)
    return config_of(TextSource, {"file": Path(given)}, name)


def _several(given: int | Iterable[int]) -> Sequence[int]:
    return (given,) if isinstance(given, int) else tuple(given)
