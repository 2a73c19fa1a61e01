"""Text cut into the windows that a model scores, and which of their tokens count.

Windows do not overlap and none crosses a document. A window's first token has nothing before it and is not scored; any
later one is, given the tokens before it in the same window. So the perplexity depends on the window's length, which
belongs into `method`.

Legend: W windows, T positions.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Select = Literal["even", "first"]
PAD = 0


@dataclass(frozen=True, eq=False)
class Windows:
    """Pieces of text to score: ids_WT int64, right padded; the length and the document of each."""

    ids_WT: NDArray[np.int64]
    length_W: NDArray[np.int64]
    document_W: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.length_W)

    @property
    def tokens(self) -> int:
        """How many tokens are scored."""
        return int((self.length_W - 1).sum())

    def digest(self) -> str:
        """sha256 (hex) of everything in it: scores are paired if and only if their windows' digests agree."""
        digest = hashlib.sha256(repr(self.ids_WT.shape).encode())
        for array in (self.ids_WT, self.length_W, self.document_W):
            digest.update(np.ascontiguousarray(array, dtype="<i8").tobytes())
        return digest.hexdigest()


def windows_of(
    documents: Sequence[NDArray[np.int64]],
    *,
    length: int,
    count: int | None = None,
    select: Select = "even",
    join: bool = False,
) -> Windows:
    """Cut documents (token ids, shape (tokens,) each) into windows of at most `length` tokens; none crosses a document.

    Args:
        count: how many windows to keep; None, or more than there are: all of them.
        select: keep them spread evenly over the whole text, or the first.
        join: treat the documents as one stream, as the published WikiText-2 figures do.

    Raises:
        ValueError: `length` or `count` is too small, or the text holds no window of two tokens.
    """
    if length < 2 or (count is not None and count < 1):
        raise ValueError(
            f"expected windows of at least 2 tokens and at least one window, got length {length}, count {count}"
        )
    texts = [np.concatenate(documents)] if join and documents else documents
    cuts = [
        (document, start, min(start + length, len(ids)))
        for document, ids in enumerate(texts)
        for start in range(0, len(ids) - 1, length)
    ]
    if not cuts:
        raise ValueError("expected text of at least two tokens, got none; give a longer test text")
    if count is not None and count < len(cuts):
        cuts = cuts[:count] if select == "first" else [cuts[index * len(cuts) // count] for index in range(count)]
    ids_WT = np.full((len(cuts), length), PAD, dtype=np.int64)
    for row_T, (document, start, stop) in zip(ids_WT, cuts, strict=True):
        row_T[: stop - start] = texts[document][start:stop]
    return Windows(
        ids_WT,
        length_W=np.array([stop - start for _, start, stop in cuts], dtype=np.int64),
        document_W=np.array([document for document, _, _ in cuts], dtype=np.int64),
    )
