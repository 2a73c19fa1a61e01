"""The decoder's graph, from the checkpoint's config: what mobius-onnx builds, filled with the checkpoint's weights by
our passes.

The graph is built without weights (seconds, and no memory to speak of), so that no float copy of an int8 matrix is
ever made; floats stay in the checkpoint's mapped files until the bundle is written. What of a config is refused or
corrected stands in `families.py`; a graph that could not run with the cache written in place is refused here.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from compress.checkpoints.folder import Checkpoint
from compress.checkpoints.layout import Layout
from compress.stage import StageError, first_line
from export.attention_facts import describe
from export.families import check_settings, corrections, graph_type, refusal
from export.row_tracking import GraphWeights, WeightError, read_weights

if TYPE_CHECKING:
    import onnx_ir as ir
    from transformers import PreTrainedModel

Provider = Literal["cpu", "cuda"]
DTYPES: dict[Provider, str] = {"cpu": "FLOAT", "cuda": "FLOAT16"}
HEAD_MULTIPLE = 8
"""GroupQueryAttention's head width must be a multiple of this."""
TASK = "text-generation"
"""mobius's name for a decoder that keeps keys and values of each layer, and nothing else."""
EXPERTS = 3
"""Dimensions of the weights of a mixture's experts."""


@dataclass(frozen=True, eq=False)
class Decoder:
    """A graph whose int8 weights are still to be placed, and what it was built from."""

    model: "ir.Model"
    weights: GraphWeights
    architecture: Any
    """mobius's own reading of the config: layers, heads, widths, context."""


def build_decoder(checkpoint: Checkpoint, provider: Provider) -> Decoder:
    """Build the graph of a checkpoint and open its weights.

    Raises:
        StageError: there is no right graph of this model, or the graph cannot take its weights.
    """
    folder, layout = checkpoint.folder, checkpoint.layout
    empty, settings = layout.model, layout.model.config
    check_settings(folder, settings)
    if any(weight.number == "int8" for weight in layout.taken):
        _check_experts(folder, empty)
    module, package = _build(folder, settings, provider)
    model, architecture = package["model"], package.config
    _check_architecture(folder, architecture)
    _check_graph(folder, settings.model_type, model.graph)
    model.meta.update(describe(empty))
    weights = _open_weights(module, layout)
    _check_shapes(folder, settings.model_type, model.graph, weights)
    return Decoder(model, weights, architecture)


def _build(folder: Path, settings: Any, provider: Provider) -> tuple[Any, Any]:
    """mobius's module, and the package with the graph that it built."""
    import mobius
    import onnx_ir as ir

    kind = graph_type(settings)
    if kind not in mobius.registry:
        raise refusal(folder, kind, "mobius-onnx has no graph of it")
    maker = mobius.registry.get(kind)
    task = mobius.registry.get_task(kind) or getattr(maker, "default_task", TASK)
    if task != TASK:
        raise refusal(folder, kind, f"expected a graph for {TASK!r}, mobius-onnx has one for {task!r}")
    try:
        reader = mobius.registry.get_config_class(kind) or getattr(maker, "config_class", mobius.ArchitectureConfig)
        architecture = reader.from_transformers(settings, parent_config=settings)
        changes = {"dtype": ir.DataType[DTYPES[provider]], **corrections(settings)}
        architecture = dataclasses.replace(architecture, **changes)
        module = maker(architecture)
        return module, mobius.build_from_module(module, architecture, task, execution_provider=provider)
    except Exception as error:  # mobius trips over what it does not know, in ways of its own
        raise refusal(folder, kind, f"mobius-onnx cannot build its graph ({first_line(error)})") from error


def _check_experts(folder: Path, empty: "PreTrainedModel") -> None:
    names = [name for name, parameter in empty.named_parameters() if parameter.ndim == EXPERTS]
    if names:
        reason = f"its experts are not int8, which `quantize` makes of two-dimensional weights only: {names[0]} ..."
        raise refusal(folder, empty.config.model_type, reason)


def _check_architecture(folder: Path, architecture: Any) -> None:
    if architecture.head_dim % HEAD_MULTIPLE:
        raise StageError(
            f"{folder}: expected a head width that is a multiple of {HEAD_MULTIPLE}, which ONNX Runtime's "
            f"GroupQueryAttention needs, got {architecture.head_dim}; choose another number of heads"
        )
    if architecture.max_position_embeddings <= 0:
        reason = "its config does not say how long its context is (`max_position_embeddings`)"
        raise refusal(folder, architecture.model_type, reason)


def _check_graph(folder: Path, kind: str, graph: "ir.Graph") -> None:
    """Each layer's caches must be read by its GroupQueryAttention alone, which writes them in place."""
    caches = [value for value in graph.inputs if (value.name or "").startswith("past_key_values.")]
    if not caches or "logits" not in {value.name for value in graph.outputs}:
        raise refusal(folder, kind, "its graph has no key-value cache, or gives no logits")
    for cache in caches:
        readers = [node.op_type for node, _ in cache.uses()]
        if readers != ["GroupQueryAttention"]:
            found = ", ".join(readers) or "nothing"
            raise refusal(folder, kind, f"expected GroupQueryAttention to read {cache.name}, got {found}")


def _open_weights(module: Any, layout: Layout) -> GraphWeights:
    from transformers.pytorch_utils import Conv1D

    conv1d = frozenset(name for name, part in layout.model.named_modules() if isinstance(part, Conv1D))
    try:
        return read_weights(layout, module, conv1d)
    except WeightError as error:
        raise StageError(f"{layout.folder}: {error}") from error
    except (ValueError, KeyError, TypeError, RuntimeError) as error:  # from mobius's renaming
        reason = f"mobius-onnx cannot place its weights ({first_line(error)})"
        raise refusal(layout.folder, layout.model.config.model_type, reason) from error


def _check_shapes(folder: Path, kind: str, graph: "ir.Graph", weights: GraphWeights) -> None:
    for name, tensor in weights.floats.items():
        place = graph.initializers.get(name)
        if place is not None and place.shape is not None and list(place.shape) != list(tensor.shape):
            reason = f"{name}: the graph expects {list(place.shape)}, the checkpoint has {list(tensor.shape)}"
            raise refusal(folder, kind, reason)
