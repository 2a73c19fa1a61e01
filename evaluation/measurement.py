"""What a measurement is: a number with its unit, its direction, its sample count, its interval and how it was taken.

A figure without those is an anecdote, so nothing in the report or the gate is a bare float. `METRICS` names everything
that can be measured, which is also everything that a recipe's gate may be set on.

An estimate carries two intervals from the same samples:

    interval   95 %, two-sided: what is shown
    bounds     90 %, two-sided: its ends are the two one-sided 95 % bounds, which is what a gate judges by

A limit has one side, so a wrong PASS has a chance of 5 % when the one-sided 95 % bound keeps the limit.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict

Direction = Literal["lower", "higher"]
SHOWN, JUDGED = 0.95, 0.90
"""Confidence of `interval` and of `bounds`, both two-sided."""


class Value(BaseModel):
    """A frozen value that reads and writes as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, ser_json_inf_nan="constants")


class Metric(Value):
    """A kind of measurement."""

    name: str
    """What people call it, such as "Decode latency per token"."""
    unit: Literal["", "share", "count", "nat", "B", "s", "token/s"]
    better: Direction
    summary: str
    """One line for `demitasse methods`, with the definition."""
    more: Literal["", "documents", "blocks"] = ""
    """What there must be more of to narrow its interval; empty where it is counted and has none."""
    relative: bool = False
    """It compares with the baseline by itself, so a ratio to the baseline's own figure would say nothing."""


METRICS: dict[str, Metric] = {
    "perplexity": Metric(
        name="Perplexity",
        unit="",
        better="lower",
        summary="exp of the mean negative log-likelihood per token of the test text",
        more="documents",
    ),
    "next_token_accuracy": Metric(
        name="Next-token accuracy",
        unit="share",
        better="higher",
        summary="share of test tokens that the model ranks first",
        more="documents",
    ),
    "agreement": Metric(
        name="Agreement with the baseline",
        unit="share",
        better="higher",
        summary="share of positions where it ranks the same token first as the baseline",
        more="documents",
        relative=True,
    ),
    "kl_divergence": Metric(
        name="KL divergence from the baseline",
        unit="nat",
        better="lower",
        summary="mean KL(baseline || model) per token over the whole vocabulary",
        more="documents",
        relative=True,
    ),
    "parameters": Metric(
        name="Parameters", unit="count", better="lower", summary="number of weights, a tied one counted once"
    ),
    "nonzero_parameters": Metric(
        name="Nonzero parameters", unit="count", better="lower", summary="number of weights that are not exactly zero"
    ),
    "weight_bytes": Metric(
        name="Weights",
        unit="B",
        better="lower",
        summary="bytes of the weights as they are held to run (PyTorch: float32)",
    ),
    "disk_bytes": Metric(
        name="Size on disk", unit="B", better="lower", summary="bytes of the weight files (and the ONNX graph) on disk"
    ),
    "compressed_bytes": Metric(
        name="Size on disk, compressed",
        unit="B",
        better="lower",
        summary="bytes of the same files once compressed by zstd level 3: what zeros save",
    ),
    "peak_memory": Metric(
        name="Peak memory",
        unit="B",
        better="lower",
        summary="peak resident memory of a fresh process that loads the model and decodes",
    ),
    "prefill_latency": Metric(
        name="Prefill latency",
        unit="s",
        better="lower",
        summary="time from a prompt to its next token (time to first token)",
        more="blocks",
    ),
    "decode_latency": Metric(
        name="Decode latency per token",
        unit="s",
        better="lower",
        summary="time per further token on a warm cache, greedy (time per output token)",
        more="blocks",
    ),
    "end_to_end_latency": Metric(
        name="End-to-end latency",
        unit="s",
        better="lower",
        summary="time from a prompt to the last of its new tokens",
        more="blocks",
    ),
    "throughput": Metric(
        name="Throughput",
        unit="token/s",
        better="higher",
        summary="new tokens of all rows of a batch per second, the prompt's reading included",
        more="blocks",
    ),
    "open_latency": Metric(
        name="Opening",
        unit="s",
        better="lower",
        summary="time of a fresh process to load its libraries and open the model, files in the disk cache",
        more="blocks",
    ),
    "first_run_latency": Metric(
        name="First run",
        unit="s",
        better="lower",
        summary="time of a fresh process's first prompt, up to its next token",
        more="blocks",
    ),
    "gpu_memory": Metric(
        name="GPU memory", unit="B", better="lower", summary="device memory in use once it decodes, less that before"
    ),
    "macs": Metric(
        name="Multiply-accumulates per token",
        unit="count",
        better="lower",
        summary="multiply-accumulates of one decoded token, counted from the shapes; zeros count too",
    ),
}


class Interval(Value):
    """A two-sided confidence interval [low, high]."""

    low: float
    high: float
    confidence: float = SHOWN


class Comparison(Value):
    """An artifact against the baseline, with the intervals of the paired comparison where there are any."""

    value: float
    interval: Interval | None = None
    bounds: Interval | None = None
    """The one-sided 95 % bounds that a gate judges by; see the head of this file."""


class Ratio(Comparison):
    """A measurement divided by the baseline's."""


class Change(Comparison):
    """A measurement minus the baseline's, in the metric's own unit."""


class Measurement(Value):
    """One figure for one artifact."""

    metric: str
    value: float
    samples: int
    """Independent samples behind it (documents, timed blocks); 1 for something counted exactly."""
    method: str
    """How it was taken, in one sentence: the protocol, the runtime, the threads."""
    interval: Interval | None = None
    """None where the figure is exact (a count of bytes)."""
    bounds: Interval | None = None
    """The one-sided 95 % bounds that a gate judges by; None where the figure is exact."""
    ratio: Ratio | None = None
    """To the baseline; None where there is nothing to compare with."""
    change: Change | None = None
    """Against the baseline; None where there is nothing to compare with."""
    invalid: str = ""
    """Why the figure cannot be trusted (NaN, a provider that fell back); empty where it can."""

    @property
    def unit(self) -> str:
        return METRICS[self.metric].unit

    @property
    def better(self) -> Direction:
        return METRICS[self.metric].better
