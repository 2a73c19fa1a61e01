"""Measurements, their intervals, the gate and the report: anything that scores tokens goes in, a verdict comes out."""

from evaluation.gate import (
    EXIT_CODES,
    GateResult,
    Limit,
    Verdict,
    describe_limit,
    exit_code,
    judge,
    limit_problem,
    overall,
)
from evaluation.latency import Arm, Session, blocks_to_decide, latency_measurements
from evaluation.measurement import METRICS, Change, Interval, Measurement, Metric, Ratio, is_metric, metric_of
from evaluation.quality import Scorer, TokenScores, Windows, quality_measurements, score, windows_of
from evaluation.render import render_markdown, write_report
from evaluation.report import Report, ReportError, Row, headline, read_report
from evaluation.statistics import Bootstrap, median_interval, samples_to_decide
from evaluation.table import Cell, TableRow, describe_gate, table_columns, table_rows, what_it_bought
from evaluation.units import format_duration, format_interval, format_ratio, format_ratio_interval, format_value

__all__ = [
    "EXIT_CODES",
    "METRICS",
    "Arm",
    "Bootstrap",
    "Cell",
    "Change",
    "GateResult",
    "Interval",
    "Limit",
    "Measurement",
    "Metric",
    "Ratio",
    "Report",
    "ReportError",
    "Row",
    "Scorer",
    "Session",
    "TableRow",
    "TokenScores",
    "Verdict",
    "Windows",
    "blocks_to_decide",
    "describe_gate",
    "describe_limit",
    "exit_code",
    "format_duration",
    "format_interval",
    "format_ratio",
    "format_ratio_interval",
    "format_value",
    "headline",
    "is_metric",
    "judge",
    "latency_measurements",
    "limit_problem",
    "median_interval",
    "metric_of",
    "overall",
    "quality_measurements",
    "read_report",
    "render_markdown",
    "samples_to_decide",
    "score",
    "table_columns",
    "table_rows",
    "what_it_bought",
    "windows_of",
    "write_report",
]
