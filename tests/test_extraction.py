"""Slicing: what is cut equals what is masked, in every family; what is kept is the source's, number for number."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from slim_models import MODELS, SQUARE, anatomy, loud
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from compress.checkpoints.folder import load_tokenizer, save_checkpoint
from compress.checkpoints.loading import empty_model, load_model
from compress.checkpoints.safetensors_files import TensorFiles
from compress.models.block_linears import blocks
from compress.models.families import FAMILIES, Family, Shape, config_for
from compress.stage import StageError
from compress.structured.extraction import Kept, KeptUnits, all_units, cut, positions, sliced_model, slices

Make = Callable[..., Path]
IDS_BT = torch.arange(20).reshape(2, 10) * 7 % 300


@pytest.fixture(scope="module")
def models(make_checkpoint: Make) -> dict[str, Path]:
    return {name: loud(make_checkpoint(family, **changes)) for name, (family, changes) in MODELS.items()}


def units_of(shape: Shape, *, layer: int = 0, heads: bool = False, ffn: bool = False) -> KeptUnits:
    """Half of the heads, or of the neurons, other ones in every layer; key-value heads go with their heads."""
    whole = all_units(shape)
    queries = shape.heads // shape.kv_heads
    kv_heads = sorted({(2 * index + layer) % shape.kv_heads for index in range(shape.kv_heads // 2)})
    return KeptUnits(
        heads=[group * queries + query for group in kv_heads for query in range(queries)] if heads else whole.heads,
        kv_heads=kv_heads if heads else whole.kv_heads,
        ffn=list(range(layer % 2, shape.ffn, 2)) if ffn else whole.ffn,
    )


def sliced(folder: Path, wanted: Shape, kept: Kept) -> PreTrainedModel:
    source = empty_model(folder)
    family, shape = anatomy(source)
    return sliced_model(TensorFiles(folder, source).read, source, family, (shape, wanted), kept, {})


@torch.no_grad()
def silence(model: PreTrainedModel, family: Family, kept: dict[int, KeptUnits], shape: Shape, axis: str) -> None:
    """Cut removed heads or neurons off the residual stream: their columns of the linear they feed are zero."""
    name, lies_on = (family.attention_output, "query") if axis == "heads" else (family.ffn_output, "ffn")
    for layer, (_, block) in enumerate(blocks(model)):
        module = block.get_submodule(name)
        gone = torch.ones(shape.width(lies_on), dtype=torch.bool)  # type: ignore[arg-type]
        gone[positions(lies_on, kept[layer], [], shape)] = False  # type: ignore[arg-type]
        if isinstance(module, Conv1D):
            module.weight[gone] = 0
        else:
            module.weight[:, gone] = 0  # type: ignore[index]


@pytest.mark.parametrize("name", sorted(MODELS))
def test_pruned_neurons_equal_masked_neurons(name: str, models: dict[str, Path]) -> None:
    masked = load_model(models[name])
    family, shape = anatomy(masked)
    units = {layer: units_of(shape, layer=layer, ffn=True) for layer in range(shape.layers)}
    wanted = replace(shape, ffn=shape.ffn // 2)
    small = sliced(models[name], wanted, Kept(list(range(shape.hidden)), units))
    silence(masked, family, units, shape, "ffn")
    with torch.no_grad():
        torch.testing.assert_close(small(IDS_BT).logits, masked(IDS_BT).logits, rtol=1e-5, atol=1e-5)
        assert (small(IDS_BT).logits - load_model(models[name])(IDS_BT).logits).abs().max() > 0.05


@pytest.mark.parametrize("name", sorted(name for name, (family, _) in MODELS.items() if family not in SQUARE))
def test_pruned_heads_equal_masked_heads(name: str, models: dict[str, Path]) -> None:
    masked = load_model(models[name])
    family, shape = anatomy(masked)
    units = {layer: units_of(shape, layer=layer, heads=True) for layer in range(shape.layers)}
    wanted = replace(shape, heads=shape.heads // 2, kv_heads=shape.kv_heads // 2)
    small = sliced(models[name], wanted, Kept(list(range(shape.hidden)), units))
    silence(masked, family, units, shape, "heads")
    with torch.no_grad():
        torch.testing.assert_close(small(IDS_BT).logits, masked(IDS_BT).logits, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def operate(model: PreTrainedModel, family: Family, units: dict[int, KeptUnits], shape: Shape) -> None:
    """Take heads out of a model whose config could not say so: its parameters are cut, its modules' attributes set."""
    for layer, (_, block) in enumerate(blocks(model)):
        for name, parameter in block.named_parameters():
            parameter.data = cut(parameter.data, family.inside[name], units[layer], list(range(shape.hidden)), shape)
        for module in block.modules():
            if isinstance(module, Conv1D):
                module.nf = module.weight.shape[1]
            if hasattr(module, "split_size"):
                module.split_size = len(units[layer].heads) * shape.head_dim  # type: ignore[assignment]
            if isinstance(getattr(module, "num_heads", None), int):
                module.num_heads = len(units[layer].heads)  # type: ignore[assignment]


@pytest.mark.parametrize("name", sorted(name for name, (family, _) in MODELS.items() if family in SQUARE))
def test_pruned_heads_equal_masked_heads_where_the_config_cannot_say_it(name: str, models: dict[str, Path]) -> None:
    masked, small = load_model(models[name]), load_model(models[name])
    family, shape = anatomy(masked)
    units = {layer: units_of(shape, layer=layer, heads=True) for layer in range(shape.layers)}
    silence(masked, family, units, shape, "heads")
    operate(small, family, units, shape)
    with torch.no_grad():
        torch.testing.assert_close(small(IDS_BT).logits, masked(IDS_BT).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "llama biases", "mistral", "qwen2", "qwen3"])
def test_pruned_channels_equal_masked_channels(name: str, models: dict[str, Path]) -> None:
    """With RMS norms: channels that are zero everywhere only lengthen the mean, by the ratio of the two widths."""
    masked = load_model(models[name])
    family, shape = anatomy(masked)
    hidden = list(range(0, shape.hidden, 2))
    units = {layer: all_units(shape) for layer in range(shape.layers)}
    small = sliced(models[name], replace(shape, hidden=len(hidden)), Kept(hidden, units))
    gone = torch.ones(shape.hidden, dtype=torch.bool)
    gone[hidden] = False
    with torch.no_grad():
        for parameter_name, parameter in masked.named_parameters():
            axes = family.axes(parameter_name)
            assert axes is not None
            if "hidden" in axes:
                parameter.movedim(axes.index("hidden"), 0)[gone] = 0
            if axes == ("hidden",) and parameter_name.endswith("norm.weight"):
                parameter *= (len(hidden) / shape.hidden) ** 0.5
        torch.testing.assert_close(small(IDS_BT).logits, masked(IDS_BT).logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_model_without_layers_equals_one_that_passes_them_by(name: str, models: dict[str, Path]) -> None:
    passing = load_model(models[name])
    _, shape = anatomy(passing)
    kept = Kept(list(range(shape.hidden)), {layer: all_units(shape) for layer in (0, 2)})
    small = sliced(models[name], replace(shape, layers=2), kept)
    passing.base_model.config.use_cache = False
    blocks(passing)[1][1].forward = lambda hidden, *rest, **named: hidden  # type: ignore[method-assign]  # passed by
    with torch.no_grad():
        torch.testing.assert_close(small(IDS_BT).logits, passing(IDS_BT, use_cache=False).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_axis_at_once_reloads(name: str, models: dict[str, Path], tmp_path: Path) -> None:
    small, wanted = slimmed(models[name], tmp_path)
    tied = small.get_input_embeddings().weight is small.get_output_embeddings().weight
    assert tied == bool(small.config.tie_word_embeddings) == bool(empty_model(models[name]).config.tie_word_embeddings)
    reloaded = load_model(tmp_path)
    assert anatomy(reloaded)[1] == wanted
    with torch.no_grad():
        assert torch.equal(reloaded(IDS_BT).logits, small(IDS_BT).logits)


def slimmed(source: Path, out: Path) -> tuple[PreTrainedModel, Shape]:
    """A model with half of everything, saved, and its shape."""
    _, shape = anatomy(empty_model(source))
    hidden = list(range(1, shape.hidden, 2))
    units = {layer: units_of(shape, layer=layer, heads=True, ffn=True) for layer in (0, 2)}
    wanted = replace(
        shape, layers=2, hidden=len(hidden), heads=shape.heads // 2, kv_heads=shape.kv_heads // 2, ffn=shape.ffn // 2
    )
    small = sliced(source, wanted, Kept(hidden, units))
    save_checkpoint(small, load_tokenizer(source), out)
    return small, wanted


def test_plain_transformers_loads_them_and_gives_the_same_logits(models: dict[str, Path], tmp_path: Path) -> None:
    """Widths, config and files agree: the logits in a process without this project are the ones here."""
    names = ("gpt2", "qwen3", "opt")
    with torch.no_grad():
        sums = [float(slimmed(models[name], tmp_path / name)[0](IDS_BT).logits.double().sum()) for name in names]
    assert plain_sums([tmp_path / name for name in names]) == pytest.approx(sums, rel=1e-5)


def plain_sums(folders: list[Path]) -> list[float]:
    """Sums of the logits of checkpoints, where none of our packages can be imported."""
    code = f"""
import sys
for name in ("compress", "export", "evaluation", "recipes"):
    sys.modules[name] = None
import torch
from transformers import AutoModelForCausalLM
for folder in {[str(folder) for folder in folders]!r}:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        print(float(model(torch.tensor({IDS_BT.tolist()!r})).logits.double().sum()))
"""
    answer = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    return [float(line) for line in answer.stdout.split()]


def test_every_family_of_the_table_is_under_test() -> None:
    assert {family for family, _ in MODELS.values()} == set(FAMILIES)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_the_table_and_the_model_say_the_same_of_every_parameter(name: str, models: dict[str, Path]) -> None:
    model = load_model(models[name])
    family, shape = anatomy(model)
    for parameter_name, parameter in model.named_parameters():
        axes = family.axes(parameter_name)
        assert axes is not None
        for axis, size in zip(axes, parameter.shape, strict=True):
            assert axis == "fixed" or shape.width(axis) == size, (parameter_name, axis)
    outputs = [module.get_submodule(name) for _, module in blocks(model) for name in family.norms]
    assert all(isinstance(module, nn.Module) for module in (*outputs, model.get_submodule(family.final_norm)))
    assert config_for(model.config, family, shape, range(shape.layers)).to_dict() == {
        **model.config.to_dict(),
        **({"n_inner": shape.ffn} if "n_inner" in model.config.to_dict() else {}),
    }


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "qwen3"])
@pytest.mark.parametrize("axis", ["heads", "ffn", "hidden"])
def test_slices_of_a_unit_are_what_would_be_cut_with_it(name: str, axis: str, models: dict[str, Path]) -> None:
    model = load_model(models[name])
    family, shape = anatomy(model)
    found = 0
    for parameter_name, parameter in blocks(model)[0][1].named_parameters():
        axes = family.inside[parameter_name]
        queries = shape.heads // shape.kv_heads if "key_value" in axes and axis == "heads" else 1
        for slices_UX in slices(parameter.detach(), axes, axis, shape):
            units, hidden = all_units(shape), list(range(shape.hidden))
            if axis == "hidden":
                hidden = [1]
            elif axis == "ffn":
                units = KeptUnits(units.heads, units.kv_heads, [1])
            else:
                units = KeptUnits([1], [1 // queries], units.ffn)
            expected = cut(parameter.detach(), axes, units, hidden, shape).square().sum() / queries
            torch.testing.assert_close(slices_UX[1].square().sum(), expected)
            found += 1
    assert found >= 3


def test_settings_that_a_table_does_not_cover_are_refused_by_name(make_checkpoint: Make) -> None:
    opt = empty_model(make_checkpoint("opt", word_embed_proj_dim=32))
    with pytest.raises(StageError, match=r"project_out|project_in"):
        anatomy(opt)
    with pytest.raises(StageError, match="do_layer_norm_before: expected True, got False"):
        anatomy(empty_model(make_checkpoint("opt", do_layer_norm_before=False)))
