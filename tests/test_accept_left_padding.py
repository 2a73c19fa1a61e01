"""Rows padded on either side say what they say alone: on a tiny graph, and in bundles that plain ONNX Runtime runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from exported import Exported
from graphs import Array, Example, applied, session
from pass_examples import normal

BEFORE_HEAD = "x = Gather(table, input_ids)  sums = CumSum(x, axis)  logits = MatMul(sums, weight)"
NO_HEAD = "x = Gather(table, input_ids)  sums = CumSum(x, axis)  logits = Tanh(sums)"
INPUTS = "(int64[B,T] input_ids, int64[B,S] attention_mask) => (float[B,T,8] logits)"
ARRAYS = {"table": normal(24, 8), "axis": np.asarray(1), "weight": normal(8, 8)}


def example(body: str) -> Example:
    """What a token says depends on all before it in its row, as where attention counts from the left."""
    return Example(text=f"{INPUTS} {{ {body} }}", arrays=ARRAYS)


@pytest.mark.parametrize("body", [BEFORE_HEAD, NO_HEAD])
def test_accept_left_padding_moves_rows_there_and_back(body: str) -> None:
    model, modified = applied("accept_left_padding", example(body))
    assert modified
    opened = session(model)

    def logits(ids: list[list[int]], mask: list[list[int]]) -> Array:
        [found] = opened.run(None, {"input_ids": np.asarray(ids), "attention_mask": np.asarray(mask)})
        return np.asarray(found)

    alone = logits([[5, 6, 7]], [[1, 1, 1]])[0]
    rows = [[0, 0, 5, 6, 7], [5, 6, 7, 0, 0], [1, 2, 3, 4, 8]]
    found = logits(rows, [[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [1] * 5])
    assert np.array_equal(found[0, 2:], alone)
    assert np.array_equal(found[1, :3], alone)
    assert np.array_equal(found[2], logits(rows[2:], [[1] * 5])[0])
    step = logits([[7], [7]], [[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    assert np.array_equal(step[0], step[1]), "a row with tokens in its cache stays where it is"


def test_accept_left_padding_leaves_a_graph_without_mask_and_one_that_it_has_been_over() -> None:
    text = f"(int64[B,T] input_ids) => (float[B,T,8] logits) {{ {BEFORE_HEAD} }}"
    assert not applied("accept_left_padding", Example(text=text, arrays=ARRAYS))[1]
    from export.passes import PASSES

    given = example(BEFORE_HEAD)
    model, _ = applied("accept_left_padding", given)
    assert not PASSES["accept_left_padding"](given.context())(model).modified


PROMPTS = [[52, 48, 60, 31, 7, 19, 23], [60, 31, 7], [9]]


def plain_greedy(bundle: Path, ids_BT: Array, mask_BT: Array, tokens: int) -> list[list[int]]:
    """What ONNX Runtime adds to rows as optimum feeds it: caches that grow, positions by the mask, the last logits."""
    opened = onnxruntime.InferenceSession(bundle / "model.onnx", providers=["CPUExecutionProvider"])
    past: dict[str, Any] = {
        value.name: np.zeros((len(ids_BT), value.shape[1], 0, value.shape[3]), np.float32)
        for value in opened.get_inputs()
        if value.name.startswith("past_key_values.")
    }
    named, added = {value.name for value in opened.get_inputs()}, []
    for _ in range(tokens):
        place_BT = np.maximum(mask_BT.cumsum(axis=1) - 1, 0)[:, -ids_BT.shape[1] :]
        feeds = {"input_ids": ids_BT, "attention_mask": mask_BT, "position_ids": place_BT}
        logits_BTV, *present = opened.run(None, {name: feeds[name] for name in feeds if name in named} | past)
        past = dict(zip(past, present, strict=True))
        ids_BT = logits_BTV[:, -1:].argmax(axis=-1)
        mask_BT = np.concatenate([mask_BT, np.ones_like(ids_BT)], axis=1)
        added.append(ids_BT)
    return np.concatenate(added, axis=1).tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("family", ["gpt2", pytest.param("llama", marks=pytest.mark.thorough)])
def test_a_batch_padded_on_the_left_says_what_its_rows_say_alone(
    family: str, int8_exports: Callable[[str], Exported], capfd: pytest.CaptureFixture[str]
) -> None:
    bundle = int8_exports(family).bundle
    longest = max(map(len, PROMPTS))
    rows = [np.pad(np.asarray(prompt), (longest - len(prompt), 0)) for prompt in PROMPTS]
    masks = [np.pad(np.ones(len(prompt), dtype=np.int64), (longest - len(prompt), 0)) for prompt in PROMPTS]
    together = plain_greedy(bundle, np.stack(rows), np.stack(masks), 8)
    alone = [
        plain_greedy(bundle, np.asarray([prompt]), np.ones((1, len(prompt)), dtype=np.int64), 8) for prompt in PROMPTS
    ]
    assert together == [tokens for [tokens] in alone]
    assert not capfd.readouterr().err, "ONNX Runtime has nothing to warn of"
