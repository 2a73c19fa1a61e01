"""What pruning is to touch and how much of each: the knobs, resolved against a model's own tensors.

    block linears   those that the globs of `linears` name, each with the sparsity that `layers` gives it, or else the
                    one of its block (a sensitivity's share), or else the one for all
    extras          further matrices, such as the embedding, that the globs of `include` name

Every glob must match something, and every pattern must fit: both are known before any weight is read.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from compress.models.block_linears import block_linears
from compress.pruning.config import PruneConfig
from compress.pruning.sparsity import Amount
from compress.stage import StageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


SHOWN = 4


@dataclass(frozen=True)
class Target:
    """One matrix that is to lose weights."""

    name: str
    """Of the parameter, such as "model.layers.3.mlp.up_proj.weight"."""
    transposed: bool
    """Whether it is held as [in, out]."""
    amount: Amount

    @property
    def linear(self) -> str:
        """Name of the module that holds it."""
        return self.name.removesuffix(".weight")


def block_targets(config: PruneConfig, model: "PreTrainedModel", share: Mapping[str, float]) -> dict[str, Target]:
    """The block linears to prune, by the linear's name, in the model's order.

    Args:
        share: block's name -> its sparsity; empty where one holds for all.

    Raises:
        StageError: there is none, or a knob does not fit the model.
    """

    linears = {linear.name: linear for linear in block_linears(model)}
    if not linears:
        raise StageError(
            f"prune: found no linear in the blocks of {model.config.model_type}, so nothing could be pruned"
        )
    named = {name for glob in config.linears for name in _matches("linears", glob, linears)}
    parts = {name: part for block, part in share.items() for name in linears if name.startswith(f"{block}.")}
    parts |= {name: part for glob, part in config.layers.items() for name in _matches("layers", glob, linears)}
    targets = {}
    for name, linear in linears.items():
        amount = replace(config.amount(), sparsity=parts[name]) if name in parts else config.amount()
        if name in named and amount.sparsity != 0:
            targets[name] = Target(f"{name}.weight", linear.transposed, amount)
    if not targets:
        raise StageError("prune: `layers` sets every linear's sparsity to 0, so nothing would be pruned; raise one")
    _check_pattern(targets.values(), model)
    return targets


def extra_targets(config: PruneConfig, model: "PreTrainedModel") -> list[Target]:
    """The further matrices that `include` names, each counted on its own.

    Raises:
        StageError: a glob names none, or the pattern does not fit.
    """

    inside = {f"{linear.name}.weight" for linear in block_linears(model)}
    others = {
        name: parameter for name, parameter in model.named_parameters() if parameter.ndim == 2 and name not in inside
    }
    named = dict.fromkeys(name for glob in config.include for name in _matches("include", glob, others))
    amount = config.amount()
    if amount.scope == "global":
        amount = replace(amount, scope="layer")
    targets = [Target(name, False, amount) for name in named]
    _check_pattern(targets, model)
    return targets


def _matches(knob: str, glob: str, names: Iterable[str]) -> list[str]:
    found = [name for name in names if fnmatchcase(name, glob)]
    if not found:
        choices = list(names)
        shown = ", ".join(choices[:SHOWN]) + (f" and {len(choices) - SHOWN} more" if len(choices) > SHOWN else "")
        raise StageError(f"prune: {knob}: {glob!r} matches nothing; there are: {shown or 'none'}")
    return found


def _check_pattern(targets: Iterable[Target], model: "PreTrainedModel") -> None:
    unfit = []
    for target in targets:
        shape = model.get_parameter(target.name).shape
        inputs = shape[0] if target.transposed else shape[1]
        if target.amount.pattern is not None and inputs % target.amount.pattern[1]:
            unfit.append((target, inputs))
    if unfit:
        shown = ", ".join(f"{target.linear} ({inputs} inputs)" for target, inputs in unfit[:SHOWN])
        n, m = unfit[0][0].amount.pattern or (0, 0)
        raise StageError(
            f"prune: pattern {n}:{m}: the inputs of {shown} are no multiple of {m}; choose another pattern, "
            "or leave these out with `linears`"
        )
