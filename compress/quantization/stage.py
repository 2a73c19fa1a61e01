"""Quantization to 8 bits: the block linears become int8 with one scale per output row (`int8_rows.py`).

    W [out, in]  ->  codes int8 [out, in], scale float32 [out],   W' = codes * scale / 127

The result is a Hugging Face folder that plain transformers loads through bitsandbytes. `embeddings` rounds the token
embedding in the same way, row by row, which a tied head shares; the folder then also holds its codes, for the export
to carry.

Not covered: activations (they are rounded by the runtime, block by block); 4 bits and calibration (`grouped.py`).
"""

from pathlib import Path
from typing import cast

import torch
from safetensors.numpy import save_file
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from compress.checkpoints.config import CheckpointError
from compress.checkpoints.folder import Checkpoint, load_pretrained, no_bars
from compress.checkpoints.int8_rows import EMBEDDINGS_FILE
from compress.checkpoints.quantized_files import read_quantized_matrices
from compress.checkpoints.quantized_matrix import QuantizedMatrix, quantize_rows
from compress.models.block_linears import block_linears
from compress.quantization.config import SCHEMES, QuantizeConfig
from compress.stage import StageError, StageInput, StageMetadata


def run(config: QuantizeConfig, given: StageInput) -> StageMetadata:
    """Leaves a quantized checkpoint, by the scheme that is asked for."""
    metadata: StageMetadata = SCHEMES[config.scheme].run(config, given)
    return metadata


def int8_rows(config: QuantizeConfig, given: StageInput) -> StageMetadata:
    """Leaves an int8 checkpoint.

    Raises:
        StageError: a block linear was left in float.
    """
    assert given.source is not None
    with no_bars(), given.progress.task("quantize", total=3) as task:
        checkpoint = Checkpoint(given.source)
        if checkpoint.quantization is not None:
            raise CheckpointError(f"{given.source}: expected a float checkpoint, got one that is quantized already")
        expected = [linear.name for linear in block_linears(checkpoint.layout.model)]
        task.advance(note="int8")
        settings = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=config.threshold)
        model = load_pretrained(checkpoint, dtype="float32", quantization_config=settings)
        task.advance(note="save")
        embeddings = round_embeddings(model, given.out) if config.embeddings else None
        model.save_pretrained(given.out, safe_serialization=True)
        checkpoint.tokenizer.save_pretrained(given.out)
        task.advance()
    quantized = set(read_quantized_matrices(given.out))
    skipped = sorted(set(expected) - quantized)
    if skipped:
        raise StageError(f"quantize: {len(skipped)} block linears were left in float: {', '.join(skipped[:5])}")
    return {"scheme": config.scheme, "int8_linears": len(expected), "int8_embeddings": embeddings}


def round_embeddings(model: PreTrainedModel, out: Path) -> str:
    """Round the token embedding in place and write its codes beside the checkpoint; returns its name."""
    table = cast(nn.Embedding, model.get_input_embeddings()).weight
    name = str(next(name for name, parameter in model.named_parameters() if parameter is table).removesuffix(".weight"))
    with torch.no_grad():
        table.copy_(round_table(table.detach(), name, out))
    return name


def round_table(table_OI: Tensor, name: str, out: Path, group: int | None = None) -> Tensor:
    """An embedding rounded row by row, or by groups of a row's columns, in float32; its codes are written beside the
    checkpoint under `name`.
    """
    parts = table_OI.float().reshape(-1, group or table_OI.shape[1])
    codes, scales = quantize_rows(parts.numpy())
    codes_OI = codes.reshape(table_OI.shape)
    scale_O = scales if group is None else scales.reshape(len(table_OI), -1)
    save_file({f"{name}.weight": codes_OI, f"{name}.SCB": scale_O}, out / EMBEDDINGS_FILE)
    return torch.from_numpy(QuantizedMatrix.from_rows(codes_OI, scale_O).dequantize())
