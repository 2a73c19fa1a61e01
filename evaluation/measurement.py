"""What a measurement is: a number with its unit, its direction, its sample count, its interval and how it was taken.

A figure without those is an anecdote, so nothing in the report or the gate is a bare float. `METRICS` names everything
that can be measured, which is also everything that a recipe's gate may be set on. A metric of an evaluation that the
recipe names, or of the test text under noise, is written with that name before it: "hellaswag/accuracy",
"typos/perplexity" (`metric_of`).

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
    more: Literal["", "documents", "items", "blocks"] = ""
    """What there must be more of to narrow its interval; empty where it is counted and has none."""
    relative: bool = False
    """It compares with the baseline by itself, so a ratio to the baseline's own figure would say nothing."""
    named: bool = False
    """Only an evaluation that the recipe names has it, so it is always written "NAME/METRIC"."""


METRICS: dict[str, Metric] = {
    "perplexity": Metric(
        name="Perplexity",
        unit="",
        better="lower",
        summary="exp of the mean negative log-likelihood per token of the test text",
        more="documents",
    ),
    "word_perplexity": Metric(
        name="Perplexity per word",
        unit="",
        better="lower",
        summary="exp of the negative log-likelihood of the test text per word, so that tokenizers compare",
        more="documents",
    ),
    "bits_per_byte": Metric(
        name="Bits per byte",
        unit="",
        better="lower",
        summary="bits that the test text costs per byte of UTF-8, so that tokenizers compare",
        more="documents",
    ),
    "next_token_accuracy": Metric(
        name="Next-token accuracy",
        unit="share",
        better="higher",
        summary="share of test tokens that the model ranks first",
        more="documents",
    ),
    "top5_accuracy": Metric(
        name="Top-5 accuracy",
        unit="share",
        better="higher",
        summary="share of test tokens that the model ranks among its first five",
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
    "noise_cost": Metric(
        name="Noise cost",
        unit="",
        better="lower",
        summary="perplexity ratio to the baseline under noise, divided by that on clean text",
        more="documents",
        relative=True,
    ),
    "accuracy": Metric(
        name="Accuracy",
        unit="share",
        better="higher",
        summary="share of items whose right answer has the highest likelihood",
        more="items",
        named=True,
    ),
    "accuracy_norm": Metric(
        name="Accuracy, by length",
        unit="share",
        better="higher",
        summary="the same with each answer's log-likelihood divided by its characters",
        more="items",
        named=True,
    ),
    "exact_match": Metric(
        name="Exact match",
        unit="share",
        better="higher",
        summary="share of items whose generated text is the answer",
        more="items",
        named=True,
    ),
    "answer_perplexity": Metric(
        name="Perplexity of the answer",
        unit="",
        better="lower",
        summary="exp of the mean negative log-likelihood of the right answer, such as LAMBADA's last word",
        more="items",
        named=True,
    ),
    "macro_f1": Metric(
        name="Macro F1",
        unit="share",
        better="higher",
        summary="mean over the labels of the harmonic mean of precision and recall",
        more="items",
        named=True,
    ),
    "roc_auc": Metric(
        name="ROC AUC",
        unit="share",
        better="higher",
        summary="chance that an item of a label scores higher for it than one of another, mean over the labels",
        more="items",
        named=True,
    ),
    "bleu": Metric(
        name="BLEU",
        unit="",
        better="higher",
        summary="BLEU of the generated texts against their references, 0 to 100, as sacrebleu counts",
        more="items",
        named=True,
    ),
    "rouge_1": Metric(
        name="ROUGE-1",
        unit="share",
        better="higher",
        summary="mean F measure of the words that a generated text and its reference share",
        more="items",
        named=True,
    ),
    "rouge_2": Metric(
        name="ROUGE-2",
        unit="share",
        better="higher",
        summary="mean F measure of the pairs of words that they share",
        more="items",
        named=True,
    ),
    "rouge_l": Metric(
        name="ROUGE-L",
        unit="share",
        better="higher",
        summary="mean F measure of their longest common subsequence of words",
        more="items",
        named=True,
    ),
    "repetition": Metric(
        name="Repetition",
        unit="share",
        better="lower",
        summary="share of the 4-grams of a generated text that stood in it before",
        more="items",
        named=True,
    ),
    "distinct_1": Metric(
        name="Distinct words",
        unit="share",
        better="higher",
        summary="different words of a generated text per word, mean over the texts",
        more="items",
        named=True,
    ),
    "distinct_2": Metric(
        name="Distinct pairs",
        unit="share",
        better="higher",
        summary="different pairs of words of a generated text per pair, mean over the texts",
        more="items",
        named=True,
    ),
    "score": Metric(
        name="Score",
        unit="",
        better="higher",
        summary="another figure of a task of lm-evaluation-harness, mean over its items",
        more="items",
        named=True,
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

SEPARATOR = "/"


def is_metric(name: str) -> bool:
    """Whether it is one of METRICS, or one of those that texts give with a name before it."""
    of, _, metric = name.rpartition(SEPARATOR)
    return name in METRICS or (bool(of) and metric in METRICS and METRICS[metric].more in {"documents", "items"})


def metric_of(name: str) -> Metric:
    """What is known of a metric, such as "perplexity" or "hellaswag/accuracy" (then called "hellaswag: Accuracy").

    Raises:
        KeyError: there is no such metric.
    """
    if not is_metric(name):
        raise KeyError(f"expected one of {', '.join(METRICS)}, or NAME{SEPARATOR}METRIC, got {name!r}")
    of, _, metric = name.rpartition(SEPARATOR)
    found = METRICS[metric]
    return found.model_copy(update={"name": f"{of}: {found.name}"}) if of else found


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


def _shown(value: float, interval: Interval | None) -> str:
    return f"{value:.4g}" + ("" if interval is None else f" ({interval.low:.4g} to {interval.high:.4g})")


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

    def __repr__(self) -> str:
        if self.invalid:
            return f"Measurement({self.metric}: invalid, {self.invalid})"
        unit = f" {self.unit}" if self.unit else ""
        ratio = "" if self.ratio is None else f"; {_shown(self.ratio.value, self.ratio.interval)} times the baseline's"
        return f"Measurement({self.metric}: {_shown(self.value, self.interval)}{unit}{ratio})"

    __str__ = __repr__

    @property
    def unit(self) -> str:
        return metric_of(self.metric).unit

    @property
    def better(self) -> Direction:
        return metric_of(self.metric).better
