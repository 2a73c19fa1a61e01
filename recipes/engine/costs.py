"""How long work will take here, from a few operations that are timed first: to tell minutes from days, within twice.

    products    float32 products and sums a second, of matrices as wide as the model's, by NumPy on all cores
    start       seconds of a fresh process until PyTorch and transformers are imported, which each trial pays

    quality     of T tokens of text: T (2 W / products + V SCORED), of what is not the baseline H V products more each
    timing      blocks x a turn of each: start, prompt and tokens

A busy machine times slower and is estimated slower. Not covered: tasks of lm-evaluation-harness by name, whose data is
not opened for this: `HARNESS` questions are taken.

Legend: W weights, V vocabulary, H hidden width, L layers.
"""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from compress.models.families import size_in
from compress.stage import FormatName
from recipes.config.evaluations import GenerationConfig, LabeledConfig, TaskConfig
from recipes.config.recipe import Recipe
from recipes.runs.processes import environment

ROWS, REPEATS = 1024, 6
EFFICIENCY = 0.4
"""Share of the products that a whole model reaches."""
SCORED = 25e-9
"""Seconds for each score of a vocabulary: its exponential, in float64, and what is added up."""
STAGE = 0.4
"""What a stage opens and writes besides its weights, in starts of a process."""
OPENED = 1.5
"""A model that is open, in starts of a process; one in ONNX Runtime needs no PyTorch."""
OPENED_ONNX = 0.5
BYTES_PER_SECOND = 5e9
"""Weights read for a decoded token."""
LAYER_SECONDS = 0.4e-3
"""A layer of a decoded token, however small."""
BYTES_A_TOKEN, PACKED = 4.0, 3.0
"""Of plain text, and how much gzip saves."""
ENDINGS = 3.0
"""How often a question's text is read, once for each ending."""
PARITY_ROWS, READINGS, CONTEXT_READINGS = 4, 8, 4
"""Rows of an export's parity, how often each is read, and the one that fills the context."""
HARNESS = 1000
"""Questions of a named task without a limit, of so many tokens with all their endings:"""
QUESTION = 400


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Of this machine."""

    products: float = 80e9
    start: float = 5.0


UNTIMED = Speed()
"""Where only memory and disk are asked for."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """Of a model that is measured."""

    weights: int
    vocabulary: int
    hidden: int
    layers: int

    @classmethod
    def of(cls, weights: int, config: dict[str, Any]) -> "Size":
        hidden, layers, vocabulary = (size_in(config, name) for name in ("hidden", "layers", "vocabulary"))
        return cls(weights=weights, vocabulary=vocabulary, hidden=hidden, layers=layers)


@cache
def timed(hidden: int) -> Speed:
    """This machine, timed for a model of that width; it takes seconds, once a process."""
    one, other = np.ones((ROWS, hidden), dtype=np.float32), np.ones((hidden, 4 * hidden), dtype=np.float32)
    one @ other  # threads start
    began = time.perf_counter()
    for _ in range(REPEATS):
        one @ other
    seconds = time.perf_counter() - began
    return Speed(products=REPEATS * 2 * ROWS * 4 * hidden**2 / seconds, start=start_seconds())


@cache
def start_seconds() -> float:
    """Of a fresh process until PyTorch and transformers are imported; it is started once."""
    import subprocess

    began = time.perf_counter()
    imports = [sys.executable, "-P", "-c", "import torch, transformers"]
    subprocess.run(imports, env=environment(), check=True, capture_output=True)
    return time.perf_counter() - began


def quality_seconds(recipe: Recipe, size: Size, speed: Speed, *, baseline: bool) -> float:
    """Of one artifact: the test text as it is and under each noise, and what is named."""
    evaluate = recipe.evaluate
    text = _tokens(recipe.data.test.file)
    windows = text if evaluate.windows is None else min(text, evaluate.windows * evaluate.window)
    if evaluate.stride is not None:
        windows *= evaluate.window / evaluate.stride
    token = 2 * size.weights / (EFFICIENCY * speed.products)
    against = 0.0 if baseline else 2 * size.hidden * size.vocabulary / (EFFICIENCY * speed.products)
    scored = (1 if baseline else 2) * SCORED * size.vocabulary
    each = windows * (token + against + scored)
    asked = sum(_asked(named, size, token) for named in evaluate.named)
    first = opened("dense", speed) if baseline else 0.0  # what is imported then is there for the others
    return first + (1 + len(evaluate.noises)) * each + asked


def export_seconds(config: Any, size: Size, context: int | None, speed: Speed) -> float:
    """Of an export, nearly all of which is parity: each row read in every way, by PyTorch and by two graphs."""
    longest = context or config.parity_context
    rows, whole = PARITY_ROWS * min(config.parity_tokens, longest), min(config.parity_context, longest)
    read = READINGS * rows + CONTEXT_READINGS * whole
    token = 2 * size.weights / (EFFICIENCY * speed.products) + 2 * SCORED * size.vocabulary
    return float(speed.start + read * token)  # what builds and runs graphs is imported


def opened(format: FormatName, speed: Speed) -> float:
    """Until a model is open in a fresh process."""
    return (OPENED_ONNX if format == "onnx" else OPENED) * speed.start


def timing_seconds(recipe: Recipe, sizes: list[tuple[Size, FormatName]], speed: Speed) -> float:
    """Of all the artifacts in turns, where no gate is decided before the last block."""
    config = recipe.benchmark
    if config is None:
        return 0.0
    turns = [config.blocks if place in {0, len(sizes) - 1} else config.stage_blocks for place in range(len(sizes))]
    tokens = config.prompt, config.tokens
    return sum(count * _turn(size, format, tokens, speed) for count, (size, format) in zip(turns, sizes, strict=True))


def _turn(size: Size, format: FormatName, tokens: tuple[int, int], speed: Speed) -> float:
    prompt, new = tokens
    return opened(format, speed) + prompt * 2 * size.weights / (EFFICIENCY * speed.products) + new * decoded(size)


def decoded(size: Size) -> float:
    """Of one token on a warm cache."""
    return size.layers * LAYER_SECONDS + 4 * size.weights / BYTES_PER_SECOND


def _asked(named: TaskConfig | LabeledConfig | GenerationConfig, size: Size, token: float) -> float:
    """Of one named evaluation: every token once, and each that is generated."""
    if named.file is None:
        return (named.limit or HARNESS) * QUESTION * token
    rows = _rows(named.file)
    share = 1.0 if named.limit is None else min(1.0, named.limit / max(1, rows))
    writes = isinstance(named, GenerationConfig) or (isinstance(named, TaskConfig) and named.kind == "exact_match")
    new = named.tokens if writes and not isinstance(named, LabeledConfig) else 0
    times = ENDINGS if not new else 1.0
    return share * (_tokens(named.file) * times * token + rows * new * decoded(size))


def _tokens(file: Path | None) -> float:
    if file is None or not file.is_file():
        return 1e6
    return file.stat().st_size * (PACKED if file.suffix == ".gz" else 1.0) / BYTES_A_TOKEN


def _rows(file: Path) -> int:
    return sum(1 for _ in _lines(file))


def _lines(file: Path) -> Iterator[bytes]:
    import gzip

    with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
        yield from stream
