"""bom.json: CycloneDX 1.6, the bill of materials of the model that ships.

    metadata.component   the model, with the sha256 of each of its files, its license and its model card: the measured
                         figures with their intervals, the texts, what was done to it
    pedigree.ancestors   the model that it was made of
    components           the texts that it was trained, calibrated and tested on; the libraries that made it

The serial number follows from the content, so that the same report gives the same file.
"""

import importlib.metadata
import json
import uuid
from datetime import UTC
from typing import Any

from evaluation.measurement import Measurement, metric_of
from evaluation.report import Report, Source

SCHEMA = "http://cyclonedx.org/schema/bom-1.6.schema.json"
NOT_LIBRARIES = frozenset({"processor", "cores", "threads", "memory", "system"})
"""What the environment tells besides versions."""
Json = dict[str, Any]


def bom(report: Report) -> str:
    """The bill of materials as JSON."""
    texts = [_text(source) for source in report.sources if source.role != "model"]
    libraries = [_library(name, version) for name, version in report.environment.items() if name not in NOT_LIBRARIES]
    model = _model(report, texts)
    content: Json = {
        "$schema": SCHEMA,
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": report.created.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "tools": {"components": [{"type": "application", "name": "demitasse", "version": _version()}]},
            "component": model,
        },
        "components": [*texts, *libraries],
        "dependencies": [
            {"ref": model["bom-ref"], "dependsOn": [part["bom-ref"] for part in (*texts, *libraries)]},
        ],
    }
    content["serialNumber"] = f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(content, sort_keys=True))}"
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _version() -> str:
    return importlib.metadata.version("demitasse")


def _model(report: Report, texts: list[Json]) -> Json:
    final, source = report.final, next((one for one in report.sources if one.role == "model"), None)
    model: Json = {
        "type": "machine-learning-model",
        "bom-ref": f"model:{final.key or report.name}",
        "name": report.name,
        "version": final.key[:16] or "unkeyed",
        "description": f"{final.format} model made by {report.recipe}; verdict: {report.verdict or 'not gated'}",
        "modelCard": _card(report, texts),
    }
    if final.hashes:
        model["components"] = [
            {
                "type": "file",
                "bom-ref": f"file:{final.key}:{name}",
                "name": name,
                "hashes": [{"alg": "SHA-256", "content": digest}],
            }
            for name, digest in final.hashes.items()
        ]
    if source is not None:
        model |= _license(source)
        ancestor = {"type": "machine-learning-model", "bom-ref": f"ancestor:{source.name}", "name": source.name}
        hashes = {"hashes": [{"alg": "SHA-256", "content": source.digest}]} if source.digest else {}
        model["pedigree"] = {"ancestors": [{**ancestor, **_license(source), **hashes}]}
    return model


def _card(report: Report, texts: list[Json]) -> Json:
    parameters: Json = {
        "task": "text-generation",
        "inputs": [{"format": "text"}],
        "outputs": [{"format": "text"}],
    }
    if texts:
        parameters["datasets"] = [{"ref": text["bom-ref"]} for text in texts]
    stages = ", ".join(row.name for row in report.rows[1:]) or "none"
    return {
        "modelParameters": parameters,
        "quantitativeAnalysis": {
            "performanceMetrics": [_figure(found) for found in report.final.measurements if not found.invalid]
        },
        "considerations": {
            "technicalLimitations": [
                *(f"{gate.verdict}: {gate.metric}: {gate.detail}" for gate in report.gates if gate.verdict != "PASS"),
                *(f"too good: {metric}: {reason}" for metric, reason in report.sanity_warnings.items()),
                "absolute latencies hold for the machine that they were taken on",
            ]
        },
        "properties": [
            {"name": "demitasse:verdict", "value": report.verdict or "NOT GATED"},
            {"name": "demitasse:stages", "value": stages},
        ],
    }


def _figure(found: Measurement) -> Json:
    unit = metric_of(found.metric).unit
    figure: Json = {"type": f"{found.metric} ({unit})" if unit else found.metric, "value": f"{found.value:.6g}"}
    if found.interval is not None:
        figure["confidenceInterval"] = {
            "lowerBound": f"{found.interval.low:.6g}",
            "upperBound": f"{found.interval.high:.6g}",
        }
    return figure


def _text(source: Source) -> Json:
    text: Json = {"type": "data", "bom-ref": f"data:{source.role}", "name": source.name, "description": source.role}
    text["data"] = [{"type": "dataset", "name": f"{source.role} text"}]
    if source.digest:
        text["hashes"] = [{"alg": "SHA-256", "content": source.digest}]
    return text | _license(source)


def _library(name: str, version: str) -> Json:
    return {
        "type": "library",
        "bom-ref": f"library:{name}@{version}",
        "name": name,
        "version": version,
        **({} if name == "python" else {"purl": f"pkg:pypi/{name}@{version.replace('+', '%2B')}"}),
    }


def _license(source: Source) -> Json:
    return {"licenses": [{"license": {"name": source.license}}]} if source.license else {}
