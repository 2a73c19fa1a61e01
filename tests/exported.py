"""Bundles of tiny models for the tests of export: weights large enough for the models to have opinions."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A tiny model on its way to the runtime."""

    dense: Path
    int8: Path
    bundle: Path

    @classmethod
    def below(cls, folder: Path) -> "Exported":
        """Those in the folders of these names."""
        return cls(dense=folder / "dense", int8=folder / "int8", bundle=folder / "bundle")


def sharpened(source: Path, out: Path) -> Path:
    """A copy of a tiny checkpoint with larger matrices, random biases and norms: every layer matters."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, out)
    random = torch.Generator().manual_seed(7)
    tensors = load_file(source / "model.safetensors")
    for name, tensor in tensors.items():
        noise = torch.randn(tensor.shape, generator=random)
        tensors[name] = tensor + 0.15 * noise if tensor.ndim > 1 else tensor + 0.1 * noise
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


def quantized(source: Path, out: Path, *, text: Path | None = None, **knobs: Any) -> Path:
    """The quantized checkpoint of a dense one."""
    from compress.quantization.config import QUANTIZE
    from compress.stage import StageInput
    from compress.text import TextSource

    out.mkdir()
    calibration = None if text is None else TextSource(file=text)
    given = StageInput(source=source, out=out, scratch=out, calibration_text=calibration)
    QUANTIZE.run(QUANTIZE.config(**knobs), given)
    return out


def exported(source: Path, out: Path, text: Path, **knobs: Any) -> Path:
    """The bundle of a checkpoint."""
    from compress.stage import StageInput
    from compress.text import TextSource
    from export import EXPORT

    out.mkdir()
    given = StageInput(source=source, out=out, scratch=out, calibration_text=TextSource(file=text))
    EXPORT.run(EXPORT.config(parity_tokens=48, **knobs), given)
    return out


def genai_greedy(bundle: Path, prompt: str, tokens: int) -> tuple[list[int], list[int]]:
    """The prompt's ids, and what onnxruntime-genai adds to them."""
    genai = pytest.importorskip("onnxruntime_genai")
    model = genai.Model(str(bundle))
    ids = [int(token) for token in genai.Tokenizer(model).encode(prompt)]
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=len(ids) + tokens)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(ids)
    added = []
    while not generator.is_done():
        generator.generate_next_token()
        added.append(int(generator.get_next_tokens()[0]))
    return ids, added
