"""A baseline's layers run once: the same scores to the bit, whatever the model does after its layers."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from compress.checkpoints.loading import load_model
from recipes.formats import FORMATS
from recipes.formats.hidden_states import HiddenStates

IDS_BT = np.arange(40, dtype=np.int64).reshape(4, 10) * 7 % 300


def counted(model: torch.nn.Module) -> list[int]:
    """Grows with every run of the first layer."""
    runs: list[int] = []
    model.get_input_embeddings().register_forward_hook(lambda *_: runs.append(1))  # type: ignore[operator]
    return runs


@pytest.mark.parametrize(("family", "kept"), [("gpt2", True), ("llama", True), ("gemma2", False)])
def test_scores_are_the_models_own_and_its_layers_run_once_where_its_head_is_all_that_follows(
    family: str, kept: bool, shared_checkpoint: Callable[..., Path]
) -> None:
    model = load_model(shared_checkpoint(family))
    with torch.inference_mode():
        expected = model(input_ids=torch.from_numpy(IDS_BT)).logits.numpy()
    runs = counted(model)
    score = HiddenStates().scorer(model)
    for _ in range(3):
        assert (score(IDS_BT) == expected).all()
    assert (len(runs) == 2) == kept  # once, and once whole to see that it is the same
    other = score(IDS_BT[:, ::-1].copy())
    assert (other != expected).any()


def test_what_does_not_fit_is_run_again(gpt2: Path) -> None:
    model = load_model(gpt2)
    runs = counted(model)
    score = HiddenStates(limit=IDS_BT.size * 64 * 4 - 1).scorer(model)
    first = score(IDS_BT)
    assert (score(IDS_BT) == first).all()
    assert len(runs) == 3


def test_only_text_is_remembered(gpt2: Path) -> None:
    model = FORMATS["dense"].open(gpt2, hidden=HiddenStates())
    runs = counted(model._model)  # type: ignore[attr-defined]
    for _ in range(2):
        assert (model.text_logits(IDS_BT) == model.logits(IDS_BT)).all()
    assert len(runs) == 4  # the text once, and once to see that it is the same
