"""Every sequence that a model reads begins as its tokenizer begins a text: windows, calibration, questions, prompts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compress.checkpoints.folder import load_tokenizer
from compress.models.calibration import calibration_rows
from compress.text import TextSource
from recipes.cli.options import build
from recipes.config.recipe import EvaluateConfig
from recipes.measure.text_windows import beginnings, windows_in

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "recipes" / "models" / "novels-gpt2"
TEXT = (ROOT / "recipes" / "data" / "novels" / "test.txt").read_text(encoding="utf-8")[:8000]
LENGTH = 64


@pytest.fixture(scope="module")
def beginning_with() -> Any:
    """The tokenizer of the shipped teacher, made to put its <|endoftext|> before a text and after it."""
    from tokenizers import Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    number = tokenizer.token_to_id("<|endoftext|>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["<|endoftext|>", "$A", "<|endoftext|>"], special_tokens=[("<|endoftext|>", number)]
    )
    bos = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=bos)


def test_windows_begin_as_the_tokenizer_begins_a_text(beginning_with: Any) -> None:
    bos = beginning_with.bos_token_id
    auto = windows_in([TEXT], beginning_with, length=LENGTH)
    assert (auto.ids_WT[:, 0] == bos).all()
    assert f"BOS (token {bos}) before every window" in auto.protocol
    assert auto.digest() == windows_in([TEXT], beginning_with, length=LENGTH, bos=True).digest()
    without = windows_in([TEXT], beginning_with, length=LENGTH, bos=False)
    assert "no BOS" in without.protocol
    assert without.digest() == windows_in([TEXT], load_tokenizer(MODEL), length=LENGTH).digest()  # it adds none
    assert beginnings(beginning_with, "auto") == [bos]
    assert beginnings(load_tokenizer(MODEL), "auto") == []


def test_calibration_and_training_rows_begin_so_too(beginning_with: Any, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(TEXT)
    rows_NT = calibration_rows(TextSource(file=tmp_path / "t.txt"), beginning_with, 3, 16)
    assert rows_NT.shape == (3, 16)
    assert (rows_NT[:, 0] == beginning_with.bos_token_id).all()
    bare_NT = calibration_rows(TextSource(file=tmp_path / "t.txt"), load_tokenizer(MODEL), 3, 15)
    assert np.array_equal(rows_NT[:, 1:], bare_NT)


@pytest.mark.parametrize(("asked", "expected"), [("auto", "auto"), ("true", True), ("false", False)])
def test_bos_is_asked_for_by_its_name(asked: str, expected: object) -> None:
    assert build(EvaluateConfig, {"bos": asked}).bos == expected
    assert EvaluateConfig().bos == "auto"


def test_tasks_begin_so_too(beginning_with: Any) -> None:
    pytest.importorskip("lm_eval")
    from recipes.measure.harness_model import ScorerLM

    def model(bos: Any) -> Any:
        nothing: Any = None
        prefix = beginnings(beginning_with, bos)
        return ScorerLM(scorer=nothing, generator=nothing, tokenizer=beginning_with, prefix=prefix, context=LENGTH)

    bare = beginning_with("Once upon", add_special_tokens=False)["input_ids"]
    assert model("auto").tok_encode("Once upon") == [beginning_with.bos_token_id, *bare]
    assert model(False).tok_encode("Once upon") == bare
    assert model("auto").tok_encode("Once upon", add_special_tokens=False) == bare
    assert model("auto").tok_encode("<|endoftext|>Once upon") == [beginning_with.bos_token_id, *bare]
