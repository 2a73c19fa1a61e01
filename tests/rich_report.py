"""A finished run with everything that a report can show: five stages, named evaluations, noise, what lost most.

Figures are drawn from known distributions and worked out by the functions that work out real ones; texts hold what a
page must escape.
"""

from pathlib import Path
from typing import Any

import numpy as np
from finished_runs import finish

from evaluation.gate import Limit, judge, overall
from evaluation.measurement import Measurement, Ratio
from evaluation.quality.classification_metrics import LABEL, PROBABILITY
from evaluation.quality.per_example import PerExample, item_measurements
from evaluation.quality.text_metrics import overlap_columns
from evaluation.render import write_report
from evaluation.report import Report, Row, Source

HOSTILE = '<script>alert("1")</script> & "x" | `y`'
PARTS = {
    "embeddings": {"float": 2_000},
    "attention": {"float": 2_000},
    "mlp": {"float": 4_000},
    "norms": {"float": 192},
}
ITEMS = 200
TEXTS = ["The ship left the harbor at dawn and nobody waved.", f"A letter came. {HOSTILE}", "It rained for\ntwo days."]
WRITTEN = ["The ship left at dawn and nobody was there.", "A letter came, and a letter came.", "It rained."]


def rich(folder: Path) -> Report:
    """Leave such a run's report in a folder and return it."""
    report = finish(folder)
    first, last = report.rows
    asked = {"sentiment": _labeled, "summaries": _generated, "hellaswag": _task}
    given = {name: (ask(0.0), ask(0.04)) for name, ask in asked.items()}
    rows = [_told(first, {name: (items, None) for name, (items, _) in given.items()})]
    rows += [_between(rows[0], name, share, cost) for name, share, cost in _STAGES]
    last = _told(last, {name: (items, baseline) for name, (baseline, items) in given.items()})
    rows.append(
        last.model_copy(
            update={"weights": _eighth(PARTS), "worst_tokens": WORST_TOKENS, "metadata": _quiet(last.metadata)}
        )
    )
    sources = [Source(role="model", name="org/model@0123", digest="ab" * 32, license="Apache-2.0")]
    limits = {gate.metric: gate.limit for gate in report.gates} | {"sentiment/accuracy": Limit(min_ratio=0.9)}
    gates = judge(limits, {found.metric: found for found in last.measurements})
    rows_too = {"rows": rows, "sources": sources, "gates": gates, "verdict": overall(gates)}
    report = report.model_copy(update=rows_too)
    write_report(report, folder)
    return report


_STAGES = (("prune", 1.0, 1.01), ("distill", 0.86, 1.06), ("quantize", 0.25, 1.07))


def _told(row: Row, given: dict[str, tuple[PerExample, PerExample | None]]) -> Row:
    measured = [
        found
        for name, (items, baseline) in given.items()
        for found in item_measurements(name, items, baseline, method="a test")
    ]
    told: dict[str, Any] = {name: {"kind": items.kind, **items.metadata} for name, (items, _) in given.items()}
    figures = [*row.measurements, *measured]
    return row.model_copy(update={"measurements": figures, "evaluations": told, "weights": PARTS})


def _between(baseline: Row, name: str, share: float, cost: float) -> Row:
    """A stage between, with a little of everything."""
    kept = {"weight_bytes": share, "perplexity": cost, "decode_latency": 0.9 * share + 0.1}
    measured = [_scaled(found, kept[found.metric]) for found in baseline.measurements if found.metric in kept]
    metadata: dict[str, Any] = {"prune": SENSITIVITY, "distill": INFLUENCE}.get(name, {})
    format = "quantized" if name == "quantize" else "dense"
    weights = _eighth(PARTS) if name == "quantize" else PARTS
    return Row(
        name=name, kind=name, format=format, seconds=20.0, measurements=measured, metadata=metadata, weights=weights
    )


def _scaled(found: Measurement, share: float) -> Measurement:
    between = found.interval and found.interval.model_copy(
        update={"low": found.interval.low * share, "high": found.interval.high * share}
    )
    return found.model_copy(update={"value": found.value * share, "interval": between, "ratio": Ratio(value=share)})


def _eighth(parts: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    """The same with its matrices as int8."""
    return {
        part: dict(sizes) if part == "norms" else {"int8": sizes["float"] // 4, "scales": sizes["float"] // 250}
        for part, sizes in parts.items()
    }


def _quiet(metadata: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metadata.items() if name != "history"}


def _labeled(cost: float) -> PerExample:
    generator = np.random.default_rng(3)
    label_I = generator.integers(0, 3, ITEMS)
    score_IL = generator.normal(0, 1, (ITEMS, 3)) + (1.6 - 20 * cost) * np.eye(3)[label_I]
    probability_IL = np.exp(score_IL) / np.exp(score_IL).sum(axis=1, keepdims=True)
    counts = np.zeros((3, 3), dtype=np.int64)
    np.add.at(counts, (label_I, probability_IL.argmax(axis=1)), 1)
    columns = {f"{PROBABILITY}{label}": probability_IL[:, label] for label in range(3)}
    metadata = {
        "protocol": "likeliest of 3 answers after a prompt",
        "labels": ["positive", "negative", "<neither>"],
        "confusion": counts.tolist(),
        "wrong": [{"prompt": HOSTILE, "label": "positive", "given": "<neither>", "probability": 0.93}],
    }
    return PerExample(
        kind="labeled", columns={LABEL: label_I.astype(np.float64), **columns}, digest="a", metadata=metadata
    )


def _generated(cost: float) -> PerExample:
    written = TEXTS if cost == 0 else WRITTEN
    texts = [{"prompt": f"Sum it up. {text}", "text": text, "reference": TEXTS[0]} for text in written]
    if cost:
        texts = [{**one, "prompt": f"Sum it up. {text}"} for one, text in zip(texts, TEXTS, strict=True)]
    columns = overlap_columns(written * 9, [TEXTS[0], TEXTS[1], TEXTS[2]] * 9)
    metadata = {"protocol": "greedy, at most 48 new tokens", "texts": texts}
    return PerExample(kind="generation", columns=columns, digest="b", metadata=metadata)


def _task(cost: float) -> PerExample:
    right_I = (np.random.default_rng(4).random(ITEMS) < 0.42 - cost).astype(np.float64)
    metadata = {"protocol": "0-shot, 200 of 10,042 questions"}
    return PerExample(
        kind="task", columns={"accuracy": right_I, "accuracy_norm": right_I}, digest="c", metadata=metadata
    )


SENSITIVITY = {
    "sensitivity": {
        "blocks": [
            {
                "name": f"transformer.h.{block}",
                "points": [
                    {"level": level, "increase": level**3 * (1.2 - 0.15 * block), "error": 0.02 * level}
                    for level in (0.3, 0.5)
                ],
            }
            for block in range(6)
        ]
    }
}
INFLUENCE = {
    "depth": {"by": "block_influence", "influence": [0.9, 0.2, 0.05, 0.07, 0.1, 0.3]},
    "kept_layers": [0, 1, 3, 4, 5],
    "history": [
        {"step": step, "tokens": 4096 * step, "loss": 1 / (1 + step / 9), "sparsity": min(0.5, step / 60)}
        for step in range(1, 60, 3)
    ],
}
WORST_TOKENS: dict[str, Any] = {
    "unit": "nat",
    "scored": 2400,
    "loss": 0.03,
    "tokens": [
        {
            "before": f"of a very long sentence\nthat goes on {HOSTILE}",
            "token": token,
            "after": " and ends here.",
            "loss": 3.1,
            "nll": 3.4,
            "baseline_nll": 0.3,
        }
        for token in (" Heathcliff", "\n", " ", "<b>")
    ],
    "vocabulary": [{"token": " the", "id": 3, "count": 130, "loss": 0.11, "total": 14.3}],
    "positions": [
        {"from": 2**step, "to": 2 ** (step + 1) - 1, "count": 40 * 2**step, "loss": 0.1 / (step + 1)}
        for step in range(7)
    ],
    "documents": [{"document": 3, "opening": f"CHAPTER I\n\n{HOSTILE}", "count": 60, "loss": 0.4, "baseline_nll": 3.0}],
}
