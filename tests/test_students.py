"""Students: cut out of their teacher or made from a config, and what is refused before any training."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from slim_models import MODELS, loud
from torch import nn
from transformers import PreTrainedModel

from compress.checkpoints.folder import load_tokenizer, save_checkpoint
from compress.checkpoints.loading import load_model
from compress.distillation.student_config import is_dropout
from compress.distillation.students import by_influence, evenly_spaced, fresh, listed, same_tokenizer, with_layers
from compress.models.block_linears import block_list, blocks
from compress.stage import StageError
from compress.structured.depth import most_influential

Make = Callable[..., Path]
IDS_BT = torch.arange(40).reshape(2, 20) * 7 % 300
ROWS_NT = (np.arange(64, dtype=np.int64).reshape(2, 32) * 11) % 300
ALSO: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3 windows": (
        "gemma3_text",
        {
            "num_hidden_layers": 3,
            "sliding_window": 6,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "gpt_neo windows": (
        "gpt_neo",
        {"num_layers": 3, "window_size": 6, "attention_types": [[["global", "local", "local"], 1]]},
    ),
    "phi": ("phi", {"num_hidden_layers": 3}),
    "smollm3 without rotation": ("smollm3", {"num_hidden_layers": 3, "no_rope_layers": [1, 1, 0]}),
}
"""Families that slimming has no table of, with what their configs say of single layers."""


def teacher_of(gpt2: Path) -> tuple[PreTrainedModel, Any]:
    return load_model(gpt2), load_tokenizer(gpt2)


# --- which layers


def test_spread_is_the_one_distilgpt2_uses() -> None:
    assert evenly_spaced(12, 6) == [0, 2, 4, 7, 9, 11]
    assert evenly_spaced(6, 6) == list(range(6))
    assert evenly_spaced(6, 1) == [0]
    assert evenly_spaced(2, 4) == [0, 0, 1, 1]


def test_listed_layers_are_checked() -> None:
    assert listed((2, 0), 3) == [0, 2]
    for keep in ((0, 7), (-1, 0), (1, 1), ()):
        with pytest.raises(StageError, match="keep: expected layers below 3"):
            listed(keep, 3)


def test_influence_is_what_the_blocks_turn(make_checkpoint: Make) -> None:
    """The measure equals the one taken from the hidden states that the model itself gives."""
    folder = loud(make_checkpoint("gpt2", n_layer=5))
    kept, metadata = by_influence(folder, ROWS_NT, 3)
    model = load_model(folder)
    with torch.no_grad():
        states = model(torch.from_numpy(ROWS_NT), output_hidden_states=True).hidden_states
    for layer in range(4):  # what the last gives is shown behind the final norm
        turn = 1 - torch.cosine_similarity(states[layer], states[layer + 1], dim=-1).mean()
        assert metadata["depth"]["influence"][layer] == pytest.approx(float(turn), abs=1e-5)
    assert kept == most_influential(metadata["depth"]["influence"], 3)
    assert len(kept) == 3


@pytest.mark.parametrize("family", ["gpt2", "llama", "phi"])
def test_a_layer_that_does_nothing_goes_first(family: str, make_checkpoint: Make) -> None:
    depth = "n_layer" if family == "gpt2" else "num_hidden_layers"
    folder = loud(make_checkpoint(family, **{depth: 4}))
    model = load_model(folder)
    idle = blocks(model)[2][1]
    with torch.no_grad():
        for name, parameter in idle.named_parameters():
            if any(word in name for word in ("proj", "dense", "fc2")):
                parameter.zero_()
    save_checkpoint(model, load_tokenizer(folder), folder)
    assert by_influence(folder, ROWS_NT, 3)[0] == [0, 1, 3]
    kept, metadata = by_influence(folder, ROWS_NT, 3, by="perplexity")
    assert metadata["depth"]["by"] == "perplexity"
    assert len(kept) == 3
    assert metadata["depth"]["gone"][0]["layer"] not in kept


# --- students of some layers


def pass_by(block: nn.Module) -> None:
    """Let a block hand on what it is given, in the form in which it hands on what it computes."""
    plain = block.forward

    def idle(hidden_BTD: torch.Tensor, *rest: Any, **named: Any) -> Any:
        output = plain(hidden_BTD, *rest, **named)
        return (hidden_BTD, *output[1:]) if isinstance(output, tuple) else hidden_BTD

    block.forward = idle


@pytest.mark.parametrize("name", sorted(MODELS | ALSO))
def test_a_student_is_its_teacher_with_blocks_left_out(name: str, make_checkpoint: Make, tmp_path: Path) -> None:
    """Passing a block by in the teacher gives the student's logits; saved and loaded again, still."""
    family, changes = {**MODELS, **ALSO}[name]
    folder = loud(make_checkpoint(family, **changes))
    teacher = load_model(folder)
    whole = teacher(input_ids=IDS_BT, use_cache=False).logits
    student = with_layers(teacher, [0, 2])
    assert not student.training
    pass_by(blocks(teacher)[1][1])
    with torch.no_grad():
        expected = teacher(input_ids=IDS_BT, use_cache=False).logits
        torch.testing.assert_close(student(input_ids=IDS_BT).logits, expected, rtol=1e-4, atol=1e-4)
        assert (whole - expected).abs().max() > 0.01
        save_checkpoint(student, load_tokenizer(folder), tmp_path)
        again = load_model(tmp_path)
        torch.testing.assert_close(again(input_ids=IDS_BT).logits, expected, rtol=1e-4, atol=1e-4)


def test_the_teacher_keeps_its_weights_and_config(gpt2: Path) -> None:
    teacher = load_model(gpt2)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    student = with_layers(teacher, [1])
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert teacher.config.num_hidden_layers == 3
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())


def test_a_block_that_depends_on_its_place_otherwise_is_refused(make_checkpoint: Make) -> None:
    teacher = load_model(make_checkpoint("llama"))
    blocks(teacher)[2][1].self_attn.scaling = 0.5  # as if the family had made it so from the layer's number
    with pytest.raises(StageError, match=r"layer 2 cannot become model.layers.1: self_attn .*scaling"):
        with_layers(teacher, [0, 2])


def test_layers_that_are_not_built_alike_are_refused(make_checkpoint: Make) -> None:
    """A mixture of experts with one plain layer: the config says by number which one that is."""
    teacher = load_model(make_checkpoint("qwen2_moe", num_hidden_layers=3, mlp_only_layers=[1]))
    with torch.no_grad():
        assert torch.equal(with_layers(teacher, [0, 1, 2])(IDS_BT).logits, teacher(IDS_BT).logits)
    with pytest.raises(StageError, match=r"layers \[1, 2\] alone: expected layers built alike, but model.layers"):
        with_layers(teacher, [1, 2])


@pytest.mark.parametrize("family", ["gpt2", "opt", "gpt_neox"])
def test_no_student_has_dropout(family: str, make_checkpoint: Make) -> None:
    found = [key for key in load_model(make_checkpoint(family)).config.to_dict() if is_dropout(key)]
    assert len(found) >= 2
    changes: dict[str, Any] = dict.fromkeys(found, 0.1)
    folder = make_checkpoint(family, **changes)
    teacher = load_model(folder)
    for student in (with_layers(teacher, [0]), fresh({}, teacher, load_tokenizer(folder), 0)[0]):
        student.train()
        with torch.no_grad():
            first, second = (student(input_ids=IDS_BT).logits for _ in range(2))
        assert torch.equal(first, second)
        assert {student.config.to_dict()[key] for key in found} == {0.0}
    assert {teacher.config.to_dict()[key] for key in found} == {0.1}


# --- students of a shape of their own


def test_a_fresh_student_takes_over_what_fits(gpt2: Path) -> None:
    """As wide and less deep with narrower MLPs: all but those MLPs comes from the teacher, blocks 0 and 2."""
    teacher, tokenizer = teacher_of(gpt2)
    student, metadata = fresh({"n_layer": 2, "n_inner": 96}, teacher, tokenizer, 0)
    own, given = dict(student.named_parameters()), dict(teacher.named_parameters())
    for name in ("ln_1.weight", "attn.c_attn.weight", "attn.c_proj.bias", "mlp.c_proj.bias"):
        assert torch.equal(own[f"transformer.h.1.{name}"], given[f"transformer.h.2.{name}"])
    assert own["transformer.h.1.mlp.c_fc.weight"].shape == (64, 96)
    assert torch.equal(own["transformer.wte.weight"], given["transformer.wte.weight"])
    assert student.get_output_embeddings().weight is student.get_input_embeddings().weight
    taken = metadata["from_teacher"]
    narrow = 2 * (64 * 96 + 96 + 96 * 64)
    assert taken["of_tensors"] - taken["tensors"] == 6
    assert taken["of_weights"] - taken["weights"] == narrow
    assert taken["of_weights"] == sum(parameter.numel() for parameter in student.parameters())


def test_a_narrower_fresh_student_takes_over_nothing_wide(gpt2: Path) -> None:
    teacher, tokenizer = teacher_of(gpt2)
    student, metadata = fresh({"hidden_size": 32, "num_attention_heads": 2}, teacher, tokenizer, 0)
    assert student.config.n_embd == 32
    assert student.config.n_positions == teacher.config.n_positions
    assert metadata["from_teacher"]["weights"] == 0


def test_the_same_shape_is_the_teacher_again(llama: Path) -> None:
    teacher, tokenizer = load_model(llama), load_tokenizer(llama)
    student, metadata = fresh({}, teacher, tokenizer, 0)
    assert metadata["from_teacher"]["weights"] == metadata["from_teacher"]["of_weights"]
    with torch.no_grad():
        assert torch.equal(student(IDS_BT).logits, teacher(IDS_BT).logits)


@pytest.mark.parametrize("name", ["gpt2 by layer", "qwen2"])
def test_blocks_that_moved_do_what_they_did(name: str, make_checkpoint: Make) -> None:
    """Fewer layers of the same width are the student that is cut from the teacher, scores and windows included."""
    family, changes = MODELS[name]
    folder = loud(make_checkpoint(family, **changes))
    teacher = load_model(folder)
    student, _ = fresh({"num_hidden_layers": 2}, teacher, load_tokenizer(folder), 0)
    with torch.no_grad():
        torch.testing.assert_close(student(IDS_BT).logits, with_layers(teacher, [0, 2])(IDS_BT).logits)


def test_a_deeper_student_has_blocks_twice(gpt2: Path) -> None:
    teacher, tokenizer = teacher_of(gpt2)
    student, metadata = fresh({"n_layer": 5}, teacher, tokenizer, 0)
    assert metadata["from_teacher"]["weights"] == metadata["from_teacher"]["of_weights"]
    for layer, origin in enumerate(evenly_spaced(3, 5)):
        for own, given in zip(
            blocks(student)[layer][1].parameters(), blocks(teacher)[origin][1].parameters(), strict=True
        ):
            assert torch.equal(own, given)


def test_the_seed_decides_what_is_drawn_and_nothing_else_is_drawn(gpt2: Path) -> None:
    teacher, tokenizer = teacher_of(gpt2)
    state = torch.random.get_rng_state()
    students = [fresh({"n_embd": 32}, teacher, tokenizer, seed)[0].state_dict() for seed in (1, 1, 2)]
    assert torch.equal(torch.random.get_rng_state(), state)
    name = "transformer.h.0.mlp.c_fc.weight"
    assert torch.equal(students[0][name], students[1][name])
    assert not torch.equal(students[0][name], students[2][name])


def test_a_student_of_another_family_says_its_sizes(gpt2: Path, tmp_path: Path) -> None:
    teacher, tokenizer = teacher_of(gpt2)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    with pytest.raises(StageError, match=r"llama student of a gpt2 teacher .* expected hidden_size, .* beside"):
        fresh({"model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 4}, teacher, tokenizer, 0)
    student, metadata = fresh({"model_type": "llama", **sizes}, teacher, tokenizer, 0)
    assert type(student).__name__ == "LlamaForCausalLM"
    assert student.config.vocab_size == teacher.config.vocab_size
    assert student.config.max_position_embeddings == teacher.config.n_positions
    assert student.config.eos_token_id == teacher.config.eos_token_id
    assert metadata["from_teacher"]["weights"] == 0
    assert len(block_list(student)[1]) == 2
    save_checkpoint(student, tokenizer, tmp_path)
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path)(IDS_BT).logits, student(IDS_BT).logits)


def test_the_teachers_own_config_file_is_accepted_whole(llama: Path) -> None:
    teacher, tokenizer = load_model(llama), load_tokenizer(llama)
    written = json.loads((llama / "config.json").read_text())
    student, _ = fresh({**written, "num_hidden_layers": 2, "rope_theta": 5e5}, teacher, tokenizer, 0)
    assert student.config.num_hidden_layers == 2
    student, _ = fresh({"rope_theta": 5e5}, teacher, tokenizer, 0)
    assert student.config.rope_parameters["rope_theta"] == 5e5


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ({"n_layers": 2}, r"gpt2 has no key 'n_layers' \(did you mean 'n_layer'\?\)"),
        ({"n_layers": 2, "xyzzy": 1}, "'n_layers' .*, no key 'xyzzy'"),
        ({"model_type": "gtp2"}, "got 'gtp2'; did you mean 'gpt2'"),
        ({"vocab_size": 7}, r"vocab_size: expected the teacher's, \d+, got 7; leave it out"),
        ({"eos_token_id": 5}, "eos_token_id: expected the teacher's, 0, got 5"),
        ({"n_head": 5}, "does not run"),
        ({"n_layer": 0}, "n_layer: expected a number of layers from 1, got 0"),
        ({"n_layer": 2, "num_hidden_layers": 3}, "are one size"),
        ({"n_embd": "wide"}, "gpt2 refuses .*wide"),
        ({"rope_theta": 1e4}, "no key 'rope_theta'"),
    ],
)
def test_what_a_config_cannot_be_is_refused(architecture: dict[str, Any], message: str, gpt2: Path) -> None:
    teacher, tokenizer = teacher_of(gpt2)
    with pytest.raises(StageError, match=message):
        fresh(architecture, teacher, tokenizer, 0)


def test_heads_that_do_not_share_keys_evenly_are_refused(make_checkpoint: Make) -> None:
    folder = make_checkpoint("qwen3")
    with pytest.raises(StageError, match=r"does not run .* heads a multiple of key-value heads"):
        fresh({"num_attention_heads": 3}, load_model(folder), load_tokenizer(folder), 0)


# --- tokenizers


def edited(folder: Path, into: Path, edit: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a checkpoint with another tokenizer.json."""
    copied = Path(shutil.copytree(folder, into))
    content = json.loads((copied / "tokenizer.json").read_text())
    edit(content)
    (copied / "tokenizer.json").write_text(json.dumps(content))
    return copied


def swap(content: dict[str, Any]) -> None:
    vocabulary = content["model"]["vocab"]
    first, second = [token for token, number in vocabulary.items() if number in {300, 301}]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]


def merge_less(content: dict[str, Any]) -> None:
    content["model"]["merges"] = content["model"]["merges"][:-30]


def test_a_tokenizer_is_the_same_as_itself(gpt2: Path, llama: Path) -> None:
    same_tokenizer(load_tokenizer(gpt2), load_tokenizer(gpt2))
    same_tokenizer(load_tokenizer(gpt2), load_tokenizer(llama))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (swap, r"must share one vocabulary.* id 300 is '.*' to the student and '.*' to the teacher"),
        (merge_less, r"token \d+ of a probe text is"),
    ],
)
def test_another_tokenizer_is_refused_and_the_difference_named(
    edit: Callable[[dict[str, Any]], None], message: str, gpt2: Path, tmp_path: Path
) -> None:
    other = load_tokenizer(edited(gpt2, tmp_path / "other", edit))
    with pytest.raises(StageError, match=message):
        same_tokenizer(load_tokenizer(gpt2), other)


def test_special_tokens_that_differ_are_refused(gpt2: Path) -> None:
    other = load_tokenizer(gpt2)
    token = other.convert_ids_to_tokens(5)
    other.pad_token = token
    with pytest.raises(StageError, match=r"pad_token is .* to the student and"):
        same_tokenizer(load_tokenizer(gpt2), other)


def test_a_larger_vocabulary_is_refused(gpt2: Path) -> None:
    other = load_tokenizer(gpt2)
    other.add_tokens(["<extra>"])
    with pytest.raises(StageError, match=r"id \d+ is nothing to the student and '<extra>' to the teacher"):
        same_tokenizer(other, load_tokenizer(gpt2))
