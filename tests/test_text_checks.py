"""Texts that do not suffice are refused before anything runs, in one message."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from compress.checkpoints.folder import load_tokenizer
from compress.text import TextError, check_ids
from recipes.config.errors import RecipeError
from recipes.config.loader import load_recipe
from recipes.engine.runner import run

RECIPE = """\
model: {model}
data: {{test: test.txt, calibration: calibration.txt}}
stages:
  - prune: {{sparsity: 0.3, criterion: wanda, rows: 32, length: 64}}
evaluate: {{window: 16, windows: 4, stride: 16, bos: {bos}, noise: {{case: 0.1}}}}
gate:
  case/noise_cost: {{at_most: 1.2}}
"""


@pytest.mark.parametrize("bos", ["auto", "false"])
def test_too_short_a_text_is_known_before_anything_runs(bos: str, gpt2: Path, tmp_path: Path) -> None:
    (tmp_path / "test.txt").write_text(" ".join(f"word{number}" for number in range(200)))
    (tmp_path / "calibration.txt").write_text(" ".join(f"other{number}" for number in range(200)))
    (tmp_path / "r.yaml").write_text(RECIPE.format(model=gpt2, bos=bos))
    with pytest.raises(RecipeError) as caught:
        run(load_recipe(tmp_path / "r.yaml"), out=tmp_path / "out")
    calibration, gate = sorted(caught.value.errors)
    assert "r.yaml:4: prune: " in calibration
    assert "expected 2048 tokens for calibration (32 rows of 64), got " in calibration
    assert "gate.case/noise_cost: expected a test text of at least 8 documents" in gate
    assert not list((tmp_path / "out").rglob("quality-*"))


def test_only_a_token_that_a_text_holds_matters(make_checkpoint: Callable[..., Path], text_file: Path) -> None:
    folder = make_checkpoint("gpt2")
    tokenizer = load_tokenizer(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    rows = len(tokenizer) - 1
    check_ids(np.asarray(tokenizer(text_file.read_text()[:2000])["input_ids"]), tokenizer, rows)
    with pytest.raises(
        TextError, match=rf"the text holds '\[PAD\]', which is number {rows} of the tokenizer, but the model"
    ):
        check_ids(np.asarray([tokenizer("a [PAD] b")["input_ids"]]), tokenizer, rows)
