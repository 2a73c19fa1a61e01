"""The test text as the windows that are scored: where a tokenizer meets `evaluation.quality`.

Texts are tokenized whole, without special tokens, and with the end of every token, from which its bytes and words
follow. BOS is the tokenizer's beginning-of-text token, or its end-of-text token where it has none, as the prefix of
lm-evaluation-harness is.

Not covered: tokenizers without a fast version. They do not tell where a token ends, so bits per byte and word
perplexity are left out.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from evaluation.quality import Select, Windows, amounts_of, windows_of
from recipes.formats.base import MeasureError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def windows_in(
    texts: Sequence[str],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    length: int,
    stride: int | None = None,
    bos: bool = False,
    count: int | None = None,
    select: Select = "even",
    join: bool = False,
) -> Windows:
    """The windows of texts, one document each; with `join`, of one that has them all, blank lines between.

    Raises:
        MeasureError: the text holds nothing to score, or BOS is asked of a tokenizer without one.
    """
    texts = ["\n\n".join(texts)] if join else list(texts)
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast, verbose=False)
    documents = [np.asarray(ids, dtype=np.int64) for ids in encoded["input_ids"]]
    amounts = None
    if tokenizer.is_fast:
        ends = [np.array([end for _, end in spans], dtype=np.int64) for spans in encoded["offset_mapping"]]
        amounts = [amounts_of(text, end_T) for text, end_T in zip(texts, ends, strict=True)]
    try:
        return windows_of(
            documents,
            length=length,
            stride=stride,
            bos=beginning(tokenizer) if bos else None,
            count=count,
            select=select,
            join=join,
            amounts=amounts,
        )
    except ValueError as error:
        raise MeasureError(str(error)) from error


def beginning(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The token that stands where a text begins.

    Raises:
        MeasureError: the tokenizer has none.
    """
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if isinstance(token, int):
            return token
    raise MeasureError(
        "evaluate.bos: expected a tokenizer with a bos or eos token, got one with neither; set bos: false"
    )
