"""A model that trains with its weights rounded to int8, exactly as the quantize stage will round them.

    y = x R(W)^T + b        dL/dW = dL/dR(W)        the weights that are kept and updated stay float32

    R(W) = codes * scale / 127,    codes = round(W / (scale / 127)),    scale_O = max_I |W_OI|

Rounding is flat almost everywhere, so its gradient is taken to be one (straight through): an update that is smaller
than a step adds up in W until a code changes. With a teacher's predictions as the loss this is LLM-QAT.

Two rules, because quantize has two. The linears are rounded by bitsandbytes, which casts them to float16 first; the
token embedding, and the head that is tied to it, by `int8.quantize_rows`, which does not. A row is an output, which
GPT-2's Conv1D holds as a column. Rows of zeros and single zeros stay zero.

The class of a module is exchanged for a subclass of it and nothing else, so that the names in the state dict, the
optimizer, checkpoints and whatever wraps the model see no difference. R(W) of a linear is made anew for the backward
pass instead of being held for it; of the embedding only the rows that are looked up are rounded.

Legend: O outputs (for an embedding: the vocabulary), I inputs, N positions.
Sources: straight-through gradients, Bengio et al. (arXiv 1308.3432); with distillation, LLM-QAT (arXiv 2305.17888).

Not covered: activations, learned scales, weights above float16's range. The codes that quantize finds are those of the
last step only where the weights are saved as float32 (of the linears also as float16).
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.quantizers.quantizers_utils import should_convert_module

from compress.checkpoints.quantized_matrix import LEVELS
from compress.stage import StageError

PART = 1 << 20
"""Weights that are rounded at once, so that what is needed meanwhile is small beside a large matrix."""


def round_int8(model: PreTrainedModel, *, embeddings: bool) -> list[str]:
    """Let `model` compute with rounded weights from now on; returns the names of the modules that do.

    Args:
        embeddings: the token embedding too, and a head that is tied to it.

    Raises:
        StageError: the model does so already, or has no linear that quantize would round.
    """
    if any(isinstance(module, ROUNDED) for module in model.modules()):
        raise StageError("int8: expected a model with its own weights, got one that rounds them already; unround it")
    chosen = _linears(model)
    if not chosen:
        raise StageError(f"int8: found no linear to round in {model.config.model_type}, so nothing would be learned")
    classes: dict[str, type[nn.Module]] = {
        name: RoundedConv1D if isinstance(module, Conv1D) else RoundedLinear for name, module in chosen.items()
    }
    if embeddings:
        table, head = model.get_input_embeddings(), model.get_output_embeddings()
        classes[_name_of(table, model)] = _embedding_class(type(table))
        if isinstance(head, nn.Linear) and head.weight is table.weight:
            classes[_name_of(head, model)] = RoundedHead
    for name, rounded in classes.items():
        model.get_submodule(name).__class__ = rounded
    return sorted(classes)


def unround(model: nn.Module) -> None:
    """Let `model` compute with its own weights again."""
    for module in model.modules():
        if isinstance(module, ROUNDED):
            module.__class__ = module.plain  # type: ignore[assignment]  # it is one of the plain classes again


def effective_weight(module: nn.Module) -> Tensor:
    """The weight that a module computes with, in the orientation in which it holds it, the gradient straight through.

    Of a module that does not round, its weight itself.
    """
    weight = module.weight
    assert isinstance(weight, Tensor)
    if not isinstance(module, ROUNDED):
        return weight
    return _straight(weight, isinstance(module, RoundedConv1D), module.through_half)


@torch.no_grad()
def rounded(weight_OI: Tensor, *, through_half: bool) -> Tensor:
    """R(W) as a new tensor of the same type and strides.

    Args:
        through_half: cast to float16 first, as bitsandbytes does.
    """
    rounded_OI = torch.empty_like(weight_OI)
    rows = max(1, PART // weight_OI.shape[1])
    for part_OI, out_OI in zip(weight_OI.split(rows), rounded_OI.split(rows), strict=True):
        value_OI = (part_OI.half() if through_half else part_OI).float()
        scale_O1 = value_OI.abs().amax(dim=1, keepdim=True)
        step_O1 = scale_O1 / LEVELS
        safe_O1 = scale_O1.masked_fill(scale_O1 == 0, 1.0)
        # one multiplies by the inverse and the other divides: they differ in the last bit, and so in ties
        codes_OI = value_OI * (LEVELS / safe_O1) if through_half else value_OI / (safe_O1 / LEVELS)
        out_OI.copy_(codes_OI.round_().clamp_(-LEVELS, LEVELS).mul_(step_O1).add_(0.0))  # -0.0 is no code
    return rounded_OI


class RoundedLinear(nn.Linear):
    """A linear, its weight rounded as bitsandbytes would."""

    plain: type[nn.Module] = nn.Linear
    through_half = True

    def forward(self, input: Tensor) -> Tensor:
        return _product(input, self.weight, self.bias, False, self.through_half)


class RoundedHead(RoundedLinear):
    """A head that is tied to the embedding, and so rounded as the embedding is."""

    through_half = False


class RoundedConv1D(Conv1D):
    """GPT-2's linear, whose weight is [in, out]."""

    plain: type[nn.Module] = Conv1D
    through_half = True

    def forward(self, x: Tensor) -> Tensor:
        return _product(x, self.weight, self.bias, True, self.through_half)


class RoundedEmbedding(nn.Embedding):
    """An embedding that rounds the rows it looks up."""

    plain: type[nn.Module] = nn.Embedding
    through_half = False

    def forward(self, input: Tensor) -> Tensor:
        found = super().forward(input)
        return _straight(found.flatten(0, -2), False, self.through_half).view(found.shape)


ROUNDED = (RoundedLinear, RoundedConv1D, RoundedEmbedding)


class _Straight(torch.autograd.Function):
    """R(W) with the gradient of W."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, transposed: bool, through_half: bool) -> Tensor:
        return _rounded_as_held(weight, transposed, through_half)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0], None, None


class _Product(torch.autograd.Function):
    """x R(W)^T + b, holding x and W for the backward pass, but not R(W)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool, through_half: bool
    ) -> Tensor:
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        x = x.to(dtype)
        ctx.save_for_backward(x, weight)
        ctx.transposed, ctx.through_half, ctx.bias_dtype = (
            transposed,
            through_half,
            None if bias is None else bias.dtype,
        )
        rounded_OI = _as_OI(_rounded_as_held(weight, transposed, through_half), transposed)
        return nn.functional.linear(x, rounded_OI.to(dtype), None if bias is None else bias.to(dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        gradient_NO = gradients[0].reshape(-1, gradients[0].shape[-1])
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            rounded_OI = _as_OI(_rounded_as_held(weight, ctx.transposed, ctx.through_half), ctx.transposed)
            of_x = (gradient_NO @ rounded_OI.to(gradient_NO.dtype)).view(x.shape)
        if ctx.needs_input_grad[1]:
            x_NI = x.reshape(-1, x.shape[-1])
            of_weight = (x_NI.T @ gradient_NO if ctx.transposed else gradient_NO.T @ x_NI).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            of_bias = gradient_NO.sum(0).to(ctx.bias_dtype)
        return of_x, of_weight, of_bias, None, None


def _straight(weight: Tensor, transposed: bool, through_half: bool) -> Tensor:
    result: Tensor = _Straight.apply(weight, transposed, through_half)
    return result


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool, through_half: bool) -> Tensor:
    result: Tensor = _Product.apply(x, weight, bias, transposed, through_half)
    return result


def _rounded_as_held(weight: Tensor, transposed: bool, through_half: bool) -> Tensor:
    return _as_OI(rounded(_as_OI(weight, transposed), through_half=through_half), transposed)


def _as_OI(weight: Tensor, transposed: bool) -> Tensor:
    return weight.T if transposed else weight


def _linears(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The linears that bitsandbytes would make 8-bit, by name."""
    kept = [*get_keys_to_not_convert(model), *(model._keep_in_fp32_modules or [])]
    return {
        name: module
        for name, module in model.named_modules()
        if (isinstance(module, Conv1D) or type(module) is nn.Linear) and should_convert_module(name, kept)
    }


def _name_of(wanted: nn.Module, model: nn.Module) -> str:
    name: str = next(name for name, module in model.named_modules() if module is wanted)
    return name


def _embedding_class(plain: type[nn.Module]) -> type[nn.Module]:
    """A subclass that rounds beneath what `plain` adds to an embedding, such as Gemma's factor."""
    if plain is nn.Embedding:
        return RoundedEmbedding
    return type(f"Rounded{plain.__name__}", (plain, RoundedEmbedding), {"plain": plain})
