"""Greedy decoding that checks several tokens in one pass and writes what plain greedy decoding writes.

Where the last three tokens (else the last two) stood in the text before, what followed there is a draft of what comes
now. One pass reads the last token and the draft; the draft is right as far as it is what the model would have written,
and the model's own next token comes for free after that (prompt lookup: A. Saxena, 2023; checking drafts: Leviathan,
Kalman and Matias, arXiv 2211.17192). The rest is forgotten again (`Batch.rewind`).

    a draft of 3 tokens, each right with probability p:    1 + p + p^2 + p^3 tokens in the time of 2 steps

p is an exponential average over the guesses of a kind (three tokens were found, or two). A guess is compared with what
came also where it was not tried, which costs nothing: so on text that does not copy, drafts stop, and they begin again
only when guesses have come true.

A pass has four rows or one, each row computes what a step computes, to the bit where products round activations
(`export.runtime.check_graph`), and its weights are laid out in memory a second time.

Not covered: sampling, several rows, CUDA.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np

from export.runtime.batch import Batch, Floats, PromptError
from export.runtime.sampling import Sampling

Speculate = Literal["ngram"]
"""Where drafts come from."""
SIZES = (3, 2)
"""Tokens that are looked up, the longer first."""
ROWS = 4
"""Of a pass that checks: the last token and a draft of three."""
TIME = 2.0
"""Of such a pass, in steps: 1.5 to 1.65 for the products, 4 for attention, on a CPU."""
WORTH = 1.2
"""How many times as many tokens a second a draft must promise; on prose a few right guesses in a row promise little."""
FIRST, RATE = 0.5, 0.25
"""How often guesses are held to be right before any was seen, and how much the newest counts."""


def pays(right: float) -> bool:
    """Whether drafts promise more tokens for their time than steps, each token being right as often as that."""
    return sum(right**place for place in range(ROWS)) > WORTH * TIME


def learned(right: float, accepted: int, guessed: int) -> float:
    """The probability after `accepted` of `guessed` tokens were right, and then one was not."""
    for _ in range(accepted):
        right += RATE * (1 - right)
    return right if accepted == guessed else right * (1 - RATE)


class Drafts:
    """A text that grows, and what followed where its last tokens stood before."""

    def __init__(self, text: Sequence[int]) -> None:
        self.right = dict.fromkeys(SIZES, FIRST)
        """Tokens that were looked up -> how often what followed them is right."""
        self._text: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        for token in text:
            self.append(token)

    def append(self, token: int) -> None:
        """The text's next token."""
        for size in SIZES:  # what ends before the token: so a lookup never finds the text's own end
            if len(self._text) >= size:
                self._after[tuple(self._text[-size:])] = len(self._text)
        self._text.append(token)

    def find(self) -> tuple[int, int] | None:
        """How many of the last tokens stood before, and the place after them, the latest one."""
        for size in SIZES:
            place = self._after.get(tuple(self._text[-size:]))
            if place is not None:
                return size, place
        return None

    def copy(self, place: int, count: int) -> list[int]:
        """`count` tokens from a place on; beyond the text's end the copy goes on in itself."""
        period = len(self._text) - place
        return [self._text[place + index % period] for index in range(count)]


def speculative(
    batch: Batch, checker: Callable[[], Any], logits_V: Floats, prompt: Sequence[int], *, tokens: int, context: int
) -> Iterator[int]:
    """The likeliest token again and again, at most `tokens`, and as many as the `context` takes.

    Args:
        batch: one row that has read the `prompt`.
        checker: gives a session of the graph for passes of `ROWS` tokens; not asked before there is a draft.
        logits_V: after the prompt's last token.
    """
    drafts, token = Drafts(prompt), int(logits_V.argmax())
    while True:
        drafts.append(token)
        yield token
        tokens -= 1
        room = min(tokens, context - int(batch.length_B[0]))
        if room < 1:
            return
        *accepted, token = _advance(batch, checker, drafts, token, room)
        for known in accepted:
            drafts.append(known)
            yield known
        tokens -= len(accepted)


def _advance(batch: Batch, checker: Callable[[], Any], drafts: Drafts, token: int, room: int) -> list[int]:
    """The next tokens, one at least and at most `room`: of a pass of one row, or of one that checks a draft."""
    found = drafts.find()
    size, place = found or (0, 0)
    if found is not None and room >= ROWS and pays(drafts.right[size]):
        guess = drafts.copy(place, ROWS - 1)
        written = _checked(batch, checker, token, guess)
    else:
        guess = drafts.copy(place, 1) if found is not None else []
        written = [int(batch.step(np.asarray([token]))[0].argmax())]
    if found is not None:
        drafts.right[size] = learned(drafts.right[size], _agreeing(guess, written), len(guess))
    return written


def _checked(batch: Batch, checker: Callable[[], Any], token: int, draft: list[int]) -> list[int]:
    """What follows the token: as much of the draft as is right, and one more."""
    length = int(batch.length_B[0])
    likeliest_T = batch.check(np.asarray([token, *draft]), checker()).argmax(axis=-1).tolist()
    written: list[int] = likeliest_T[: _agreeing(draft, likeliest_T) + 1]
    batch.rewind(length + len(written))
    return written


def _agreeing(guess: Sequence[int], written: Sequence[int]) -> int:
    """How many tokens of a guess came, from its first one on."""
    both = zip(guess, written, strict=False)
    return next((place for place, (guessed, came) in enumerate(both) if guessed != came), len(guess))


def check_speculation(speculate: str | None, rows: int, sampling: Sampling | None, provider: str) -> None:
    """Raises PromptError where drafts are asked for beside what they cannot be had with."""
    if speculate is None:
        return
    if speculate != "ngram":
        raise PromptError(f"speculate: expected ngram, got {speculate!r:.40}")
    way_out = "leave speculation out, or that"
    how = sampling or Sampling()
    if how.temperature != 0 or how.repetition_penalty != 1:
        raise PromptError(
            f"speculate: expected temperature 0 and repetition penalty 1, got {how.temperature:g} and "
            f"{how.repetition_penalty:g}; {way_out}"
        )
    if rows != 1:
        raise PromptError(f"speculate: expected one prompt at a time, got {rows}; generate them one after another")
    if provider != "cpu":
        raise PromptError(f"speculate: expected provider cpu, got {provider}; leave speculation out")
