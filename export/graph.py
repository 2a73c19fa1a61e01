"""The decoder's graph, from the checkpoint's config: what mobius-onnx builds, filled with the checkpoint's weights by
our passes.

The graph is built without weights (seconds, and no memory to speak of), so that no float copy of an int8 matrix is
ever made; floats stay in the checkpoint's mapped files until the bundle is written.
"""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from compress.checkpoint import read_config, weight_files
from compress.stage import StageError
from export.weights import GraphWeights, WeightError, read_weights

if TYPE_CHECKING:
    import onnx_ir as ir

Provider = Literal["cpu", "cuda"]
DTYPES: dict[Provider, str] = {"cpu": "f32", "cuda": "f16"}
HEAD_MULTIPLE = 8
"""GroupQueryAttention's head width must be a multiple of this."""


@dataclass(frozen=True, eq=False)
class Decoder:
    """A graph whose int8 weights are still to be placed, and what it was built from."""

    model: "ir.Model"
    weights: GraphWeights
    architecture: Any
    """mobius's own reading of the config: layers, heads, widths, context."""


def build_decoder(folder: Path, provider: Provider) -> Decoder:
    """Build the graph of the checkpoint in `folder` and open its weights.

    Raises:
        StageError: mobius-onnx does not know the architecture, or its graph cannot take the weights.
    """
    import mobius

    config = read_config(folder)
    try:
        package = _build(config, provider)
    except (KeyError, ValueError, NotImplementedError) as error:
        raise StageError(f"{folder}: model type {config['model_type']!r} cannot be exported ({error})") from error
    if list(package) != ["model"]:
        raise StageError(f"{folder}: expected a decoder in one graph, got the parts {', '.join(package)}")
    architecture = package.config
    _check_architecture(folder, architecture)
    module = mobius.registry.get(config["model_type"])(architecture)
    try:
        weights = read_weights(
            folder, weight_files(folder), module, _conv1d_modules(config), tied=bool(architecture.tie_word_embeddings)
        )
    except WeightError as error:
        raise StageError(f"{folder}: {error}") from error
    return Decoder(package["model"], weights, architecture)


def _build(config: dict[str, Any], provider: Provider) -> Any:
    """mobius reads a folder; it gets one that holds the config alone, as if nothing had been quantized."""
    import mobius

    plain = {key: value for key, value in config.items() if key != "quantization_config"}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(plain), encoding="utf-8")
        return mobius.build(folder, execution_provider=provider, dtype=DTYPES[provider], load_weights=False)


def _check_architecture(folder: Path, architecture: Any) -> None:
    if architecture.head_dim % HEAD_MULTIPLE:
        raise StageError(
            f"{folder}: expected a head width that is a multiple of {HEAD_MULTIPLE}, which ONNX Runtime's "
            f"GroupQueryAttention needs, got {architecture.head_dim}; choose another number of heads"
        )


def _conv1d_modules(config: dict[str, Any]) -> frozenset[str]:
    """Names of the modules that hold their matrix as [in, out], found on a model without memory."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    plain = {key: value for key, value in config.items() if key not in {"quantization_config", "model_type"}}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **plain))
    return frozenset(name for name, module in model.named_modules() if isinstance(module, Conv1D))
