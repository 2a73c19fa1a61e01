"""The metrics of installed packages, made known to `evaluation`, so that reports and gates have them.

    [project.entry-points."demitasse.metrics"]
    surprises = "their_package.metrics:SURPRISES"     # an `evaluation.quality.TokenMetric`

A report that holds such a metric can be read, and its gates judged, only where the package is installed.
"""

from functools import cache

from compress.extensions import ExtensionError, extensions_of
from evaluation.measurement import METRICS
from evaluation.quality.custom_metrics import TOKEN_METRICS, TokenMetric

GROUP = "demitasse.metrics"


@cache
def register_metrics() -> dict[str, str]:
    """Make the metrics of installed packages known, once; name -> the distribution and version that it is from.

    Raises:
        ExtensionError: one of them cannot be used.
    """
    found = extensions_of(GROUP, TokenMetric)
    for name, extension in found.items():
        where = f"{extension.distribution}: entry point {name!r} of {GROUP}"
        if name in METRICS or not name.isidentifier():
            raise ExtensionError(f"{where}: expected a word that is no metric of ours; uninstall it")
        if extension.entry.metric.more != "documents":
            raise ExtensionError(f'{where}: expected a metric with more="documents", which is of the test text')
    for name, extension in found.items():
        METRICS[name], TOKEN_METRICS[name] = extension.entry.metric, extension.entry
    return {name: extension.distribution for name, extension in found.items()}
