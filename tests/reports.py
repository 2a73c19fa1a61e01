"""A report for each verdict, of figures made up for the tests, and a parser of pages."""

import math
from datetime import UTC, datetime
from html.parser import HTMLParser

from evaluation.gate import Limit, judge, overall
from evaluation.measurement import JUDGED, Interval, Measurement, Ratio
from evaluation.report import Report, Row


def sampled(metric: str, value: float, ratio: float | None = None) -> Measurement:
    def around(center: float, share: float, confidence: float) -> Interval:
        return Interval(low=center * (1 - share), high=center * (1 + share), confidence=confidence)

    relative = None
    if ratio is not None:
        relative = Ratio(value=ratio, interval=around(ratio, 0.01, 0.95), bounds=around(ratio, 0.008, JUDGED))
    return Measurement(
        metric=metric,
        value=value,
        samples=12,
        method="a test",
        interval=around(value, 0.05, 0.95),
        bounds=around(value, 0.04, JUDGED),
        ratio=relative,
    )


def counted(metric: str, value: float, ratio: float | None = None) -> Measurement:
    relative = None if ratio is None else Ratio(value=ratio)
    return Measurement(metric=metric, value=value, samples=1, method="counted", ratio=relative)


BROKEN = Measurement(metric="perplexity", value=math.nan, samples=12, method="a test", invalid="NaN <here>")


def make_report(limits: dict[str, Limit] | None = None, perplexity: Measurement | None = None) -> Report:
    perplexity = perplexity or sampled("perplexity", 43.0, 1.07)
    rows = [
        Row(
            name="baseline",
            kind="baseline",
            format="dense",
            measurements=[
                counted("weight_bytes", 27.3e6),
                sampled("perplexity", 40.2),
                sampled("prefill_latency", 0.04),
                sampled("decode_latency", 0.0038),
            ],
        ),
        Row(
            name="prune",
            kind="prune",
            format="dense",
            key="ab" * 32,
            knobs={"sparsity": 0.3, "pattern": None},
            metadata={"tensors": 1024, "layers": ["a", "b"], "<b>": "x & y"},
            seconds=200.0,
            reused=True,
            measurements=[counted("weight_bytes", 27.3e6, 1.0), sampled("perplexity", 48.0, 1.2)],
        ),
        Row(
            name="export",
            kind="export",
            format="onnx",
            seconds=12.0,
            measurements=[
                counted("weight_bytes", 6.4e6, 0.234),
                perplexity,
                sampled("prefill_latency", 0.012, 0.3),
                sampled("decode_latency", 0.0009, 0.24),
            ],
        ),
    ]
    gates = judge(limits or {}, {found.metric: found for found in rows[-1].measurements})
    return Report(
        recipe="recipes/test.yaml",
        name="a test",
        rows=rows,
        gates=gates,
        verdict=overall(gates),
        environment={"machine": "two cores"},
        created=datetime(2026, 1, 5, 9, 30, tzinfo=UTC),
    )


REPORTS: dict[str, Report] = {
    "PASS": make_report({"perplexity": Limit(max_ratio=1.1), "weight_bytes": Limit(at_most=7e6)}),
    "FAIL": make_report({"perplexity": Limit(max_ratio=1.05), "weight_bytes": Limit(at_most=7e6)}),
    "INCONCLUSIVE": make_report({"perplexity": Limit(max_ratio=1.07), "weight_bytes": Limit(at_most=7e6)}),
    "INVALID": make_report({"perplexity": Limit(max_ratio=1.1), "weight_bytes": Limit(at_most=7e6)}, perplexity=BROKEN),
    "NOT GATED": make_report(),
}


class Page(HTMLParser):
    """Checks that tags are closed in order, and collects what would be loaded."""

    VOID = frozenset({"meta", "link", "br", "img", "use"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.loaded += [value or "" for name, value in attributes if name in ("src", "href") and tag != "use"]

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag
