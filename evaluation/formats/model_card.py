"""model_card.md: a Hugging Face model card, YAML metadata and then text; published as README.md beside the bundle.

The metadata's `model-index` holds every figure of what ships that was measured on the test text; the hub draws it as a
table. A license that nobody stated is left out and told of, never guessed.
"""

import io
from typing import Any

from evaluation.gate import describe_limit
from evaluation.measurement import metric_of
from evaluation.report import Report, Source, headline
from evaluation.table import describe_gate, what_it_bought
from evaluation.units import format_interval, format_value

ON_THE_TEXT = ("perplexity", "next_token_accuracy", "agreement", "kl_divergence")


def model_card(report: Report) -> str:
    """The card as Markdown."""
    parts = [f"---\n{_yaml(_metadata(report))}---", f"# {report.name}", *_text(report)]
    return "\n\n".join(parts) + "\n"


def _source(report: Report, role: str) -> Source | None:
    return next((source for source in report.sources if source.role == role), None)


def _metadata(report: Report) -> dict[str, Any]:
    model, test = _source(report, "model"), _source(report, "test")
    found: dict[str, Any] = {"pipeline_tag": "text-generation", "library_name": "onnxruntime"}
    found["tags"] = ["onnx", "demitasse", *dict.fromkeys(row.kind for row in report.rows[1:])]
    if report.final.form != "onnx":
        found |= {"library_name": "transformers", "tags": found["tags"][1:]}
    if model is not None and model.license:
        found["license"] = model.license.lower()
    if model is not None and model.name.partition("@")[0].count("/") == 1 and not model.name.startswith((".", "/")):
        found |= {"base_model": model.name.partition("@")[0], "base_model_relation": "quantized"}
    results = _results(report, test)
    if results:
        found["model-index"] = [{"name": report.name, "results": [results]}]
    return found


def _results(report: Report, test: Source | None) -> dict[str, Any]:
    """The figures on the test text, as the hub's `model-index` has them."""
    name = "the test text" if test is None else test.name.rpartition("/")[2]
    measured = [(metric, report.final.measurement(metric)) for metric in ON_THE_TEXT]
    metrics = [
        {"type": metric, "name": metric_of(metric).name, "value": round(found.value, 6), "verified": False}
        for metric, found in measured
        if found is not None and not found.invalid
    ]
    if not metrics:
        return {}
    dataset = {"type": name, "name": name}
    return {"task": {"type": "text-generation", "name": "Text generation"}, "dataset": dataset, "metrics": metrics}


def _yaml(content: dict[str, Any]) -> str:
    from ruamel.yaml import YAML

    stream = io.StringIO()
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # declared None, read as a switch
    writer.dump(content, stream)
    return stream.getvalue()


def _text(report: Report) -> list[str]:
    final, model = report.final, _source(report, "model")
    stages = ", ".join(row.name for row in report.rows[1:]) or "nothing"
    made = f"Made from {model.name if model else 'the baseline'} by demitasse ({report.recipe}: {stages})."
    held = [] if model is None or model.license else ["The license of the model it was made of is not stated."]
    bought = [f"- **{item.figure}** {item.meaning} ({item.detail})" for item in what_it_bought(report)]
    figures = [
        f"| {metric_of(found.metric).name} | {format_value(found.metric, found.value)} | "
        f"{format_interval(found.metric, found.interval, found.value) if found.interval else 'counted'} |"
        for found in final.measurements
        if not found.invalid
    ]
    verdict = f"**{report.verdict or 'NOT GATED'}**: {headline(report.verdict, len(report.suspicions))}"
    gates = [
        f"- {result.verdict}: {result.metric} {describe_limit(result.metric, result.limit)}; "
        f"measured {describe_gate(result).value}"
        for result in report.gates
    ]
    return [
        " ".join([made, *held]),
        verdict,
        *(["\n".join(gates)] if gates else []),
        *(["Against the model it was made of:\n\n" + "\n".join(bought)] if bought else []),
        "## Figures\n\n| | measured | 95 % interval |\n|---|---|---|\n" + "\n".join(figures),
        "## Limits\n\nAbsolute latencies hold for the machine that they were taken on ("
        f"{report.environment.get('processor', 'not stated')}). Whatever the original model got wrong, "
        "this one gets wrong too; what was measured is the text above and no more.",
    ]
