"""A model of any form as lm-evaluation-harness wants one: log-likelihoods and greedy text from callables.

    loglikelihood(context, continuation)    sum of log p(token | tokens before it) over the continuation's tokens
    loglikelihood_rolling(text)             the same over a whole text, in windows as long as the model takes, the first
                                            token given the prefix token (beginning of text, else end of text)
    generate_until(context, until)          greedy; cut at the first of the stop texts or at the end of text

Tokens are split as the harness's own Hugging Face model splits them: blanks at a context's end belong to the
continuation, the pair is encoded as one text and cut after as many tokens as the context alone has. What is too long
loses its beginning.

This file imports lm-evaluation-harness; `harness_tasks.py` imports it only once a task is asked. Not covered: chat
templates, sampling, and stopping early (a text is generated in full and then cut).
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from numpy.typing import NDArray

from compress.text import end_of_text
from evaluation.quality.generation import Generator
from evaluation.quality.likelihood import continuations
from evaluation.quality.scoring import Scorer
from recipes.measure.question_files import TaskError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Request = tuple[tuple[str, str] | None, list[int], list[int]]
"""Texts of context and continuation, where there are any, and the ids of both."""


class ScorerLM(TemplateLM):
    """A scorer and a generator as a model of lm-evaluation-harness."""

    def __init__(
        self,
        *,
        scorer: Scorer,
        generator: Generator,
        tokenizer: "PreTrainedTokenizerBase",
        prefix: Sequence[int] = (),
        context: int,
        batch: int = 8,
        on_share: Callable[[float], None] = lambda share: None,
    ) -> None:
        """As in `harness.ask_task`.

        Args:
            prefix: tokens before every text that the harness encodes by itself, unless the text begins with them.
            on_share: told which share of the requests of one kind were answered just now.
        """
        super().__init__()
        self.scorer, self.generator, self.tokenizer, self.prefix = scorer, generator, tokenizer, list(prefix)
        self.max_length, self.batch, self.on_share = context, batch, on_share

    @property
    def eot_token_id(self) -> int:
        return end_of_text(self.tokenizer)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has nothing before it."""
        first = self.tokenizer.bos_token_id
        return first if isinstance(first, int) else self.eot_token_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids; by itself with the prefix before them, unless the text begins with it."""
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(self._text(self.prefix_token_id))
        ids: list[int] = self.tokenizer.encode(string, add_special_tokens=False)
        return [*self.prefix, *ids] if add_special_tokens else ids

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """(log-likelihood, whether every token is the one ranked first) of each (context, continuation)."""
        answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return answers

    def _loglikelihood_tokens(self, requests: list[Request], **kwargs: Any) -> list[tuple[float, bool]]:
        for texts, _, continuation in requests:
            self._check_length(texts, continuation)
        pairs = [(context, continuation) for _, context, continuation in requests]
        share = 1 / len(pairs)
        log_probability_P, greedy_P, _ = continuations(
            self.scorer,
            pairs,
            context=self.max_length,
            batch=self.batch,
            on_batch=lambda answered: self.on_share(answered * share),
        )
        return [(float(value), bool(greedy)) for value, greedy in zip(log_probability_P, greedy_P, strict=True)]

    def _check_length(self, texts: tuple[str, str] | None, continuation: list[int]) -> None:
        if not 0 < len(continuation) <= self.max_length:
            raise TaskError(
                f"expected continuations of 1 to {self.max_length} tokens, all that the model can read at once, got "
                f"{len(continuation)}: {texts[1][:60] if texts else 'a text'!r}; leave such questions out"
            )

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Log-likelihood of each text, every token once."""
        windows = [self._windows(instance.args[0]) for instance in requests]
        answers = iter(self._loglikelihood_tokens([window for of_text in windows for window in of_text]))
        return [sum(next(answers)[0] for _ in of_text) for of_text in windows]

    def _windows(self, text: str) -> list[Request]:
        rolling = get_rolling_token_windows(
            token_list=self.tok_encode(text),
            prefix_token=self.prefix_token_id,
            max_seq_len=self.max_length,
            context_len=1,
        )
        return [(None, *make_disjoint_window(window)) for window in rolling]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """The text that each context goes on with, up to the first stop text."""
        ids = [self.tok_encode(instance.args[0]) for instance in requests]
        knobs = [_greedy(instance.args[1]) for instance in requests]
        order = sorted(range(len(ids)), key=lambda index: (knobs[index]["max_gen_toks"], -len(ids[index]), index))
        texts = [""] * len(ids)
        for rows in _batches(order, [knob["max_gen_toks"] for knob in knobs], self.batch):
            tokens = knobs[rows[0]]["max_gen_toks"]
            prompts = [np.array(ids[row][-self._room(tokens) :], dtype=np.int64) for row in rows]
            for row, new in zip(rows, self.generator(prompts, tokens), strict=True):
                texts[row] = self._cut(new, knobs[row]["until"])
            self.on_share(len(rows) / len(ids))
        return texts

    def _room(self, tokens: int) -> int:
        """How many tokens a prompt may have."""
        if tokens >= self.max_length:
            raise TaskError(
                f"expected a task that generates fewer than {self.max_length} tokens, all that the model can read at "
                f"once, got one that generates {tokens}; measure another task"
            )
        return self.max_length - tokens

    def _cut(self, ids: NDArray[np.int64], until: list[str]) -> str:
        stops = handle_stop_sequences(list(until), eos=None)
        ended = np.flatnonzero(ids == self.eot_token_id)
        text = self._text(ids[: ended[0]] if len(ended) else ids)
        cut: str = postprocess_generated_text(text, stop=stops, think_end_token=None)
        return cut

    def _text(self, ids: Any) -> str:
        return str(self.tokenizer.decode(ids))


def _greedy(wanted: dict[str, Any]) -> dict[str, Any]:
    """`until` and `max_gen_toks` of a request.

    Raises:
        TaskError: it asks for sampling.
    """
    knobs: dict[str, Any] = dict(normalize_gen_kwargs(wanted))
    if knobs["do_sample"]:
        raise TaskError(f"expected a task that generates greedily, got one that samples ({wanted}); measure another")
    return knobs


def _batches(order: list[int], tokens: list[int], batch: int) -> list[list[int]]:
    """Rows of `order` in batches that generate equally many tokens."""
    batches: list[list[int]] = []
    for row in order:
        if not batches or len(batches[-1]) == batch or tokens[batches[-1][0]] != tokens[row]:
            batches.append([])
        batches[-1].append(row)
    return batches
