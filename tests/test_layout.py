"""What transformers takes of a checkpoint's files is what every stage reads: buffers, ties, prefixes, old files."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported import exported, quantized, sharpened
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from compress import Checkpoint, CheckpointError, StageError, inspect_checkpoint
from compress.checkpoints.int8_rows import EMBEDDINGS_FILE
from compress.checkpoints.loading import empty_model, load_float_model, load_model
from compress.checkpoints.quantized_files import read_quantized_matrices
from compress.checkpoints.safetensors_files import TensorFiles
from compress.pruning.config import PRUNE
from compress.stage import StageInput
from compress.structured.config import SLIM
from export.runtime.model import OnnxCausalLM
from recipes.formats import FORMATS

Make = Callable[..., Path]
Tensors = dict[str, torch.Tensor]
SINGLE = "model.safetensors"
IDS_T = np.random.default_rng(0).integers(3, 300, 48).astype(np.int64)


def rewrite(folder: Path, edit: Callable[[Tensors], Tensors]) -> Path:
    """Change a checkpoint's tensors in place."""
    save_file(edit(load_file(folder / SINGLE)), folder / SINGLE, metadata={"format": "pt"})
    return folder


def edit_config(folder: Path, **changes: Any) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


def in_transformers(folder: Path) -> torch.Tensor:
    """Log-probabilities (T, V) as the checkpoint's users get them."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return torch.log_softmax(model(torch.from_numpy(IDS_T)[None]).logits[0], dim=-1)


def divergence(one_TV: torch.Tensor, other_TV: torch.Tensor) -> float:
    """Mean KL(one || other) in nats."""
    return float((one_TV.exp() * (one_TV - other_TV)).sum(-1).mean())


def in_bundle(folder: Path) -> torch.Tensor:
    return torch.from_numpy(np.asarray(OnnxCausalLM.open(folder).score(IDS_T[None])[0]))


def run(stage: Any, source: Path, out: Path, **knobs: Any) -> Path:
    out.mkdir()
    stage.run(stage.config(**knobs), StageInput(source=source, out=out, scratch=out))
    return out


@pytest.fixture
def apart(shared_checkpoint: Make, tmp_path: Path) -> Path:
    """A Llama whose config says that the head is the embedding, and whose file has another head."""
    folder = sharpened(shared_checkpoint("llama", num_hidden_layers=2), tmp_path / "apart")
    noise = torch.randn(320, 64, generator=torch.Generator().manual_seed(5))
    return rewrite(folder, lambda held: held | {"lm_head.weight": held["model.embed_tokens.weight"] + 0.3 * noise})


def test_a_tie_that_the_files_contradict_is_none(apart: Path) -> None:
    layout, head = Checkpoint(apart).layout, load_file(apart / SINGLE)["lm_head.weight"]
    assert layout.apart == {"lm_head.weight"}
    assert not layout.tied
    assert not layout.model.config.tie_word_embeddings
    model, empty = load_model(apart), empty_model(apart)
    assert torch.equal(model.get_output_embeddings().weight, head)
    assert not model.config.tie_word_embeddings
    assert empty.get_output_embeddings().weight is not empty.get_input_embeddings().weight
    assert torch.equal(TensorFiles(apart, empty).read("lm_head.weight"), head)
    assert inspect_checkpoint(apart).parameters == sum(parameter.numel() for parameter in model.parameters())


def test_a_head_apart_though_tied_is_quantized_and_exported_as_transformers_has_it(
    apart: Path, text_file: Path, tmp_path: Path
) -> None:
    int8 = quantized(apart, tmp_path / "int8")
    assert json.loads((int8 / "config.json").read_text())["tie_word_embeddings"] is False
    assert divergence(in_transformers(apart), in_transformers(int8)) < 0.05
    bundle = exported(int8, tmp_path / "bundle", text_file)
    assert divergence(in_transformers(int8), in_bundle(bundle)) < 0.05


def test_a_head_apart_though_tied_stays_so_through_pruning_and_slimming(apart: Path, tmp_path: Path) -> None:
    head = load_file(apart / SINGLE)["lm_head.weight"]
    for stage, knobs in ((PRUNE, {"sparsity": 0.3}), (SLIM, {"ffn": 0.5, "importance": "weights", "repair": False})):
        out = run(stage, apart, tmp_path / stage.kind, **knobs)
        assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
        assert torch.equal(load_model(out).get_output_embeddings().weight, head)


def test_a_head_that_is_stored_twice_is_one_weight(shared_checkpoint: Make, tmp_path: Path) -> None:
    source = shared_checkpoint("llama")
    folder = Path(shutil.copytree(source, tmp_path / "twice"))
    rewrite(folder, lambda held: held | {"lm_head.weight": held["model.embed_tokens.weight"].clone()})
    assert Checkpoint(folder).layout.tied == {"lm_head.weight": "model.embed_tokens.weight"}
    one, other = Checkpoint(folder).layout, Checkpoint(source).layout
    assert one.in_memory() == other.in_memory()
    assert one.count_nonzero() == other.count_nonzero()
    assert FORMATS["dense"].macs(folder, context=8) == FORMATS["dense"].macs(source, context=8)


def test_an_embedding_that_is_stored_as_the_head_alone_is_found(shared_checkpoint: Make, tmp_path: Path) -> None:
    source = shared_checkpoint("llama")
    folder = Path(shutil.copytree(source, tmp_path / "head"))
    rewrite(folder, lambda held: {"lm_head.weight": held.pop("model.embed_tokens.weight"), **held})
    files = TensorFiles(folder, empty_model(folder))
    table = load_file(source / SINGLE)["model.embed_tokens.weight"]
    assert torch.equal(files.read("model.embed_tokens.weight"), table)
    assert torch.equal(load_model(folder).get_input_embeddings().weight, table)
    assert inspect_checkpoint(folder).parameters == inspect_checkpoint(source).parameters


MASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt_neox": ("gpt_neox.layers.{}.attention", {}),
    "gpt_neo": ("transformer.h.{}.attn.attention", {"attention_types": [[["global", "local"], 1]]}),
    "gpt2": ("transformer.h.{}.attn", {"n_layer": 2}),
    "gptj": ("transformer.h.{}.attn", {}),
    "codegen": ("transformer.h.{}.attn", {}),
}


def with_masks(folder: Path, prefix: str) -> Path:
    """With the buffers that versions before transformers 5 stored in every layer."""
    mask = torch.tril(torch.ones(1, 1, 64, 64, dtype=torch.uint8))
    names = {"bias": mask, "causal_mask": mask, "masked_bias": torch.tensor(-1e9), "rotary_emb.inv_freq": torch.ones(8)}
    stored = {f"{prefix.format(layer)}.{name}": value.clone() for layer in (0, 1) for name, value in names.items()}
    return rewrite(folder, lambda held: held | stored)


@pytest.mark.parametrize("family", MASKS)
def test_masks_and_frequencies_in_a_file_are_no_weights(family: str, shared_checkpoint: Make, tmp_path: Path) -> None:
    prefix, changes = MASKS[family]
    source = shared_checkpoint(family, **changes)
    folder = with_masks(Path(shutil.copytree(source, tmp_path / family)), prefix)
    before, after = inspect_checkpoint(source), inspect_checkpoint(folder)
    assert (after.parameters, after.weight_bytes) == (before.parameters, before.weight_bytes)
    assert len(Checkpoint(folder).layout.ignored) == 8
    adapter = FORMATS["dense"]
    assert adapter.components(folder) == adapter.components(source)
    assert adapter.macs(folder, context=8) == adapter.macs(source, context=8)
    assert Checkpoint(folder).layout.count_nonzero() == Checkpoint(source).layout.count_nonzero()
    assert load_model(folder).num_parameters() == before.parameters
    run(PRUNE, folder, tmp_path / "pruned", sparsity=0.5)


def test_what_is_no_constant_is_left_over(gpt2: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(gpt2, tmp_path / "model"))
    rewrite(folder, lambda held: held | {"transformer.h.0.attn.gate": torch.ones(64)})
    with pytest.raises(CheckpointError, match=r"left over: transformer\.h\.0\.attn\.gate"):
        inspect_checkpoint(folder)


def test_more_layers_than_tensors_is_told_before_they_are_built(gpt2: Path, tmp_path: Path) -> None:
    folder = edit_config(Path(shutil.copytree(gpt2, tmp_path / "model")), n_layer=9000)
    with pytest.raises(CheckpointError, match=r"it says 9000 layers, but they hold \d+ tensors"):
        inspect_checkpoint(folder)


def test_a_tensor_that_does_not_fit_is_told_before_anything_is_loaded(gpt2: Path, tmp_path: Path) -> None:
    folder = edit_config(Path(shutil.copytree(gpt2, tmp_path / "model")), vocab_size=300)
    with pytest.raises(CheckpointError, match=r"of another shape: .*wte\.weight"):
        inspect_checkpoint(folder)


def test_codes_of_an_embedding_that_are_another_models_are_refused(
    gpt2: Path, shared_checkpoint: Make, text_file: Path, tmp_path: Path
) -> None:
    int8 = quantized(gpt2, tmp_path / "int8", embeddings=True)
    other = quantized(shared_checkpoint("gpt2", seed=1), tmp_path / "other", embeddings=True)
    shutil.copyfile(other / EMBEDDINGS_FILE, int8 / EMBEDDINGS_FILE)
    with pytest.raises(StageError, match=r"wte\.weight: the codes beside the weights stand for other numbers"):
        exported(int8, tmp_path / "bundle", text_file)


def test_codes_of_an_embedding_that_are_cut_short_are_told(gpt2: Path, tmp_path: Path) -> None:
    int8 = quantized(gpt2, tmp_path / "int8", embeddings=True)
    file = int8 / EMBEDDINGS_FILE
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match=r"int8_embeddings\.safetensors: corrupt weights"):
        read_quantized_matrices(int8)


def test_codes_of_another_type_are_told(gpt2: Path, tmp_path: Path) -> None:
    int8 = quantized(gpt2, tmp_path / "int8")
    held, name = load_file(int8 / SINGLE), "transformer.h.1.mlp.c_fc.weight"
    save_file(held | {name: held[name].to(torch.int64)}, int8 / SINGLE, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"h\.1\.mlp\.c_fc: expected codes int8, got int64"):
        read_quantized_matrices(int8)


def test_a_reference_is_what_bitsandbytes_says_of_its_codes(gpt2: Path, tmp_path: Path) -> None:
    from bitsandbytes.functional import int8_vectorwise_dequant

    int8 = quantized(gpt2, tmp_path / "int8")
    held, model = load_file(int8 / SINGLE), load_float_model(Checkpoint(int8))
    name = "transformer.h.1.mlp.c_fc"
    expected_OI = int8_vectorwise_dequant(held[f"{name}.weight"], held[f"{name}.SCB"])
    assert torch.equal(model.get_submodule(name).weight, expected_OI)


def like_pythia(folder: Path) -> None:
    rewrite(folder, lambda held: {name: tensor.half() for name, tensor in held.items()})
    with_masks(folder, MASKS["gpt_neox"][0])
    edit_config(folder, dtype="float16", torch_dtype="float16", architectures=["GPTNeoXForCausalLM"])


def like_gpt2(folder: Path) -> None:
    with_masks(folder, MASKS["gpt2"][0])
    rewrite(folder, lambda held: {name.removeprefix("transformer."): tensor for name, tensor in held.items()})


def like_phi3(folder: Path) -> None:
    code = {"AutoConfig": "configuration_phi3.Phi3Config", "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}
    edit_config(folder, auto_map=code, rope_scaling=None, quantization_config=None, attention_bias=False)
    rewrite(folder, lambda held: {name: tensor.bfloat16() for name, tensor in held.items()})


def like_gemma3(folder: Path) -> None:
    edit_config(folder, cache_implementation="hybrid", attn_logit_softcapping=None, text_config=None)
    rewrite(folder, lambda held: {name: tensor.bfloat16() for name, tensor in held.items()})
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    content["added_tokens"].append({"id": 320, "content": "<image_soft_token>", "special": True, **flags})
    file.write_text(json.dumps(content), encoding="utf-8")


REAL: dict[str, tuple[str, Callable[[Path], None], dict[str, Any]]] = {
    "gpt2": ("gpt2", like_gpt2, {"n_layer": 2, "n_positions": 64}),
    "pythia": ("gpt_neox", like_pythia, {}),
    "phi3": ("phi3", like_phi3, {"sliding_window": 2047, "tie_word_embeddings": False}),
    "gemma3": (
        "gemma3_text",
        like_gemma3,
        {"sliding_window": 12, "layer_types": ["sliding_attention", "full_attention"]},
    ),
}


@pytest.mark.parametrize("shape", [pytest.param(name, marks=pytest.mark.thorough) for name in REAL])
def test_files_as_they_are_published_are_exported_with_parity(
    shape: str, shared_checkpoint: Make, text_file: Path, tmp_path: Path
) -> None:
    family, edit, changes = REAL[shape]
    folder = sharpened(shared_checkpoint(family, **changes), tmp_path / "model")
    edit(folder)
    whole = exported(folder, tmp_path / "whole", text_file)
    assert divergence(in_transformers(folder), in_bundle(whole)) < 1e-5
    int8 = quantized(folder, tmp_path / "int8", embeddings=True)
    bundle = exported(int8, tmp_path / "bundle", text_file)
    assert divergence(in_transformers(folder), in_bundle(bundle)) < 0.1


def test_gpt2_as_it_is_published_is_opened(shared_checkpoint: Make, tmp_path: Path) -> None:
    source = shared_checkpoint("gpt2", n_layer=2)
    folder = Path(shutil.copytree(source, tmp_path / "hub"))
    like_gpt2(folder)
    assert divergence(in_transformers(source), in_transformers(folder)) == 0
    assert {weight.written for weight in Checkpoint(folder).layout.taken} == set(load_file(source / SINGLE))
    assert Checkpoint(folder).weight_bytes == Checkpoint(source).weight_bytes > 0
