"""The test text as the windows that are scored: where a tokenizer meets `evaluation.quality`.

Texts are tokenized whole, without special tokens, and with the end of every token, from which its bytes and words
follow. What stands before each window, prompt and question is one thing, `beginnings`:

    bos: auto     what the tokenizer itself puts before a text: what the model was trained with
    bos: true     its beginning-of-text token, or its end-of-text token where it has none, as the prefix of
                  lm-evaluation-harness is
    bos: false    nothing

Not covered: tokenizers without a fast version. They do not tell where a token ends, so bits per byte and word
perplexity are left out.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from compress.text import before_text
from evaluation.quality import Select, Windows, amounts_of, windows_of
from recipes.config.evaluations import AUTO, Bos
from recipes.formats.base import MeasureError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def windows_in(
    texts: Sequence[str],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    length: int,
    stride: int | None = None,
    bos: Bos = AUTO,
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
            bos=beginnings(tokenizer, bos),
            count=count,
            select=select,
            join=join,
            amounts=amounts,
        )
    except ValueError as error:
        raise MeasureError(str(error)) from error


def beginnings(tokenizer: "PreTrainedTokenizerBase", bos: Bos) -> list[int]:
    """The tokens that stand where a text begins.

    Raises:
        MeasureError: one is asked of a tokenizer that has none.
    """
    if bos == AUTO:
        return before_text(tokenizer)
    if not bos:
        return []
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if isinstance(token, int):
            return [token]
    raise MeasureError(
        "evaluate.bos: expected a tokenizer with a bos or eos token, got one with neither; set bos: false"
    )
