"""A checkpoint's model, opened: as it runs, and in float32 whatever it is stored as; and the model without its weights.

A quantized matrix is multiplied out as it is read, one at a time. Memory that nobody has written to is not there yet,
so a model of `empty_model` takes no room until its weights are filled in.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import safe_open

from compress.checkpoints.folder import DType, check_loading, load_pretrained, read_config, weight_files
from compress.checkpoints.quantized_matrix import ENTRIES, read_quantized_matrices

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def load_model(folder: Path, *, dtype: DType = "float32") -> "PreTrainedModel":
    """The checkpoint's model in evaluation mode on the CPU. An int8 one runs through bitsandbytes in its format, and
    multiplied out in compressed-tensors'.

    Raises:
        CheckpointError: the weights do not fit the architecture: some missing, some left over, or of another shape.
    """
    settings = read_config(folder).get("quantization_config") or {}
    if settings.get("quant_method") != "compressed-tensors":
        return load_pretrained(folder, dtype=dtype)
    import torch

    model = load_float_model(folder)
    model.to(getattr(torch, dtype))
    return model


def load_float_model(folder: Path) -> "PreTrainedModel":
    """The checkpoint's model in float32, its int8 matrices multiplied out: the weights that an export must reproduce.

    Raises:
        CheckpointError: as `load_model`.
    """
    config = read_config(folder)
    if "quantization_config" not in config:
        return load_pretrained(folder, dtype="float32")
    import torch

    model = empty_model(folder)
    held = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    missing, unexpected, mismatched = set(dict(model.named_parameters())), set[str](), set[str]()
    with torch.no_grad():
        for name, tensor in float_tensors(folder, model):
            if name not in held:
                unexpected.add(name)
            elif held[name].shape != tensor.shape:
                mismatched.add(name)
            else:
                held[name].copy_(tensor)
            missing.discard(name)
    missing -= set(model.all_tied_weights_keys)
    check_loading(folder, {"missing_keys": missing, "unexpected_keys": unexpected, "mismatched_keys": mismatched})
    if (folder / "generation_config.json").is_file():  # tokens that end a text may stand there alone
        from transformers import GenerationConfig

        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    model.eval()
    return model


def empty_model(folder: Path) -> "PreTrainedModel":
    """The checkpoint's architecture in float32, in evaluation mode, its weights not filled in (its buffers are)."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    shape = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if hasattr(shape, "quantization_config"):
        del shape.quantization_config
    with no_init_weights():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(shape, dtype=torch.float32)
    model.tie_weights()
    model.eval()
    return model


def float_tensors(folder: Path, model: "PreTrainedModel") -> "Iterator[tuple[str, torch.Tensor]]":
    """Tensors by name as a float model of the same architecture holds them, one after the other."""
    import torch
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, apply_renamings
    from transformers.pytorch_utils import Conv1D

    # what transformers renames as it loads: GPT-NeoX's head is stored as `embed_out`
    renamings = [step for step in get_model_conversion_mapping(model) if isinstance(step, WeightRenaming)]
    matrices = read_quantized_matrices(folder)
    skip = {f"{name}.weight" for name in matrices}
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (a safetensors handle is not iterable)
                if name not in skip and not name.endswith(ENTRIES):
                    yield apply_renamings(name, renamings), tensors.get_tensor(name)
    while matrices:
        name = next(iter(matrices))
        matrix = matrices.pop(name)
        weight_OI = torch.from_numpy(matrix.dequantize())
        yield f"{name}.weight", weight_OI.T if isinstance(model.get_submodule(name), Conv1D) else weight_OI
