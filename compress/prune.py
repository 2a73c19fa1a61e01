"""Pruning: set the least important weights of the block linears to exactly zero.

    sparsity  a share of the weights, chosen within each output row, within each layer, or over the whole model at once
    pattern   "N:M": at most N nonzero weights in every M consecutive inputs, the form that sparse tensor cores take

The result is the same architecture with zeros in it: it stores smaller, it does not run faster in ONNX Runtime, and
later training stages keep the zeros (see `training.keep_zeros`). One-shot magnitude pruning beyond about 30 % hurts a
small model badly: follow it with `distill`.
"""

from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator, model_validator

from compress.checkpoint import load_model, load_tokenizer, read_config, save_checkpoint
from compress.stage import Facts, Stage, StageConfig, StageError, StageInput

if TYPE_CHECKING:
    from torch import Tensor

    from compress.checkpoint import DType
    from compress.linears import BlockLinear


class PruneConfig(StageConfig):
    """Set the least important weights to zero."""

    sparsity: float | None = Field(default=None, gt=0, lt=1)
    """Share of each matrix's (or the model's) block weights to set to zero; or give `pattern`."""
    pattern: str | None = None
    """ "N:M": keep at most N of every M consecutive inputs, such as "2:4"; or give `sparsity`."""
    criterion: Literal["magnitude"] = "magnitude"
    """How a weight's importance is scored."""
    scope: Literal["row", "layer", "global"] = "layer"
    """Where `sparsity` is counted: each output row, each layer's matrix, or all of them together."""

    @field_validator("pattern", mode="before")
    @classmethod
    def _pattern(cls, value: object) -> object:
        parts = value.split(":") if isinstance(value, str) else []
        if value is None or (
            len(parts) == 2 and all(part.isdigit() for part in parts) and 0 < int(parts[0]) < int(parts[1])
        ):
            return value
        raise ValueError(f'expected "N:M" such as "2:4", got {value!r}')

    @model_validator(mode="after")
    def _one_amount(self) -> "PruneConfig":
        if (self.sparsity is None) == (self.pattern is None):
            raise ValueError("expected either `sparsity`, such as 0.5, or `pattern`, such as 2:4")
        return self


def run(config: PruneConfig, given: StageInput) -> Facts:
    """Leaves a dense checkpoint in the source's own precision, with zeros."""
    from compress.linears import block_linears

    assert given.source is not None
    model = load_model(given.source, dtype=_own_dtype(given))
    linears = list(block_linears(model))
    if not linears:
        raise StageError(
            f"prune: found no linear in the blocks of {model.config.model_type}, so nothing could be pruned"
        )
    masks = _masks(config, linears)
    tensors = {}
    with given.progress.task("prune", total=len(linears)) as task:
        for linear, mask_OI in zip(linears, masks, strict=True):
            linear.weight_OI().mul_(mask_OI)
            tensors[linear.name] = 1 - int(linear.parameter.count_nonzero()) / linear.parameter.numel()
            task.advance()
    total = sum(linear.parameter.numel() for linear in linears)
    zeros = total - sum(int(linear.parameter.count_nonzero()) for linear in linears)
    save_checkpoint(model, load_tokenizer(given.source), given.out, dtype=_own_dtype(given))
    return {
        "asked": config.sparsity or config.pattern,
        "sparsity": zeros / total,
        "zeros": zeros,
        "sparsity_per_tensor": tensors,
    }


def _masks(config: PruneConfig, linears: "list[BlockLinear]") -> "list[Tensor]":
    """One mask [out, in] per linear."""
    from compress.sparsify import CRITERIA

    scores = [CRITERIA[config.criterion](linear.weight_OI()) for linear in linears]
    if config.pattern is not None:
        return _pattern_masks(config.pattern, linears, scores)
    assert config.sparsity is not None
    return _share_masks(config.sparsity, config.scope, scores)


def _pattern_masks(pattern: str, linears: "list[BlockLinear]", scores: "list[Tensor]") -> "list[Tensor]":
    from compress.sparsify import keep_n_of_m

    n, m = map(int, pattern.split(":"))
    unfit = [
        f"{linear.name} ({score.shape[1]} inputs)"
        for linear, score in zip(linears, scores, strict=True)
        if score.shape[1] % m
    ]
    if unfit:
        raise StageError(
            f"prune: pattern {pattern}: the inputs of {', '.join(unfit[:3])} are no multiple of {m}; "
            "choose another pattern"
        )
    return [keep_n_of_m(score_OI, n, m) for score_OI in scores]


def _share_masks(sparsity: float, scope: str, scores: "list[Tensor]") -> "list[Tensor]":
    import torch

    from compress.sparsify import keep_share

    if scope == "layer":
        return [keep_share(score_OI, sparsity) for score_OI in scores]
    if scope == "row":
        return [torch.stack([keep_share(row, sparsity) for row in score_OI]) for score_OI in scores]
    mask = keep_share(torch.cat([score.flatten() for score in scores]), sparsity)
    parts = mask.split([score.numel() for score in scores])
    return [part.view(score.shape) for part, score in zip(parts, scores, strict=True)]


def _own_dtype(given: StageInput) -> "DType":
    assert given.source is not None
    config = read_config(given.source)
    own = config.get("dtype") or config.get("torch_dtype")
    return own if own in {"float16", "bfloat16"} else "float32"


PRUNE = Stage(
    kind="prune",
    summary="set the least important weights to zero: a share of them, or N of every M",
    version=1,
    config=PruneConfig,
    takes=frozenset({"dense"}),
    leaves="dense",
    run=run,
    libraries=("torch", "transformers"),
)
