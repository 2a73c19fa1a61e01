"""Text cut into the windows that a model scores, and which of their tokens count.

A window of T tokens is read at once. Windows move on by `stride` tokens and none crosses a document:

    stride = T (or none given)    windows stand side by side; the first token of each has nothing before it and is not
                                  scored
    stride < T                    windows overlap: only the tokens that no earlier window scored are scored, each after
                                  at least T - stride others; the last window of a document is moved back to be full

So no token is scored twice, and a perplexity depends on length and stride: both belong to `protocol`. With `bos` the
beginning-of-text token stands before every window, as one of its T tokens, and also a window's first token is scored.

lm-evaluation-harness (0.4, `loglikelihood_rolling`) puts a prefix token before the document alone, and lets each window
start at the last token that was predicted. The same comes of documents that begin with that token, cut with
length = L + 1 and stride = L where L is its `max_length`; where documents fit into one window, `bos` is the same.
The perplexities that are published for WikiText-2 have all documents joined, T = stride, and no BOS.

Legend: W windows, T positions, N scored tokens in the order of the windows.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluation.quality.arrays import ArrayFile

Ids = NDArray[np.int64]
Select = Literal["even", "first"]
PAD = 0


@dataclass(frozen=True, eq=False)
class Windows(ArrayFile):
    """Pieces of text to score."""

    ids_WT: Ids
    """Right padded."""
    length_W: Ids
    first_W: Ids
    """The position of the first token that is scored; all later ones of the window are."""
    document_W: Ids
    bytes_N: Ids
    """Bytes of text that each scored token stands for; all 0 where that is not known."""
    words_N: Ids
    """Words that begin in each scored token; all 0 where that is not known."""
    protocol: str
    """How the text was cut, in words."""

    def __len__(self) -> int:
        return len(self.length_W)

    @property
    def scored_W(self) -> Ids:
        """How many tokens of each window are scored."""
        return self.length_W - self.first_W

    @property
    def tokens(self) -> int:
        """How many tokens are scored."""
        return int(self.scored_W.sum())

    def position_N(self) -> Ids:
        """Where in its window each scored token stands, which is how many tokens it is scored after."""
        start_W = np.cumsum(self.scored_W) - self.scored_W
        return np.arange(self.tokens) - np.repeat(start_W - self.first_W, self.scored_W)

    def digest(self) -> str:
        """sha256 (hex) of everything that is scored: scores are paired if and only if their windows' digests agree."""
        digest = hashlib.sha256(repr(self.ids_WT.shape).encode())
        for array in (self.ids_WT, self.length_W, self.first_W, self.document_W, self.bytes_N, self.words_N):
            digest.update(np.ascontiguousarray(array, dtype="<i8").tobytes())
        return digest.hexdigest()


class _Cut(NamedTuple):
    """The tokens [start, stop) of a document, of which those from `first` on are scored."""

    document: int
    start: int
    first: int
    stop: int


def windows_of(
    documents: Sequence[Ids],
    *,
    length: int,
    stride: int | None = None,
    bos: Sequence[int] = (),
    count: int | None = None,
    select: Select = "even",
    join: bool = False,
    amounts: Sequence[Ids] | None = None,
) -> Windows:
    """Cut documents (token ids, shape (tokens,) each) into windows of at most `length` tokens; none crosses a document.

    Args:
        stride: tokens by which windows move on; None: they do not overlap.
        bos: the tokens that stand before every window, most often one or none.
        count: how many windows to keep; None, or more than there are: all of them.
        select: keep them spread evenly over the whole text, or the first.
        join: treat the documents as one stream, as the published WikiText-2 figures do.
        amounts: bytes and words of every token of every document, shape (tokens, 2) each (`amounts_of`).

    Raises:
        ValueError: `length`, `stride` or `count` does not fit, or the text holds nothing to score.
    """
    room = length - len(bos)
    if room < 1 or length < 2 or (count is not None and count < 1):
        raise ValueError(
            f"expected windows of at least 2 tokens and at least one window, got length {length}, count {count}"
        )
    if stride is not None and not 1 <= stride <= room:
        raise ValueError(f"expected a stride between 1 and the {room} tokens of text in a window, got {stride}")
    step = room if stride is None else stride
    if amounts is None:
        amounts = [np.zeros((len(ids), 2), dtype=np.int64) for ids in documents]
    if join and documents:
        documents, amounts = [np.concatenate(documents)], [np.concatenate(amounts)]
    cuts = [cut for number, ids in enumerate(documents) for cut in _cuts(number, len(ids), room, step, before=not bos)]
    if not cuts:
        raise ValueError("expected text of at least two tokens, got none; give a longer test text")
    if count is not None and count < len(cuts):
        cuts = cuts[:count] if select == "first" else [cuts[index * len(cuts) // count] for index in range(count)]
    scored_N2 = np.concatenate([amounts[cut.document][cut.first : cut.stop] for cut in cuts])
    return Windows(
        _filled(documents, cuts, length, bos),
        length_W=np.array([cut.stop - cut.start for cut in cuts], dtype=np.int64) + len(bos),
        first_W=np.array([cut.first - cut.start for cut in cuts], dtype=np.int64) + len(bos),
        document_W=np.array([cut.document for cut in cuts], dtype=np.int64),
        bytes_N=scored_N2[:, 0],
        words_N=scored_N2[:, 1],
        protocol=f"{len(cuts)} windows of {length} tokens, stride {step}, {select}, "
        f"{'documents joined' if join else 'windows within documents'}, "
        f"{describe_bos(bos, 'window')}, per token",
    )


def describe_bos(bos: Sequence[int], what: str) -> str:
    """What stands before every window, prompt or text, in words."""
    if not bos:
        return "no BOS"
    return f"BOS ({'token' if len(bos) == 1 else 'tokens'} {', '.join(map(str, bos))}) before every {what}"


def _cuts(document: int, tokens: int, room: int, step: int, *, before: bool) -> list[_Cut]:
    """The windows of one document; those that score nothing are left out.

    Args:
        before: a token must have one before it in the window to be scored.
    """
    cuts, done = [], 0
    while done < tokens:
        stop = min(done + (room if done == 0 else step), tokens)
        start = done if step == room else max(0, stop - room)
        first = max(done, start + before)
        if first < stop:
            cuts.append(_Cut(document, start, first, stop))
        done = stop
    return cuts


def _filled(documents: Sequence[Ids], cuts: list[_Cut], length: int, bos: Sequence[int]) -> Ids:
    ids_WT = np.full((len(cuts), length), PAD, dtype=np.int64)
    ids_WT[:, : len(bos)] = bos
    text_WT = ids_WT[:, len(bos) :]
    for row_T, cut in zip(text_WT, cuts, strict=True):
        row_T[: cut.stop - cut.start] = documents[cut.document][cut.start : cut.stop]
    return ids_WT
