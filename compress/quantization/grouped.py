"""int8 with a scale for each group of a row's columns: closer than one per row, for 4 bytes a group more.

    W [out, in]  ->  codes int8 [out, in], scales float32 [out, in / group]

The result is a Hugging Face folder in compressed-tensors' pack-quantized format, which plain transformers loads with
that library. `embeddings` rounds the token embedding row by row, as scheme `int8` does.

Not covered: matrices that are no nn.Linear, which that format does not know (GPT-2's Conv1D).
"""

from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from torch import nn
from transformers import PreTrainedModel

from compress.checkpoints.compressed_tensors import CODES, SCALES, SHAPE, pack, settings_of
from compress.checkpoints.folder import load_tokenizer
from compress.checkpoints.loading import load_model
from compress.checkpoints.quantized_matrix import quantize_groups
from compress.models.block_linears import block_linears
from compress.quantization.config import QuantizeConfig
from compress.quantization.stage import round_embeddings
from compress.stage import StageError, StageInput, StageMetadata


def int8_group(config: QuantizeConfig, given: StageInput) -> StageMetadata:
    """Leaves a checkpoint in compressed-tensors' format.

    Raises:
        StageError: a block linear cannot be held in it.
    """
    assert given.source is not None
    model = load_model(given.source)
    linears = {linear.name: linear for linear in block_linears(model)}
    _check(model, config, linears)
    tensors = dict(model.state_dict())
    with given.progress.task("quantize", total=len(linears) + 1) as task:
        embeddings = round_embeddings(model, given.out) if config.embeddings else None
        for name, linear in linears.items():
            matrix = quantize_groups(linear.weight_OI().float().numpy(), config.group)
            del tensors[f"{name}.weight"]
            tensors[name + CODES] = torch.from_numpy(pack(matrix.codes_OI))
            tensors[name + SCALES] = torch.from_numpy(matrix.scale_OG)
            tensors[name + SHAPE] = torch.tensor(matrix.codes_OI.shape)
            task.advance()
        tied = list(getattr(model, "all_tied_weights_keys", None) or ())
        save_torch_state_dict(tensors, given.out, shared_tensors_to_discard=tied)
        others = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        settings: dict[str, Any] = settings_of(config.group, [name for name in others if name not in linears])
        model.config.quantization_config = settings
        model.config.save_pretrained(given.out)
        if model.generation_config is not None:
            model.generation_config.save_pretrained(given.out)
        load_tokenizer(given.source).save_pretrained(given.out)
        task.advance()
    return {
        "scheme": config.scheme,
        "group": config.group,
        "int8_linears": len(linears),
        "int8_embeddings": embeddings,
    }


def _check(model: PreTrainedModel, config: QuantizeConfig, linears: dict[str, Any]) -> None:
    transposed = [name for name, linear in linears.items() if linear.transposed]
    if transposed:
        raise StageError(
            f"quantize: int8_group: {model.config.model_type} holds {transposed[0]} as Conv1D, which "
            "compressed-tensors does not know; choose scheme int8"
        )
    unfit = [name for name, linear in linears.items() if linear.parameter.shape[1] % config.group]
    if unfit:
        raise StageError(
            f"quantize: int8_group: the columns of {unfit[0]} ({linears[unfit[0]].parameter.shape[1]}) are no multiple "
            f"of {config.group}; choose another group"
        )
