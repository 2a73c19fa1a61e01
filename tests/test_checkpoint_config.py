"""config.json as people have it: what is absent, what is refused, and with which message."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from compress import CheckpointError
from compress.checkpoints.config import open_config, read_config
from compress.checkpoints.quantized_formats import quantization_method

PLAIN: dict[str, Any] = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 512}


def written(folder: Path, **changes: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(PLAIN | changes), encoding="utf-8")
    return folder


def opened(folder: Path) -> Any:
    return open_config(folder, read_config(folder))


@pytest.mark.parametrize("key", ["quantization_config", "text_config", "architectures", "auto_map", "vocab_size"])
def test_null_is_absent(tmp_path: Path, key: str) -> None:
    config = read_config(written(tmp_path, **{key: None}))
    assert key not in config
    assert quantization_method(config) is None


def test_a_null_that_means_something_to_transformers_stays(tmp_path: Path) -> None:
    assert read_config(written(tmp_path, sliding_window=None))["sliding_window"] is None


@pytest.mark.parametrize("nothing", [None, {}])
@pytest.mark.parametrize("key", ["quantization_config", "auto_map"])
def test_null_and_nothing_in_braces_are_absent(tmp_path: Path, key: str, nothing: object) -> None:
    folder = written(tmp_path, **{key: nothing})
    assert key not in read_config(folder)
    assert not hasattr(opened(folder), key)


def test_old_bitsandbytes_is_known_by_its_width(tmp_path: Path) -> None:
    assert quantization_method(read_config(written(tmp_path, quantization_config={"load_in_8bit": True}))) == (
        "bitsandbytes"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": None}, "expected the key `model_type`"),
        ({"model_type": 3}, "expected the key `model_type`"),
        ({"vocab_size": "512"}, "`vocab_size`: expected a whole number from 1 to 16,777,216, got '512'"),
        ({"vocab_size": True}, "`vocab_size`: expected a whole number"),
        ({"num_hidden_layers": 2147483648}, "`num_hidden_layers`: expected a whole number from 1 to 10,000"),
        ({"n_layer": 2147483648}, "`n_layer`: expected a whole number from 1 to 10,000, got 2147483648"),
        ({"max_position_embeddings": "2k"}, "`max_position_embeddings`: expected a whole number"),
        ({"head_dim": 0}, "`head_dim`: expected a whole number from 1"),
        ({"num_experts": -1}, "`num_experts`: expected a whole number from 0"),
        ({"quantization_config": "int8"}, "`quantization_config`: expected an object, got 'int8'"),
        ({"quantization_config": ["a"]}, "`quantization_config`: expected an object"),
        ({"quantization_config": []}, "`quantization_config`: expected an object, got []"),
        ({"configuration_files": ["config.4.0.0.json"]}, "`configuration_files`: expected none"),
        ({"text_config": []}, "`text_config`: expected an object"),
        ({"text_config": {"vocab_size": "512"}}, "`text_config.vocab_size`: expected a whole number"),
        ({"architectures": "LlamaForCausalLM"}, "`architectures`: expected a list, got 'LlamaForCausalLM'"),
        ({"architectures": [3]}, "`architectures`: expected names"),
        ({"eos_token_id": "2"}, "`eos_token_id`: expected a token's number, or a list of them, got '2'"),
        ({"quantization_config": {"quant_method": "hqq"}}, "`quant_method`: expected 'awq', 'bitsandbytes'"),
        ({"transformers_weights": "other.safetensors"}, "`transformers_weights`: expected none"),
    ],
)
def test_another_type_is_one_clear_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError) as refused:
        read_config(written(tmp_path, **changes))
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("names", [[None], [], ["LlamaForCausalLM", None]])
def test_architectures_may_be_unnamed(tmp_path: Path, names: list[str | None]) -> None:
    assert read_config(written(tmp_path, architectures=names))


@pytest.mark.parametrize("ids", [[], None, [1, 2], 2])
def test_tokens_that_end_a_text_may_be_several_or_none(tmp_path: Path, ids: Any) -> None:
    assert read_config(written(tmp_path, eos_token_id=ids))


@pytest.mark.parametrize(
    "changes",
    [
        {"_attn_implementation": "evil/kernels"},
        {"attn_implementation": "evil/kernels@main:sub"},
        {"attn_implementation": {"text_config": "evil/kernels"}},
        {"text_config": {"_attn_implementation": "paged|evil/kernels"}},
        {"_experts_implementation": "evil/kernels"},
    ],
)
def test_a_kernel_of_a_repository_is_code(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="names code in a repository, which demitasse never runs"):
        read_config(written(tmp_path, **changes))


def test_an_implementation_of_another_machine_is_no_matter(tmp_path: Path) -> None:
    assert opened(written(tmp_path, _attn_implementation="flash_attention_2"))._attn_implementation is None


def test_code_beside_a_class_of_transformers_is_not_asked_for(tmp_path: Path) -> None:
    config = opened(written(tmp_path, auto_map={"AutoModelForCausalLM": "modeling.Model"}))
    assert config.model_type == "llama"
    assert not hasattr(config, "auto_map")


def test_a_value_that_transformers_does_not_take_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: transformers does not take it \(") as refused:
        opened(written(tmp_path, hidden_act=[1]))
    assert "\n" not in str(refused.value)


def test_a_pipe_in_place_of_the_config_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match=r"config\.json: expected a plain file.*a pipe"):
        read_config(tmp_path)


def test_an_adapter_is_named_with_the_way_out(tmp_path: Path, gpt2: Path) -> None:
    about = json.dumps({"peft_type": "LORA", "base_model_name_or_path": "org/base"})
    (tmp_path / "adapter_config.json").write_text(about)
    with pytest.raises(CheckpointError, match=r"got an adapter \(LORA\) of org/base; merge it into its base"):
        read_config(tmp_path)
    both = Path(shutil.copytree(gpt2, tmp_path / "both"))
    (both / "adapter_config.json").write_text(about)
    with pytest.raises(CheckpointError, match=r"beside its base model.*merge it.*take adapter_config\.json out"):
        read_config(both)


@pytest.mark.parametrize(("name", "told"), [("model.gguf", "another format"), ("params.json", "its maker's own")])
def test_what_lies_in_place_of_a_config_is_named(tmp_path: Path, name: str, told: str) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(CheckpointError, match=rf"has no config\.json; it has {name}, .*{told}"):
        read_config(tmp_path)
