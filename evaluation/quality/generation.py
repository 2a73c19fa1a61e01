"""Text generated after prompts, greedily, held against one reference each.

    prompts --Generator--> new token ids, cut at the end-of-text token --decode--> texts --overlap.py--> columns

A prompt that leaves no room for the new tokens loses its beginning. White space around a text is not counted.

Not covered: sampling (a greedy text is the same every time, so that model and baseline are paired), and judges.

Legend: I items.
"""

import hashlib
import json
from collections.abc import Callable, Sequence

import numpy as np

from evaluation.quality.likelihood import Encode, Ids
from evaluation.quality.per_example import PerExample
from evaluation.quality.text_metrics import overlap_columns
from evaluation.quality.windows import describe_bos

Generator = Callable[[Sequence[Ids], int], list[Ids]]
"""From the token ids of prompts and a number of new tokens to the new tokens' ids, greedy; they end before a token that
ends the text."""
Decode = Callable[[Sequence[int]], str]

SHOWN_TEXTS = 12
"""Texts kept in the metadata, spread evenly over the items."""


def ask_generation(
    prompts: Sequence[str],
    references: Sequence[str],
    *,
    generator: Generator,
    encode: Encode,
    decode: Decode,
    tokens: int,
    context: int,
    prefix: Sequence[int] = (),
    batch: int = 8,
    on_item: Callable[[float], None] = lambda items: None,
) -> PerExample:
    """Generate after every prompt and compare with the references.

    Args:
        tokens: new tokens at most.
        context: the longest sequence that the model takes, in tokens.
        prefix: tokens before every prompt, such as the beginning-of-text token.
        batch: prompts at a time.
        on_item: told how many texts were generated just now.

    Raises:
        ValueError: a prompt has no tokens, or the context has no room for `tokens` and a prompt.
    """
    room = context - tokens - len(prefix)
    if room < 1:
        raise ValueError(f"expected fewer than {context - len(prefix)} new tokens, the model's context, got {tokens}")
    cut = [np.array([*prefix, *list(encode(prompt))[-room:]], dtype=np.int64) for prompt in prompts]
    empty = [prompt for prompt, ids in zip(prompts, cut, strict=True) if len(ids) == 0]
    if empty:
        raise ValueError(f"expected prompts of at least a token, got {empty[0]!r}")
    order = sorted(range(len(cut)), key=lambda item: -len(cut[item]))  # rows of a batch are padded to the longest
    texts = [""] * len(cut)
    for start in range(0, len(order), batch):
        some = order[start : start + batch]
        for item, new in zip(some, generator([cut[item] for item in some], tokens), strict=True):
            texts[item] = decode([int(token) for token in new]).strip()
        on_item(len(some))
    references = [reference.strip() for reference in references]
    asked = json.dumps([list(prompts), references, tokens], ensure_ascii=False).encode()
    shown = sorted({index * len(texts) // SHOWN_TEXTS for index in range(SHOWN_TEXTS)})
    metadata = {
        "protocol": f"greedy, at most {tokens} new tokens, {describe_bos(prefix, 'prompt')}; "
        "BLEU by sacrebleu (tokenizer 13a), ROUGE by rouge-score (stemmed), one reference",
        "texts": [{"prompt": prompts[item], "text": texts[item], "reference": references[item]} for item in shown],
    }
    columns = overlap_columns(texts, references)
    return PerExample(kind="generation", columns=columns, digest=hashlib.sha256(asked).hexdigest(), metadata=metadata)
