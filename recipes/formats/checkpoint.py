"""Checkpoints in PyTorch, as one would serve them without further tools: on the CPU in float32; on a GPU, where they
are timed beside a bundle for one, in float16; quantized ones through the library whose format they have.

    prompts of unequal length are padded on the left        a growing cache, logits of the last position
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compress.checkpoints.config import context_length, read_config, vocabulary_size
from compress.checkpoints.folder import Checkpoint, DType, inspect_checkpoint
from compress.checkpoints.loading import load_model
from compress.checkpoints.quantized_formats import quantized_format
from compress.models.components import bytes_by_part
from evaluation.latency import Variant
from recipes.formats.base import NOT_NUMBERS, Device, Ids, Sizes
from recipes.formats.macs import macs_of_checkpoint

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from recipes.formats.hidden_states import HiddenStates

DTYPES: dict[Device, DType] = {"cpu": "float32", "cuda": "float16"}
UNLIMITED = 2048
"""Tokens at once of a model whose config names no limit."""


@dataclass(frozen=True, kw_only=True)
class CheckpointFormat:
    """A Hugging Face folder."""

    libraries: tuple[str, ...]
    bytes_per_weight: int | None
    released: bool = False

    def open(
        self,
        folder: Path,
        *,
        threads: int | None = None,
        hidden: "HiddenStates | None" = None,
        device: Device | None = None,
    ) -> "TorchModel":
        """Open it; see `Format.open`. Where it belongs is the CPU."""
        import torch

        if threads is not None:
            torch.set_num_threads(threads)
        runtime, model = self.runtime(folder), load_model(folder, dtype=DTYPES[device or "cpu"])
        if device == "cuda":
            torch.backends.cuda.enable_cudnn_sdp(False)  # it plans anew for each length, so for each step of a text
            runtime = f"{runtime.replace('float32', 'float16')} on {torch.cuda.get_device_name()}"
            model = model.to("cuda")
        return TorchModel(
            model,
            runtime=f"{runtime} ({torch.__version__})",
            context=self.sizes(folder).context or UNLIMITED,
            hidden=hidden,
        )

    def runtime(self, folder: Path) -> str:
        """PyTorch, and what it computes the products with."""
        format = quantized_format(read_config(folder))
        if format is None:
            return "PyTorch float32"
        if format.library is not None:
            return f"PyTorch with {format.library} (activations rounded to 8 bits per token)"
        return f"PyTorch float32, the weights of {format.title}'s format multiplied out"

    def sizes(self, folder: Path) -> Sizes:
        """Context and vocabulary, as config.json has them."""
        config = read_config(folder)
        return Sizes(context=context_length(config), vocabulary=vocabulary_size(config))

    def device(self, folder: Path) -> Device:
        """The CPU."""
        return "cpu"

    def weight_files(self, folder: Path) -> list[Path]:
        """Its safetensors, those of a quantized embedding among them."""
        return Checkpoint(folder).files

    def weight_bytes(self, folder: Path) -> int:
        """float32 where a weight is not quantized."""
        return inspect_checkpoint(folder).weight_bytes

    def counts(self, folder: Path) -> dict[str, float]:
        """What the headers tell, and how many weights are not zero."""
        checkpoint = inspect_checkpoint(folder)
        return {
            "parameters": checkpoint.parameters,
            "nonzero_parameters": checkpoint.layout.count_nonzero(),
            "weight_bytes": checkpoint.weight_bytes,
            "disk_bytes": checkpoint.disk_bytes,
        }

    def components(self, folder: Path) -> dict[str, dict[str, int]]:
        """As they are held to run."""
        return bytes_by_part(Checkpoint(folder).layout.in_memory())

    def macs(self, folder: Path, *, context: int) -> int:
        """Counted from the headers of its weight files and its config."""
        return macs_of_checkpoint(folder, context)


class TorchModel:
    """A checkpoint that is open."""

    def __init__(
        self, model: "PreTrainedModel", *, runtime: str, context: int, hidden: "HiddenStates | None" = None
    ) -> None:
        self.runtime, self.context = runtime, context
        self._model = model
        self._text_logits = self.logits if hidden is None else hidden.scorer(model)

    def logits(self, ids_BT: Ids) -> NDArray[np.float32]:
        """See `LoadedModel.logits`."""
        import torch

        with torch.inference_mode():
            logits_BTV = self._model(input_ids=self._here(ids_BT), use_cache=False).logits
        return np.asarray(logits_BTV.float().cpu().numpy())

    def text_logits(self, ids_BT: Ids) -> NDArray[np.float32]:
        """See `LoadedModel.text_logits`."""
        return self._text_logits(ids_BT)

    def generate(self, prompts: Sequence[Ids], tokens: int) -> list[Ids]:
        """See `LoadedModel.generate`."""
        import torch
        from transformers import GenerationConfig

        stops = self._stop_ids
        self._model.generation_config = GenerationConfig()  # what `_greedy` does not name would be the checkpoint's
        longest = max(len(prompt) for prompt in prompts)
        ids_BT = np.zeros((len(prompts), longest), dtype=np.int64)
        mask_BT = np.zeros_like(ids_BT)
        for row, prompt in enumerate(prompts):
            ids_BT[row, longest - len(prompt) :], mask_BT[row, longest - len(prompt) :] = prompt, 1
        with torch.inference_mode():
            found_BT = self._model.generate(
                input_ids=self._here(ids_BT),
                attention_mask=self._here(mask_BT),
                generation_config=_greedy(tokens, stops),
            )
        return [_before_stop(row_T, stops) for row_T in np.asarray(found_BT.cpu())[:, longest:]]

    def decoding(self, ids_BT: Ids, tokens: int) -> Variant:
        """See `LoadedModel.decoding`."""
        import torch

        state: dict[str, Any] = {}

        def forward(ids_BT: "torch.Tensor", cache: Any) -> list[int]:
            with torch.inference_mode():
                answer = self._model(input_ids=ids_BT, past_key_values=cache, use_cache=True, logits_to_keep=1)
                state["logits"], state["cache"] = answer.logits[:, -1], answer.past_key_values
                state["next"] = state["logits"].argmax(dim=-1, keepdim=True)
            next_ids: list[int] = state["next"].flatten().tolist()
            return next_ids

        prompt_BT = self._here(np.ascontiguousarray(ids_BT))
        return Variant(
            prefill=lambda: forward(prompt_BT, None),
            decode=lambda: forward(state["next"], state["cache"]),
            problem=lambda: "" if bool(torch.isfinite(state["logits"]).all()) else NOT_NUMBERS,
        )

    def _here(self, array: Ids) -> "torch.Tensor":
        """Where the model is."""
        import torch

        return torch.from_numpy(array).to(self._model.device)

    @cached_property
    def _stop_ids(self) -> tuple[int, ...]:
        """Tokens that end a text, as the checkpoint itself has them."""
        for config in (self._model.generation_config, self._model.config):
            found = getattr(config, "eos_token_id", None)
            if found is not None:
                return tuple(found) if isinstance(found, list | tuple) else (int(found),)
        return ()


def _greedy(tokens: int, stops: tuple[int, ...]) -> Any:
    """Settings that leave nothing to the checkpoint's own."""
    from transformers import GenerationConfig

    return GenerationConfig(
        max_new_tokens=tokens,
        do_sample=False,
        num_beams=1,
        temperature=1.0,
        top_p=1.0,
        top_k=50,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        eos_token_id=list(stops) or None,
        pad_token_id=stops[0] if stops else 0,
    )


def _before_stop(row_T: Ids, stops: tuple[int, ...]) -> Ids:
    ends = np.flatnonzero(np.isin(row_T, stops))
    return row_T[: ends[0]] if len(ends) else row_T
