"""Finished runs without a model: real stores with real raw samples, drawn from distributions that are known.

`finish(folder)` leaves what a run leaves: an artifact, per-token scores of it and of the baseline, counted figures, raw
latencies, and the report. Documents have their own means, blocks drift; the candidate costs `cost` nats a token and
takes `speed` times as long.
"""

import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from compress.digests import digest_of
from evaluation.gate import Limit, judge, overall
from evaluation.latency import Protocol, Session, Trial, Workload, WorkloadTimes, latency_measurements
from evaluation.measurement import Measurement
from evaluation.quality import TokenScores, quality_measurements
from evaluation.render import write_report
from evaluation.report import Report, Row
from recipes.measure.footprint import compared
from recipes.measure.quality import TOKENS_FILE
from recipes.runs.records import Artifact
from recipes.runs.store import Store

BASE = digest_of("the baseline")
EVALUATE = {"window": 64, "windows": 40}
DOCUMENTS, TOKENS = 40, 60
GATES = {
    "perplexity": Limit(max_ratio=1.10),
    "weight_bytes": Limit(max_ratio=0.3),
    "decode_latency": Limit(max_ratio=0.5),
}
HISTORY = [
    {
        "step": step,
        "tokens": step * 4096,
        "loss": 3.2 + 1.5 * math.exp(-step / 20),
        "held_out_loss": 3.4 + math.exp(-step / 25),
    }
    for step in range(0, 100, 5)
]
MODEL = b"eight bits are enough for a test" * 64


def baseline_scores(text: int = 1) -> TokenScores:
    """The baseline on a text of its own number."""
    generator = np.random.default_rng(text)
    document = np.repeat(np.arange(DOCUMENTS), TOKENS)
    mean = generator.normal(3.2, 0.35, DOCUMENTS)[document]
    nll = np.maximum(0.01, mean + generator.normal(0, 1.0, len(document)))
    return TokenScores(
        nll=nll,
        rank=np.where(nll < 2.2, 0, 20),
        agree=np.ones(len(nll), dtype=np.bool_),
        kl=np.zeros(len(nll)),
        bytes=np.full(len(nll), 4),
        words=np.arange(len(nll)) % 2,
        document=document,
        window=document,
        digest=digest_of(f"text {text}"),
    )


def candidate_scores(baseline: TokenScores, cost: float, seed: int) -> TokenScores:
    """The same tokens after compression: each document pays `cost` on average, and each token some noise."""
    generator = np.random.default_rng(seed)
    paid = cost * generator.uniform(0.5, 1.5, DOCUMENTS)[baseline.document]
    nll = np.maximum(0.01, baseline.nll + paid + generator.normal(0, 0.05, len(paid)))
    return TokenScores(
        nll=nll,
        rank=np.where(nll < 2.2, 0, 20),
        agree=generator.random(len(nll)) < 0.93,
        kl=generator.gamma(2.0, 0.01, len(nll)),
        bytes=baseline.bytes,
        words=baseline.words,
        document=baseline.document,
        window=baseline.window,
        digest=baseline.digest,
    )


def session_of(speed: float, *, blocks: int = 10, steps: int = 64, seed: int = 3) -> Session:
    """Two variants in randomly ordered blocks on a machine that drifts by a random walk."""
    generator = np.random.default_rng(seed)
    workload = Workload(prompt=16, tokens=steps + 1)
    start, drift, trials = datetime(2026, 1, 5, 9, 0, tzinfo=UTC), 0.0, []
    for block in range(blocks):
        drift += float(generator.normal(0, 0.02))
        for place, variant in enumerate(generator.permutation(["baseline", "export"])):
            pace = math.exp(drift) * (speed if variant == "export" else 1.0)
            times = WorkloadTimes(
                workload=workload,
                prefill=tuple(pace * 0.04 * generator.lognormal(0, 0.03, 3)),
                steps=tuple(pace * 0.004 * generator.lognormal(0, 0.05, steps)),
                warmups=4,
                settled=True,
            )
            trials.append(
                Trial(
                    variant=str(variant),
                    block=block,
                    place=place,
                    started=start + timedelta(seconds=10 * block + 4 * place),
                    process=100 + len(trials),
                    runtime="PyTorch" if variant == "baseline" else "ONNX Runtime",
                    open_seconds=0.5 * pace,
                    first_run=0.06 * pace,
                    workloads=(times,),
                    peak_memory=10**9 if variant == "baseline" else 25 * 10**7,
                )
            )
    return Session(
        protocol=Protocol(workloads=(workload,), threads=2), variants=("baseline", "export"), trials=tuple(trials)
    )


def finish(
    folder: Path,
    *,
    cost: float = 0.03,
    speed: float = 0.25,
    seed: int = 7,
    text: int = 1,
    base: str = BASE,
    gates: Mapping[str, Limit] = GATES,
) -> Report:
    """Leave a finished run in a folder and return its report."""
    store = Store(folder / "artifacts")
    shipped = store.obtain("export", {"cost": cost, "speed": speed, "parent": base}, _model)
    first, final = baseline_scores(text), candidate_scores(baseline_scores(text), cost, seed)
    session = session_of(speed)
    timed = latency_measurements(session)
    latency = _latency(store, shipped.key, base, session, timed)
    quality, footprint = _quality(store, base, None, first, None, text), _footprint(store, base, 1.0)
    rows = [
        Row(
            name="baseline",
            kind="baseline",
            format="dense",
            key=base,
            samples=_names(quality=quality, footprint=footprint, latency=latency),
            measurements=[*_measured(quality), *_measured(footprint), *timed["baseline"]],
        )
    ]
    quality, footprint = _quality(store, shipped.key, base, final, first, text), _footprint(store, shipped.key, 0.25)
    counted = [compared(found, rows[0]) for found in _measured(footprint)]
    rows.append(
        Row(
            name="export",
            kind="export",
            format="onnx",
            key=shipped.key,
            knobs={"provider": "cpu"},
            metadata={**shipped.metadata, "history": HISTORY},
            seconds=12.0,
            hashes=shipped.hashes,
            samples=_names(quality=quality, footprint=footprint, latency=latency),
            measurements=[*_measured(quality), *counted, *timed["export"]],
        )
    )
    results = judge(gates, {found.metric: found for found in rows[-1].measurements})
    report = Report(
        recipe="example.yaml",
        recipe_text="stages:\n  - export: {provider: cpu}\n",
        name="example",
        rows=rows,
        gates=results,
        verdict=overall(results),
        environment={"processor": "a test", "cores": "2", "threads": "2"},
        created=datetime(2026, 1, 5, 9, 30, tzinfo=UTC),
        folder=folder,
        session=session,
    )
    write_report(report, folder)
    return report


def _model(files: Path, scratch: Path) -> dict[str, Any]:
    (files / "model.onnx").write_bytes(MODEL)
    return {"coverage": {"int8": ["a"], "int8_bytes": 1500, "scale_bytes": 100, "float": [], "float_bytes": 448}}


def _plain(measured: list[Measurement]) -> dict[str, Any]:
    return {"measurements": [found.model_dump(mode="json") for found in measured]}


def _names(**results: Artifact) -> dict[str, str]:
    return {kind: result.folder.name for kind, result in results.items()}


def _measured(result: Artifact) -> list[Measurement]:
    return [Measurement.model_validate(values) for values in result.metadata["measurements"]]


def _quality(
    store: Store, key: str, base: str | None, scores: TokenScores, against: TokenScores | None, text: int
) -> Artifact:
    measured = quality_measurements(scores, against, method="a test", seed=5)

    def make(files: Path, scratch: Path) -> dict[str, Any]:
        scores.save(files / TOKENS_FILE)
        return _plain(measured)

    identity = {"artifact": key, "baseline": base, "evaluate": EVALUATE, "test": f"text {text}", "seed": 5}
    return store.obtain("quality", identity, make)


def _footprint(store: Store, key: str, share: float) -> Artifact:
    measured = [
        Measurement(metric=metric, value=value * share, samples=1, method="counted")
        for metric, value in {"parameters": 2048.0, "weight_bytes": 8192.0}.items()
    ]
    return store.obtain("footprint", {"artifact": key, "threads": 2}, lambda files, scratch: _plain(measured))


def _latency(store: Store, key: str, base: str, session: Session, timed: Mapping[str, list[Measurement]]) -> Artifact:
    def make(files: Path, scratch: Path) -> dict[str, Any]:
        (files / "latency.json").write_text(session.model_dump_json(), encoding="utf-8")
        return {name: _plain(found)["measurements"] for name, found in timed.items()}

    return store.obtain("latency", {"artifact": key, "baseline": base}, make)
