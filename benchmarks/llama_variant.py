"""llama.cpp through llama-cpp-python's low-level functions: several sequences in one context, as a batch.

A row is a sequence with its own part of the cache. Logits are computed for the last token of each row only. Settings
are llama.cpp's own (float16 cache, physical batches of 512 tokens, its own threads), except for the thread count and
the size of the context. Prompts go in as llama.cpp's batches of at most BATCH tokens.

Optional: `pip install llama-cpp-python gguf` builds llama.cpp from source and needs a C++ compiler and CMake.
"""

import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from benchmarks.worker import Ids, Logits

BATCH = 2048
FILE = "model.gguf"
ERROR_LEVEL = 4


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]  # ctypes
def _keep_errors(level: int, text: bytes, data: Any) -> None:
    """Their log of every tensor is left out; errors go to stderr."""
    if level == ERROR_LEVEL:
        print(text.decode(errors="replace"), end="", file=sys.stderr, flush=True)


class LlamaCpp:
    """A GGUF file in llama.cpp."""

    def __init__(self, folder: Path, threads: int, device: str) -> None:
        llama_cpp.llama_log_set(_keep_errors, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self.threads, self.shape = threads, (0, 0)
        self.context: Any = None
        self.memory: Any = None
        self.batch: Any = None
        settings = llama_cpp.llama_model_default_params()
        settings.n_gpu_layers = 0 if device == "cpu" else 999
        self.model = llama_cpp.llama_model_load_from_file(str(folder / FILE).encode(), settings)
        if not self.model:
            raise OSError(f"{folder / FILE}: llama.cpp could not load it")
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def read(self, ids_BT: Ids, room: int) -> Ids:
        rows, self.prompt = ids_BT.shape
        self._open_context(rows, self.prompt + room)
        llama_cpp.llama_memory_clear(self.memory, False)
        self.length = 0
        chunk = BATCH // rows
        for start in range(0, self.prompt, chunk):
            last = start + chunk >= self.prompt
            logits = self._run(ids_BT[:, start : start + chunk], last)
        return _likeliest(logits)

    def step(self, next_B: Ids) -> Ids:
        return _likeliest(self._run(next_B[:, None], True))

    def rewind(self) -> None:
        for row in range(self.shape[0]):
            llama_cpp.llama_memory_seq_rm(self.memory, row, self.prompt, -1)
        self.length = self.prompt

    def score(self, ids_BT: Ids) -> Iterator[Logits]:
        self._open_context(*ids_BT.shape)
        llama_cpp.llama_memory_clear(self.memory, False)
        self.length = 0
        for next_B in ids_BT.T:
            yield np.stack(self._run(next_B[:, None], True))

    def _open_context(self, rows: int, capacity: int) -> None:
        if self.shape == (rows, capacity):
            return
        if self.context:
            llama_cpp.llama_batch_free(self.batch)
            llama_cpp.llama_free(self.context)
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max, settings.n_batch = rows * capacity, rows, BATCH
        settings.n_threads = settings.n_threads_batch = self.threads
        self.context = llama_cpp.llama_init_from_model(self.model, settings)
        if not self.context:
            raise MemoryError(f"llama.cpp could not make a context of {rows} x {capacity} tokens")
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.batch = llama_cpp.llama_batch_init(BATCH, 0, 1)
        self.shape = rows, capacity

    def _run(self, ids_BT: Ids, wanted: bool) -> list[Logits]:
        """Run tokens of every row; each row's logits (V) after its last one if they are wanted."""
        rows, tokens = ids_BT.shape
        for index, (row, column) in enumerate(np.ndindex(rows, tokens)):
            self.batch.token[index] = int(ids_BT[row, column])
            self.batch.pos[index] = self.length + column
            self.batch.n_seq_id[index] = 1
            self.batch.seq_id[index][0] = row
            self.batch.logits[index] = wanted and column == tokens - 1
        self.batch.n_tokens = rows * tokens
        answer = llama_cpp.llama_decode(self.context, self.batch)
        if answer != 0:
            raise RuntimeError(f"llama_decode: expected 0, got {answer}")
        self.length += tokens
        return [self._logits((row + 1) * tokens - 1) for row in range(rows)] if wanted else []

    def _logits(self, index: int) -> Logits:
        logits_V: Logits = np.ctypeslib.as_array(
            llama_cpp.llama_get_logits_ith(self.context, index), (self.vocabulary,)
        )
        return logits_V


def _likeliest(logits: list[Logits]) -> Ids:
    return np.array([row_V.argmax() for row_V in logits])


def quantize_gguf(source: Path, target: Path, kind: str) -> None:
    """Quantize a float GGUF file with llama.cpp's own quantizer, as `llama-quantize` does without further options.

    Args:
        kind: a name of llama.cpp's, such as Q4_K_M.

    Raises:
        OSError: llama.cpp could not.
    """
    llama_cpp.llama_log_set(_keep_errors, ctypes.c_void_p(0))
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(settings)):
        raise OSError(f"{source}: llama.cpp could not quantize it to {kind}")
