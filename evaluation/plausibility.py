"""Too good to be true: figures that call for a look before anyone celebrates them.

    quality   better than the baseline beyond noise: compression takes quality away; what adds it is usually a test text
              that was trained on, or two models that did not read the same
    change    none at all (KL divergence exactly zero): the model says what the baseline says, so was it compressed?
    latency   a token needs every weight once, so decoding cannot be faster than

                  bytes of the weights / bytes per second that the memory gives

              unless the weights stay in the processor's cache. Only where a bandwidth is given

A sanity warning changes no verdict; the report shows it beside the figure, and the headline counts it.
"""

from collections.abc import Mapping

from evaluation.measurement import SEPARATOR, Comparison, Measurement, metric_of
from evaluation.units import format_ratio, format_value

QUALITY = frozenset({"perplexity", "next_token_accuracy", "accuracy"})
"""The metrics that must not get better, those with a name before them too."""
PER_TOKEN = "decode_latency"


def sanity_warning(metric: str, measurements: Mapping[str, Measurement], bandwidth: float | None = None) -> str:
    """Why the figure under this metric is too good, in a sentence; empty where it is not.

    Args:
        measurements: of one artifact, by metric.
        bandwidth: bytes per second that the memory gives.
    """
    found = measurements.get(metric)
    if found is None or found.invalid:
        return ""
    if metric.rpartition(SEPARATOR)[2] in QUALITY and found.ratio is not None:
        return _better_than_the_baseline(metric, found.ratio)
    if metric == "kl_divergence" and found.value == 0:
        return "not one probability differs from the baseline's: see whether this artifact was compressed at all"
    if metric == PER_TOKEN and bandwidth is not None:
        return _below_the_floor(found, measurements.get("weight_bytes"), bandwidth)
    return ""


def sanity_warnings(measurements: Mapping[str, Measurement], bandwidth: float | None = None) -> dict[str, str]:
    """Every metric that is too good, with the reason."""
    found = {metric: sanity_warning(metric, measurements, bandwidth) for metric in measurements}
    return {metric: reason for metric, reason in found.items() if reason}


def _better_than_the_baseline(metric: str, ratio: Comparison) -> str:
    bounds = ratio.bounds or ratio.interval
    if bounds is None:
        return ""
    lower_is_better = metric_of(metric).better == "lower"
    worst = bounds.high if lower_is_better else bounds.low
    if not (worst < 1 if lower_is_better else worst > 1):
        return ""
    return (
        f"better than the baseline beyond noise ({format_ratio(worst)} at worst), which compression alone does not do: "
        "see whether a stage trained on the test text or on text like it that the baseline never saw"
    )


def _below_the_floor(latency: Measurement, weights: Measurement | None, bandwidth: float) -> str:
    if weights is None or weights.invalid or not bandwidth > 0:
        return ""
    bounds, floor = latency.bounds or latency.interval, weights.value / bandwidth
    if (latency.value if bounds is None else bounds.high) >= floor:
        return ""
    return (
        f"faster than the memory can deliver the weights ({format_value('weight_bytes', weights.value)} at "
        f"{bandwidth / 1e9:.3g} GB/s take {format_value(PER_TOKEN, floor)}): see whether every weight was used, and "
        "whether they fit into the processor's cache"
    )
