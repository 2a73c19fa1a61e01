"""How much text a token stands for: what makes perplexities of different tokenizers comparable.

    word perplexity = exp(nll / words)          bits per byte = nll / (bytes log 2)

Words are counted as lm-evaluation-harness counts them, len(re.split(r"\\s+", text)): one begins with the text and one
after every run of white space (at its last character where the run ends the text). Bytes are those of UTF-8.

A token owns the characters from where the token before it ended to where it ends itself, so whatever the tokenizer left
out of its offsets goes to the next token, or, after the last, to the last. Tokens that are bytes of one character all
end where it ends: the first owns it. So bytes and words of a document's tokens add up to those of its text, exactly.

Not covered: tokenizers that cannot say where a token ends (those without a fast version).

Legend: C characters, T tokens.
"""

import re

import numpy as np
from numpy.typing import NDArray


def amounts_of(text: str, end_T: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bytes and words of every token, int64 [T, 2].

    Args:
        end_T: the character after each token's last, as the tokenizer's offsets give it.
    """
    if not len(end_T):
        return np.zeros((0, 2), dtype=np.int64)
    end_T = np.maximum.accumulate(end_T)
    end_T[-1] = len(text)
    summed_C2 = np.concatenate([np.zeros((1, 2), dtype=np.int64), _per_character(text).cumsum(axis=0)])
    return np.diff(summed_C2[end_T], axis=0, prepend=np.zeros((1, 2), dtype=np.int64))


def _per_character(text: str) -> NDArray[np.int64]:
    """Bytes of each character, and words that begin there: int64 [C, 2]."""
    code_C = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    found_C2 = np.zeros((len(text), 2), dtype=np.int64)
    found_C2[:, 0] = 1 + (code_C >= 0x80).astype(np.int64) + (code_C >= 0x800) + (code_C >= 0x10000)
    starts = [0, *(min(run.end(), len(text) - 1) for run in re.finditer(r"\s+", text))]
    np.add.at(found_C2[:, 1], starts if len(text) else [], 1)
    return found_C2
