"""Quantized matrices as a test knows them by itself, and a bundle that must hold them bit for bit."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper


@dataclass(frozen=True)
class Format:
    """What checkpoints with a scale for a group or a row differ in."""

    group: int | None = None
    """None: a scale for a row."""
    bits: int = 8
    symmetric: bool = True


@dataclass(frozen=True)
class Made:
    """A matrix [out, in] as it was written; scales and zero points are [out, groups]."""

    codes: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray

    def weight(self) -> np.ndarray:
        """What it stands for."""
        group = self.codes.shape[1] // self.scales.shape[1]
        return (self.codes - self.zeros.repeat(group, axis=1).astype(np.float32)) * self.scales.repeat(group, axis=1)


def rounded(weight_OI: torch.Tensor, format: Format) -> Made:
    """Codes, scales (bfloat16) and zero points, one number after the other."""
    lowest, highest = -(1 << format.bits - 1), (1 << format.bits - 1) - 1
    group = format.group or weight_OI.shape[1]
    codes, scales, zeros = [], [], []
    for row in weight_OI.tolist():
        parts = [row[start : start + group] for start in range(0, len(row), group)]
        if format.symmetric:
            steps = [max(map(abs, part)) / highest for part in parts]
        else:
            steps = [(max(*part, 0) - min(*part, 0)) / (highest - lowest) for part in parts]
        steps = torch.tensor(steps).to(torch.bfloat16).tolist()
        empty = [round(lowest - min(*part, 0) / step) for part, step in zip(parts, steps, strict=True)]
        zeros.append([0 if format.symmetric else max(lowest, min(highest, zero)) for zero in empty])
        scales.append(steps)
        places = [(w, place // group) for place, w in enumerate(row)]
        codes.append([max(lowest, min(highest, round(w / steps[at]) + zeros[-1][at])) for w, at in places])
    return Made(np.asarray(codes, np.int8), np.asarray(scales, np.float32), np.asarray(zeros, np.int8))


def assert_carried(bundle: Path, made: dict[str, Made], bits: int) -> None:
    """Every matrix lies in the graph with its codes, its scales, and its zero points where one is not 0."""
    graph = onnx.load(bundle / "model.onnx").graph
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found = []
    for name in (name.removesuffix(".codes") for name in held if name.endswith(".codes")):
        parts = [made[module] for module in name.split("+")]
        codes, scales, zeros = (
            np.concatenate([getattr(part, key) for part in parts]) for key in ("codes", "scales", "zeros")
        )
        assert np.array_equal(numbers(held[f"{name}.codes"], bits).reshape(codes.shape), codes)
        assert np.array_equal(held[f"{name}.scales"], scales)
        blocks = held[f"{name}.codes"].shape[1]
        assert blocks % scales.shape[1] == 0, "a block lies in one group"
        assert (f"{name}.zeros" in held) == bool(zeros.any())
        if zeros.any():
            stored = numbers(held[f"{name}.zeros"], bits)[:, :blocks]
            assert np.array_equal(stored, zeros.repeat(blocks // scales.shape[1], axis=1))
        found += name.split("+")
    assert sorted(found) == sorted(made)
    assert {attribute.i for node in graph.node for attribute in node.attribute if attribute.name == "bits"} == {bits}


def numbers(stored: np.ndarray, bits: int) -> np.ndarray:
    """What unsigned codes stand for, those of 4 bits by two in a byte."""
    flat = stored.reshape(len(stored), -1).astype(np.int16)
    if bits == 4:
        flat = np.asarray([[half for byte in row for half in (byte % 16, byte // 16)] for row in flat.tolist()])
    return flat - (1 << bits - 1)
