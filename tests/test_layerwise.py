"""Block by block a checkpoint gives what its model gives; its files change where they are told to and nowhere else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_variants import FAMILIES
from safetensors.torch import load_file, save_file
from torch import Tensor

from compress.checkpoints.config import CheckpointError
from compress.checkpoints.folder import load_tokenizer, save_checkpoint
from compress.checkpoints.loading import empty_model, load_model
from compress.checkpoints.safetensors_files import INDEX, TensorFiles
from compress.models.block_linears import block_linears, blocks
from compress.models.calibration import calibration_rows
from compress.models.layerwise import BlockWalk
from compress.text import TextError, TextSource, end_of_text, pack, read_documents, tokenize

MakeCheckpoint = Callable[..., Path]
VARIANTS = {
    f"{family}-{variant}": (family, changes)
    for family in ("gpt2", "llama", "mistral", "qwen2", "qwen3", "gpt_neox", "gpt_neo", "opt", "phi", "gemma3_text")
    for variant, changes in FAMILIES[family].items()
}
IDS_NT = np.random.default_rng(0).integers(0, 300, (3, 24))


def block_outputs(folder: Path) -> list[Tensor]:
    """What each block of the whole model in memory leaves."""
    model = load_model(folder)
    left: list[Tensor] = []
    for _, module in blocks(model):
        module.register_forward_hook(
            lambda module, args, output: left.append(output[0] if isinstance(output, tuple) else output)
        )
    with torch.inference_mode():
        model(input_ids=torch.from_numpy(IDS_NT), use_cache=False)
    return left


@pytest.mark.parametrize("name", VARIANTS)
def test_blocks_one_by_one_give_the_models_own_hidden_states(name: str, make_checkpoint: MakeCheckpoint) -> None:
    family, changes = VARIANTS[name]
    folder = make_checkpoint(family, **changes)
    expected = block_outputs(folder)
    walk = BlockWalk(folder, IDS_NT)
    found = [block.forward().clone() for block in walk]
    assert len(found) == len(expected) == len(walk) >= 2
    for index, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        torch.testing.assert_close(ours, theirs, msg=lambda text, index=index: f"block {index}: {text}")


def test_without_ids_the_blocks_can_be_looked_at_but_not_run(gpt2: Path) -> None:
    model = load_model(gpt2)
    expected = {linear.name: linear.weight_OI() for linear in block_linears(model)}
    seen = []
    for block in BlockWalk(gpt2):
        for linear in block.linears():
            assert torch.equal(linear.weight_OI(), expected[linear.name])
            seen.append(linear.name)
        with pytest.raises(ValueError, match="token ids"):
            block.forward()
    assert seen == list(expected)


def test_a_change_to_a_block_reaches_the_next(llama: Path) -> None:
    walk = BlockWalk(llama, IDS_NT)
    found = []
    for block in walk:
        if block.index == 0:
            for linear in block.linears():
                linear.weight_OI().zero_()
        before = walk.hidden_NTD
        found.append((before, block.forward()))
    assert torch.equal(*found[0]), "with its linears at zero a block hands its input on"
    assert torch.equal(found[1][0], found[0][1])
    assert not torch.equal(*found[1])


def stored(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def save_sharded(folder: Path, source: Path) -> Path:
    """The same checkpoint in several files."""
    load_model(source).save_pretrained(folder, max_shard_size="100KB")
    load_tokenizer(source).save_pretrained(folder)
    assert (folder / INDEX).is_file()
    return folder


def save_like_the_hub(folder: Path, source: Path) -> Path:
    """GPT-2 as the hub has it: no "transformer." before its names, and the mask as a tensor of its own."""
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((source / name).read_bytes())
    tensors = {name.removeprefix("transformer."): tensor.clone() for name, tensor in stored(source).items()}
    tensors["h.0.attn.bias"] = torch.ones(1, 1, 8, 8)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def save_in(dtype: str) -> Callable[[Path, Path], Path]:
    def save(folder: Path, source: Path) -> Path:
        save_checkpoint(load_model(source), load_tokenizer(source), folder, dtype=dtype)  # type: ignore[arg-type]
        return folder

    return save


@pytest.mark.parametrize(
    "save", [save_sharded, save_like_the_hub, save_in("float16"), save_in("bfloat16"), save_in("float32")]
)
def test_a_written_tensor_is_all_that_changes(
    save: Callable[[Path, Path], Path], gpt2: Path, tmp_path: Path, folder_digest: Callable[[Path], dict[str, str]]
) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    save(source, gpt2)
    before = folder_digest(source)
    files = TensorFiles(source, empty_model(source))
    name = "transformer.h.1.mlp.c_fc.weight"
    weight = files.read(name)
    torch.testing.assert_close(weight, load_model(source).get_parameter(name).float(), rtol=0, atol=0)
    files.copy_to(out)
    files.write(out, name, weight.masked_fill(torch.arange(len(weight[0])) % 2 == 0, 0))
    assert files.nonzero(out, name) == int(weight.count_nonzero()) // 2
    assert folder_digest(source) == before
    old, new = stored(source), stored(out)
    assert [(key, value.dtype, value.shape) for key, value in old.items()] == [
        (key, value.dtype, value.shape) for key, value in new.items()
    ]
    changed = [key for key in old if old[key].view(torch.uint8).ne(new[key].view(torch.uint8)).any()]
    assert changed == [name if name in old else name.removeprefix("transformer.")]
    reloaded = load_model(out).get_parameter(name)
    assert torch.equal(reloaded[:, 1::2].float(), weight[:, 1::2])
    assert not reloaded[:, ::2].any()


def test_a_tied_tensor_that_is_stored_twice_is_written_twice(llama: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    save_in("float32")(source, llama)
    out.mkdir()
    tensors = stored(source)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    files = TensorFiles(source, empty_model(source))
    files.copy_to(out)
    table = files.read("model.embed_tokens.weight")
    files.write(out, "model.embed_tokens.weight", table * 2)
    model = load_model(out)
    assert torch.equal(model.get_input_embeddings().weight, table * 2)
    assert torch.equal(model.get_output_embeddings().weight, table * 2)


def test_a_tensor_of_another_shape_is_refused(gpt2: Path, tmp_path: Path) -> None:
    files = TensorFiles(gpt2, empty_model(gpt2))
    files.copy_to(tmp_path)
    with pytest.raises(ValueError, match=r"transformer\.wte\.weight: expected \[\d+, 64\], got \[2, 2\]"):
        files.write(tmp_path, "transformer.wte.weight", torch.zeros(2, 2))


@pytest.mark.parametrize("change", ["gone", "transposed", "integers"])
def test_a_checkpoint_that_is_not_its_models_is_refused(change: str, gpt2: Path, tmp_path: Path) -> None:
    tensors: dict[str, Any] = stored(save_like_the_hub(tmp_path, gpt2))
    name = "h.2.mlp.c_proj.weight"
    tensors[name] = {"gone": None, "transposed": tensors[name].T.contiguous(), "integers": tensors[name].int()}[change]
    save_file({key: value for key, value in tensors.items() if value is not None}, tmp_path / "model.safetensors")
    told = {"gone": "missing: transformer", "transposed": "of another shape: ", "integers": "expected transformer"}
    with pytest.raises(CheckpointError, match=rf"{told[change]}\.?h\.2\.mlp\.c_proj\.weight"):
        TensorFiles(tmp_path, empty_model(tmp_path))


def test_calibration_is_the_beginning_of_the_packed_text(gpt2: Path, text_file: Path) -> None:
    tokenizer, source = load_tokenizer(gpt2), TextSource(file=text_file)
    whole_NT = pack(tokenize(read_documents(source), tokenizer), 32, end_of_text(tokenizer))
    for rows in (1, 7, len(whole_NT)):
        assert np.array_equal(calibration_rows(source, tokenizer, rows, 32), whole_NT[:rows])
    with pytest.raises(TextError, match=r"expected \d+ tokens for calibration .* got \d+; give more text"):
        calibration_rows(source, tokenizer, len(whole_NT) + 1, 32)
