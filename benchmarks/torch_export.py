"""torch.onnx.export of a transformers model for decoding: the cache goes in and comes out as one tensor per layer and
side, [rows, heads, tokens, width], and the graph concatenates it.

    input_ids, position_ids [B, T]; past.<layer>.key, .value  ->  logits [B, 1, V]; present.<layer>.key, .value

Rows, tokens and past are dynamic. The example has T = 3 and a past of 5, because torch.export takes an axis of length 0
or 1 for a constant. Every row must be of the same length: there is no mask of padding.
"""

from pathlib import Path
from typing import Any

import torch
from torch.export import Dim
from transformers import AutoModelForCausalLM, DynamicCache

from benchmarks.marks import Marks

ROWS, TOKENS, PAST = 2, 3, 5


class WithCache(torch.nn.Module):
    """The model with its cache as plain tensors."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Any, position_ids: Any, past: Any) -> Any:
        cache: Any = DynamicCache([(key, value) for key, value in past])
        answer = self.model(
            input_ids=input_ids, position_ids=position_ids, past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        return answer.logits, [(layer.keys, layer.values) for layer in cache.layers]


def export_with_cache(checkpoint: Path, file: Path, marks: Marks) -> None:
    """Write the graph and its data."""
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    marks.done("loaded")
    layers = model.config.num_hidden_layers
    sides = [f"{layer}.{side}" for layer in range(layers) for side in ("key", "value")]
    cache_shape = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC}
    ids_shape = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    with torch.no_grad():
        torch.onnx.export(
            WithCache(model.eval()),
            _example(model.config),
            file,
            dynamo=True,
            dynamic_shapes={
                "input_ids": ids_shape,
                "position_ids": ids_shape,
                "past": [(cache_shape, cache_shape)] * layers,
            },
            input_names=["input_ids", "position_ids", *(f"past.{side}" for side in sides)],
            output_names=["logits", *(f"present.{side}" for side in sides)],
            external_data=True,
        )
    marks.done("exported")


def _example(config: Any) -> tuple[Any, Any, Any]:
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    positions = torch.arange(PAST, PAST + TOKENS).expand(ROWS, TOKENS).contiguous()
    past = [
        (torch.zeros(ROWS, heads, PAST, width), torch.zeros(ROWS, heads, PAST, width))
        for _ in range(config.num_hidden_layers)
    ]
    return torch.ones(ROWS, TOKENS, dtype=torch.int64), positions, past
