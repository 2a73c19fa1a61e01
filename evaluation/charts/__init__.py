"""The report's charts, each a function from a report to an inline SVG, or to nothing where its figures are missing."""

from collections.abc import Callable

from evaluation.charts.frame import INKS
from evaluation.charts.latency import blocks_chart, latency_chart, spread_chart
from evaluation.charts.sensitivity import sensitivity_chart
from evaluation.charts.size import parts_chart, waterfall_chart
from evaluation.charts.trade import size_chart, speed_chart
from evaluation.charts.training import loss_chart, sparsity_chart
from evaluation.report import Report

CHARTS: dict[str, Callable[[Report], str]] = {
    "Quality against speed": speed_chart,
    "Quality against size": size_chart,
    "Where the bytes went, by kind of number": waterfall_chart,
    "Where the bytes went, by part of the model": parts_chart,
    "Latency": latency_chart,
    "How single steps are spread": spread_chart,
    "Blocks over time": blocks_chart,
    "What each block is worth": sensitivity_chart,
    "Losses while training": loss_chart,
    "Zeros, tensor by tensor": sparsity_chart,
}
"""Heading -> chart, in the order of the page."""

__all__ = [
    "CHARTS",
    "INKS",
    "blocks_chart",
    "latency_chart",
    "loss_chart",
    "parts_chart",
    "sensitivity_chart",
    "size_chart",
    "sparsity_chart",
    "speed_chart",
    "spread_chart",
    "waterfall_chart",
]
