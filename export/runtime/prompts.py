"""Text goes in, token ids come out, and text again, piece by piece: the tokenizer of a bundle, as transformers has it.

A prompt's ids are what the tokenizer itself puts before a text (a BOS, where it has one), and the text's own. What it
would put after a text (an end token) is left out: the text goes on. Truncation and padding that a tokenizer.json may
state are for batches of training, and not applied.

A piece of the answer is what the text of all ids has more than the text of those before, the prompt's last ones among
them: a tokenizer that leaves out the blank before a text's first word would else lose the first blank of the answer.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from compress.checkpoints.config import MOST_VOCABULARY
from compress.text import beginning, no_text
from export.runtime.batch import PromptError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER = "tokenizer.json"
TAIL = 16
"""Ids before a piece that its text is told from."""
HALF = "\ufffd"
"""Stands for bytes that are no character, or not yet one."""


def open_tokenizer(bundle: Path) -> "Tokenizer":
    """The bundle's tokenizer, which neither cuts nor pads.

    Raises:
        PromptError: there is none, or it is corrupt.
    """
    from tokenizers import Tokenizer

    file = bundle / TOKENIZER
    if not file.is_file():
        raise PromptError(f"{bundle}: expected a bundle that export left, but it has no {TOKENIZER}")
    if file.stat().st_size > MOST_VOCABULARY:
        raise PromptError(f"{file}: expected at most {MOST_VOCABULARY:,} bytes, got more; export the bundle again")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises bare Exceptions, and a panic of its Rust is not even one
        raise PromptError(f"{file}: corrupt tokenizer ({error}); export the bundle again") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def read_prompt(tokenizer: "Tokenizer", prompt: str) -> list[int]:
    """The prompt's ids.

    Raises:
        PromptError: it is no text, or has no tokens.
    """
    if wrong := no_text(prompt):
        raise PromptError(f"the prompt: expected text in UTF-8, got {wrong}")

    def encode(text: str, added: bool) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=added).ids)

    ids = [*beginning(encode), *encode(prompt, False)]
    if not ids:
        raise PromptError("the prompt: expected some text, got none")
    return ids


def stream_text(tokenizer: "Tokenizer", prompt: Sequence[int], tokens: Iterable[int]) -> Iterator[str]:
    """The text of new `tokens` after the `prompt`, piece by piece as they come; special tokens are left out."""
    ids = list(prompt[-TAIL:])
    said = tokenizer.decode(ids)
    for token in tokens:
        ids.append(token)
        text = tokenizer.decode(ids)
        if not text.endswith(HALF):
            yield text[len(said) :]
            ids = ids[-TAIL:]
            said = tokenizer.decode(ids)
    yield tokenizer.decode(ids)[len(said) :]
