"""The contenders of the latency benchmark: what opens an artifact of each form, and what is timed of it.

    dense, int8    PyTorch as one would serve it without further tools: a growing cache, logits of the last position
    onnx           the bundle on the provider it was exported for; cache, inputs and logits are bound once

All pay for their own argmax, and return when the next ids are on the host, so a GPU's work is waited for. Adding a form
is a class with `runtime` and `arm`, and an entry in `CONTENDERS`.

    B rows    T tokens
"""

from collections.abc import Callable
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from compress.stage import Form
from evaluation.latency import Arm
from recipes.subject import RUNTIMES

if TYPE_CHECKING:
    import torch

    from export.session import Provider

Ids = NDArray[np.int64]
NOT_NUMBERS = "its logits are not numbers (NaN or infinite)"
OPENER = "recipes.timing.arms:open_contender"
"""Who opens the arms, as "module:function"."""


class Contender(Protocol):
    """An opened model."""

    runtime: str
    """What runs it, with its version, in a few words."""

    def arm(self, ids_BT: Ids, tokens: int) -> Arm:
        """What is timed on this prompt, with room for `tokens` new tokens."""


class Checkpoint:
    """A checkpoint in PyTorch, on the CPU."""

    def __init__(self, folder: Path, form: Form, threads: int) -> None:
        import torch

        from compress.checkpoint import load_model

        torch.set_num_threads(threads)
        self.runtime = f"{RUNTIMES[form]} ({torch.__version__})"
        self._model = load_model(folder)

    def arm(self, ids_BT: Ids, tokens: int) -> Arm:
        import torch

        state: dict[str, Any] = {}

        def forward(ids_BT: "torch.Tensor", cache: Any) -> list[int]:
            with torch.inference_mode():
                answer = self._model(input_ids=ids_BT, past_key_values=cache, use_cache=True, logits_to_keep=1)
                state["logits"], state["cache"] = answer.logits[:, -1], answer.past_key_values
                state["next"] = state["logits"].argmax(dim=-1, keepdim=True)
            next_ids: list[int] = state["next"].flatten().tolist()
            return next_ids

        prompt_BT = torch.from_numpy(np.ascontiguousarray(ids_BT))
        return Arm(
            prefill=lambda: forward(prompt_BT, None),
            decode=lambda: forward(state["next"], state["cache"]),
            problem=lambda: "" if bool(torch.isfinite(state["logits"]).all()) else NOT_NUMBERS,
        )


class Bundle:
    """A bundle in ONNX Runtime."""

    def __init__(self, folder: Path, form: Form, threads: int, provider: "Provider | None" = None) -> None:
        from export.runtime import OnnxCausalLM

        self._model = OnnxCausalLM.open(folder, provider=provider, threads=threads)
        distribution = next(name for name in ("onnxruntime-gpu", "onnxruntime") if _installed(name))
        where = {"cpu": "CPU", "cuda": "CUDA"}[self._model.provider]
        self.runtime = f"{RUNTIMES[form]} {metadata.version(distribution)}, {where}, IO binding"

    def arm(self, ids_BT: Ids, tokens: int) -> Arm:
        rows, length = ids_BT.shape
        batch = self._model.new_batch(rows, length + tokens - 1)
        count_B = np.full(rows, length, dtype=np.int64)
        state: dict[str, Any] = {}

        def keep(logits_BV: NDArray[np.float32]) -> Ids:
            state["logits"], state["next"] = logits_BV, logits_BV.argmax(axis=-1)
            next_B: Ids = state["next"]
            return next_B

        return Arm(
            prefill=lambda: keep(batch.feed(ids_BT, count_B, logits_from=length - 1)[:, -1]),
            decode=lambda: keep(batch.step(state["next"])),
            problem=lambda: "" if bool(np.isfinite(state["logits"]).all()) else NOT_NUMBERS,
        )


CONTENDERS: dict[Form, Callable[[Path, Form, int], Contender]] = {
    "dense": Checkpoint,
    "int8": Checkpoint,
    "onnx": Bundle,
}
"""Form -> what opens it: (folder, form, threads)."""


def open_contender(folder: Path, form: Form, threads: int) -> Contender:
    """Open what a folder holds.

    Raises:
        CheckpointError, BundleError, ProviderError: it cannot be opened, or not where it was exported for.
    """
    return CONTENDERS[form](folder, form, threads)


def opener_of(name: str) -> Callable[[Path, Form, int], Contender]:
    """ "module:function" -> the function."""
    module, _, function = name.partition(":")
    opener: Callable[[Path, Form, int], Contender] = getattr(import_module(module), function)
    return opener


def _installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
