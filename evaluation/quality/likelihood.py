"""How likely a model finds a continuation after a context: what multiple choice, labels and cloze tests rest on.

    log P(continuation | context) = sum_t log q(x_t | context, x_<t)          greedy = every x_t is what q ranks first

The model is fed all tokens but the last. What is longer than it takes loses tokens on the left; the continuation is
never cut. Pairs whose fed tokens are equal (labels of one token after the same prompt) share one row, and rows are
batched by length, the longest first, so that little is padded and memory that does not suffice is found at once.

`encode_pair` cuts where lm-evaluation-harness cuts: the text is tokenized whole, and spaces at the end of the context
go to the continuation, because a tokenizer joins a space to the word after it.

Not covered: normalization by length, which is the business of who compares the likelihoods.

Legend: P pairs, R distinct rows, B rows of a batch, T positions, V vocabulary, C tokens of a continuation.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from evaluation.quality.scoring import Scorer
from evaluation.statistics import Floats

Ids = NDArray[np.int64]
Pair = tuple[Sequence[int] | Ids, Sequence[int] | Ids]
"""Token ids of a context and of its continuation."""
Encode = Callable[[str], Sequence[int]]
"""From a text to its token ids, without special tokens."""

PAD = 0


def encode_pair(encode: Encode, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Token ids of a context and of what goes on with it, tokenized as one text.

    Raises:
        ValueError: one of them has no tokens.
    """
    bare = context.rstrip()
    continuation = context[len(bare) :] + continuation
    before, whole = list(encode(bare)), list(encode(bare + continuation))
    if not before or len(whole) <= len(before):
        raise ValueError(f"expected a context and a continuation of at least a token, got {context!r} {continuation!r}")
    return whole[: len(before)], whole[len(before) :]


def continuations(
    scorer: Scorer,
    pairs: Sequence[Pair],
    *,
    context: int,
    batch: int = 8,
    on_batch: Callable[[int], None] = lambda pairs: None,
) -> tuple[Floats, NDArray[np.bool_], Ids]:
    """Log-probability (nats), whether each is the greedy one, and the number of tokens of every continuation: [P] each.

    Args:
        pairs: neither part may be empty; what has no context is given the beginning-of-text token as one.
        context: the longest sequence that the model takes, in tokens.
        batch: rows per forward pass.
        on_batch: told how many pairs were scored just now.

    Raises:
        ValueError: a pair has an empty continuation, nothing before it, or a continuation longer than the context.
    """
    rows: dict[bytes, tuple[Ids, list[int]]] = {}
    for index, pair in enumerate(pairs):
        fed = _fed(pair, context)
        rows.setdefault(fed.tobytes(), (fed, []))[1].append(index)
    ordered = sorted(rows.values(), key=lambda row: -len(row[0]))
    found = np.zeros(len(pairs)), np.zeros(len(pairs), dtype=np.bool_)
    for start in range(0, len(ordered), batch):
        some = ordered[start : start + batch]
        ids_BT = np.full((len(some), len(some[0][0])), PAD, dtype=np.int64)
        for row_T, (fed, _) in zip(ids_BT, some, strict=True):
            row_T[: len(fed)] = fed
        scores_BTV = scorer(ids_BT)
        for scores_TV, (fed, owners) in zip(scores_BTV, some, strict=True):
            for index in owners:
                target_C = np.asarray(pairs[index][1], dtype=np.int64)
                log_C, first_C = _targets(scores_TV[len(fed) - len(target_C) : len(fed)], target_C)
                found[0][index], found[1][index] = log_C.sum(), bool(first_C.all())
        on_batch(sum(len(owners) for _, owners in some))
    return *found, np.array([len(continuation) for _, continuation in pairs], dtype=np.int64)


def _fed(pair: Pair, context: int) -> Ids:
    """What the model reads for a pair: all but the last token, at most `context` of them."""
    before, after = (np.asarray(part, dtype=np.int64) for part in pair)
    if not len(before) or not len(after):
        raise ValueError(f"expected at least a token before and in a continuation, got {len(before)} and {len(after)}")
    if len(after) > context:
        raise ValueError(f"expected continuations of at most {context} tokens, the model's context, got {len(after)}")
    return np.concatenate([before, after])[:-1][-context:]


def _targets(scores_CV: NDArray[np.float32], target_C: Ids) -> tuple[Floats, NDArray[np.bool_]]:
    """The log-probability of each target, and whether it is ranked first."""
    exact_CV = scores_CV.astype(np.float64)
    with np.errstate(invalid="ignore"):  # a broken model's NaN travel on and are reported as an invalid measurement
        largest_C = exact_CV.max(axis=1)
        total_C = largest_C + np.log(np.exp(exact_CV - largest_C[:, None]).sum(axis=1))
    return exact_CV[np.arange(len(target_C)), target_C] - total_C, scores_CV.argmax(axis=1) == target_C
