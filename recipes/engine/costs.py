"""How long work will take here, from a few operations that are timed first: to tell minutes from days, within twice.

    products    float32 products and sums a second, of matrices as wide as the model's, by NumPy on all cores
    start       seconds of a fresh process until PyTorch and transformers are imported, which each trial pays

    a stage     its libraries, its weights, and the calibration tokens that it runs: T 2 W / products
    quality     of T tokens of text: T (2 W + V SCORED) / products, of what is not the baseline H V products more each
    timing      blocks x a turn of each: start, warm-up, prompts and tokens

Timing ends when its gates are decided, mostly at the first look; the second one's blocks are what is told. A busy
machine times slower and is estimated slower. Not covered: tasks of lm-evaluation-harness by name, whose data is not
opened for this: `HARNESS` questions are taken; the shapes that `slim` times for a target of `decode_latency`.

Legend: W weights, V vocabulary, H hidden width, L layers.
"""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from compress.models.families import size_in
from compress.stage import FormatName, Stage
from evaluation.latency import Protocol
from evaluation.latency.timing import ENOUGH, FEWEST_PREFILLS, WAKE, WARM_STEPS
from evaluation.measurement import metric_of
from evaluation.stopping_rule import blocks_at_looks
from export.config import ExportConfig
from recipes.config.evaluations import GenerationConfig, LabeledConfig, TaskConfig
from recipes.config.recipe import Recipe
from recipes.runs.processes import environment
from recipes.runs.store import versions

ROWS = 1024
SAMPLE = 1.0
"""Seconds that products are timed for: others take turns on a busy machine, and a moment tells of one of them."""
EFFICIENCY = 0.7
"""Share of the products that a whole model reaches."""
SCORED = 900.0
"""Products that each score of a vocabulary takes as long as: its exponential, in float64, and what is added up."""
STAGE = 0.1
"""What a stage opens and writes besides its weights, in starts of a process."""
IMPORTED = 0.2
"""A library of a stage that no model is opened with, imported at its first use, in starts of a process."""
OPENING = frozenset({"torch", "transformers", "tokenizers", "numpy"})
"""Libraries that a model is opened with."""
OPENED = 1.5
"""A model that is open, in starts of a process; one in ONNX Runtime needs no PyTorch."""
OPENED_ONNX = 0.5
WEIGHTS_PER_SECOND = 20e6
"""Through a stage that looks at every weight, reading and writing included."""
PREFILLS: int = Protocol.model_fields["prefills"].default
"""Timed prompts of a turn."""
BYTES_PER_SECOND = 5e9
"""Weights read for a decoded token."""
LAYER = 1e-4
"""A layer of a decoded token, however small, in starts of a process: both are Python that calls small things."""
BYTES_A_TOKEN, PACKED = 4.0, 3.0
"""Of plain text, and how much gzip saves."""
ENDINGS = 3.0
"""How often a question's text is read, once for each ending."""
PARITY_ROWS, READINGS = 4, 4
"""Rows of an export's parity, and how often each graph reads them; the one that fills the context is read once."""
WARM_UPS = 5
"""Before times are steady."""
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
    each = seconds_of(lambda: one @ other, SAMPLE)
    return Speed(products=2 * ROWS * 4 * hidden**2 / each, start=start_seconds())


def seconds_of(call: Callable[[], object], sample: float, clock: Callable[[], float] = time.perf_counter) -> float:
    """Of one call, the mean of all that `sample` seconds have room for; one at least."""
    began, count = clock(), 0
    while count == 0 or clock() - began < sample:
        call()
        count += 1
    return (clock() - began) / count


@cache
def start_seconds() -> float:
    """Of a fresh process until PyTorch and transformers are imported; it is started once."""
    import subprocess

    began = time.perf_counter()
    imports = [sys.executable, "-P", "-c", "import torch, transformers"]
    subprocess.run(imports, env=environment(), check=True, capture_output=True)
    return time.perf_counter() - began


def token_seconds(size: Size, speed: Speed) -> float:
    """Of a token among many that a model reads."""
    return 2 * size.weights / (EFFICIENCY * speed.products)


def quality_seconds(recipe: Recipe, size: Size, speed: Speed, *, baseline: bool) -> float:
    """Of one artifact: the test text as it is and under each noise, and what is named."""
    evaluate = recipe.evaluate
    text = _tokens(recipe.data.test.file)
    windows = text if evaluate.windows is None else min(text, evaluate.windows * evaluate.window)
    if evaluate.stride is not None:
        windows *= evaluate.window / evaluate.stride
    token = token_seconds(size, speed)
    against = 0.0 if baseline else 2 * size.hidden * size.vocabulary / (EFFICIENCY * speed.products)
    scored = (1 if baseline else 2) * SCORED * size.vocabulary / speed.products
    each = windows * (token + against + scored)
    asked = sum(_asked(named, size, speed) for named in evaluate.named)
    first = opened("dense", speed) if baseline else 0.0  # what is imported then is there for the others
    return first + (1 + len(evaluate.noises)) * each + asked


def stage_seconds(stage: Stage[Any], config: Any, size: Size, context: int, speed: Speed) -> float:
    """Of a stage but for its training and an export's proof."""
    imported = len(imports(stage, config)) * IMPORTED * speed.start
    run = stage.tokens_run(config, context, size.layers) * token_seconds(size, speed)
    return STAGE * speed.start + imported + size.weights / WEIGHTS_PER_SECOND + run


def imports(stage: Stage[Any], config: Any) -> set[str]:
    """The libraries of a stage that are here, but for those that a model is opened with."""
    here = {library for library, version in versions(stage.libraries).items() if version != "absent"}
    return here - OPENING - stage.left_out(config)


def parity_seconds(config: ExportConfig, size: Size, context: int, speed: Speed, *, quantized: bool) -> float:
    """Of an export's proof: each row read once by PyTorch, and in every way by each graph."""
    graphs = config.graphs(quantized=quantized)
    rows, whole = PARITY_ROWS * min(config.parity_tokens, context), min(config.parity_context, context)
    read = (1 + READINGS * graphs) * rows + (1 + graphs) * whole
    return read * (token_seconds(size, speed) + 2 * SCORED * size.vocabulary / speed.products)


def opened(format: FormatName, speed: Speed) -> float:
    """Until a model is open in a fresh process."""
    return (OPENED_ONNX if format == "onnx" else OPENED) * speed.start


def timing_seconds(
    recipe: Recipe, sizes: list[tuple[Size, FormatName]], speed: Speed, *, undecided: bool = False
) -> float:
    """Of all the artifacts in turns; `undecided`: where no gate is decided before the last block."""
    config = recipe.benchmark
    if config is None:
        return 0.0
    blocks = config.blocks if undecided or not _looked_at(recipe) else blocks_at_looks(config.blocks)[:2][-1]
    between = min(config.stage_blocks, blocks)
    turns = [blocks if place in {0, len(sizes) - 1} else between for place in range(len(sizes))]
    tokens = config.prompt, config.tokens
    return sum(count * _turn(size, format, tokens, speed) for count, (size, format) in zip(turns, sizes, strict=True))


def _looked_at(recipe: Recipe) -> bool:
    """Whether timing may end early: a gate hangs on it."""
    return any(metric_of(metric).more == "blocks" for metric in recipe.gate)


def _turn(size: Size, format: FormatName, tokens: tuple[int, int], speed: Speed) -> float:
    prompt, new = tokens
    read = prompt * token_seconds(size, speed)
    timed = max(FEWEST_PREFILLS, min(PREFILLS, ENOUGH / read)) * (2 if read < WAKE else 1)
    steps = new + WARM_UPS * min(new, WARM_STEPS)
    return opened(format, speed) + (1 + WARM_UPS + timed) * read + steps * decoded(size, speed)


def decoded(size: Size, speed: Speed) -> float:
    """Of one token on a warm cache."""
    return size.layers * LAYER * speed.start + 4 * size.weights / BYTES_PER_SECOND


def _asked(named: TaskConfig | LabeledConfig | GenerationConfig, size: Size, speed: Speed) -> float:
    """Of one named evaluation: every token once, and each that is generated."""
    token = token_seconds(size, speed)
    if named.file is None:
        return (named.limit or HARNESS) * QUESTION * token
    rows = _rows(named.file)
    share = 1.0 if named.limit is None else min(1.0, named.limit / max(1, rows))
    writes = isinstance(named, GenerationConfig) or (isinstance(named, TaskConfig) and named.kind == "exact_match")
    new = named.tokens if writes and not isinstance(named, LabeledConfig) else 0
    times = ENDINGS if not new else 1.0
    return share * (_tokens(named.file) * times * token + rows * new * decoded(size, speed))


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
