"""Named evaluations and what lost most, as finished text for the report's pages.

A metric "hellaswag/accuracy" belongs to the evaluation "hellaswag", which is a task, labeled text, generated text, or
the test text under noise. Here are its figures on the baseline and on what ships, and what it says beside them: the
protocol, a confusion matrix, texts. What lost most is of what ships.

A loss in nats per token is told as what it does to perplexity: exp(loss), 1.2 times as high.
"""

import math
from dataclasses import dataclass
from typing import Any

from evaluation.measurement import METRICS, SEPARATOR, Measurement
from evaluation.report import Report, Row
from evaluation.table import Cell, cell_of
from evaluation.units import MINUS, format_number, format_ratio, format_ratio_interval

LONGEST_PROMPT, LONGEST_TEXT = 240, 480
"""Characters that are shown of a prompt (its end) and of a text (its beginning)."""
SPACES = {"\n": "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}", "\t": "\N{RIGHTWARDS ARROW}", "\r": ""}
BLANK = "\N{OPEN BOX}"


@dataclass(frozen=True, kw_only=True)
class Line:
    """One figure of an evaluation."""

    name: str
    baseline: Cell
    final: Cell
    against: str
    """What ships against the baseline: a ratio, or for shares the change in percentage points."""
    between: str
    """Its 95 % interval."""


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """PerExample of each label (rows) by the label that they were given (columns)."""

    name: str
    """Whose answers they are."""
    labels: list[str]
    counts: list[list[int]]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A generated text beside its reference."""

    prompt: str
    reference: str
    baseline: str
    final: str


@dataclass(frozen=True, kw_only=True)
class Wrong:
    """An item that was given a wrong label."""

    prompt: str
    label: str
    given: str
    probability: str


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Everything about one named evaluation."""

    name: str
    protocol: str
    lines: list[Line]
    matrices: list[Matrix]
    samples: list[Sample]
    wrong: list[Wrong]


def evaluations(report: Report) -> list[Evaluation]:
    """Every named evaluation of what ships, in the order in which they were measured."""
    names = dict.fromkeys(_owner(found) for found in report.final.measurements if _owner(found))
    return [_evaluation(report, name) for name in names]


def _owner(found: Measurement) -> str:
    return found.metric.rpartition(SEPARATOR)[0]


def _evaluation(report: Report, name: str) -> Evaluation:
    first, final = report.rows[0], report.final
    measured = [found for found in final.measurements if _owner(found) == name]
    rows = [(row, row.evaluations.get(name, {})) for row in ([first] if first is final else [first, final])]
    return Evaluation(
        name=name,
        protocol=rows[-1][1].get("protocol") or (measured[0].method if measured else ""),
        lines=[_line(first.measurement(found.metric), found) for found in measured],
        matrices=[_matrix(row, told) for row, told in rows if told.get("confusion")],
        samples=_samples(rows[0][1].get("texts", ()), rows[-1][1].get("texts", ())),
        wrong=[_wrong(item) for item in rows[-1][1].get("wrong", ())],
    )


def _line(baseline: Measurement | None, final: Measurement) -> Line:
    against, between = _against(final)
    name = METRICS[final.metric.rpartition(SEPARATOR)[2]].name
    return Line(name=name, baseline=cell_of(baseline), final=cell_of(final), against=against, between=between)


def _against(found: Measurement) -> tuple[str, str]:
    if found.change is not None and found.unit == "share":
        between = found.change.interval
        ends = "" if between is None else f"{_points(between.low)} to {_points(between.high)}"
        return f"{_points(found.change.value)} points", ends
    if found.ratio is not None:
        between = found.ratio.interval
        return format_ratio(found.ratio.value), "" if between is None else format_ratio_interval(between)
    return "", ""


def _points(share: float) -> str:
    """A change of a share in percentage points: "+1.2"."""
    return f"{100 * share:+.1f}".replace("-", MINUS)


def _matrix(row: Row, told: dict[str, Any]) -> Matrix:
    return Matrix(name=row.name, labels=[str(label) for label in told["labels"]], counts=told["confusion"])


def _samples(baseline: Any, final: Any) -> list[Sample]:
    """Texts of both, beside each other where both were asked the same."""
    others = {(one["prompt"], one["reference"]): one["text"] for one in baseline}
    return [
        Sample(
            prompt=_end(one["prompt"], LONGEST_PROMPT),
            reference=_start(one["reference"], LONGEST_TEXT),
            baseline=_start(others.get((one["prompt"], one["reference"]), ""), LONGEST_TEXT),
            final=_start(one["text"], LONGEST_TEXT),
        )
        for one in final
    ]


def _wrong(item: dict[str, Any]) -> Wrong:
    return Wrong(
        prompt=_end(item["prompt"], LONGEST_PROMPT),
        label=item["label"],
        given=item["given"],
        probability=f"{100 * item['probability']:.0f} %",
    )


def _end(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"\N{HORIZONTAL ELLIPSIS}{text[-longest:]}"


def _start(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[:longest]}\N{HORIZONTAL ELLIPSIS}"


@dataclass(frozen=True, kw_only=True)
class LostToken:
    """A token that lost much, with the text around it."""

    before: str
    token: str
    after: str
    baseline: str
    """The probability that the baseline gave it."""
    final: str


@dataclass(frozen=True, kw_only=True)
class LostGroup:
    """Tokens that lost together: a word of the vocabulary, places in the window, or a document."""

    name: str
    count: str
    loss: str
    """What perplexity is multiplied by."""


@dataclass(frozen=True, kw_only=True)
class Lost:
    """What lost most."""

    tokens: list[LostToken]
    groups: dict[str, list[LostGroup]]
    """Heading -> the groups, the worst first, or by place."""


def lost_most(report: Report) -> Lost | None:
    """What lost most in what ships; None where nothing is known of it."""
    found = report.final.worst_tokens
    if not found:
        return None
    groups = {
        "Tokens of the vocabulary": [_group(_visible(one["token"]), one) for one in found.get("vocabulary", ())],
        "Tokens before it in the window": [_group(_span(one), one) for one in found.get("positions", ())],
        "Documents": [_group(_visible(one["opening"]), one) for one in found.get("documents", ())],
    }
    return Lost(
        tokens=[_token(one) for one in found.get("tokens", ())],
        groups={heading: entries for heading, entries in groups.items() if entries},
    )


def _token(one: dict[str, Any]) -> LostToken:
    return LostToken(
        before=_visible(one["before"]),
        token=_visible(one["token"]) if one["token"].strip() else _visible(one["token"]).replace(" ", BLANK),
        after=_visible(one["after"]),
        baseline=_probability(one["baseline_nll"]),
        final=_probability(one["nll"]),
    )


def _group(name: str, one: dict[str, Any]) -> LostGroup:
    return LostGroup(name=name, count=f"{one['count']:,}", loss=format_ratio(math.exp(min(one["loss"], 50.0))))


def _span(one: dict[str, Any]) -> str:
    return str(one["from"]) if one["from"] == one["to"] else f"{one['from']:,} to {one['to']:,}"


def _probability(nll: float) -> str:
    return f"{format_number(100 * math.exp(-nll))} %"


def _visible(text: str) -> str:
    """Text on one line, its line breaks drawn."""
    return "".join(SPACES.get(letter, letter) for letter in text)
