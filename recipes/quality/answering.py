"""A model of any form, opened once to be asked: scores of tokens, and greedy text.

    dense, int8   PyTorch (float32, or bitsandbytes); prompts of unequal length are padded on the left
    onnx          ONNX Runtime; padded on the right, where padding does no harm

Greedy means that the likeliest token is taken, whatever the checkpoint's generation config asks for; a text ends before
the first token that ends texts, which is the checkpoint's or the bundle's own.

Not covered: GPUs for PyTorch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compress import Form
from compress.checkpoint import context_length, load_model, read_config
from evaluation.quality import Scorer
from evaluation.quality.generation import Generator
from recipes.quality.hidden_states import HiddenStates

if TYPE_CHECKING:
    from transformers import PreTrainedModel

UNLIMITED = 2048
"""Tokens at once of a model whose config names no limit."""
Ids = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Answering:
    """A model that is open."""

    scorer: Scorer
    """From token ids [B, T], right padded, to scores of the next token [B, T, V]."""
    text_scorer: Scorer
    """The same for text that is scored again with every artifact."""
    generator: Generator
    """From prompts' ids and a number of new tokens to the new tokens' ids, greedy."""
    context: int
    """The longest sequence that it takes, in tokens."""


def open_model(folder: Path, form: Form, hidden: HiddenStates | None = None) -> Answering:
    """Open a checkpoint or a bundle; `hidden` is what is known of the model in the folder, and is added to."""
    if form == "onnx":
        from export.runtime import OnnxCausalLM

        bundle = OnnxCausalLM.open(folder)

        def generate(prompts: Sequence[Ids], tokens: int) -> list[Ids]:
            texts = bundle.generate([prompt.tolist() for prompt in prompts], max_new_tokens=tokens)
            return [np.array(text, dtype=np.int64) for text in texts]

        context = bundle.config.context
        return Answering(scorer=bundle.logits, text_scorer=bundle.logits, generator=generate, context=context)
    model = load_model(folder)
    scorer = _scorer(model)
    return Answering(
        scorer=scorer,
        text_scorer=scorer if hidden is None else hidden.scorer(model),
        generator=_generator(model),
        context=context_length(read_config(folder)) or UNLIMITED,
    )


def _scorer(model: "PreTrainedModel") -> Scorer:
    import torch

    def scorer(ids_BT: Ids) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits_BTV = model(input_ids=torch.from_numpy(ids_BT), use_cache=False).logits
        return np.asarray(logits_BTV.float().numpy())

    return scorer


def _generator(model: "PreTrainedModel") -> Generator:
    import torch
    from transformers import GenerationConfig

    stops = _stop_ids(model)
    model.generation_config = GenerationConfig()  # what `_greedy` does not name would be taken from the checkpoint's

    def generate(prompts: Sequence[Ids], tokens: int) -> list[Ids]:
        longest = max(len(prompt) for prompt in prompts)
        ids_BT = np.zeros((len(prompts), longest), dtype=np.int64)
        mask_BT = np.zeros_like(ids_BT)
        for row, prompt in enumerate(prompts):
            ids_BT[row, longest - len(prompt) :], mask_BT[row, longest - len(prompt) :] = prompt, 1
        with torch.inference_mode():
            found_BT = model.generate(
                input_ids=torch.from_numpy(ids_BT),
                attention_mask=torch.from_numpy(mask_BT),
                generation_config=_greedy(tokens, stops),
            )
        return [_before_stop(row_T, stops) for row_T in np.asarray(found_BT)[:, longest:]]

    return generate


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


def _stop_ids(model: "PreTrainedModel") -> tuple[int, ...]:
    for config in (model.generation_config, model.config):
        found = getattr(config, "eos_token_id", None)
        if found is not None:
            return tuple(found) if isinstance(found, list | tuple) else (int(found),)
    return ()


def _before_stop(row_T: Ids, stops: tuple[int, ...]) -> Ids:
    ends = np.flatnonzero(np.isin(row_T, stops))
    return row_T[: ends[0]] if len(ends) else row_T
