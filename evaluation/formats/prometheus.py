"""metrics.prom in Prometheus' text exposition format, version 0.0.4.

    demitasse_decode_latency_seconds{run="...",artifact="export",bound="value"} 0.0009
    demitasse_accuracy_ratio{run="...",artifact="export",evaluation="hellaswag",bound="value"} 0.42
    demitasse_ratio_to_baseline{run="...",artifact="export",metric="decode_latency",bound="high"} 0.26
    demitasse_verdict{run="...",verdict="PASS"} 1            and 0 for the other three
    demitasse_gate_verdict{run="...",metric="perplexity",verdict="PASS"} 1

Names end in the base unit, as Prometheus asks: bytes, seconds, ratio for a share. `bound` is value, low or high of the
95 % interval. What is invalid has no sample, because NaN would be averaged away on a dashboard; its verdict tells.
"""

import math
from collections.abc import Iterator

from evaluation.gate import SEVERITY
from evaluation.measurement import METRICS, SEPARATOR, Interval
from evaluation.report import Report

SUFFIX: dict[str, str] = {
    "B": "_bytes",
    "s": "_seconds",
    "share": "_ratio",
    "nat": "_nats",
    "token/s": "_tokens_per_second",
    "count": "",
    "": "",
}
"""Unit -> what a name ends in."""
Samples = list[tuple[dict[str, str], float]]


def prometheus(report: Report) -> str:
    """Every figure, every gate and the verdict as gauges."""
    lines: list[str] = []
    for name, (told, samples) in _families(report).items():
        lines += [f"# HELP {name} {told}", f"# TYPE {name} gauge"]
        lines += [f"{name}{{{_labels({'run': report.name, **labels})}}} {value:.17g}" for labels, value in samples]
    return "\n".join(lines) + "\n"


def name_of(metric: str) -> str:
    """The metric's name for Prometheus, which ends in its unit."""
    metric = metric.rpartition(SEPARATOR)[2]
    suffix = SUFFIX[METRICS[metric].unit]
    return f"demitasse_{metric}" if metric.endswith(suffix) else f"demitasse_{metric}{suffix}"


def _families(report: Report) -> dict[str, tuple[str, Samples]]:
    families: dict[str, tuple[str, Samples]] = {}
    ratios: Samples = []
    for row in report.rows:
        for found in row.measurements:
            if found.invalid:
                continue
            of, _, metric = found.metric.rpartition(SEPARATOR)
            labels = {"artifact": row.name} | ({"evaluation": of} if of else {})
            samples = families.setdefault(name_of(metric), (METRICS[metric].summary, []))[1]
            samples += [({**labels, **label}, value) for label, value in _bounds(found.value, found.interval)]
            if found.ratio is not None:
                labels = {"artifact": row.name, "metric": found.metric}
                ratios += [
                    ({**labels, **label}, value) for label, value in _bounds(found.ratio.value, found.ratio.interval)
                ]
    gates = [({"metric": gate.metric, "verdict": gate.verdict}, 1.0) for gate in report.gates]
    return {
        **families,
        "demitasse_ratio_to_baseline": ("a figure divided by the baseline's, paired", ratios),
        "demitasse_gate_verdict": ("1 for the verdict of each gate", gates),
        "demitasse_verdict": ("1 for the verdict of the run", _verdicts(report)),
        "demitasse_run_timestamp_seconds": ("when the run was judged", [({}, report.created.timestamp())]),
    }


def _verdicts(report: Report) -> Samples:
    return [({"verdict": verdict}, float(verdict == report.verdict)) for verdict in SEVERITY]


def _bounds(value: float, interval: Interval | None) -> Iterator[tuple[dict[str, str], float]]:
    ends = {"value": value} | ({} if interval is None else {"low": interval.low, "high": interval.high})
    return (({"bound": name}, end) for name, end in ends.items() if math.isfinite(end))


def _labels(labels: dict[str, str]) -> str:
    escaped = {
        name: text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n") for name, text in labels.items()
    }
    return ",".join(f'{name}="{text}"' for name, text in escaped.items())
