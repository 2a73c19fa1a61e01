"""What single layers of a model give as it runs: hidden states after a block, its queries, keys and values.

    hidden               the residual stream that leaves the block: [B, T, D]
    query, key, value    what the block's linears give, before a rotation by position and before a norm per head:
                         [B, T, C], the heads one after the other

Hooks note them, on the wanted layers only, in the model's own forward pass. GPT-2 packs the three as [all queries | all
keys | all values], GPT-NeoX head by head as [query | key | value]; other families have a linear for each.

    B rows    T tokens    D hidden width    C channels of queries, keys or values

Not covered: queries, keys and values of families that PROJECTIONS lacks; a model split over several devices or
replicated by threads.
"""

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from compress.models.block_linears import block_list, blocks
from compress.models.families import PROJECTIONS, Layout, Part
from compress.stage import StageError

Seen = Mapping[Part, Tensor]
"""What one layer gave in a forward pass."""
QKV: tuple[Part, Part, Part] = ("query", "key", "value")


def _layout(model: PreTrainedModel) -> Layout:
    layout = PROJECTIONS.get(model.config.model_type)
    if layout is None:
        raise StageError(
            f"distill: attention_relations: model_type: expected one of {', '.join(sorted(PROJECTIONS))}, got "
            f"{model.config.model_type!r}; leave this loss out"
        )
    return layout


def projection_widths(model: PreTrainedModel, layer: int) -> tuple[int, int, int]:
    """How many channels queries, keys and values have in a layer."""
    kind, name = _layout(model)
    block = blocks(model)[layer][1]
    if kind != "separate":
        packed = _outputs(block.get_submodule(name)) // 3
        return packed, packed, packed
    query, key, value = (_outputs(block.get_submodule(name.format(letter))) for letter in "qkv")
    return query, key, value


def _outputs(module: nn.Module) -> int:
    return int(module.nf if isinstance(module, Conv1D) else module.out_features)  # type: ignore[arg-type]  # linears


class Taps:
    """What wanted layers of a model gave in its last forward pass, noted by hooks until it is taken.

    Only what runs within the forward of the module around the blocks counts: where the backward pass runs blocks again
    (gradient checkpointing) the hooks fire again, and are deaf. What was noted goes when it is taken, or when the next
    forward pass begins, so no graph outlives its step.
    """

    def __init__(self, model: PreTrainedModel, wanted: Mapping[int, Collection[Part]]) -> None:
        """
        Args:
            wanted: parts by layer, from 0.

        Raises:
            StageError: queries, keys or values are wanted of a family that is not in PROJECTIONS.
        """
        self._wanted = {layer: frozenset(parts) for layer, parts in wanted.items()}
        self._seen: dict[int, dict[Part, Tensor]] = {}
        self._open = self._with_gradient = False
        name, modules = block_list(model)
        around = model.get_submodule(name.rpartition(".")[0])
        self._hooks = [around.register_forward_pre_hook(self._begin), around.register_forward_hook(self._end)]
        for layer, parts in self._wanted.items():
            if "hidden" in parts:
                self._hooks.append(modules[layer].register_forward_hook(partial(self._note_hidden, layer)))
            if parts - {"hidden"}:
                self._tap_projections(model, layer, modules[layer])

    def _tap_projections(self, model: PreTrainedModel, layer: int, block: nn.Module) -> None:
        kind, name = _layout(model)
        if kind == "separate":
            for part, letter in zip(QKV, "qkv", strict=True):
                linear = block.get_submodule(name.format(letter))
                self._hooks.append(linear.register_forward_hook(partial(self._note_one, layer, part)))
            return
        heads = int(model.config.num_attention_heads) if kind == "interleaved" else 1
        packed = block.get_submodule(name)
        self._hooks.append(packed.register_forward_hook(partial(self._note_packed, layer, heads)))

    def _begin(self, *call: Any) -> None:
        self._seen.clear()
        self._open, self._with_gradient = True, torch.is_grad_enabled()

    def _end(self, *call: Any) -> None:
        self._open = False

    def _note_hidden(self, layer: int, module: nn.Module, args: Any, output: Any) -> None:
        self._note(layer, "hidden", output[0] if isinstance(output, tuple) else output)

    def _note_one(self, layer: int, part: Part, module: nn.Module, args: Any, output: Tensor) -> None:
        self._note(layer, part, output)

    def _note_packed(self, layer: int, heads: int, module: nn.Module, args: Any, output_BTX: Tensor) -> None:
        parts = output_BTX.unflatten(-1, (heads, 3, -1)).unbind(-2)
        for part, x_BTHC in zip(QKV, parts, strict=True):
            self._note(layer, part, x_BTHC.flatten(-2))

    def _note(self, layer: int, part: Part, tensor: Tensor) -> None:
        if not self._open or part not in self._wanted[layer]:
            return
        if self._with_gradient and not torch.is_grad_enabled():
            raise StageError(
                f"distill: the {part} of layer {layer}: expected gradient checkpointing that keeps the graph, got a "
                'reentrant one; set gradient_checkpointing_kwargs to {"use_reentrant": False}'
            )
        self._seen.setdefault(layer, {})[part] = tensor

    def take(self) -> dict[int, Seen]:
        """What each wanted layer gave, once.

        Raises:
            RuntimeError: there was no whole forward pass since the last time.
        """
        seen, self._seen = self._seen, {}
        missing = [f"{part} of layer {n}" for n, parts in self._wanted.items() for part in parts - set(seen.get(n, {}))]
        if self._open or missing:
            raise RuntimeError(f"expected a forward pass before its layers are read, missing: {', '.join(missing)}")
        return dict(seen)

    def forget(self) -> None:
        """Let go of what was noted."""
        self._seen.clear()

    def remove(self) -> None:
        """Take the hooks off the model, and let go of what was noted."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self.forget()
