"""model_card.md: a Hugging Face model card, YAML metadata and then text; it lies in the bundle as README.md.

The metadata's `model-index` holds every figure of quality of what ships, by what it was measured on: the test text, the
test text under a noise, a named evaluation. The hub draws it as a table. A license that nobody stated is left out and
told of, never guessed.
"""

import io
from typing import Any

from evaluation.escaping import visible
from evaluation.gate import describe_limit
from evaluation.measurement import METRICS, SEPARATOR, metric_of
from evaluation.pages import filled
from evaluation.report import Report, Row, Source, headline
from evaluation.table import describe_gate, what_it_bought
from evaluation.units import format_interval, format_ratio, format_value

QUALITY = ("documents", "items")
"""What a figure of quality is taken on."""


def model_card(report: Report) -> str:
    """The card as Markdown."""
    return visible(f"---\n{_yaml(_metadata(report))}---\n\n") + filled("model_card.md.j2", **_values(report))


def _source(report: Report, role: str) -> Source | None:
    return next((source for source in report.sources if source.role == role), None)


def _metadata(report: Report) -> dict[str, Any]:
    model, test = _source(report, "model"), _source(report, "test")
    found: dict[str, Any] = {"pipeline_tag": "text-generation", "library_name": "onnxruntime"}
    found["tags"] = ["onnx", "demitasse", *dict.fromkeys(row.kind for row in report.rows[1:])]
    if report.final.format != "onnx":
        found |= {"library_name": "transformers", "tags": found["tags"][1:]}
    if model is not None and model.license:
        found["license"] = model.license.lower()
    if model is not None and model.name.partition("@")[0].count("/") == 1 and not model.name.startswith((".", "/")):
        found |= {"base_model": model.name.partition("@")[0], "base_model_relation": "quantized"}
    results = _results(report, test)
    if results:
        found["model-index"] = [{"name": report.name, "results": results}]
    return found


def _results(report: Report, test: Source | None) -> list[dict[str, Any]]:
    """The figures of quality as the hub's `model-index` has them, an entry for each thing that they were taken on."""
    text = "the test text" if test is None else test.name.rpartition("/")[2]
    metrics: dict[str, list[dict[str, Any]]] = {}
    for found in report.final.measurements:
        if metric_of(found.metric).more in QUALITY and not found.invalid:
            owner, _, metric = found.metric.rpartition(SEPARATOR)
            figure = {"type": metric, "name": METRICS[metric].name, "value": round(found.value, 6), "verified": False}
            metrics.setdefault(owner, []).append(figure)
    task = {"type": "text-generation", "name": "Text generation"}
    return [
        {"task": task, "dataset": _dataset(owner, text, report.final), "metrics": figures}
        for owner, figures in metrics.items()
    ]


def _dataset(owner: str, text: str, final: Row) -> dict[str, str]:
    """What figures were taken on: an evaluation by its name, or the test text, under noise or as it is."""
    if owner in final.evaluations:
        return {"type": owner, "name": owner}
    return {"type": text, "name": f"{text} with {owner}", "config": owner} if owner else {"type": text, "name": text}


def _yaml(content: dict[str, Any]) -> str:
    from ruamel.yaml import YAML

    stream = io.StringIO()
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # declared None, read as a switch
    writer.dump(content, stream)
    return stream.getvalue()


def _values(report: Report) -> dict[str, Any]:
    figures = [
        {
            "name": metric_of(found.metric).name,
            "value": format_value(found.metric, found.value),
            "between": format_interval(found.metric, found.interval, found.value) if found.interval else "counted",
            "ratio": "" if found.ratio is None else format_ratio(found.ratio.value),
        }
        for found in report.final.measurements
        if not found.invalid
    ]
    gates = [
        {
            "result": result,
            "limit": describe_limit(result.metric, result.limit),
            "measured": describe_gate(result).value,
        }
        for result in report.gates
    ]
    return {
        "report": report,
        "model": _source(report, "model"),
        "stages": ", ".join(row.name for row in report.rows[1:]) or "nothing",
        "headline": headline(report.verdict, len(report.sanity_warnings)),
        "gates": gates,
        "bought": what_it_bought(report),
        "figures": figures,
    }
