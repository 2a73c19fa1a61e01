"""Latency of a recipe's last artifact beside its baseline: the link from a run to `interleave.py`.

Both are timed on the first tokens of the test text, as the baseline's tokenizer cuts it. The raw times are kept in
`latency.json`, from which every figure follows (`evaluation.latency`).
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from compress.checkpoint import end_of_text, load_tokenizer
from compress.stage import Form, Progress
from compress.text import TextSource, read_documents, tokenize
from evaluation.latency import Cell, Protocol, Session, latency_measurements
from evaluation.measurement import Measurement
from export import bundle_folder
from recipes.interleave import Entrant, new_session, pinned_cpus, take_turns
from recipes.schema import BenchmarkConfig
from recipes.subject import Baseline, MeasureError

LATENCY_FILE = "latency.json"
BASELINE, FINAL = "baseline", "final"


def measure_latency(
    baseline: Baseline,
    final: Path,
    form: Form,
    *,
    config: BenchmarkConfig,
    test: TextSource,
    seed: int,
    progress: Progress,
    out: Path | None = None,
    scratch: Path | None = None,
) -> dict[str, list[Measurement]]:
    """Latencies and throughput under "baseline" and "final", timed side by side.

    Args:
        out: where the raw times are kept at the end, in `latency.json`.
        scratch: where they are noted meanwhile, so that the same measurement goes on where it was cut off.

    Raises:
        MeasureError: it cannot be measured as asked.
    """
    if form == "onnx" and provider_of(final) != "cpu":
        raise MeasureError(
            f"{final}: PyTorch is timed on the CPU, and a bundle for a GPU cannot be held against that; "
            "leave out `benchmark`"
        )
    cell = Cell(prompt=config.prompt, tokens=config.tokens + 1)  # the first one comes of the prompt
    protocol = Protocol(
        cells=(cell,),
        threads=config.threads,
        cpus=pinned_cpus(config.threads),
        seed=seed,
        prompt="prompt from the start of the test text",
    )
    entrants = [
        Entrant(name=BASELINE, folder=baseline.folder, form=baseline.form),
        Entrant(name=FINAL, folder=final, form=form),
    ]
    ids = first_tokens(baseline.folder, config.prompt, test)
    session = _begin(scratch, entrants, protocol)
    with progress.task("benchmark", total=config.blocks * len(entrants), done=len(session.turns)) as task:

        def keep(session: Session) -> None:
            task.advance(1)
            if scratch is not None:
                write_session(session, scratch / LATENCY_FILE)

        session = take_turns(session, entrants, ids, blocks=config.blocks, on_turn=keep)
    if out is not None:
        write_session(session, out / LATENCY_FILE)
    return latency_measurements(session)


def _begin(scratch: Path | None, entrants: list[Entrant], protocol: Protocol) -> Session:
    """What an interrupted measurement of the same protocol left, or nothing."""
    file = None if scratch is None else scratch / LATENCY_FILE
    if file is not None and file.is_file():
        left = read_session(file)
        if left.protocol == protocol:
            return left
    return new_session(entrants, protocol)


def read_session(file: Path) -> Session:
    """The raw times that a measurement kept.

    Raises:
        MeasureError: the file is missing or holds something else.
    """
    try:
        return Session.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise MeasureError(f"{file}: expected the raw times of a latency measurement ({reason})") from error


def write_session(session: Session, file: Path) -> None:
    """Write the raw times; a reader sees the old file or the new one, never half of it."""
    unfinished = file.with_name(f".{file.name}")
    unfinished.write_text(session.model_dump_json(indent=1) + "\n", encoding="utf-8")
    unfinished.replace(file)


def provider_of(folder: Path) -> str:
    """The provider that a bundle was exported for."""
    manifest: dict[str, Any] = json.loads((bundle_folder(folder) / "manifest.json").read_text(encoding="utf-8"))
    return str(manifest["provider"])


def first_tokens(folder: Path, length: int, test: TextSource) -> tuple[int, ...]:
    """The first tokens of the test text, as a checkpoint's tokenizer cuts it.

    Raises:
        MeasureError: the text is too short.
    """
    tokenizer = load_tokenizer(folder)
    documents = tokenize(read_documents(test), tokenizer)
    ids = np.concatenate([np.append(document, end_of_text(tokenizer)) for document in documents])
    if len(ids) < length:
        raise MeasureError(f"{test}: expected at least {length} tokens for the benchmark's prompt, got {len(ids)}")
    return tuple(int(token) for token in ids[:length])
