"""What a measurement is: a number with its unit, its direction, its sample count, its interval and how it was taken.

A figure without those is an anecdote, so nothing in the report or the gate is a bare float. `METRICS` names everything
that can be measured, which is also everything that a recipe's gate may be set on.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict

Direction = Literal["lower", "higher"]


class Value(BaseModel):
    """A frozen value that reads and writes as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, ser_json_inf_nan="constants")


class Metric(Value):
    """A kind of measurement."""

    unit: str
    better: Direction
    summary: str
    """One line for `demitasse methods`, with the definition."""


METRICS: dict[str, Metric] = {
    "perplexity": Metric(
        unit="", better="lower", summary="exp of the mean negative log-likelihood per token of the test text"
    ),
    "next_token_accuracy": Metric(unit="", better="higher", summary="share of test tokens that the model ranks first"),
    "agreement": Metric(
        unit="", better="higher", summary="share of positions where it ranks the same token first as the baseline"
    ),
    "kl_divergence": Metric(
        unit="nat", better="lower", summary="mean KL(baseline || model) per token over the whole vocabulary"
    ),
    "parameters": Metric(unit="", better="lower", summary="number of weights, a tied one counted once"),
    "nonzero_parameters": Metric(unit="", better="lower", summary="number of weights that are not exactly zero"),
    "weight_bytes": Metric(
        unit="B", better="lower", summary="bytes of the weights as they are held to run (PyTorch: float32)"
    ),
    "disk_bytes": Metric(unit="B", better="lower", summary="bytes of the weight files (and the ONNX graph) on disk"),
    "compressed_bytes": Metric(
        unit="B", better="lower", summary="bytes of the same files once compressed by zstd level 3: what zeros save"
    ),
    "peak_memory": Metric(
        unit="B", better="lower", summary="peak resident memory of a fresh process that loads the model and decodes"
    ),
    "prefill_latency": Metric(unit="s", better="lower", summary="time from a prompt to its next token, batch 1"),
    "decode_latency": Metric(
        unit="s", better="lower", summary="time per generated token on a warm cache, batch 1, greedy"
    ),
}


class Interval(Value):
    """A confidence interval [low, high]."""

    low: float
    high: float
    confidence: float = 0.95


class Ratio(Value):
    """A measurement divided by the baseline's, with the interval of the paired ratio where there is one."""

    value: float
    interval: Interval | None = None


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
    ratio: Ratio | None = None
    """To the baseline; None where there is nothing to compare with."""
    invalid: str = ""
    """Why the figure cannot be trusted (NaN, a provider that fell back); empty where it can."""

    @property
    def unit(self) -> str:
        return METRICS[self.metric].unit

    @property
    def better(self) -> Direction:
        return METRICS[self.metric].better
