"""Every byte of the weights has a part of the model and a kind of number, and they add up."""

from pathlib import Path

import pytest
import torch
from family_variants import FAMILIES
from transformers import AutoConfig, AutoModelForCausalLM

from compress.checkpoints.folder import inspect_checkpoint
from compress.models.components import part_of
from compress.models.families import PARTS
from recipes.formats import FORMATS


@pytest.mark.parametrize("family", FAMILIES)
def test_no_tensor_of_a_supported_family_is_without_a_part(family: str) -> None:
    config = AutoConfig.for_model(family, tie_word_embeddings=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    parts = {name: part_of(name) for name, _ in model.named_parameters()}
    assert set(parts.values()) == set(PARTS) - {"other"}
    for name, part in parts.items():
        module = model.get_submodule(name.rpartition(".")[0])
        assert ("Norm" in type(module).__name__) == (part == "norms"), name
        assert ("Embedding" in type(module).__name__) == (part == "embeddings"), name
    assert parts[f"{_name_of(model, model.get_output_embeddings())}.weight"] == "head"


def _name_of(model: torch.nn.Module, wanted: torch.nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is wanted)


def total(parts: dict[str, dict[str, int]], *numbers: str) -> int:
    return sum(size for sizes in parts.values() for number, size in sizes.items() if not numbers or number in numbers)


def test_parts_of_a_checkpoint_add_up_to_its_weights(gpt2: Path, int8_bundle: Path) -> None:
    dense, int8 = FORMATS["dense"].components(gpt2), FORMATS["quantized"].components(int8_bundle.parent / "int8")
    assert total(dense) == 4 * inspect_checkpoint(gpt2).parameters == inspect_checkpoint(gpt2).weight_bytes
    assert total(int8) == inspect_checkpoint(int8_bundle.parent / "int8").weight_bytes
    assert set(dense["mlp"]) == {"float"}
    assert set(int8["mlp"]) == {"int8", "scales", "float"}  # the biases stay float
    for part in ("mlp", "attention", "embeddings"):
        assert 4 * int8[part]["int8"] + int8[part]["float"] == dense[part]["float"], part
    assert int8["norms"] == dense["norms"]


def test_parts_of_a_bundle_add_up_to_what_its_graph_stores(int8_bundle: Path) -> None:
    parts = FORMATS["onnx"].components(int8_bundle)
    checkpoint = FORMATS["quantized"].components(int8_bundle.parent / "int8")
    assert {part: sizes["int8"] for part, sizes in parts.items() if "int8" in sizes} == {
        part: sizes["int8"] for part, sizes in checkpoint.items() if "int8" in sizes
    }
    files = sum(file.stat().st_size for file in int8_bundle.glob("model.onnx*"))
    assert 0.7 * files < total(parts) < files
