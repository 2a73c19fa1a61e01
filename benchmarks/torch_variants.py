"""PyTorch: the model as transformers loads it, eager and compiled; float32 on the CPU, float16 on a GPU.

    Eager       DynamicCache, which grows by concatenation
    Compiled    torch.compile over a StaticCache, which is allocated once and written in place; on a GPU in the mode
                that captures CUDA graphs. torch specializes the first shape and generalizes from the second on.
                A cache is kept for every shape, so that a captured step is found again.
                The prompt is read uncompiled, as transformers' generate() does: its length differs every time.

Only the last position's logits are computed, as generation does. Not covered: a compiled model that was saved.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache

from benchmarks.worker import Ids, Logits

SHAPES_AT_MOST = 64
DTYPES = {"cpu": torch.float32, "cuda": torch.float16}


class Eager:
    """`model(input_ids, past_key_values)`, uncompiled."""

    def __init__(self, folder: Path, threads: int, device: str) -> None:
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.device = device
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[device])
        self.model: Any = model.to(device).eval()

    def read(self, ids_BT: Ids, room: int) -> Ids:
        self.prompt = ids_BT.shape[1]
        self.cache: Any = DynamicCache(config=self.model.config)
        return self._run(self.model, ids_BT)

    def step(self, next_B: Ids) -> Ids:
        return self._run(self.model, next_B[:, None])

    def rewind(self) -> None:
        self.cache.crop(self.prompt - int(self.cache.get_seq_length()))

    def score(self, ids_BT: Ids) -> Iterator[Logits]:
        self.cache = DynamicCache(config=self.model.config)
        for next_B in ids_BT.T:
            yield self._logits(self.model, next_B[:, None]).cpu().numpy()

    def _run(self, run: Any, ids_BT: Ids) -> Ids:
        next_B: Ids = self._logits(run, ids_BT).argmax(dim=-1).cpu().numpy()
        return next_B

    def _logits(self, run: Any, ids_BT: Ids) -> torch.Tensor:
        """Of the last position (B, V)."""
        ids = torch.from_numpy(ids_BT).to(self.device)
        if self.device == "cuda":
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]  # untyped there
        answer = run(input_ids=ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        last_BV: torch.Tensor = answer.logits[:, -1]
        return last_BV


class Compiled(Eager):
    """The same compiled, over a cache of fixed size."""

    def __init__(self, folder: Path, threads: int, device: str) -> None:
        super().__init__(folder, threads, device)
        torch._dynamo.config.recompile_limit = SHAPES_AT_MOST  # beyond its own 8 it would run uncompiled without a word
        self.caches: dict[tuple[int, int], Any] = {}
        config = self.model.config
        self.width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        self.compiled = torch.compile(self.model, mode="reduce-overhead" if device == "cuda" else None)

    def read(self, ids_BT: Ids, room: int) -> Ids:
        rows, self.prompt = ids_BT.shape
        capacity = rows, self.prompt + room
        if capacity not in self.caches:
            cache: Any = StaticCache(config=self.model.config, max_cache_len=capacity[1])
            cache.early_initialization(rows, self.heads, self.width, DTYPES[self.device], self.device)
            self.caches[capacity] = cache
        self.cache = self.caches[capacity]
        self._fill(0)
        return self._run(self.model, ids_BT)

    def step(self, next_B: Ids) -> Ids:
        return self._run(self.compiled, next_B[:, None])

    def rewind(self) -> None:
        self._fill(self.prompt)

    def _fill(self, length: int) -> None:
        """Set how much of the cache counts as filled; what lies beyond is masked, and overwritten later."""
        for layer in self.cache.layers:
            layer.cumulative_length.fill_(length)
