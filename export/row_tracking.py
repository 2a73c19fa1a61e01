"""The checkpoint's weights under the graph's names, with every quantized row followed to where it goes.

mobius-onnx renames a checkpoint's tensors to its graph's (it transposes, splits and reorders them on the way). Codes
must make the same journey as their scales, and bit for bit. So the codes do not travel: each quantized matrix sends
its *row numbers* in their stead, a view without memory of its own, numbered through all such matrices of the
checkpoint. What arrives under a graph name says which rows of which matrix stand there, in which order; codes and
scales are then read from the checkpoint by those numbers. Column numbers travel too, to prove that no column moved.
Weights on which mobius does arithmetic cannot be followed, and are refused.

    O, I    rows (outputs) and columns (inputs) of a matrix
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compress.checkpoints.layout import Layout, read_tensor
from compress.checkpoints.quantized_matrix import QuantizedMatrix
from compress.errors import DemitasseError

if TYPE_CHECKING:
    from torch import Tensor

Rows = NDArray[np.int32]
WEIGHT = ".weight"
PIECE = 4096
"""Rows that are compared at once."""


class WeightError(DemitasseError):
    """The checkpoint's weights do not fit the graph; the message names the tensors."""


@dataclass(frozen=True, eq=False)
class CodeTable:
    """Every quantized matrix of a checkpoint, its rows numbered one after the other."""

    matrices: dict[str, QuantizedMatrix]
    first: dict[str, int] = field(default_factory=dict)
    """Number of each matrix's first row."""
    rows: dict[str, Rows] = field(default_factory=dict)
    """Graph name -> the rows that stand there, in order."""

    @classmethod
    def of(cls, matrices: dict[str, QuantizedMatrix]) -> "CodeTable":
        ends = np.cumsum([0, *(len(matrix.codes_OI) for matrix in matrices.values())])
        return cls(matrices, {name: int(end) for name, end in zip(matrices, ends, strict=False)})

    def modules(self, rows: Rows) -> list[str]:
        """The checkpoint modules that rows come from, in the order in which they begin."""
        names, starts = list(self.first), np.asarray(list(self.first.values()))
        owners = np.searchsorted(starts, rows, side="right") - 1
        return [names[owner] for owner in dict.fromkeys(owners.tolist())]

    def shape(self, rows: Rows) -> tuple[int, int, int]:
        """(columns, groups of columns, bits of a code) of the rows.

        Raises:
            WeightError: the rows come from matrices that differ in them.
        """
        names = self.modules(rows)
        matrices = [self.matrices[name] for name in names]
        shapes = {(matrix.codes_OI.shape[1], matrix.scale_OG.shape[1], matrix.bits) for matrix in matrices}
        if len(shapes) > 1:
            raise WeightError(
                f"{', '.join(names)}: expected matrices of one width, group size and number of bits, got (columns, "
                f"groups, bits) of {', '.join(map(str, sorted(shapes)))}"
            )
        return shapes.pop()

    def alike(self, rows: Rows) -> list[Rows]:
        """The rows in as few parts, in order, as each have one width, group size and number of bits."""
        starts, matrices = np.asarray(list(self.first.values())), list(self.matrices.values())
        owners = np.searchsorted(starts, rows, side="right") - 1
        kinds = [(matrix.codes_OI.shape[1], matrix.scale_OG.shape[1], matrix.bits) for matrix in matrices]
        kind_N = np.asarray([kinds.index(kinds[owner]) for owner in owners])
        return np.split(rows, np.flatnonzero(np.diff(kind_N)) + 1)

    def symmetric(self, rows: Rows) -> bool:
        """Whether none of the matrices that the rows come from has zero points."""
        return all(self.matrices[name].zero_OG is None for name in self.modules(rows))

    def matrix(self, rows: Rows) -> QuantizedMatrix:
        """The rows as one matrix, a view where they lie together in one; with zero points where any part has some.

        Raises:
            WeightError: as `shape`.
        """
        self.shape(rows)
        runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
        parts = [part for run in runs for part in self._parts(run)]
        if len(parts) == 1:
            return parts[0]
        symmetric = all(part.zero_OG is None for part in parts)
        return QuantizedMatrix(
            np.concatenate([part.codes_OI for part in parts]),
            np.concatenate([part.scale_OG for part in parts]),
            None if symmetric else np.concatenate([part.zeros_OG() for part in parts]),
            parts[0].bits,
        )

    def _parts(self, run: Rows) -> list[QuantizedMatrix]:
        """A run of consecutive row numbers, cut where one matrix ends and the next begins."""
        pieces = []
        for name in self.modules(run):
            matrix, first = self.matrices[name], self.first[name]
            low, high = max(int(run[0]) - first, 0), min(int(run[-1]) + 1 - first, len(matrix.codes_OI))
            pieces.append(matrix.rows(low, high))
        return pieces


@dataclass(frozen=True, eq=False)
class GraphWeights:
    """A checkpoint under the graph's names."""

    floats: dict[str, "Tensor"]
    quantized: CodeTable


def read_weights(layout: Layout, module: Any, conv1d: frozenset[str]) -> GraphWeights:
    """Open the weights that transformers takes of a checkpoint, each once (its tensors stay on disk until they are
    used), and rename them by `module.preprocess_weights`.

    `conv1d` names the modules that hold their matrix as [in, out] (GPT-2's Conv1D).

    Raises:
        WeightError: a quantized matrix cannot be followed to its place, or is not what the model computes with.
    """
    matrices = _matrices(layout)
    floats = _floats(layout, matrices)
    table = CodeTable.of(matrices)
    rows = _rename(module, floats, {name: _row_numbers(table, name) for name in table.matrices}, conv1d)
    columns = _rename(module, floats, {name: _column_numbers(table, name) for name in table.matrices}, conv1d)
    places = {name for name, tensor in rows.items() if _is_number(tensor)}
    for name in places:
        table.rows[name] = _followed(name, rows[name], columns[name])
    _check_all_arrived(table)
    return GraphWeights({name: tensor for name, tensor in rows.items() if name not in places}, table)


def _matrices(layout: Layout) -> dict[str, QuantizedMatrix]:
    """Every quantized matrix by its module's name, with the base model's prefix where the model has it."""
    written = {weight.matrix: weight.written.removesuffix(WEIGHT) for weight in layout.taken if weight.matrix}
    return {written.get(name, name): matrix for name, matrix in layout.matrices()}


def _floats(layout: Layout, matrices: dict[str, QuantizedMatrix]) -> dict[str, "Tensor"]:
    """Every float weight, but for the table of a quantized embedding, which must be the same numbers."""
    floats: dict[str, Tensor] = {}
    for weight in layout.weights():
        if weight.number == "float":
            matrix = matrices.get(weight.name.removesuffix(WEIGHT))
            if matrix is None:
                floats[weight.written] = read_tensor(weight.stored)
            elif not _same(read_tensor(weight.stored), matrix):
                raise WeightError(
                    f"{weight.name}: the codes beside the weights stand for other numbers than the weight files "
                    "hold, which is what transformers loads; quantize the model again"
                )
    return floats


def _same(table_OI: "Tensor", matrix: QuantizedMatrix) -> bool:
    """Whether a float table is what the codes stand for, to the rounding of its own type; compared in pieces."""
    if tuple(table_OI.shape) != matrix.codes_OI.shape:
        return False
    for at in range(0, len(matrix.codes_OI), PIECE):
        if not np.allclose(
            matrix.rows(at, at + PIECE).dequantize(), table_OI[at : at + PIECE].float().numpy(), rtol=1e-6, atol=0
        ):
            return False
    return True


def _row_numbers(table: CodeTable, name: str) -> "Tensor":
    import torch

    codes_OI, first = table.matrices[name].codes_OI, table.first[name]
    return torch.arange(first, first + codes_OI.shape[0], dtype=torch.int32)[:, None].expand(codes_OI.shape)


def _column_numbers(table: CodeTable, name: str) -> "Tensor":
    import torch

    codes_OI = table.matrices[name].codes_OI
    return torch.arange(codes_OI.shape[1], dtype=torch.int32)[None, :].expand(codes_OI.shape)


def _rename(
    module: Any, floats: dict[str, "Tensor"], numbers: dict[str, "Tensor"], conv1d: frozenset[str]
) -> dict[str, "Tensor"]:
    state = dict(floats)
    for name, number_OI in numbers.items():
        state[f"{name}.weight"] = number_OI.t() if name in conv1d else number_OI
    renamed: dict[str, Tensor] = module.preprocess_weights(_conv1d_mlp_as_linear(state, conv1d))
    return renamed


def _conv1d_mlp_as_linear(state: dict[str, "Tensor"], conv1d: frozenset[str]) -> dict[str, "Tensor"]:
    """GPT-2's MLP under its graph names, as [out, in].

    mobius-onnx guesses from the shape whether to transpose these, and guesses wrong where a pruned `n_inner` is not
    above `n_embd`.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        module, _, kind = name.rpartition(".")
        if module in conv1d and ".mlp." in name:
            tensor = tensor.t() if kind == "weight" else tensor
            name = name.replace(".mlp.c_fc.", ".mlp.up_proj.").replace(".mlp.c_proj.", ".mlp.down_proj.")
        renamed[name] = tensor
    return renamed


def _is_number(tensor: "Tensor") -> bool:
    return not tensor.dtype.is_floating_point


def _followed(name: str, row_OI: "Tensor", column_OI: "Tensor") -> Rows:
    """The rows behind a graph name. A view that was only split or transposed has stride 0 and needs no look at its
    numbers.
    """
    rows_whole = row_OI.stride(1) == 0 or bool((row_OI == row_OI[:, :1]).all())
    columns_whole = column_OI.stride(0) == 0 or bool((column_OI == column_OI[:1]).all())
    in_order = bool((column_OI[0].numpy() == np.arange(column_OI.shape[1])).all())
    if not (rows_whole and columns_whole and in_order):
        raise WeightError(
            f"{name}: the graph moves the columns of a quantized matrix, which cannot be followed; "
            "export the dense checkpoint"
        )
    rows: Rows = row_OI[:, 0].numpy()
    return rows


def _check_all_arrived(table: CodeTable) -> None:
    arrived = set[str]().union(*(table.modules(rows) for rows in table.rows.values()))
    lost = sorted(set(table.matrices) - arrived)
    if lost:
        raise WeightError(f"quantized weights that the graph has no place for, or computes with: {', '.join(lost)}")
