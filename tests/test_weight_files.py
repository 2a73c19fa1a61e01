"""Which files hold the weights: what transformers takes, and what people have in their place."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from compress import CheckpointError, inspect_checkpoint
from compress.checkpoints.loading import load_model
from compress.checkpoints.weight_files import INDEX, SINGLE, passed_over, stored_tensors, weight_files
from compress.pruning.config import PRUNE
from compress.stage import StageInput
from recipes.engine.model_source import digest_folder


@pytest.fixture
def folder(gpt2: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(gpt2, tmp_path / "model"))


def write_index(folder: Path, *names: str) -> None:
    index = {"metadata": {}, "weight_map": {f"tensor{number}": name for number, name in enumerate(names)}}
    (folder / INDEX).write_text(json.dumps(index))


def with_both(folder: Path) -> Path:
    """model.safetensors, and shards of another save with their index."""
    tensors = {name: tensor + 1 for name, tensor in load_file(folder / SINGLE).items()}
    save_file(tensors, folder / "model-00001-of-00001.safetensors", metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, "model-00001-of-00001.safetensors")}
    (folder / INDEX).write_text(json.dumps(index))
    return folder


def test_of_two_sets_every_stage_reads_the_one_that_transformers_takes(folder: Path, tmp_path: Path) -> None:
    with_both(folder)
    name = "transformer.h.1.mlp.c_fc.weight"
    assert torch.equal(load_model(folder).state_dict()[name], load_file(folder / SINGLE)[name])
    out = tmp_path / "pruned"
    out.mkdir()
    PRUNE.run(PRUNE.config(sparsity=0.5), StageInput(source=folder, out=out, scratch=out))
    pruned, source = load_model(out).state_dict()[name], load_file(folder / SINGLE)[name]
    assert torch.equal(pruned[pruned != 0], source[pruned != 0])
    assert not (out / INDEX).exists()


def test_one_line_says_which_set_is_taken(folder: Path) -> None:
    assert passed_over(folder) is None
    assert "model.safetensors is taken, as transformers does" in str(passed_over(with_both(folder)))


def test_an_index_that_is_left_over_does_no_harm(folder: Path) -> None:
    write_index(folder, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    assert weight_files(folder) == [folder / SINGLE]
    assert inspect_checkpoint(folder).format == "dense"


@pytest.mark.parametrize("name", ["../w.safetensors", "sub/w.safetensors", "/w.safetensors", "w.bin", ".."])
def test_an_index_names_files_of_its_own_folder_alone(folder: Path, name: str) -> None:
    (folder / "sub").mkdir()
    for place in (folder.parent / "w.safetensors", folder / "sub" / "w.safetensors"):
        shutil.copyfile(folder / SINGLE, place)
    (folder / SINGLE).unlink()
    write_index(folder, name)
    with pytest.raises(CheckpointError, match=r"expected names of safetensors files in the same folder, got"):
        weight_files(folder)


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "{", "[" * 20_000])
def test_an_index_of_another_shape_is_one_line(folder: Path, content: str) -> None:
    (folder / SINGLE).unlink()
    (folder / INDEX).write_text(content)
    with pytest.raises(CheckpointError, match=r"index\.json: expected"):
        weight_files(folder)


def test_a_key_is_of_what_is_read(folder: Path) -> None:
    before = digest_folder(folder)
    with_both(folder)
    (folder / INDEX).unlink()
    assert digest_folder(folder) == before  # shards that nobody reads
    tensors = load_file(folder / SINGLE)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, folder / SINGLE, metadata={"format": "pt"})
    assert digest_folder(folder) != before


def test_a_name_stands_in_one_shard(folder: Path) -> None:
    for number in (1, 2):
        shutil.copyfile(folder / SINGLE, folder / f"model-0000{number}-of-00002.safetensors")
    (folder / SINGLE).unlink()
    write_index(folder, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    with pytest.raises(CheckpointError, match=r"in one file, got it in model-00001.* and model-00002"):
        stored_tensors(weight_files(folder))


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("model.fp16.safetensors", "has the variant 'fp16' alone"),
        ("model-00001-of-00002.safetensors", "not model.safetensors.index.json, which says what lies in which shard"),
        ("consolidated.safetensors", "under its maker's names"),
        ("model.gguf", "another format"),
        ("pytorch_model.bin", "only safetensors is loaded"),
        ("shard-00000-model-00001-of-00001.safetensors", "parts of a distributed save"),
    ],
)
def test_what_lies_in_place_of_the_weights_is_named(folder: Path, name: str, told: str) -> None:
    (folder / SINGLE).rename(folder / name)
    with pytest.raises(CheckpointError, match=told):
        inspect_checkpoint(folder)


def test_a_pointer_of_git_lfs_is_named(folder: Path) -> None:
    (folder / SINGLE).write_bytes(POINTER)
    with pytest.raises(CheckpointError, match=r"a pointer of git-lfs, not the weights; fetch them: git lfs pull"):
        inspect_checkpoint(folder)


def test_a_pointer_in_place_of_the_tokenizer_is_named(folder: Path) -> None:
    (folder / "tokenizer.json").write_bytes(POINTER)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: a pointer of git-lfs; fetch it: git lfs pull"):
        inspect_checkpoint(folder)


def test_a_folder_of_links_is_read(gpt2: Path, tmp_path: Path, shared_checkpoint: Callable[..., Path]) -> None:
    for file in gpt2.iterdir():
        (tmp_path / file.name).symlink_to(file)
    assert digest_folder(tmp_path) == digest_folder(gpt2)
    (tmp_path / SINGLE).unlink()
    (tmp_path / SINGLE).symlink_to(shared_checkpoint("gpt2", seed=1) / SINGLE)
    assert digest_folder(tmp_path) != digest_folder(gpt2)
