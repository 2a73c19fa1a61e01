"""A checkpoint's model, opened: as it runs, and in float32 whatever it is stored as; and the model without its weights.

Every model is one that transformers has loaded. Where a format's library runs it with rounded activations, or is not
here, its matrices are multiplied out: bitsandbytes' by that library, all others' before transformers loads them under
the names that they had as floats. So a reference never rests on our own reading of names, ties or buffers.
"""

from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.checkpoints.config import CheckpointError, in_one_line
from compress.checkpoints.folder import Checkpoint, DType, load_pretrained, no_bars
from compress.checkpoints.layout import OPENING, Layout, check_loading, read_tensor
from compress.checkpoints.one_at_a_time import one_at_a_time

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@one_at_a_time
def load_model(folder: Path, *, dtype: DType = "float32") -> "PreTrainedModel":
    """The checkpoint's model in evaluation mode on the CPU. One of bitsandbytes runs through that library, any other
    quantized one multiplied out.

    Raises:
        CheckpointError: the weights do not fit the architecture: some missing, some left over, or of another shape.
    """
    return _opened(Checkpoint(folder), dtype)


@one_at_a_time
def load_float_model(checkpoint: Checkpoint) -> "PreTrainedModel":
    """The checkpoint's model in float32, quantized matrices multiplied out: the weights that an export must reproduce.

    Raises:
        CheckpointError: as `load_model`.
    """
    model = _opened(checkpoint, "float32")
    if checkpoint.quantization is not None and checkpoint.quantization.library is not None:
        _dequantize(model)
    return model


def _opened(checkpoint: Checkpoint, dtype: DType) -> "PreTrainedModel":
    if checkpoint.quantization is None or checkpoint.quantization.library is not None:
        return load_pretrained(checkpoint, dtype=dtype)
    return _multiplied_out(checkpoint, dtype)


def _dequantize(model: "PreTrainedModel") -> None:
    """Every linear of bitsandbytes becomes the float one that its library says it stands for."""
    import torch
    from bitsandbytes.nn.modules import Linear8bitLt
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight

    for name, module in list(model.named_modules()):
        if isinstance(module, Linear8bitLt):
            with torch.device("meta"):
                linear = torch.nn.Linear(module.in_features, module.out_features, bias=False)
            linear.weight = torch.nn.Parameter(dequantize_bnb_weight(module.weight, module.state).float())
            linear.bias = module.bias
            model.set_submodule(name, linear)


def _multiplied_out(checkpoint: Checkpoint, dtype: DType) -> "PreTrainedModel":
    """A quantized checkpoint as transformers loads its floats."""
    import torch

    folder, layout = checkpoint.folder, checkpoint.layout
    config: Any = deepcopy(layout.model.config)
    try:
        with no_bars(), OPENING:
            model, report = type(layout.model).from_pretrained(
                None,
                config=config,
                state_dict=_floats(layout),
                dtype=getattr(torch, dtype),
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"{folder}: the model cannot be loaded ({in_one_line(error)})") from error
    check_loading(folder, {**report, "unexpected_keys": ()})
    if (folder / "generation_config.json").is_file():  # tokens that end a text may stand there alone
        from transformers import GenerationConfig

        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model.eval()


def _floats(layout: Layout) -> "dict[str, torch.Tensor]":
    """Every weight by the file's name of it, the coded ones multiplied out, [in, out] where the model holds them so."""
    import torch
    from transformers.pytorch_utils import Conv1D

    floats = {weight.stored.name: read_tensor(weight.stored) for weight in layout.taken if weight.number == "float"}
    matrices = dict(layout.matrices())
    homes = {weight.matrix: weight.name.removesuffix(".weight") for weight in layout.taken if weight.matrix}
    for name, home in homes.items():  # a rounded embedding is there as floats
        weight_OI = torch.from_numpy(matrices.pop(name).dequantize())
        turned = isinstance(layout.model.get_submodule(home), Conv1D)
        floats[f"{name}.weight"] = weight_OI.T.contiguous() if turned else weight_OI
    return floats


@one_at_a_time
def empty_model(folder: Path) -> "PreTrainedModel":
    """The checkpoint's architecture in float32, in evaluation mode, its weights not filled in (its buffers are)."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    config = deepcopy(Checkpoint(folder).layout.model.config)
    with OPENING, no_init_weights():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.tie_weights()
    return model.eval()
