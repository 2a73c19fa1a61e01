"""A bundle running: scores for evaluation, tokens for users. numpy and ONNX Runtime only; no PyTorch.

The key-value cache is allocated once per batch and bound as input and output at the same time, so that
GroupQueryAttention writes each new key in place and a step copies nothing but its logits. GroupQueryAttention counts
a row's tokens from the left: rows of unequal length are padded on the right, and each later token of a row overwrites
what padding left in the cache.

    B rows    T tokens    V vocabulary    C capacity of the cache in tokens
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from export.external_data import MANIFEST, BundleError
from export.genai import CONFIG
from export.sampling import Sampling, choose
from export.session import Provider, open_session

if TYPE_CHECKING:
    from onnx import ModelProto

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]
RESERVE = 256
"""Tokens that `prefill` leaves room for where nothing is said."""


class PromptError(Exception):
    """A prompt cannot be run; the message says why and the way out."""


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
            model = json.loads(file.read_text(encoding="utf-8"))["model"]
            stop = model.get("eos_token_id")
            stops = tuple(stop) if isinstance(stop, list) else () if stop is None else (stop,)
            return cls(context=int(model["context_length"]), vocabulary=int(model["vocab_size"]), stop_ids=stops)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BundleError(f"{file}: expected the configuration of a bundle ({error!r}); export it again") from error


def _exported_for(bundle: Path) -> Provider:
    try:
        provider: Provider = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))["provider"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{bundle / MANIFEST}: expected a bundle's manifest ({error!r}); export it again") from error
    return provider


class OnnxCausalLM:
    """A decoder in ONNX Runtime."""

    def __init__(self, session: Any, config: BundleConfig, *, provider: Provider) -> None:
        self.session = session
        self.config = config
        self.provider = provider
        self._batch: Batch | None = None

    @classmethod
    def open(
        cls,
        bundle: Path,
        *,
        provider: Provider | None = None,
        threads: int | None = None,
        graph: "ModelProto | None" = None,
    ) -> "OnnxCausalLM":
        """Open the bundle in a folder; with `graph`, that graph over the bundle's weights.

        Args:
            provider: where to run; None: where the bundle was exported for. Never another one in its place.

        Raises:
            BundleError: the folder is no bundle, or points outside of itself.
            ProviderError: `provider` is not there or did not load.
        """
        bundle = Path(bundle)
        config = BundleConfig.read(bundle)
        provider = _exported_for(bundle) if provider is None else provider
        return cls(open_session(bundle, provider=provider, threads=threads, graph=graph), config, provider=provider)

    def score(self, ids_BT: Ids) -> Floats:
        """Log-probabilities of the next token at every position: float32 (B, T, V). Padding on the right does no
        harm.
        """
        rows, tokens = ids_BT.shape
        batch = self.new_batch(rows, tokens)
        logits_BTV = batch.feed(ids_BT, np.full(rows, tokens, dtype=np.int64))
        for logits_TV in logits_BTV:
            log_softmax(logits_TV)
        return logits_BTV

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        stop_ids: Sequence[int] | None = None,
        sampling: Sampling | None = None,
    ) -> list[list[int]]:
        """New tokens of every prompt, without its stop token; rows may be of unequal length. Ends where the context
        is full.
        """
        batch, logits_BV = self._prefill(prompts, max_new_tokens)
        how, stops = sampling or Sampling(), self._stops(stop_ids)
        random = [np.random.default_rng([how.seed, row]) for row in range(len(prompts))]
        texts, done = [list(prompt) for prompt in prompts], [False] * len(prompts)
        for count in range(1, batch.capacity + 1):
            next_B = [choose(logits_BV[row], text, how, random[row]) for row, text in enumerate(texts)]
            for row, token in enumerate(next_B):
                done[row] = done[row] or token in stops
                if not done[row]:
                    texts[row].append(token)
            full = bool(batch.length_B.max() >= batch.capacity)
            if all(done) or count >= max_new_tokens or full:
                break
            logits_BV = batch.step(np.asarray(next_B, dtype=np.int64))
        return [text[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)]

    def stream(
        self,
        prompt: Sequence[int],
        *,
        max_new_tokens: int,
        stop_ids: Sequence[int] | None = None,
        sampling: Sampling | None = None,
    ) -> Iterator[int]:
        """New tokens of one prompt as they come; ends before a stop token, or where the context is full."""
        batch, logits_BV = self._prefill([prompt], max_new_tokens)
        how, stops = sampling or Sampling(), self._stops(stop_ids)
        random, text = np.random.default_rng([how.seed, 0]), list(prompt)
        for _ in range(max_new_tokens):
            token = choose(logits_BV[0], text, how, random)
            if token in stops:
                return
            yield token
            if batch.length_B[0] >= batch.capacity:
                return
            text.append(token)
            logits_BV = batch.step(np.asarray([token], dtype=np.int64))

    def prefill(self, ids_1T: Ids, *, reserve: int = RESERVE) -> int:
        """Read a prompt into an empty cache with room for `reserve` more tokens; the likeliest next id."""
        tokens = ids_1T.shape[1]
        capacity = min(self.config.context, tokens + reserve)
        if self._batch is None or self._batch.shape != (1, capacity):
            self._batch = self.new_batch(1, capacity)
        logits = self._batch.restart().feed(ids_1T, np.asarray([tokens], dtype=np.int64))
        self._next = int(logits[0, -1].argmax())
        return self._next

    def step(self) -> int:
        """Feed the last id back in; the likeliest next id.

        Raises:
            PromptError: nothing was prefilled, or the cache is full.
        """
        if self._batch is None:
            raise PromptError("step() goes on from a prompt: call prefill() first")
        self._next = int(self._batch.step(np.asarray([self._next], dtype=np.int64))[0].argmax())
        return self._next

    def _prefill(self, prompts: Sequence[Sequence[int]], new: int) -> tuple["Batch", Floats]:
        self._check(prompts)
        length_B = np.asarray([len(prompt) for prompt in prompts], dtype=np.int64)
        longest = int(length_B.max())
        ids_BT = np.zeros((len(prompts), longest), dtype=np.int64)
        for row, prompt in enumerate(prompts):
            ids_BT[row, : len(prompt)] = prompt
        batch = self.new_batch(len(prompts), min(self.config.context, longest + new))
        logits_BTV = batch.feed(ids_BT, length_B)
        return batch, logits_BTV[np.arange(len(prompts)), length_B - 1]

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

    def _stops(self, stop_ids: Sequence[int] | None) -> frozenset[int]:
        return frozenset(self.config.stop_ids if stop_ids is None else stop_ids)

    def new_batch(self, rows: int, capacity: int) -> "Batch":
        """Rows with an empty cache of `capacity` tokens each.

        Raises:
            PromptError: the model's context is smaller.
        """
        if capacity > self.config.context:
            raise PromptError(
                f"{capacity} tokens were given, but the model's context holds {self.config.context}; give fewer"
            )
        return Batch(self.session, rows, capacity, self.provider)


class Batch:
    """Rows that share a run: their cache, how much of it each has filled, and the binding."""

    cache: dict[str, Any]
    """The output "present.<layer>.key" or ".value" -> its OrtValue (B, heads, C, width)."""

    def __init__(self, session: Any, rows: int, capacity: int, device: str) -> None:
        self.session, self.rows, self.capacity = session, rows, capacity
        self.length_B: Ids = np.zeros(rows, dtype=np.int64)
        self.binding = session.io_binding()
        self._inputs = {value.name for value in session.get_inputs()}
        self._ones: Ids = np.ones((1, capacity), dtype=np.int64)
        self._vocabulary = int(session.get_outputs()[0].shape[-1])
        self._half = session.get_outputs()[0].type == "tensor(float16)"
        self._step_logits = self._logits(1)
        self.cache = dict(self._bind_cache(device))

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows, self.capacity

    def restart(self) -> "Batch":
        """Forget what was read; the cache keeps its memory."""
        self.length_B[:] = 0
        return self

    def feed(self, ids_BT: Ids, count_B: Ids) -> Floats:
        """Read the first `count_B` tokens of each row into an empty cache: logits (B, T, V), those past a row's count
        meaningless.
        """
        tokens = ids_BT.shape[1]
        position_T = np.arange(tokens, dtype=np.int64)
        mask_BT = (position_T < count_B[:, None]).astype(np.int64)
        positions_BT = np.broadcast_to(position_T, ids_BT.shape)
        self.length_B[:] = count_B
        return self._run(ids_BT, mask_BT, positions_BT, self._logits(tokens))

    def step(self, next_B: Ids) -> Floats:
        """Append one token to each row: logits (B, V), overwritten by the next step."""
        total = int(self.length_B.max()) + 1
        if total > self.capacity:
            raise PromptError(
                f"the cache is full: it holds {self.capacity} tokens; reserve more, or shorten the prompt"
            )
        mask_BT = (
            self._ones[:, :total] if self.rows == 1 else (np.arange(total) <= self.length_B[:, None]).astype(np.int64)
        )
        logits_BTV = self._run(next_B[:, None], mask_BT, self.length_B[:, None].copy(), self._step_logits)
        self.length_B += 1
        return logits_BTV[:, 0]

    def _run(self, ids_BT: Ids, mask_BT: Ids, positions_BT: Ids, logits_BTV: Any) -> Floats:
        arrays = {"input_ids": ids_BT, "attention_mask": mask_BT, "position_ids": positions_BT}
        held = {name: np.ascontiguousarray(array) for name, array in arrays.items() if name in self._inputs}
        for name, array in held.items():
            self.binding.bind_cpu_input(name, array)
        self.binding.bind_output("logits", "cpu", 0, logits_BTV.dtype.type, logits_BTV.shape, logits_BTV.ctypes.data)
        self.session.run_with_iobinding(self.binding)
        result: Floats = logits_BTV.astype(np.float32, copy=False)
        return result

    def _logits(self, tokens: int) -> NDArray[Any]:
        return np.empty((self.rows, tokens, self._vocabulary), dtype=np.float16 if self._half else np.float32)

    def _bind_cache(self, device: str) -> Iterator[tuple[str, Any]]:
        """One buffer per layer and side, bound as past and as present; yields it under the present's name."""
        from onnxruntime import OrtValue

        for past in self.session.get_inputs():
            if not past.name.startswith("past_key_values."):
                continue
            _, heads, _, width = past.shape
            dtype = np.float16 if past.type == "tensor(float16)" else np.float32
            buffer = OrtValue.ortvalue_from_numpy(np.zeros((self.rows, heads, self.capacity, width), dtype), device, 0)
            present = past.name.replace("past_key_values.", "present.")
            self.binding.bind_ortvalue_input(past.name, buffer)
            self.binding.bind_ortvalue_output(present, buffer)
            yield present, buffer


def log_softmax(logits_TV: Floats) -> None:
    """Normalize logits (T, V) in place."""
    logits_TV -= logits_TV.max(axis=-1, keepdims=True)
    logits_TV -= np.log(np.exp(logits_TV).sum(axis=-1, keepdims=True))
