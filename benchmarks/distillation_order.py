"""What the parts of the distillation benchmark share: what was asked for, rows kept as they come, perplexity."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.grid import Tell
from benchmarks.prepare import ROOT

if TYPE_CHECKING:
    from torch import Tensor

Json = dict[str, Any]
NOVELS = ROOT / "recipes" / "data" / "novels"
EMBEDDED = ROOT / "recipes" / "models" / "novels-gpt2"


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Three texts of one kind."""

    train: Path = NOVELS / "train.txt"
    held_out: Path = NOVELS / "valid.txt"
    test: Path = NOVELS / "test.txt"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked for."""

    work: Path
    tell: Tell
    model: Path | None = None
    """A real model, for the parts that are about one."""
    texts: Texts = Texts()
    """What the real model learns from and is measured on."""
    elsewhere: Path | None = None
    """A text of another kind, on which the real model's students are measured too."""
    embedded: Path = EMBEDDED
    novels: Texts = Texts()
    tokens: int = 1_000_000
    """Training tokens of the real model."""
    knobs: Json = field(default_factory=dict)
    """Further knobs of the real model's distillation."""
    budget: Json = field(default_factory=dict)
    """Knobs of the embedded teacher's students that differ from those of `distillation_quality.BUDGET`."""
    seeds: tuple[int, ...] = (0, 1, 2)
    positions: int = 1024
    vocabulary: int = 50257
    width: int = 768
    blocks: int = 15
    steps: int = 3
    threads: int = 2


class Part:
    """The results of one part, written down after every row, so that a killed run goes on where it was.

    What is in `found` beforehand is of a run with the same settings that was not finished.
    """

    def __init__(self, found: Json, keep: Callable[[], None]) -> None:
        self.found = found
        self.rows: dict[str, Json] = found.setdefault("rows", {})
        self._keep = keep

    def about(self, **metadata: Any) -> None:
        """What belongs to the part as a whole."""
        self.found |= metadata
        self._keep()

    def row(self, name: str, measure: Callable[[], Json]) -> Json:
        """Measure a row, unless it is there."""
        if name not in self.rows:
            self.rows[name] = measure()
            self._keep()
        return self.rows[name]


def perplexity(checkpoint: Path, test: Path, windows: int, length: int, *, evenly: bool) -> float:
    """exp of the mean loss over windows of `length` tokens, the first token of each aside.

    Args:
        evenly: windows from the whole text; else the first ones.
    """
    from torch.nn import functional

    chosen = rows_of(checkpoint, test, windows, length, evenly=evenly)
    losses = [float(functional.cross_entropy(logits_TV, ids_T)) for logits_TV, ids_T in scored(checkpoint, chosen)]
    return float(np.exp(np.mean(losses)))


def agreement(checkpoint: Path, teacher: Path, test: Path, windows: int, length: int) -> float:
    """Share of the first windows' positions where both find the same token likeliest."""
    chosen = rows_of(teacher, test, windows, length, evenly=False)
    firsts = (
        np.concatenate([logits_TV.argmax(dim=-1).numpy() for logits_TV, _ in scored(one, chosen)])
        for one in (checkpoint, teacher)
    )
    one_N, other_N = firsts
    return float(np.mean(one_N == other_N))


def rows_of(checkpoint: Path, test: Path, windows: int, length: int, *, evenly: bool) -> NDArray[np.int64]:
    """Windows of a packed text as a checkpoint's tokenizer cuts it, shape (windows, length)."""
    from compress.checkpoints.folder import load_tokenizer
    from compress.text import TextSource, end_of_text, pack, read_documents, tokenize

    tokenizer = load_tokenizer(checkpoint)
    rows_NT = pack(tokenize(read_documents(TextSource(file=test)), tokenizer), length, end_of_text(tokenizer))
    count = min(windows, len(rows_NT))
    return rows_NT[np.linspace(0, len(rows_NT) - 1, count).round().astype(int) if evenly else np.arange(count)]


def scored(checkpoint: Path, rows_NT: NDArray[np.int64]) -> Iterator[tuple["Tensor", "Tensor"]]:
    """Logits [T - 1, V] and the tokens [T - 1] that they are about, a row at a time."""
    import torch

    from compress.checkpoints.loading import load_model

    model = load_model(checkpoint)
    for row_T in rows_NT:
        ids_T = torch.from_numpy(row_T)
        with torch.inference_mode():
            logits_TV = model(input_ids=ids_T[None], use_cache=False).logits[0, :-1].float()
        yield logits_TV, ids_T[1:]
