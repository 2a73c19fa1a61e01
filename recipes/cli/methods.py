"""Every method that a recipe can name, with one line each, read off the registries themselves."""

import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from recipes.config.metrics import register_metrics

REGISTRIES: dict[str, str] = {
    "stages": "recipes.config.stages.STAGES",
    "pruning criteria (prune.criterion)": "compress.pruning.config.CRITERIA",
    "importance of heads, neurons and channels (slim.importance)": "compress.structured.config.IMPORTANCES",
    "distillation losses (distill.losses)": "compress.training.config.LOSSES",
    "distillation losses between layers (distill.losses)": "compress.distillation.config.LAYER_LOSSES",
    "quantization schemes (quantize.scheme)": "compress.quantization.config.SCHEMES",
    "rounding of weights (quantize.method)": "compress.quantization.config.ROUNDING",
    "graph passes (export)": "export.passes.PASSES",
    "metrics (gate)": "evaluation.measurement.METRICS",
}
"""Heading -> where the registry stands."""


def methods() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """(heading, [(name, one line)]) for every registry."""
    register_metrics()
    for heading, place in REGISTRIES.items():
        module, _, attribute = place.rpartition(".")
        registry: Mapping[str, Any] = getattr(importlib.import_module(module), attribute)
        yield heading, [(name, one_line(entry) or head_of(f"{module}.{name}")) for name, entry in registry.items()]


def one_line(entry: str | Callable[..., object] | Any) -> str:
    """What an entry is: its own text, its `summary`, or the first line of its docstring."""
    if isinstance(entry, str):
        return entry
    summary = getattr(entry, "summary", None)
    return summary if isinstance(summary, str) else (entry.__doc__ or "").strip().partition("\n")[0]


def head_of(module: str) -> str:
    """The first line of a module's docstring: what an entry is that has a file of its own name."""
    return (importlib.import_module(module).__doc__ or "").strip().partition("\n")[0]


def _cell(line: str) -> str:
    return line.rstrip(".").replace("|", r"\|")


def as_markdown() -> str:
    """The page docs/methods.md."""
    parts = ["# Methods", "Everything that a recipe can name, as `demitasse methods` lists it. Made by `make docs`."]
    for heading, entries in methods():
        rows = [f"| `{name}` | {_cell(line)} |" for name, line in entries]
        parts.append("\n".join([f"## {heading[0].upper()}{heading[1:]}", "", "| | |", "|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"
