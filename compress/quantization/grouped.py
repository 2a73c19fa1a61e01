"""Codes of 8 or 4 bits with a scale for each group of a row's columns, in compressed-tensors' pack-quantized format; in
GPTQ's where a family holds its linears as Conv1D (GPT-2), which compressed-tensors does not know.

    W [out, in]  ->  codes [out, in], scales float32 [out, in / group]

One block of the model is in memory at a time, with the calibration text flowing through it where the method reads any:
every linear is rounded as its input arrives, so that later ones see what they will be fed. Every other tensor stays as
it was. Plain transformers loads the folder with the library compressed-tensors or GPTQModel, and so does vLLM.
`embeddings` rounds the token embedding to 8 bits in the same groups.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import save_torch_state_dict
from numpy.typing import NDArray
from torch import Tensor, nn

from compress.checkpoints import compressed_tensors, gptq
from compress.checkpoints.config import CONFIG, GENERATION
from compress.checkpoints.folder import Checkpoint
from compress.checkpoints.layout import read_tensor
from compress.checkpoints.quantized_matrix import QuantizedMatrix
from compress.models.block_linears import BlockLinear, block_linears
from compress.models.calibration import Inputs, rows_of_stage
from compress.models.layerwise import BlockWalk, layerwise_pass
from compress.quantization.allocation import bits_within, costs
from compress.quantization.config import ROUNDING, QuantizeConfig
from compress.quantization.stage import round_table
from compress.stage import StageInput, StageMetadata


def run(config: QuantizeConfig, given: StageInput) -> StageMetadata:
    """Leaves a checkpoint in the format that can hold its linears.

    Raises:
        StageError: a block linear cannot be held in it, or `bits` names none.
    """
    assert given.source is not None
    method = ROUNDING[config.method]
    ids_NT = rows_of_stage("quantize", given, config.rows, config.length) if config.reads_text() else None
    walk = BlockWalk(given.source, None if method.reads == "nothing" else ids_NT)
    linears = list(block_linears(walk.model))
    width = walk.model.get_input_embeddings().weight.shape[1] if config.embeddings else None
    config.check_columns(linears, width)
    bits, cost = _bits(config, given, linears, ids_NT)
    format = gptq if any(linear.transposed for linear in linears) else compressed_tensors
    found = dict[str, Tensor]()

    def round_linear(linear: BlockLinear, inputs: Inputs) -> None:
        matrix: QuantizedMatrix = method.run(linear.weight_OI(), inputs, config.group, bits[linear.name])
        linear.weight_OI().copy_(torch.from_numpy(matrix.dequantize()))
        for end, values in format.tensors_of(matrix).items():
            found[linear.name + end] = torch.from_numpy(values)

    with given.progress.task("quantize", total=len(walk)) as task, torch.inference_mode():
        layerwise_pass(walk, method.reads, bits, round_linear, "quantize", task)
    embeddings = _write(walk, config, given.source, given.out, found, bits, format.settings_of)
    names = {width: [name for name, own in bits.items() if own == width] for width in sorted(set(bits.values()))}
    return {
        "scheme": config.scheme,
        "method": config.method,
        "group": config.group,
        **{f"int{width}_linears": len(own) for width, own in names.items()},
        "int8_embeddings": embeddings,
        **({} if ids_NT is None else {"calibration_tokens": ids_NT.size}),
        **({} if cost is None else {"cost_of_4_bits": cost}),
    }


def _bits(
    config: QuantizeConfig, given: StageInput, linears: list[BlockLinear], ids_NT: NDArray[np.int64] | None
) -> tuple[dict[str, int], dict[str, float] | None]:
    """The bits of each linear, and the nats per token that 4 would cost where that decides."""
    sizes = {linear.name: linear.parameter.numel() for linear in linears}
    if config.average_bits is None:
        return config.bits_of(list(sizes)), None
    assert given.source is not None
    assert ids_NT is not None
    cost = costs(given.source, ids_NT, config.group, given.seed, given.progress)
    return bits_within(config.average_bits, cost, sizes), cost


def _write(
    walk: BlockWalk,
    config: QuantizeConfig,
    source: Path,
    out: Path,
    found: dict[str, Tensor],
    bits: dict[str, int],
    settings_of: Callable[..., dict[str, Any]],
) -> str | None:
    """Write the checkpoint; the name of the embedding that was rounded."""
    checkpoint = Checkpoint(source)
    layout = checkpoint.layout
    written = {weight.name.removesuffix(".weight"): weight.written.removesuffix(".weight") for weight in layout.taken}
    tensors = dict[str, Tensor]()
    for key, tensor in found.items():
        name, _, end = key.rpartition(".")
        tensors[f"{written[name]}.{end}"] = tensor
    for weight in layout.weights():
        if weight.name.removesuffix(".weight") not in bits:
            tensors[weight.written] = read_tensor(weight.stored)
    embeddings = None
    if config.embeddings:
        table = walk.model.get_input_embeddings().weight
        name = next(name for name, parameter in walk.model.named_parameters() if parameter is table)
        place = next(weight.written for weight in layout.weights() if weight.name == name)
        embeddings = name.removesuffix(".weight")
        tensors[place] = round_table(tensors[place], embeddings, out, config.group)
    save_torch_state_dict(tensors, out)
    others = [name for name, module in walk.model.named_modules() if isinstance(module, nn.Linear) and name not in bits]
    targets = {width: [name for name, own in bits.items() if own == width] for width in bits.values()}
    walk.files.write_config(out / CONFIG, quantization_config=settings_of(config.group, others, targets))
    if (source / GENERATION).is_file():
        shutil.copyfile(source / GENERATION, out / GENERATION)
    checkpoint.tokenizer.save_pretrained(out)
    return embeddings
