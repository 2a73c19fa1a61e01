"""What lost most against the baseline: single tokens, vocabulary, places in the window, documents.

A token's loss is nll - baseline nll, in nats. One token's loss is mostly chance; it is there to be read, not to be
counted. What many tokens share (the token that was asked for, its place in the window, its document) is averaged.

    tokens         the occurrences that lost most, with the text around them
    vocabulary     tokens whose occurrences lost most together, each at least `FEWEST` times
    positions      by how many tokens stand before it in the window, in bins that double
    documents      highest mean loss; windows instead where there are fewer than `FEWEST_DOCUMENTS` documents

Not covered: which inputs caused a loss.

Legend: N scored tokens, G groups.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.quality.scoring import TokenScores
from evaluation.quality.token_metrics import problem_of
from evaluation.quality.windows import Ids, Windows
from evaluation.statistics import FEWEST_DOCUMENTS, Floats

Decode = Callable[[Sequence[int]], str]
COUNT = 12
FEWEST = 5
BEFORE, AFTER, OPENING = 24, 8, 32
"""Tokens of text shown around a token, and of a document's opening."""


def worst_tokens(
    scores: TokenScores, baseline: TokenScores, windows: Windows, decode: Decode, *, count: int = COUNT
) -> dict[str, Any]:
    """At most `count` of each, worst first, as JSON; {} where the scores cannot be measured.

    Args:
        scores: of the model, and of the baseline, on these windows.
        decode: text of token ids.

    Raises:
        ValueError: the scores are of other windows.
    """
    if scores.digest != windows.digest():
        raise ValueError("expected the scores of these windows, got those of others")
    if problem_of(scores, baseline):
        return {}
    loss_N = scores.nll - baseline.nll
    return {
        "unit": "nat",
        "scored": len(loss_N),
        "loss": float(loss_N.mean()),
        "tokens": _tokens(loss_N, scores, baseline, windows, decode, count),
        "vocabulary": _vocabulary(loss_N, windows, decode, count),
        "positions": _positions(loss_N, baseline, windows),
        "documents": _documents(loss_N, baseline, windows, decode, count),
    }


def _tokens(
    loss_N: Floats, scores: TokenScores, baseline: TokenScores, windows: Windows, decode: Decode, count: int
) -> list[dict[str, Any]]:
    position_N = windows.position_N()
    found = []
    for index in _worst(loss_N, count):
        window, position = int(scores.window[index]), int(position_N[index])
        row_T = windows.ids_WT[window, : windows.length_W[window]]
        found.append(
            {
                "document": int(scores.document[index]),
                "window": window,
                "position": position,
                "before": decode(row_T[max(0, position - BEFORE) : position].tolist()),
                "token": decode([int(row_T[position])]),
                "after": decode(row_T[position + 1 : position + 1 + AFTER].tolist()),
                "loss": float(loss_N[index]),
                "nll": float(scores.nll[index]),
                "baseline_nll": float(baseline.nll[index]),
                "rank": int(scores.rank[index]),
                "baseline_rank": int(baseline.rank[index]),
            }
        )
    return found


def _vocabulary(loss_N: Floats, windows: Windows, decode: Decode, count: int) -> list[dict[str, Any]]:
    token_N = windows.ids_WT[np.repeat(np.arange(len(windows)), windows.scored_W), windows.position_N()]
    token_G, group_N = np.unique(token_N, return_inverse=True)
    count_G, loss_G, _ = _grouped(group_N, loss_N, loss_N)
    often = np.flatnonzero(count_G >= FEWEST)
    return [
        {
            "token": decode([int(token_G[group])]),
            "id": int(token_G[group]),
            "count": int(count_G[group]),
            "loss": float(loss_G[group] / count_G[group]),
            "total": float(loss_G[group]),
        }
        for group in often[_worst(loss_G[often], count)]
    ]


def _positions(loss_N: Floats, baseline: TokenScores, windows: Windows) -> list[dict[str, Any]]:
    bin_N = np.floor(np.log2(windows.position_N())).astype(np.int64)
    count_G, loss_G, nll_G = _grouped(bin_N, loss_N, baseline.nll)
    return [
        {
            "from": 2 ** int(group),
            "to": 2 ** (int(group) + 1) - 1,
            "count": int(count_G[group]),
            "loss": float(loss_G[group] / count_G[group]),
            "baseline_nll": float(nll_G[group] / count_G[group]),
        }
        for group in np.flatnonzero(count_G)
    ]


def _documents(
    loss_N: Floats, baseline: TokenScores, windows: Windows, decode: Decode, count: int
) -> list[dict[str, Any]]:
    by_document = len(np.unique(windows.document_W)) >= FEWEST_DOCUMENTS
    group_W = windows.document_W if by_document else np.arange(len(windows))
    count_G, loss_G, nll_G = _grouped(np.repeat(group_W, windows.scored_W), loss_N, baseline.nll)
    there = np.flatnonzero(count_G)
    found = []
    for group in there[_worst(loss_G[there] / count_G[there], count)]:
        window = int(np.flatnonzero(group_W == group)[0])
        opening_T = windows.ids_WT[window, : min(OPENING, windows.length_W[window])]
        found.append(
            {
                "document": int(windows.document_W[window]),
                "window": None if by_document else window,
                "opening": decode(opening_T.tolist()),
                "count": int(count_G[group]),
                "loss": float(loss_G[group] / count_G[group]),
                "baseline_nll": float(nll_G[group] / count_G[group]),
            }
        )
    return found


def _grouped(group_N: Ids, loss_N: Floats, nll_N: Floats) -> tuple[NDArray[np.int64], Floats, Floats]:
    """How many tokens each group has, their losses and their baseline's nll: [G] each."""
    loss_G, nll_G = (np.bincount(group_N, values_N).astype(np.float64) for values_N in (loss_N, nll_N))
    return np.bincount(group_N).astype(np.int64), loss_G, nll_G


def _worst(loss_G: Floats, count: int) -> Ids:
    """Indices of the greatest losses, the greatest first; only what lost anything is among them."""
    order = np.argsort(-loss_G, kind="stable")[:count]
    return order[loss_G[order] > 0]
