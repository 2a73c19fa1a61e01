"""Checkpoint folders that cannot be used, each with the message a user sees."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from compress import CheckpointError, inspect_checkpoint
from compress.checkpoints.folder import load_tokenizer
from compress.checkpoints.loading import load_model


@pytest.fixture
def folder(gpt2: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(gpt2, tmp_path / "model"))


def edit_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_headers_tell_what_the_model_has(gpt2: Path) -> None:
    checkpoint, model = inspect_checkpoint(gpt2), load_model(gpt2)
    assert checkpoint.format == "dense"
    assert checkpoint.model_type == "gpt2"
    assert checkpoint.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert checkpoint.disk_bytes == (gpt2 / "model.safetensors").stat().st_size


def test_what_was_looked_at_is_not_read_again(folder: Path) -> None:
    checkpoint = inspect_checkpoint(folder)
    shutil.rmtree(folder)
    assert checkpoint.weight_bytes == 4 * checkpoint.parameters > 0
    assert max(checkpoint.tokenizer("a b c")["input_ids"]) < checkpoint.vocabulary


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no such folder; give a folder with config\.json"):
        inspect_checkpoint(tmp_path / "absent")


def test_no_config(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"it has no config\.json"):
        inspect_checkpoint(tmp_path)


def test_broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json: expected JSON"):
        inspect_checkpoint(folder)


def test_not_a_causal_model(folder: Path) -> None:
    edit_config(folder, architectures=["BertForMaskedLM"])
    with pytest.raises(CheckpointError, match=r"expected a causal language model .* got BertForMaskedLM"):
        inspect_checkpoint(folder)


def test_code_of_its_own_is_never_run(folder: Path) -> None:
    edit_config(folder, auto_map={"AutoModelForCausalLM": "evil.Model"}, model_type="evil")
    with pytest.raises(CheckpointError, match="which demitasse never runs"):
        inspect_checkpoint(folder)


def test_a_map_of_code_that_is_null_is_none(folder: Path) -> None:
    edit_config(folder, auto_map=None)
    assert inspect_checkpoint(folder).model_type == "gpt2"
    assert len(load_tokenizer(folder)) > 1


def test_a_pickle_is_not_loaded(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(CheckpointError, match=r"it has pytorch_model\.bin, but only safetensors is loaded"):
        inspect_checkpoint(folder)


def test_a_missing_shard_is_named(folder: Path) -> None:
    index = {"weight_map": {"a": "model-00001.safetensors", "b": "model-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").rename(folder / "model-00001.safetensors")
    with pytest.raises(CheckpointError, match=r"weights are missing: model-00002\.safetensors"):
        inspect_checkpoint(folder)


@pytest.mark.parametrize("keep", [4, 100, 5000])
def test_cut_off_weights(folder: Path, keep: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: corrupt weights"):
        inspect_checkpoint(folder)


def test_no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"the tokenizer is missing \(tokenizer\.json\)"):
        inspect_checkpoint(folder)


def edit_tokenizer(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    edit(content)
    file.write_text(json.dumps(content), encoding="utf-8")


def test_a_tokenizer_that_does_not_match(folder: Path) -> None:
    edit_tokenizer(folder, lambda content: content["model"]["vocab"].update(abracadabra=400))
    told = "'abracadabra' is number 400, but the embedding has 320 rows; use the tokenizer that the model was trained"
    with pytest.raises(CheckpointError, match=told):
        inspect_checkpoint(folder)


def test_an_added_token_without_a_row_is_no_reason_to_refuse(folder: Path) -> None:
    added = {"id": 320, "content": "<image>", "special": True, "normalized": False}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
    edit_tokenizer(folder, lambda content: content["added_tokens"].append(added | flags))
    assert inspect_checkpoint(folder).parameters
    assert load_tokenizer(folder).convert_tokens_to_ids("<image>") == 320


@pytest.mark.parametrize("content", ['{"model": 3}', "[]", "{", ""])
def test_a_corrupt_tokenizer(folder: Path, content: str) -> None:
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"tokenizer cannot be loaded|tokenizer has no vocabulary"):
        inspect_checkpoint(folder)


@pytest.mark.parametrize("content", ["{", "[]", '{"\\ud800": 1}', '{"model_max_length": ["x"]}'])
def test_a_broken_description_of_the_tokenizer(folder: Path, content: str) -> None:
    (folder / "tokenizer_config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: "):
        inspect_checkpoint(folder)


@pytest.mark.parametrize("content", ["{", "[]", '{"eos_token_id": "2"}'])
def test_a_broken_generation_config(folder: Path, content: str) -> None:
    (folder / "generation_config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"generation_config\.json: "):
        inspect_checkpoint(folder)


def test_a_missing_tensor_is_an_error_where_transformers_would_invent_it(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["transformer.h.1.mlp.c_fc.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"missing: transformer\.h\.1\.mlp\.c_fc\.weight"):
        load_model(folder)


def test_a_left_over_tensor_is_an_error(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors") | {"transformer.h.9.ln_1.weight": torch.ones(64)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"left over: transformer\.h\.9\.ln_1\.weight"):
        load_model(folder)


def test_a_tensor_of_another_shape_is_an_error(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors") | {"transformer.ln_f.weight": torch.ones(63)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"transformer\.ln_f\.weight|shape"):
        load_model(folder)


def test_tokenizer_loads(gpt2: Path) -> None:
    assert len(load_tokenizer(gpt2)) == 320
