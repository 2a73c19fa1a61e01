"""Training: it learns, it resumes to the same bits, and its tokenizer loses nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from killing import KillAt, KilledError

from compress import StageError, StageInput, TextSource, TrainConfig
from compress.checkpoints.loading import load_model
from compress.stage import Silent
from compress.training.loop import data_order, last_checkpoint
from compress.training.stage import run
from compress.training.tokenizer import train_tokenizer

SHAPE = {"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64}
KNOBS: dict[str, Any] = {
    "architecture": SHAPE,
    "vocabulary": 300,
    "tokens": 5120,
    "length": 32,
    "batch": 8,
    "checkpoints": 4,
}


def given(folder: Path, text_file: Path, **rest: Any) -> StageInput:
    out, scratch = folder / "out", folder / "scratch"
    out.mkdir(parents=True, exist_ok=True)
    scratch.mkdir(exist_ok=True)
    return StageInput(source=None, out=out, scratch=scratch, train_text=TextSource(file=text_file), **rest)


def test_loss_falls_and_is_followed_on_held_out_text(text_file: Path, tmp_path: Path) -> None:
    text = TextSource(file=text_file)
    metadata = run(TrainConfig(**KNOBS | {"held_out": True}), given(tmp_path, text_file, calibration_text=text))
    losses = [row["loss"] for row in metadata["history"] if "loss" in row]
    held_out = [row["held_out_loss"] for row in metadata["history"] if "held_out_loss" in row]
    assert losses[-1] < losses[0] - 0.2
    assert held_out[-1] < held_out[0]


@pytest.mark.parametrize("killed_at", [1, 11, 19])
def test_killed_and_resumed_training_ends_in_the_same_bits(
    killed_at: int, text_file: Path, tmp_path: Path, folder_digest: Callable[[Path], dict[str, str]]
) -> None:
    config = TrainConfig(**KNOBS)
    whole = given(tmp_path / "whole", text_file)
    run(config, whole)
    with pytest.raises(KilledError):
        run(config, given(tmp_path / "killed", text_file, progress=KillAt(killed_at)))
    resumed = given(tmp_path / "killed", text_file)
    run(config, resumed)
    assert folder_digest(resumed.out) == folder_digest(whole.out)


def test_a_half_written_checkpoint_is_not_resumed_from(tmp_path: Path) -> None:
    for step, state in ((5, '{"global_step": 5}'), (10, '{"global_st')):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-5"
    assert not (tmp_path / "checkpoint-10").exists()


def test_the_order_of_data_is_whole_shuffled_passes() -> None:
    order = data_order(5, 12, seed=3)
    assert sorted(order[:5]) == sorted(order[5:10]) == list(range(5))
    assert list(order) == list(data_order(5, 12, seed=3)) != list(data_order(5, 12, seed=4))


def test_fine_tuning_starts_from_the_source(gpt2: Path, text_file: Path, tmp_path: Path) -> None:
    stage = given(tmp_path, text_file)
    config = TrainConfig(tokens=64 * 4, length=64, batch=4, learning_rate=1e-9, weight_decay=0)
    run(config, StageInput(source=gpt2, out=stage.out, scratch=stage.scratch, train_text=stage.train_text))
    before, after = load_model(gpt2), load_model(stage.out)
    for name, tensor in before.state_dict().items():
        torch.testing.assert_close(after.state_dict()[name], tensor, rtol=0, atol=1e-7)
    assert after.config.to_diff_dict() | {"_name_or_path": ""} == before.config.to_diff_dict() | {"_name_or_path": ""}


def test_bf16_is_what_the_loss_is_computed_in(gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a loss calls parts of the model rather than the model itself."""
    from compress.training import losses
    from compress.training.loop import Schedule, fit
    from compress.training.objective import Objective

    seen: list[torch.dtype] = []
    logits = losses.Head.logits

    def watched(head: losses.Head, hidden_ND: torch.Tensor) -> torch.Tensor:
        seen.extend((hidden_ND.dtype, head.weight_VD.dtype))
        return logits(head, hidden_ND)

    monkeypatch.setattr(losses.Head, "logits", watched)
    schedule = Schedule.of(TrainConfig(tokens=64, length=32, batch=1, precision="bf16", checkpoints=0))
    rows_NT = np.arange(64, dtype=np.int64).reshape(2, 32)
    fit(Objective(load_model(gpt2)), rows_NT, schedule, scratch=tmp_path, seed=0, progress=Silent(), label="train")
    assert seen == [torch.bfloat16] * 4


def test_a_device_that_is_not_there_is_an_error(gpt2: Path, text_file: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(StageError, match="PyTorch sees no CUDA device here"):
        run(TrainConfig(**KNOBS | {"device": "cuda"}), given(tmp_path, text_file))


def test_tokenizer_gives_back_any_text(text_file: Path) -> None:
    tokenizer = train_tokenizer([text_file.read_text()], 300)
    text = "Ein naïver café: 日本語\n\ttabs,  spaces"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer) == 300


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ({"n_embd": 32}, "model_type: expected one that transformers knows"),
        ({"model_type": "no-such-model"}, "no-such-model"),
        ({"model_type": "gpt22"}, "did you mean 'gpt2'"),
        ({"model_type": "gpt2", "torch_dtype": "nosuch"}, "nosuch"),
        ({"model_type": "gpt2", "attn_pdrop": "x"}, "attn_pdrop"),
        ({"model_type": "llama", "hidden_size": 1, "num_attention_heads": 7}, "not a multiple"),
        (None, "a source model"),
    ],
)
def test_a_wrong_architecture_is_a_clear_error(
    architecture: dict[str, Any] | None, message: str, text_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(StageError, match=message):
        run(TrainConfig(**KNOBS | {"architecture": architecture}), given(tmp_path, text_file))


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ({"model_type": "gpt2", "n_layer": 2147483648}, "`n_layer`: expected a whole number from 1 to 10,000"),
        ({"model_type": "gpt2", "n_embd": -1}, "`n_embd`: expected a whole number"),
        ({"model_type": "gpt2", "n_layer": float("nan")}, "`n_layer`: expected a whole number"),
        ({"model_type": "gpt2", "_attn_implementation": "org/repo"}, "names code in a repository"),
    ],
)
def test_an_architecture_is_looked_at_when_the_recipe_is_read(architecture: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(architecture=architecture)


def test_a_kernel_is_no_part_of_an_architecture(text_file: Path, tmp_path: Path) -> None:
    shape = SHAPE | {"_attn_implementation": "flash_attention_2"}
    run(TrainConfig(**KNOBS | {"architecture": shape, "tokens": 256, "checkpoints": 1}), given(tmp_path, text_file))
    assert (tmp_path / "out" / "model.safetensors").is_file()
