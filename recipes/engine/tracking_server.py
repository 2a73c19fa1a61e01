"""A report logged to MLflow, and what ships registered there if it passed; only where this is called.

    parameters   the knobs of every stage
    metrics      every valid figure of what ships with the ends of its interval: perplexity, perplexity_low,
                 perplexity_high, and the same of its ratio to the baseline: perplexity_ratio, perplexity_ratio_low ...
    artifacts    the report's files; the model itself only where it is registered, as pyfunc (`registered_model.py`)
    tags         verdict, artifact, gate.METRIC; the run's description is the model card

A model is registered if the verdict is PASS and nothing is too good; otherwise the run is logged all the same. The
registered version has the same tags, and the card as its description.

`mlflow-skinny` suffices for a server and for a folder; a database that is opened without a server (sqlite:///...) takes
the whole of MLflow. MLflow no longer develops its folders and asks to be told that one is wanted: naming one tells it.
"""

import os
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from compress.errors import DemitasseError
from evaluation.formats import model_card
from evaluation.measurement import Interval
from evaluation.report import Report
from export.manifest import bundle_folder, is_bundle
from export.proof import pending
from recipes.engine.registered_model import BUNDLE, describe_model

LONGEST = 500
"""Characters of a parameter's value that MLflow keeps."""
INSTALL = "expected MLflow, which is not installed: pip install 'demitasse[tracking]'"
FOLDERS = "MLFLOW_ALLOW_FILE_STORE"
NOTE = "mlflow.note.content"
"""The tag that MLflow shows as a run's description."""
LONGEST_CARD = 4900
"""Characters; a description of 5,000 fits into every store of MLflow's."""
CUT = "\n\n(cut short; the whole card is README.md in the bundle, and model_card.md of the run)"


class TrackingError(DemitasseError):
    """A report cannot be logged; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Logged:
    """What MLflow has now."""

    run_id: str
    version: str = ""
    """Of the registered model; empty where none was registered."""
    reason: str = ""
    """Why none was."""


def log_report(
    report: Report,
    files: list[Path],
    *,
    bundle: Path | None = None,
    register_as: str | None = None,
    tracking_uri: str | None = None,
) -> Logged:
    """Log a report as one MLflow run.

    Args:
        files: the report's own files, of `render.write_report`.
        bundle: the folder that ships; uploaded where it is registered.
        register_as: the registered model that the bundle becomes a version of, if it passed.
        tracking_uri: the server, or a folder; None: as MLflow is set up.

    Raises:
        TrackingError: MLflow is not installed, refuses, or cannot reach its server.
    """
    mlflow = _mlflow()
    if tracking_uri is not None and (tracking_uri.startswith("file:") or "://" not in tracking_uri):
        os.environ.setdefault(FOLDERS, "true")
    try:
        client = mlflow.MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
        run_id = _log(client, report, files)
        if register_as is None or bundle is None:
            return Logged(run_id=run_id)
        reason = why_not_registered(report) or _pending(bundle)
        version = "" if reason else _register(client, register_as, run_id, bundle, report)
    except (mlflow.exceptions.MlflowException, OSError) as error:
        raise TrackingError((str(error).strip().splitlines() or [type(error).__name__])[0]) from error
    return Logged(run_id=run_id, version=version, reason=reason)


def why_not_registered(report: Report) -> str:
    """Why what ships may not be registered; empty where it may: it passed, and no figure is too good."""
    if report.verdict != "PASS":
        return f"the verdict is {report.verdict or 'missing, because the recipe has no gates'}"
    return f"too good to be believed: {', '.join(report.sanity_warnings)}" if report.sanity_warnings else ""


def _pending(folder: Path) -> str:
    """What of a bundle's proof is pending, as a reason."""
    left = pending(bundle_folder(folder)) if is_bundle(folder) else ""
    return f"what its bundle computes on {left.upper()} is pending: run `demitasse verify` on a GPU" if left else ""


def metrics_of(report: Report) -> dict[str, float]:
    """Every valid figure of what ships, and its ratio to the baseline, with the ends of their intervals."""
    found: dict[str, float] = {}
    for measurement in report.final.measurements:
        if not measurement.invalid:
            found |= _ends(measurement.metric, measurement.value, measurement.interval)
            if measurement.ratio is not None:
                found |= _ends(f"{measurement.metric}_ratio", measurement.ratio.value, measurement.ratio.interval)
    return found


def _ends(name: str, value: float, interval: Interval | None) -> dict[str, float]:
    return {name: value} | ({} if interval is None else {f"{name}_low": interval.low, f"{name}_high": interval.high})


def _log(client: Any, report: Report, files: list[Path]) -> str:
    experiment = client.get_experiment_by_name(report.name)
    experiment_id = client.create_experiment(report.name) if experiment is None else experiment.experiment_id
    run_id = str(client.create_run(experiment_id, run_name=report.recipe).info.run_id)
    for name, value in _parameters(report).items():
        client.log_param(run_id, name, value)
    for name, figure in metrics_of(report).items():
        client.log_metric(run_id, name, figure)
    for name, text in {**tags_of(report), NOTE: card_of(report)}.items():
        client.set_tag(run_id, name, text)
    for file in files:
        client.log_artifact(run_id, str(file))
    client.set_terminated(run_id, status="FINISHED" if report.verdict in {"PASS", None} else "FAILED")
    return run_id


def tags_of(report: Report) -> dict[str, str]:
    """The verdict, what it is about, and the verdict of each gate."""
    gates = {f"gate.{gate.metric}": gate.verdict for gate in report.gates}
    return {"verdict": report.verdict or "NOT GATED", "artifact": report.final.key, **gates}


def card_of(report: Report) -> str:
    """The model card without its metadata, as far as MLflow keeps a description."""
    _, _, text = model_card(report).removeprefix("---").partition("\n---\n")
    if len(text) <= LONGEST_CARD:
        return text.strip()
    return text[: LONGEST_CARD - len(CUT)].rpartition("\n")[0].strip() + CUT


def _parameters(report: Report) -> dict[str, str]:
    knobs = {f"{row.name}.{name}": str(value) for row in report.rows for name, value in row.knobs.items()}
    return {name.replace(" ", "_"): value[:LONGEST] for name, value in {"recipe": report.recipe, **knobs}.items()}


def _mlflow() -> Any:
    try:
        return import_module("mlflow")
    except ImportError as error:
        raise TrackingError(INSTALL) from error


def _register(client: Any, name: str, run_id: str, bundle: Path, report: Report) -> str:
    """Upload the bundle and make it a version of the registered model `name`; the version."""
    with TemporaryDirectory() as place:
        inside = f"model/{BUNDLE}" if describe_model(bundle, Path(place), run_id=run_id) else "model"
        client.log_artifacts(run_id, str(bundle), artifact_path=inside)
        client.log_artifacts(run_id, place, artifact_path="model")
    if not client.search_registered_models(filter_string=f"name = '{name}'"):
        client.create_registered_model(name)
    source = f"{client.get_run(run_id).info.artifact_uri}/model"
    told = {"tags": tags_of(report), "description": card_of(report)}
    return str(client.create_model_version(name, source=source, run_id=run_id, **told).version)
