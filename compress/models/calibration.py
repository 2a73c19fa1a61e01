"""Calibration: the rows of text that a method looks at, and what it notes of a linear's inputs on them.

    square_I = sum over t of x_t^2       gram_II = sum over t of x_t x_t^T       over T tokens' inputs x_TI

Both are sums, so that no method depends on how the rows were batched.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.checkpoints.folder import Checkpoint
from compress.stage import StageError, StageInput
from compress.text import TextError, TextSource, before_text, check_ids, end_of_text, pack, read_documents, tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Reads = Literal["nothing", "norms", "gram"]
"""What a criterion wants to know of a linear's inputs."""
CHARACTERS = 16
"""A token of running text is never this long on average, so that much text is enough for a first try."""
DAMPING = 0.01
"""Share of the mean square input that is added to every input's, as SparseGPT and GPTQ do."""
TILE = 256
"""Tokens that are squared at once, and rows of a Gram matrix that are multiplied at once."""


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a criterion may know of a linear beside its weight."""

    count: int = 0
    """Tokens seen."""
    square_I: Tensor | None = None
    """Sum of squares per input, float32."""
    gram_II: Tensor | None = None
    """Sum of x x^T, float32; None unless the criterion reads it."""
    seed: int = 0
    """A number of this linear's own, for a criterion that draws lots."""

    @cached_property
    def norm_I(self) -> Tensor:
        """The length of each input over all tokens."""
        if self.square_I is None:
            raise ValueError("expected the inputs' sums of squares, got none: run the model on calibration text")
        return self.square_I.sqrt()

    @cached_property
    def damped_II(self) -> Tensor:
        """The Gram matrix with the damping on its diagonal, which bounds its condition number by 100 * I.

        Raises:
            ValueError: there is no Gram matrix, or it is not finite.
        """
        if self.gram_II is None:
            raise ValueError("expected the inputs' Gram matrix, got none: run the model on calibration text")
        damping = DAMPING * float(self.gram_II.diagonal().mean()) or 1.0
        if not math.isfinite(damping):
            raise ValueError("expected finite inputs on the calibration text, got a Gram matrix that overflows")
        damped_II = self.gram_II.clone()
        damped_II.diagonal().add_(damping)
        return damped_II

    @cached_property
    def factor_II(self) -> Tensor:
        """Upper triangular U with U^T U = damped_II^-1; computed once for all linears with these inputs.

        With R upper triangular and R R^T = damped_II (a Cholesky factor, indices reversed), U is R^-1: no inverse is
        formed, so float32 is enough. An input that is always zero is left with the damping alone.
        """
        upper_II = torch.linalg.cholesky(self.damped_II.flip(0, 1)).flip(0, 1)
        eye_II = torch.eye(len(upper_II), dtype=upper_II.dtype)
        factor_II: Tensor = torch.linalg.solve_triangular(upper_II, eye_II, upper=True)
        return factor_II

    @cached_property
    def by_energy(self) -> tuple[Tensor, "Inputs"]:
        """Indices of the inputs by falling energy, and the inputs in that order."""
        damped_II = self.damped_II
        order_I = damped_II.diagonal().argsort(descending=True, stable=True)
        assert self.gram_II is not None
        assert self.square_I is not None
        return order_I, Inputs(self.count, self.square_I[order_I], self.gram_II[order_I][:, order_I])


def inputs_of(x_TI: Tensor, reads: Reads) -> Inputs:
    """What `reads` asks for, of the inputs of T tokens."""
    if reads == "nothing":
        return Inputs()
    x_TI = x_TI.float()
    if reads == "norms":
        parts = [part_TI.square().sum(dim=0) for part_TI in x_TI.split(TILE)]
        return Inputs(len(x_TI), torch.stack(parts).sum(dim=0))
    gram_II = gram(x_TI)
    return Inputs(len(x_TI), gram_II.diagonal().clone(), gram_II)


class InputCollector:
    """What arrives at linears as a model runs: those that are fed one tensor share its statistics."""

    def __init__(self, reads: Reads) -> None:
        self.reads: Reads = reads
        self._last: tuple[Tensor, Inputs] | None = None

    def __call__(self, x: Tensor) -> Inputs:
        """The statistics of a linear's input [..., in]."""
        if self._last is None or self._last[0] is not x:
            self._last = x, inputs_of(x.flatten(0, -2), self.reads)
        return self._last[1]


def gram(x_TI: Tensor) -> Tensor:
    """x^T x [I, I], by tiles: what is the same on both sides of the diagonal is computed once."""
    size = x_TI.shape[1]
    gram_II = x_TI.new_empty(size, size)
    for start in range(0, size, TILE):
        stop = min(start + TILE, size)
        gram_II[start:stop, start:] = x_TI[:, start:stop].T @ x_TI[:, start:]
        gram_II[stop:, start:stop] = gram_II[start:stop, stop:].T
    return gram_II


def rows_of_stage(kind: str, given: StageInput, rows: int, length: int) -> NDArray[np.int64]:
    """The calibration rows of a stage, as `rows_of_model` gives them.

    Raises:
        StageError: there is no calibration text.
        TextError: as `rows_of_model`.
    """
    assert given.source is not None
    if given.calibration_text is None:
        raise StageError(f"{kind}: expected a calibration text (data.calibration) for these knobs")
    return rows_of_model(Checkpoint(given.source), given.calibration_text, rows, length)


def rows_of_model(checkpoint: Checkpoint, text: TextSource, rows: int, length: int) -> NDArray[np.int64]:
    """The rows of a text that a model is calibrated on, no longer than its context: int64 [rows, at most length].

    Raises:
        TextError: as `calibration_rows`; or the model's embedding has no row for a token.
    """
    rows_NT = calibration_rows(text, checkpoint.tokenizer, rows, min(length, checkpoint.context or length))
    check_ids(rows_NT, checkpoint.tokenizer, checkpoint.vocabulary)
    return rows_NT


def calibration_rows(
    text: TextSource, tokenizer: "PreTrainedTokenizerBase", rows: int, length: int
) -> NDArray[np.int64]:
    """The first `rows` rows of `length` tokens of a text, its documents packed: int64 [rows, length].

    Each row begins with what the tokenizer itself puts before a text.

    Raises:
        TextError: the text cannot be read, or is too short.
    """
    before = before_text(tokenizer)
    wanted, ids = rows * (length - len(before)), list[NDArray[np.int64]]()
    documents = read_documents(text)
    for document in documents:
        missing = wanted - sum(len(part) + 1 for part in ids)
        if missing <= 0:
            break
        beginning = tokenize([document[: CHARACTERS * missing]], tokenizer)[0]
        whole = len(beginning) >= missing or len(document) <= CHARACTERS * missing
        ids.append(beginning if whole else tokenize([document], tokenizer)[0])
    found = sum(len(part) + 1 for part in ids)
    if found < wanted:
        raise TextError(
            f"{text}: expected {wanted} tokens for calibration ({rows} rows of {length}), got {found}; "
            "give more text, or ask for fewer `rows`"
        )
    return pack(ids, length, end_of_text(tokenizer), before)[:rows]
