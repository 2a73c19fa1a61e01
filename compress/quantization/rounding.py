"""How the weights of a matrix become codes with a scale for each group of a row's columns.

rtn: each weight to the nearest code. gptq: one column of inputs after the other, those still to come making up for the
error so far,

    H = X X^T + damping        U upper triangular, U^T U = H^-1        e_O = (w_O - q_O) / U_jj
    every later column k is changed by -e_O U_jk

with the columns in the order of falling energy H_jj, so that the error ends up where little flows. Scales are fixed
before that from the weights as they were ("static groups"), so the columns stand in their own order in the result.

Of 4 bits a group's scale is the one of 16 shares of what its largest weight asks for that leaves the least error, each
column counted by its energy where that is known: a few clipped weights cost less than a coarse grid for all others. Of
8 bits clipping gains nothing.

    code = round(w / scale) in -8 ... 7 (4 bits) or -127 ... 127 (8 bits)

Source: Frantar et al., GPTQ (arXiv 2210.17323). Legend: O outputs, I inputs, G groups, B columns of a block.
"""

import numpy as np
import torch
from torch import Tensor

from compress.checkpoints.quantized_matrix import QuantizedMatrix
from compress.models.calibration import Inputs

BLOCK = 128
"""Columns after which those to come are brought up to date."""
RANGES = {4: (-8, 7), 8: (-127, 127)}
"""Bits -> smallest and largest code."""
SHARES = {4: np.array([1.0, 0.97, 0.94, 0.91, 0.875, *np.linspace(0.85, 0.55, 11)]), 8: np.ones(1)}
"""Bits -> what is tried of the scale that the largest weight of a group asks for. With 7/8 of it a negative one is
code -8.
"""


def rtn(weight_OI: Tensor, inputs: Inputs | None, group: int, bits: int) -> QuantizedMatrix:
    """Each weight to the nearest code.

    Raises:
        ValueError: the columns are no multiple of `group`.
    """
    scale_OG = scales(weight_OI.float(), inputs, group, bits)
    code_OI = codes_of(weight_OI.float(), _spread(scale_OG, group), bits)
    return _matrix(code_OI, scale_OG, bits)


def gptq(weight_OI: Tensor, inputs: Inputs | None, group: int, bits: int) -> QuantizedMatrix:
    """Each column's error made up for by those that come after it.

    Raises:
        ValueError: the columns are no multiple of `group`, or nothing is known of the inputs.
    """
    if inputs is None:
        raise ValueError("expected the inputs' Gram matrix, got none: run the model on calibration text")
    order_I, ordered = inputs.by_energy
    scale_OG = scales(weight_OI.float(), inputs, group, bits)
    step_IO = _spread(scale_OG, group).T[order_I].contiguous()
    left_IO = weight_OI.float().T[order_I].contiguous()
    code_IO = torch.empty_like(left_IO)
    for start in range(0, len(left_IO), BLOCK):
        part = slice(start, start + BLOCK)
        errors_BO = _round_block(left_IO[part], ordered.factor_II[part, part], step_IO[part], code_IO[part], bits)
        left_IO[start + BLOCK :] -= ordered.factor_II[part, start + BLOCK :].T @ errors_BO
    code_OI = torch.empty_like(code_IO)
    code_OI[order_I] = code_IO
    return _matrix(code_OI.T, scale_OG, bits)


def _round_block(left_BO: Tensor, factor_BB: Tensor, step_BO: Tensor, code_BO: Tensor, bits: int) -> Tensor:
    """Round some columns into `code_BO`; returns the errors [columns, out] that those to come have to make up for."""
    errors_BO = torch.empty_like(left_BO)
    for column, left_O in enumerate(left_BO):
        code_BO[column] = codes_of(left_O, step_BO[column], bits)
        errors_BO[column] = (left_O - code_BO[column] * step_BO[column]) / factor_BB[column, column]
        left_BO[column + 1 :].addr_(factor_BB[column, column + 1 :], errors_BO[column], alpha=-1)
    return errors_BO


def scales(weight_OI: Tensor, inputs: Inputs | None, group: int, bits: int) -> Tensor:
    """Scale of each group [out, groups]; 1 where all of its weights are zero.

    Raises:
        ValueError: the columns are no multiple of `group`.
    """
    rows, columns = weight_OI.shape
    if columns % group:
        raise ValueError(f"expected a multiple of {group} columns, got {columns}")
    weight_OGI = weight_OI.reshape(rows, -1, group)
    energy_I = torch.ones(columns) if inputs is None or inputs.square_I is None else inputs.square_I
    energy_GI = energy_I.reshape(-1, group)
    whole_OG = largest(weight_OI, group, bits)
    best_OG, least_OG = whole_OG, torch.full_like(whole_OG, torch.inf)
    for share in SHARES[bits].tolist():
        scale_OG = whole_OG * share
        step_OG1 = scale_OG.unsqueeze(2)
        error_OG = ((codes_of(weight_OGI, step_OG1, bits) * step_OG1 - weight_OGI).square() * energy_GI).sum(dim=2)
        better_OG = error_OG < least_OG
        best_OG, least_OG = torch.where(better_OG, scale_OG, best_OG), torch.where(better_OG, error_OG, least_OG)
    return best_OG


def largest(weight_OI: Tensor, group: int, bits: int) -> Tensor:
    """The scale [out, groups] that the largest weight of each group asks for; 1 where all are zero."""
    whole_OG = weight_OI.reshape(len(weight_OI), -1, group).abs().amax(dim=2) / RANGES[bits][1]
    return whole_OG.masked_fill(whole_OG == 0, 1.0)


def codes_of(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """The nearest codes, as floats."""
    return (weight / scale).round_().clamp_(*RANGES[bits])


def _spread(scale_OG: Tensor, group: int) -> Tensor:
    return scale_OG.repeat_interleave(group, dim=1)


def _matrix(code_OI: Tensor, scale_OG: Tensor, bits: int) -> QuantizedMatrix:
    codes_OI = code_OI.to(torch.int8).contiguous().numpy()  # not finite: any code, beside a scale that is not finite
    return QuantizedMatrix(codes_OI, scale_OG.numpy(), bits=bits)
