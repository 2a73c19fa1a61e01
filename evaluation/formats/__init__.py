"""The report in the formats of other programs, each a function from a report to a text.

    junit.xml       a test case per gate, for the pipeline that runs it
    bom.json        CycloneDX 1.6, the bill of materials of a machine-learning model
    model_card.md   a Hugging Face model card; it becomes README.md beside the bundle that is published
    metrics.prom    Prometheus text exposition, for a push gateway or a node exporter's text files

Not written without being asked: MLflow (`tracking.py`).
"""

from collections.abc import Callable

from evaluation.formats.cyclonedx import bom
from evaluation.formats.junit import junit
from evaluation.formats.model_card import model_card
from evaluation.formats.prometheus import prometheus
from evaluation.report import Report

FORMATS: dict[str, Callable[[Report], str]] = {
    "junit.xml": junit,
    "bom.json": bom,
    "model_card.md": model_card,
    "metrics.prom": prometheus,
}
"""File name -> how it is written."""

__all__ = ["FORMATS", "bom", "junit", "model_card", "prometheus"]
