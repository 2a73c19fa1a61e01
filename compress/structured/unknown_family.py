"""The table of a family that `families.py` does not know, found on tiny models of it, and proven before it is used.

    trace    in a tiny model, what goes with one channel, one neuron, one head (`dependency_graph.py`); the axis of a
             dimension is the one on which the unit lies where the trace found it
    shapes   a tiny model whose config says other sizes has exactly the dimensions that the axes say
    masking  a tiny model without half of the units computes what it computes with them at zero (`masking.py`)

A size for which one of the three fails is frozen, with the reason: the model can be slimmed in the others. Where none
is left, or nothing can be traced, the family is refused. The real model's parameters are then held to the table like
those of any family.

Heads are traced in a model of several, and where that fails in a model of one: torch-pruning takes a part of a head
that is cut off for a part of all heads together. One head does not tell how heads lie side by side; masks do.

Sources: DepGraph (arXiv 2301.12900) for the trace; the layouts are those of `families.py`.

Not covered: packed layouts that `families.py` has no axis for, such as one key-value head beside all queries; sizes
that no key of the config says; experts, whose weights transformers packs as it loads them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from torch import nn

from compress.models.block_linears import block_list
from compress.models.families import FAMILIES, Axis, Family, Shape, Size, check_family, size_in, split_name
from compress.stage import StageError, first_line
from compress.structured.dependency_graph import DependencyGraph
from compress.structured.extraction import KeptUnits, positions
from compress.structured.masking import cut_equals_masked, without_layers_equals_passed_by
from compress.structured.tiny_model import (
    HEADS,
    config_keys,
    empty_tiny_model,
    layers_of_each_kind,
    logits_of,
    norms_of,
    plainly_rotated,
    square_shape,
    tiny_config,
    tiny_model,
)

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

NEURON, CHANNEL = 5, 7
"""The units that are traced; of heads it is the last one."""
LIES_ON: dict[Size, tuple[Axis, ...]] = {
    "hidden": ("hidden",),
    "ffn": ("ffn", "gated"),
    "heads": ("query", "key_value", "stacked", "interleaved"),
}
"""The axes on which the units of a size may lie."""
TOGETHER: dict[Size, Size] = {"heads": "hidden", "hidden": "heads"}
"""Sizes of which neither changes alone where a head is hidden / heads wide."""
UNIT_NAMES: dict[Size, str] = {"ffn": "neurons", "heads": "heads", "hidden": "channels"}
NOT_ZERO = (
    "something beside linears and norms depends on the number of {}: without some it is not the model that it is "
    "with those at zero"
)
HIDDEN = 90
"""Another hidden width than a tiny model's heads have together, and a multiple of their number."""
INDIVISIBLE = 89
MORE_HEADS = 6
MORE_NEURONS = 103


def family_of(config: "PreTrainedConfig", names: Sequence[str]) -> Family:
    """The family of a model with these parameters: out of the table, or found on tiny models.

    Raises:
        StageError: nothing can be slimmed in this family, a setting is not covered, or a parameter is in no table.
    """
    family = FAMILIES.get(config.model_type) or unknown_family(config)
    check_family(family, config, names)
    return family


def unknown_family(config: "PreTrainedConfig") -> Family:
    """The table of a family by its config alone.

    Raises:
        StageError: its forward pass cannot be traced, or no size of it can change; every reason is named.
    """
    try:
        return _Derivation(config).family()
    except StageError as error:
        raise StageError(
            f"slim: model_type: {config.model_type!r} is not one of {', '.join(sorted(FAMILIES))}, and {error}; choose "
            "another model"
        ) from error


@dataclass
class _Axes:
    """What the trace says of each parameter, and of which sizes it says what no axis has."""

    found: dict[str, list[Axis]] = field(default_factory=dict)
    """By the parameter's name, within its block if it is a block's."""
    frozen: dict[Size, str] = field(default_factory=dict)

    def freeze(self, size: Size, reason: str) -> None:
        """Note the first reason for which a size cannot change."""
        self.frozen.setdefault(size, reason)


class _Derivation:
    """The table of one config, as it is found."""

    def __init__(self, config: "PreTrainedConfig") -> None:
        self.config = config
        if size_in(config.to_dict(), "experts") > 1:
            raise StageError("it is a mixture of experts, which no axis here describes")
        self.keys = config_keys(config)
        self.head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
        self.layers = layers_of_each_kind(config)
        self.draft = Family(
            blocks="",
            inside={},
            outside={},
            keys=self.keys,
            attention_output="",
            ffn_output="",
            norms=(),
            final_norm="",
            square=True,
        )
        self.axes = _Axes()

    def family(self) -> Family:
        """Trace, hold to shapes, hold to masks."""
        self._trace(HEADS)
        if (
            "heads" in self.axes.frozen
        ):  # where a part of a head is cut off, torch-pruning takes it for a part of all heads
            self._trace(heads=1)
        self._hold_to_shapes()
        family = self._proven()
        if set(family.frozen) >= {"layers", "hidden", "heads", "ffn"}:
            reasons = "; ".join(f"{size}: {reason}" for size, reason in family.frozen.items())
            raise StageError(f"none of its sizes can change ({reasons})")
        return family

    def _config(self, shape: Shape, *, square: bool, layers: Sequence[int] | None = None) -> "PreTrainedConfig":
        layers = self.layers if layers is None else layers
        return tiny_config(self.config, replace(self.draft, square=square), shape, layers)

    # --- trace

    def _trace(self, heads: int) -> None:
        """What goes with one unit of each size, in a tiny model of so many heads."""
        shape = square_shape(len(self.layers), self.head_dim, heads)
        try:
            model = tiny_model(plainly_rotated(self._config(shape, square=True), self.head_dim))
            logits_of(model)
        except Exception as error:  # whatever an architecture says of sizes that it does not take
            raise StageError(f"no tiny model of it runs ({first_line(error)})") from error
        graph = DependencyGraph(model)
        self.draft = replace(self.draft, blocks=block_list(model)[0])
        self.sizes = {self._canonical(name): tuple(parameter.shape) for name, parameter in model.named_parameters()}
        self.axes = _Axes({name: ["fixed"] * len(sizes) for name, sizes in self.sizes.items()})
        self._note("hidden", graph, model.get_input_embeddings(), [CHANNEL], shape)
        head = range((heads - 1) * self.head_dim, heads * self.head_dim)
        for name, module in block_list(model)[1].named_modules(prefix=self.draft.blocks):
            if isinstance(module, nn.Linear) and self.axes.found[self._canonical(f"{name}.weight")][0] == "fixed":
                if module.out_features in {shape.ffn, 2 * shape.ffn}:
                    self._note("ffn", graph, module, [NEURON], shape)
                elif module.out_features % self.head_dim == 0:
                    self._note("heads", graph, module, head, shape)

    def _canonical(self, name: str) -> str:
        return split_name(self.draft, name)[1] if name.startswith(f"{self.draft.blocks}.") else name

    def _note(self, size: Size, graph: DependencyGraph, layer: nn.Module, outputs: Sequence[int], shape: Shape) -> None:
        """Give every dimension that goes with these outputs its axis."""
        try:
            cells = graph.group(layer, outputs)
        except StageError as error:
            self.axes.freeze(size, str(error))
            return
        for (full, dimension), indices in cells.items():
            name = self._canonical(full)
            length, noted = self.sizes[name][dimension], self.axes.found[name]
            unit = KeptUnits([shape.heads - 1], [shape.kv_heads - 1], [NEURON])
            fitting = (
                axis
                for axis in LIES_ON[size]
                if shape.width(axis) == length and set(positions(axis, unit, [CHANNEL], shape).tolist()) == indices
            )
            axis = next(fitting, None)
            if axis is None or noted[dimension] not in {"fixed", axis}:
                self.axes.freeze(size, f"the trace finds a part of {name} with one unit that no layout known here has")
            else:
                noted[dimension] = axis

    # --- shapes

    def _hold_to_shapes(self) -> None:
        """Find out which sizes a config can say, so that all that lies on their axes follows, and nothing else."""
        base = square_shape(len(self.layers), self.head_dim)
        model = empty_tiny_model(self._config(base, square=True))
        self.sizes = {self._canonical(name): tuple(parameter.shape) for name, parameter in model.named_parameters()}
        heads = replace(base, heads=MORE_HEADS, kv_heads=self._key_values(MORE_HEADS))
        if "ffn" not in self.keys:
            self.axes.freeze("ffn", "no key of its config says it")
        else:
            self._hold("ffn", replace(base, ffn=MORE_NEURONS), square=True)
        unlike = {"heads": self._unlike(heads, square=False)}
        for name, width in (("indivisible", INDIVISIBLE), ("hidden", HIDDEN)):
            unlike[name] = self._unlike(replace(base, hidden=width), square=False)
        if None in unlike.values():
            self.draft = replace(self.draft, square=False, divides=unlike["indivisible"] is not None)
            for size in ("heads", "hidden"):
                self._freeze_if(size, unlike[size])
        else:
            heads = replace(heads, hidden=MORE_HEADS * self.head_dim)
            self._freeze_both_if_square()
            self._hold("heads", heads, square=True)
            self._hold("hidden", heads, square=True)
        if "heads" not in self.axes.frozen:
            self._tell_key_values(heads)

    def _key_values(self, heads: int) -> int:
        """Key-value heads for so many heads, grouped as the real model's are, but never two heads to each."""
        real = getattr(self.config, self.keys["kv_heads"]) if "kv_heads" in self.keys else None
        if not real or real == self.config.num_attention_heads:
            return heads
        return 1 if real == 1 else heads // 3

    def _hold(self, size: Size, shape: Shape, *, square: bool) -> None:
        self._freeze_if(size, self._unlike(shape, square=square))

    def _freeze_if(self, size: Size, reason: str | None) -> None:
        if reason is not None:
            self.axes.freeze(size, reason)

    def _freeze_both_if_square(self) -> None:
        if self.draft.square:
            for size, other in TOGETHER.items():
                if other in self.axes.frozen:
                    self.axes.freeze(size, f"it goes with {other}: {self.axes.frozen[other]}")

    def _unlike(self, shape: Shape, *, square: bool) -> str | None:
        """What of a model of another shape is not as the axes say; None where all of it is."""
        try:
            model = empty_tiny_model(self._config(shape, square=square))
        except Exception as error:  # whatever an architecture says of sizes that it does not take
            return f"its config takes no such sizes ({first_line(error)})"
        for full, parameter in model.named_parameters():
            name = self._canonical(full)
            for dimension, length in enumerate(parameter.shape):
                axis = self.axes.found[name][dimension] if name in self.axes.found else "fixed"
                widths = {self.sizes.get(name, parameter.shape)[dimension] if axis == "fixed" else shape.width(axis)}
                if axis == "query":  # or keys' and values', which are alike where each head has its own
                    widths.add(shape.width("key_value"))
                if length not in widths:
                    return f"{name} becomes {list(parameter.shape)}, which the trace does not explain"
        return None

    def _tell_key_values(self, shape: Shape) -> None:
        model = empty_tiny_model(self._config(shape, square=self.draft.square))
        for full, parameter in model.named_parameters():
            axes = self.axes.found[self._canonical(full)]
            for dimension, length in enumerate(parameter.shape):
                if axes[dimension] == "query" and length != shape.width("query"):
                    axes[dimension] = "key_value"

    # --- masks

    def _table(self, model: "PreTrainedModel") -> Family:
        """The table as far as it is known, with the linears and norms that slimming looks at."""
        prefix = f"{self.draft.blocks}."
        block = block_list(model)[1][0]
        inside = {name: axes for name, axes in self.axes.found.items() if name not in dict(model.named_parameters())}
        linears = [name for name, module in block.named_modules() if isinstance(module, nn.Linear)]
        fed_by: dict[Size, Axis] = {"heads": "query", "ffn": "ffn"}
        outputs = {
            size: [name for name in linears if inside[f"{name}.weight"][1] == axis] for size, axis in fed_by.items()
        }
        for size, names in outputs.items():
            if len(names) != 1:
                self.axes.freeze(size, f"expected one linear in a block that is fed its units, found {len(names)}")
        self._freeze_both_if_square()
        norms = norms_of(model)
        final = [name for name in norms if not name.startswith(prefix)]
        if not final:
            raise StageError("it has no norm after its last block")
        return replace(
            self.draft,
            inside={name: tuple(axes) for name, axes in inside.items()},
            outside={name: tuple(axes) for name, axes in self.axes.found.items() if name not in inside},
            attention_output=outputs["heads"][0] if "heads" not in self.axes.frozen else "",
            ffn_output=outputs["ffn"][0] if "ffn" not in self.axes.frozen else "",
            norms=tuple(dict.fromkeys(self._canonical(name) for name in norms if name.startswith(prefix))),
            final_norm=final[-1],
            frozen=self.axes.frozen,
        )

    def _shape(self, layers: int) -> Shape:
        """A shape with every size that can change other than in the trace."""
        shape = square_shape(layers, self.head_dim)
        if "heads" not in self.axes.frozen:
            shape = replace(shape, heads=MORE_HEADS, kv_heads=self._key_values(MORE_HEADS))
        if self.draft.square:
            return replace(shape, hidden=shape.heads * self.head_dim)
        return shape if "hidden" in self.axes.frozen else replace(shape, hidden=HIDDEN)

    def _proven(self) -> Family:
        """The table, with what the masks refute frozen."""
        shape = self._shape(len(self.layers))
        model = tiny_model(self._config(shape, square=self.draft.square))
        family = _without_frozen(self._table(model))
        for size in ("ffn", "heads") if self.draft.square else ("ffn", "heads", "hidden"):
            if size not in family.frozen and not cut_equals_masked(model, family, shape, size):
                self.axes.freeze(size, NOT_ZERO.format(UNIT_NAMES[size]))
        self._freeze_both_if_square()
        depth = self.config.num_hidden_layers
        whole = square_shape(depth, self.head_dim)
        deep = tiny_model(self._config(whole, square=True, layers=range(depth)))
        if not without_layers_equals_passed_by(deep, replace(family, square=True), whole):
            self.axes.freeze("layers", NOT_ZERO.format("layers"))
        return _without_frozen(replace(family, frozen=self.axes.frozen))


def _without_frozen(family: Family) -> Family:
    """The same table, in which dimensions on the axes of frozen sizes are fixed."""
    frozen = {axis for size in family.frozen for axis in LIES_ON.get(size, ())}

    def fixed(axes: Sequence[Axis]) -> tuple[Axis, ...]:
        return tuple("fixed" if axis in frozen else axis for axis in axes)

    return replace(
        family,
        inside={name: fixed(axes) for name, axes in family.inside.items()},
        outside={name: fixed(axes) for name, axes in family.outside.items()},
        attention_output="" if "heads" in family.frozen else family.attention_output,
        ffn_output="" if "ffn" in family.frozen else family.ffn_output,
    )
