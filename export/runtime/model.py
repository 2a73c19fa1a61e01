"""A bundle running: scores for evaluation, tokens for users. numpy and ONNX Runtime only; no PyTorch.

A prompt's logits are computed where they are needed only: at every position for `score`, from the shortest prompt's
last position on for `generate`. `export.runtime.batch` holds the cache and what is bound.

    B rows    T tokens    V vocabulary    C capacity of the cache in tokens
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.checkpoints.json_file import JsonError, read_object
from export.external_data import BundleError, read_graph
from export.genai import CONFIG
from export.manifest import MANIFEST, bundle_folder, check_listed, read_manifest
from export.runtime.batch import Batch, Floats, Ids, PromptError
from export.runtime.check_graph import attend_one_by_one
from export.runtime.sampling import Sampling, choose
from export.runtime.session import Provider, open_session
from export.runtime.speculation import ROWS, Speculate, check_speculation, speculative

__all__ = ["Batch", "BundleConfig", "Floats", "Ids", "OnnxCausalLM", "PromptError", "Sampling", "log_softmax"]
AT_ONCE = 32
"""Positions that are normalized at once, so that the memory for it does not grow with the text."""
RESERVE = 256
"""Tokens that `prefill` leaves room for where nothing is said."""


@dataclass(frozen=True, kw_only=True)
class BundleConfig:
    """What a bundle says about its model."""

    context: int
    vocabulary: int
    stop_ids: tuple[int, ...]

    @classmethod
    def read(cls, folder: Path) -> "BundleConfig":
        """Raises BundleError where genai_config.json is missing or says nothing of use."""
        file = folder / CONFIG
        try:
            model = read_object(file).get("model")
        except JsonError as error:
            raise BundleError(f"{error}; export the bundle again") from error
        told: dict[str, Any] = model if isinstance(model, dict) else {}
        context, vocabulary, stop = told.get("context_length", 0), told.get("vocab_size", 0), told.get("eos_token_id")
        stops = stop if isinstance(stop, list) else [] if stop is None else [stop]
        if any(type(number) is not int for number in (context, vocabulary, *stops)) or min(context, vocabulary) < 1:
            raise BundleError(
                f"{file}: expected whole numbers as `context_length`, `vocab_size` and `eos_token_id` of `model`, got "
                f"{context!r:.40}, {vocabulary!r:.40} and {stop!r:.40}; export the bundle again"
            )
        return cls(context=context, vocabulary=vocabulary, stop_ids=tuple(stops))


class OnnxCausalLM:
    """A decoder in ONNX Runtime."""

    def __init__(
        self, session: Any, config: BundleConfig, *, provider: Provider, reopen: Callable[[], Any] | None = None
    ) -> None:
        """`reopen` gives the session that checks drafts, which is not opened before there are any."""
        self.session = session
        self._reopen = reopen
        self.config = config
        self.provider = provider
        self._idle: deque[Batch] = deque(maxlen=1)

    @classmethod
    def open(
        cls, bundle: Path, *, provider: Provider | None = None, threads: int | None = None, prepack: bool = True
    ) -> "OnnxCausalLM":
        """Open the bundle that a folder is, or that a Triton model repository holds.

        Args:
            provider: where to run; None: where the bundle was exported for. Never another one in its place.
            threads: of one product; None: as many as there are cores.
            prepack: False saves memory, and is slower.

        Raises:
            BundleError: the folder is no bundle, or reads what is not its own.
            ProviderError: `provider` is not there or did not load.
        """
        bundle = bundle_folder(Path(bundle))
        config = BundleConfig.read(bundle)
        graph = read_graph(bundle)
        if provider is None or os.path.lexists(bundle / MANIFEST):  # parity is proven before there is one
            manifest = read_manifest(bundle)
            check_listed(graph, bundle, manifest)
            provider = manifest["provider"] if provider is None else provider
        opened = partial(open_session, bundle, provider=provider, threads=threads, prepack=prepack)

        def reopen() -> Any:
            return opened(graph=attend_one_by_one(read_graph(bundle), ROWS))

        return cls(opened(graph=graph), config, provider=provider, reopen=reopen)

    def score(self, ids_BT: Ids) -> Floats:
        """Log-probabilities of the next token at every position: float32 (B, T, V). Padding on the right does no
        harm.
        """
        logits_BTV = self.logits(ids_BT)
        for logits_TV in logits_BTV:
            log_softmax(logits_TV)
        return logits_BTV

    def logits(self, ids_BT: Ids) -> Floats:
        """What `score` normalizes, for those who do that themselves: float32 (B, T, V)."""
        rows, tokens = ids_BT.shape
        with self._borrowed(rows, tokens) as batch:
            return batch.feed(ids_BT, np.full(rows, tokens, dtype=np.int64))

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        stop_ids: Sequence[int] | None = None,
        sampling: Sampling | None = None,
        speculate: Speculate | None = None,
    ) -> list[list[int]]:
        """New tokens of every prompt, without its stop token; rows may be of unequal length. Ends where the context
        is full. `speculate` is as in `stream`, and for one prompt.
        """
        if speculate is not None:
            check_speculation(speculate, len(prompts), sampling, self.provider)
            found = self.stream(prompts[0], max_new_tokens=max_new_tokens, stop_ids=stop_ids, speculate=speculate)
            return [list(found)]
        texts: list[list[int]] = [[] for _ in prompts]
        for tokens in self.stream_batch(prompts, max_new_tokens=max_new_tokens, stop_ids=stop_ids, sampling=sampling):
            for text, token in zip(texts, tokens, strict=True):
                if token is not None:
                    text.append(token)
        return texts

    def stream(
        self,
        prompt: Sequence[int],
        *,
        max_new_tokens: int,
        stop_ids: Sequence[int] | None = None,
        sampling: Sampling | None = None,
        speculate: Speculate | None = None,
    ) -> Iterator[int]:
        """New tokens of one prompt as they come; ends before a stop token, or where the context is full.

        Args:
            speculate: "ngram": several tokens that stood in the text before are checked in one pass, which is faster
                where the answer copies and writes what is written without it (`export.runtime.speculation`).

        Raises:
            PromptError: the prompt is not usable, or something is asked for beside `speculate` that it cannot be had
                with: sampling, a repetition penalty, CUDA.
        """
        if speculate is not None:
            check_speculation(speculate, 1, sampling, self.provider)
            return self._speculated(prompt, max_new_tokens, self.config.stop_ids if stop_ids is None else stop_ids)
        steps = self.stream_batch([prompt], max_new_tokens=max_new_tokens, stop_ids=stop_ids, sampling=sampling)
        return (token for (token,) in steps if token is not None)

    def stream_batch(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        stop_ids: Sequence[int] | None = None,
        sampling: Sampling | None = None,
    ) -> Iterator[list[int | None]]:
        """Of every prompt the next token, again and again; None for a row that has met a stop token.

        Ends when all have, after `max_new_tokens`, or where a row's context is full.

        Raises:
            PromptError: a prompt is empty, longer than the context, or holds an id outside of the vocabulary.
        """
        self._check(prompts)
        longest = max(len(prompt) for prompt in prompts)
        how, stops = sampling or Sampling(), frozenset(self.config.stop_ids if stop_ids is None else stop_ids)
        random = [np.random.default_rng([how.seed, row]) for row in range(len(prompts))]
        seen_BV, done = self._seen(prompts), [False] * len(prompts)
        with self._borrowed(len(prompts), min(self.config.context, longest + max_new_tokens)) as batch:
            _read(batch, prompts)
            for count in range(max_new_tokens):
                if how.likeliest:
                    next_B = batch.likeliest().tolist()
                else:
                    logits_BV = batch.logits()
                    next_B = [choose(logits_BV[row], seen_BV[row], how, random[row]) for row in range(len(prompts))]
                done = [ended or token in stops for ended, token in zip(done, next_B, strict=True)]
                if all(done):
                    return
                yield [None if ended else token for ended, token in zip(done, next_B, strict=True)]
                if count + 1 == max_new_tokens or batch.length_B.max() >= self.config.context:
                    return
                seen_BV[np.arange(len(prompts)), next_B] = True
                batch.append(np.asarray(next_B, dtype=np.int64))

    @cached_property
    def checker(self) -> Any:
        """A session for passes of `ROWS` tokens that attend one by one, with weights of its own."""
        if self._reopen is None:
            raise PromptError("speculate: expected a model that `OnnxCausalLM.open` gave")
        return self._reopen()

    def _speculated(self, prompt: Sequence[int], tokens: int, stop_ids: Sequence[int]) -> Iterator[int]:
        self._check([prompt])
        if tokens < 1:
            return
        context, stops = self.config.context, frozenset(stop_ids)
        with self._borrowed(1, min(context, len(prompt) + tokens)) as batch:
            _read(batch, [prompt])
            first_V = batch.logits()[0]
            for token in speculative(batch, lambda: self.checker, first_V, prompt, tokens=tokens, context=context):
                if token in stops:
                    return
                yield token

    def cursor(self) -> "Cursor":
        """A place of its own in a text; callers that share the model take one each."""
        return Cursor(self)

    def _check(self, prompts: Sequence[Sequence[int]]) -> None:
        if not prompts or not all(len(prompt) for prompt in prompts):
            raise PromptError("expected at least one token in every prompt, got an empty one")
        longest = max(len(prompt) for prompt in prompts)
        if longest > self.config.context:
            raise PromptError(
                f"the prompt has {longest} tokens, but the model's context holds {self.config.context}; shorten it"
            )
        wrong = [token for prompt in prompts for token in prompt if not 0 <= token < self.config.vocabulary]
        if wrong:
            raise PromptError(
                f"expected token ids below {self.config.vocabulary}, got {wrong[0]}; use the bundle's own tokenizer"
            )

    def _seen(self, prompts: Sequence[Sequence[int]]) -> NDArray[np.bool_]:
        seen_BV = np.zeros((len(prompts), self.config.vocabulary), dtype=np.bool_)
        for seen_V, prompt in zip(seen_BV, prompts, strict=True):
            seen_V[list(prompt)] = True
        return seen_BV

    def new_batch(self, rows: int, capacity: int) -> Batch:
        """Rows with an empty cache of `capacity` tokens each.

        Raises:
            PromptError: the model's context is smaller.
        """
        if capacity > self.config.context:
            raise PromptError(
                f"{capacity} tokens were given, but the model's context holds {self.config.context}; give fewer"
            )
        return Batch(self.session, rows, capacity, self.provider)

    @contextmanager
    def _borrowed(self, rows: int, capacity: int) -> Iterator[Batch]:
        """A batch for one call: the last call's memory (and, on CUDA, its captured graph) where that fits."""
        try:
            batch = self._idle.pop()  # at once, so that no two threads get the same
        except IndexError:
            batch = None
        if batch is None or batch.rows != rows or not capacity <= batch.capacity <= 2 * capacity + RESERVE:
            batch = self.new_batch(rows, capacity)
        try:
            yield batch.rewind(0)
        finally:
            self._idle.append(batch)


class Cursor:
    """A prompt, and the likeliest token after token; its cache is its own."""

    def __init__(self, model: OnnxCausalLM) -> None:
        self._model = model
        self._batch: Batch | None = None

    def prefill(self, ids_1T: Ids, *, reserve: int = RESERVE) -> int:
        """Read a prompt into an empty cache with room for `reserve` more tokens; the likeliest next id."""
        tokens = ids_1T.shape[1]
        capacity = min(self._model.config.context, tokens + reserve)
        if self._batch is None or self._batch.capacity != capacity:
            self._batch = self._model.new_batch(1, capacity)
        self._batch.read(ids_1T, np.asarray([tokens], dtype=np.int64))
        self._next = int(self._batch.likeliest()[0])
        return self._next

    def step(self) -> int:
        """Feed the last id back in; the likeliest next id.

        Raises:
            PromptError: nothing was prefilled, or the cache is full.
        """
        if self._batch is None:
            raise PromptError("step() goes on from a prompt: call prefill() first")
        self._batch.append(np.asarray([self._next], dtype=np.int64))
        self._next = int(self._batch.likeliest()[0])
        return self._next


def _read(batch: Batch, prompts: Sequence[Sequence[int]]) -> None:
    """Prompts of unequal length into an empty batch."""
    count_B = np.asarray([len(prompt) for prompt in prompts], dtype=np.int64)
    ids_BT = np.zeros((len(prompts), int(count_B.max())), dtype=np.int64)
    for row, prompt in enumerate(prompts):
        ids_BT[row, : len(prompt)] = prompt
    batch.read(ids_BT, count_B)


def log_softmax(logits_TV: Floats) -> None:
    """Normalize logits (T, V) in place."""
    for start in range(0, len(logits_TV), AT_ONCE):
        part_TV = logits_TV[start : start + AT_ONCE]
        part_TV -= part_TV.max(axis=-1, keepdims=True)
        part_TV -= np.log(np.exp(part_TV).sum(axis=-1, keepdims=True))
