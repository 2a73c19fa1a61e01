"""The report as rows and columns of finished text, for the terminal's table, Markdown and HTML alike."""

from dataclasses import dataclass

from evaluation.gate import GateResult, format_compared
from evaluation.measurement import Measurement, is_metric, metric_of
from evaluation.report import Report
from evaluation.units import DASH, MINUS, TIMES, format_interval, format_ratio, format_ratio_interval, format_value

COLUMNS: dict[str, str] = {
    "weight_bytes": "Weights",
    "perplexity": "Perplexity",
    "agreement": "Agreement",
    "prefill_latency": "Prefill",
    "decode_latency": "Decode",
}
"""The metrics of the short table and their headings; the full list is in the details."""


def name_of(metric: str) -> str:
    """A metric's name in prose; as it is where there is no such metric."""
    return metric_of(metric).name if is_metric(metric) else metric


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One figure, as text; each part is empty where there is none."""

    value: str = ""
    ratio: str = ""
    interval: str = ""
    ratio_interval: str = ""
    invalid: str = ""


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """One artifact; a cell for each of `table_columns`."""

    name: str
    format: str
    reused: bool
    cells: tuple[Cell, ...]


def table_columns(report: Report) -> dict[str, str]:
    """The columns that at least one row fills: metric -> heading."""
    measured = report.metrics()
    return {metric: heading for metric, heading in COLUMNS.items() if metric in measured}


def table_rows(report: Report) -> list[TableRow]:
    """A row per artifact, the baseline first."""
    return [
        TableRow(
            name=row.name,
            format=row.format,
            reused=row.reused,
            cells=tuple(cell_of(row.measurement(metric)) for metric in table_columns(report)),
        )
        for row in report.rows
    ]


def cell_of(measurement: Measurement | None) -> Cell:
    """A measurement as text."""
    if measurement is None:
        return Cell()
    if measurement.invalid:
        return Cell(value="invalid", invalid=measurement.invalid)
    interval, ratio = measurement.interval, measurement.ratio
    return Cell(
        value=format_value(measurement.metric, measurement.value),
        interval="" if interval is None else format_interval(measurement.metric, interval, measurement.value),
        ratio="" if ratio is None else format_ratio(ratio.value),
        ratio_interval="" if ratio is None or ratio.interval is None else format_ratio_interval(ratio.interval),
    )


def describe_gate(result: GateResult) -> Cell:
    """What was compared with the limit, as text."""
    if result.value is None:
        return Cell(value=DASH)
    interval, value = result.interval, format_compared(result.metric, result.limit, result.value)
    if interval is None:
        return Cell(value=value)
    if result.limit.kind in {"max_ratio", "min_ratio"}:
        return Cell(value=value, interval=format_ratio_interval(interval))
    return Cell(value=value, interval=format_interval(result.metric, interval, result.value))


@dataclass(frozen=True, kw_only=True)
class Bought:
    """One sentence of what the compression bought or cost, in figures."""

    figure: str
    """Such as "4.1x"."""
    meaning: str
    """Such as "smaller weights"."""
    detail: str
    """Such as "27.3 MB to 6.7 MB"."""


def what_it_bought(report: Report) -> list[Bought]:
    """The final artifact against the baseline: size, speed, quality, as far as they were measured."""
    found = [
        _times_less(report, "weight_bytes", "smaller weights", "larger weights"),
        _times_less(report, "decode_latency", "faster decoding", "slower decoding"),
        _times_less(report, "prefill_latency", "faster prefill", "slower prefill"),
        _change(report, "perplexity"),
    ]
    return [bought for bought in found if bought is not None]


def _times_less(report: Report, metric: str, better: str, worse: str) -> Bought | None:
    first, last = report.rows[0].measurement(metric), report.final.measurement(metric)
    if first is None or last is None or last.ratio is None or not last.ratio.value > 0 or first.invalid or last.invalid:
        return None
    ratio = last.ratio.value
    times, meaning = (1 / ratio, better) if ratio <= 1 else (ratio, worse)
    detail = f"{format_value(metric, first.value)} → {format_value(metric, last.value)}"
    return Bought(
        figure=f"{times:.1f}{TIMES}" if times < 100 else f"{times:.0f}{TIMES}", meaning=meaning, detail=detail
    )


def _change(report: Report, metric: str) -> Bought | None:
    first, last = report.rows[0].measurement(metric), report.final.measurement(metric)
    if first is None or last is None or last.ratio is None or first.invalid or last.invalid:
        return None
    percent = (last.ratio.value - 1) * 100
    figure = f"{percent:+.1f} %" if abs(percent) < 100 else f"{last.ratio.value:.1f}{TIMES}"
    detail = f"{format_value(metric, first.value)} → {format_value(metric, last.value)}"
    return Bought(figure=figure.replace("-", MINUS), meaning=name_of(metric).lower(), detail=detail)
