"""A report logged to MLflow, and what ships registered there if it passed; only where this is called.

Knobs become parameters, figures metrics (`perplexity`, `perplexity_ratio` ...), the report's files artifacts. A model
is registered if the verdict is PASS and nothing is too good; otherwise the run is logged all the same, and tagged.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

from evaluation.report import Report

LONGEST = 500
"""Characters of a parameter's value that MLflow keeps."""


class TrackingError(Exception):
    """MLflow cannot be used; the message says what to install."""


def log_report(
    report: Report,
    files: list[Path],
    *,
    bundle: Path | None = None,
    register_as: str | None = None,
    tracking_uri: str | None = None,
) -> str:
    """Log a report as one MLflow run and return the run's id.

    Args:
        files: the report's own files, of `render.write_report`.
        bundle: the folder that ships; it is logged as well.
        register_as: the registered model that the bundle becomes a version of, if it passed.
        tracking_uri: the server, or a folder; None: as MLflow is set up.

    Raises:
        TrackingError: MLflow is not installed.
    """
    mlflow = _mlflow()
    client = mlflow.MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
    experiment = client.get_experiment_by_name(report.name)
    experiment_id = client.create_experiment(report.name) if experiment is None else experiment.experiment_id
    run_id = str(client.create_run(experiment_id, run_name=report.recipe).info.run_id)
    for name, value in _parameters(report).items():
        client.log_param(run_id, name, value)
    for name, figure in metrics_of(report).items():
        client.log_metric(run_id, name, figure)
    for name, text in {"verdict": report.verdict or "NOT GATED", "artifact": report.final.key}.items():
        client.set_tag(run_id, name, text)
    for file in files:
        client.log_artifact(run_id, str(file))
    if bundle is not None:
        client.log_artifacts(run_id, str(bundle), artifact_path="model")
        if register_as is not None and may_register(report):
            _register(client, register_as, run_id)
    client.set_terminated(run_id, status="FINISHED" if report.verdict in {"PASS", None} else "FAILED")
    return run_id


def may_register(report: Report) -> bool:
    """Whether what ships may be registered: it passed, and no figure is too good."""
    return report.verdict == "PASS" and not report.suspicions


def metrics_of(report: Report) -> dict[str, float]:
    """Every valid figure of what ships, and its ratio to the baseline."""
    found: dict[str, float] = {}
    for measurement in report.final.measurements:
        if not measurement.invalid:
            found[measurement.metric] = measurement.value
            if measurement.ratio is not None:
                found[f"{measurement.metric}_ratio"] = measurement.ratio.value
    return found


def _parameters(report: Report) -> dict[str, str]:
    knobs = {f"{row.name}.{name}": str(value) for row in report.rows for name, value in row.knobs.items()}
    return {name.replace(" ", "_"): value[:LONGEST] for name, value in {"recipe": report.recipe, **knobs}.items()}


def _mlflow() -> Any:
    try:
        return import_module("mlflow")
    except ImportError as error:
        raise TrackingError("expected MLflow, which is not installed: pip install 'demitasse[tracking]'") from error


def _register(client: Any, name: str, run_id: str) -> None:
    if not client.search_registered_models(filter_string=f"name = '{name}'"):
        client.create_registered_model(name)
    source = f"{client.get_run(run_id).info.artifact_uri}/model"
    client.create_model_version(name, source=source, run_id=run_id)
