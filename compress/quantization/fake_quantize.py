"""A model that trains with its weights rounded, exactly as the quantize stage will round them.

    y = x R(W)^T + b        dL/dW = dL/dR(W)        the weights that are kept and updated stay float32

    R(W) = code * scale,    code = round(W / scale),    scale of a row or of a group of its columns from its largest |W|

Rounding is flat almost everywhere, so its gradient is taken to be one (straight through): an update that is smaller
than a step adds up in W until a code changes. With a teacher's predictions as the loss this is LLM-QAT.

Three rules, as quantize has them. Scheme int8's linears are rounded by bitsandbytes, which casts them to float16 first;
a row of a table (the token embedding, and a head that is tied to it) by `quantized_matrix.quantize_rows`, which does
not; groups of columns by `rounding.py`. There the share of a group's largest weight that 4 bits are spread over is
found once, before training. A row is an output, which GPT-2's Conv1D holds as a column. Zeros stay zero.

The class of a module is exchanged for a subclass of it and nothing else, so that the names in the state dict, the
optimizer, checkpoints and whatever wraps the model see no difference. R(W) of a linear is made anew for the backward
pass instead of being held for it; of the embedding only the rows that are looked up are rounded.

Legend: O outputs (for an embedding: the vocabulary), I inputs, G groups, N positions.
Sources: straight-through gradients, Bengio et al. (arXiv 1308.3432); with distillation, LLM-QAT (arXiv 2305.17888).

Not covered: activations, learned scales, weights above float16's range. Of scheme int8 the codes that quantize finds
are those of the last step only where the weights are saved as float32 (of the linears also as float16); with groups
the weights are left rounded, on the grid that quantize finds again.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.quantizers.quantizers_utils import should_convert_module

from compress.checkpoints.quantized_matrix import LEVELS
from compress.models.block_linears import block_linears
from compress.quantization.config import SCHEMES, QuantizeConfig
from compress.quantization.rounding import codes_of, largest, scales
from compress.stage import StageError

PART = 1 << 20
"""Weights that are rounded at once, so that what is needed meanwhile is small beside a large matrix."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Grid:
    """How a matrix is rounded; by default row by row to 8 bits."""

    bits: int = 8
    through_half: bool = False
    """Cast to float16 first, as bitsandbytes does."""
    share_OG: Tensor | None = None
    """Of groups: the share of the scale that a group's largest weight asks for."""

    def rows(self, low: int, high: int) -> "Grid":
        """That of some of the rows."""
        share_OG = None if self.share_OG is None else self.share_OG[low:high]
        return Grid(bits=self.bits, through_half=self.through_half, share_OG=share_OG)


ROWS, BITSANDBYTES = Grid(), Grid(through_half=True)


def round_weights(model: PreTrainedModel, config: QuantizeConfig) -> list[str]:
    """Let `model` compute from now on with the weights that `quantize` would make of its own; returns the names of the
    modules that do.

    Raises:
        StageError: the model does so already, has no linear that quantize would round, or one that the scheme cannot
            hold.
    """
    if any(isinstance(module, ROUNDED) for module in model.modules()):
        raise StageError("expected a model with its own weights, got one that rounds them already; unround it")
    grouped = SCHEMES[config.scheme].grouped
    grids = _in_groups(model, config) if grouped else dict.fromkeys(_linears(model), BITSANDBYTES)
    if not grids:
        raise StageError(f"found no linear to round in {model.config.model_type}, so nothing would be learned")
    classes: dict[str, type[nn.Module]] = {
        name: RoundedConv1D if isinstance(model.get_submodule(name), Conv1D) else RoundedLinear for name in grids
    }
    if config.embeddings:
        table, head = model.get_input_embeddings(), model.get_output_embeddings()
        classes[_name_of(table, model)] = _embedding_class(type(table))
        if isinstance(head, nn.Linear) and head.weight is table.weight:
            classes[_name_of(head, model)] = RoundedLinear
        grid = _grid(table.weight, config.group, 8) if grouped else ROWS
        grids |= dict.fromkeys(set(classes) - set(grids), grid)
    for name, rounded_class in classes.items():
        module: Any = model.get_submodule(name)
        module.__class__ = rounded_class
        module.grid = grids[name]  # a plain attribute: no part of the state
    return sorted(classes)


def _in_groups(model: PreTrainedModel, config: QuantizeConfig) -> dict[str, Grid]:
    linears = list(block_linears(model))
    width = model.get_input_embeddings().weight.shape[1] if config.embeddings else None
    config.check_columns(linears, width)
    bits = config.bits_of([linear.name for linear in linears])
    return {linear.name: _grid(linear.weight_OI(), config.group, bits[linear.name]) for linear in linears}


@torch.no_grad()
def _grid(weight_OI: Tensor, group: int, bits: int) -> Grid:
    weight_OI = weight_OI.detach().float()
    return Grid(bits=bits, share_OG=scales(weight_OI, None, group, bits) / largest(weight_OI, group, bits))


@torch.no_grad()
def unround(model: nn.Module) -> None:
    """Let `model` compute with its own weights again, which groups leave on their grid."""
    for module in model.modules():
        if isinstance(module, ROUNDED):
            if module.grid.share_OG is not None:
                module.weight.copy_(_rounded_as_held(module.weight, isinstance(module, RoundedConv1D), module.grid))
            module.__class__ = module.plain  # type: ignore[assignment]  # it is one of the plain classes again
            del module.grid


def effective_weight(module: nn.Module) -> Tensor:
    """The weight that a module computes with, in the orientation in which it holds it, the gradient straight through.

    Of a module that does not round, its weight itself.
    """
    weight = module.weight
    assert isinstance(weight, Tensor)
    if not isinstance(module, ROUNDED):
        return weight
    return _straight(weight, isinstance(module, RoundedConv1D), module.grid)


@torch.no_grad()
def rounded(weight_OI: Tensor, grid: Grid) -> Tensor:
    """R(W) as a new tensor of the same type and strides."""
    rounded_OI = torch.empty_like(weight_OI)
    rows = max(1, PART // weight_OI.shape[1])
    for start in range(0, len(weight_OI), rows):
        part = slice(start, start + rows)
        rounded_OI[part] = _rounded_part(weight_OI[part], grid.rows(start, start + rows))
    return rounded_OI


def _rounded_part(weight_OI: Tensor, grid: Grid) -> Tensor:
    value_OI = (weight_OI.half() if grid.through_half else weight_OI).float()
    if grid.share_OG is not None:
        share_OG = grid.share_OG.to(value_OI.device)
        parts_OGI = value_OI.reshape(*share_OG.shape, -1)
        scale_OG1 = (largest(value_OI, parts_OGI.shape[2], grid.bits) * share_OG).unsqueeze(2)
        return (codes_of(parts_OGI, scale_OG1, grid.bits) * scale_OG1).add_(0.0).reshape(value_OI.shape)
    scale_O1 = value_OI.abs().amax(dim=1, keepdim=True)
    safe_O1 = scale_O1.masked_fill(scale_O1 == 0, 1.0)
    # one multiplies by the inverse and the other divides: they differ in the last bit, and so in ties
    codes_OI = value_OI * (LEVELS / safe_O1) if grid.through_half else value_OI / (safe_O1 / LEVELS)
    return codes_OI.round_().clamp_(-LEVELS, LEVELS).mul_(scale_O1 / LEVELS).add_(0.0)  # -0.0 is no code


class RoundedLinear(nn.Linear):
    """A linear, or a head that is tied to the embedding, with its weight rounded."""

    plain: type[nn.Module] = nn.Linear
    grid: Grid

    def forward(self, input: Tensor) -> Tensor:
        return _product(input, self.weight, self.bias, False, self.grid)


class RoundedConv1D(Conv1D):
    """GPT-2's linear, whose weight is [in, out]."""

    plain: type[nn.Module] = Conv1D
    grid: Grid

    def forward(self, x: Tensor) -> Tensor:
        return _product(x, self.weight, self.bias, True, self.grid)


class RoundedEmbedding(nn.Embedding):
    """An embedding that rounds the rows it looks up."""

    plain: type[nn.Module] = nn.Embedding
    grid: Grid

    def forward(self, input: Tensor) -> Tensor:
        found = super().forward(input)
        share_OG = self.grid.share_OG
        own_NG = None if share_OG is None else share_OG.to(input.device)[input.flatten()]
        grid = Grid(bits=self.grid.bits, share_OG=own_NG)
        return _straight(found.flatten(0, -2), False, grid).view(found.shape)


ROUNDED = (RoundedLinear, RoundedConv1D, RoundedEmbedding)


class _Straight(torch.autograd.Function):
    """R(W) with the gradient of W."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, transposed: bool, grid: Grid) -> Tensor:
        return _rounded_as_held(weight, transposed, grid)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0], None, None


class _Product(torch.autograd.Function):
    """x R(W)^T + b, holding x and W for the backward pass, but not R(W)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool, grid: Grid) -> Tensor:
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        x = x.to(dtype)
        ctx.save_for_backward(x, weight)
        ctx.transposed, ctx.grid, ctx.bias_dtype = (
            transposed,
            grid,
            None if bias is None else bias.dtype,
        )
        rounded_OI = _as_OI(_rounded_as_held(weight, transposed, grid), transposed)
        return nn.functional.linear(x, rounded_OI.to(dtype), None if bias is None else bias.to(dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        gradient_NO = gradients[0].reshape(-1, gradients[0].shape[-1])
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            rounded_OI = _as_OI(_rounded_as_held(weight, ctx.transposed, ctx.grid), ctx.transposed)
            of_x = (gradient_NO @ rounded_OI.to(gradient_NO.dtype)).view(x.shape)
        if ctx.needs_input_grad[1]:
            x_NI = x.reshape(-1, x.shape[-1])
            of_weight = (x_NI.T @ gradient_NO if ctx.transposed else gradient_NO.T @ x_NI).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            of_bias = gradient_NO.sum(0).to(ctx.bias_dtype)
        return of_x, of_weight, of_bias, None, None


def _straight(weight: Tensor, transposed: bool, grid: Grid) -> Tensor:
    result: Tensor = _Straight.apply(weight, transposed, grid)
    return result


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool, grid: Grid) -> Tensor:
    result: Tensor = _Product.apply(x, weight, bias, transposed, grid)
    return result


def _rounded_as_held(weight: Tensor, transposed: bool, grid: Grid) -> Tensor:
    return _as_OI(rounded(_as_OI(weight, transposed), grid), transposed)


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
