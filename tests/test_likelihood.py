"""Likelihood of continuations against the plain computation, and what is asked with it."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from evaluation.quality.classification import ask_labeled
from evaluation.quality.generation import ask_generation
from evaluation.quality.likelihood import continuations, encode_pair

VOCABULARY, CONTEXT = 40, 12
TABLE = np.random.default_rng(0).normal(size=(VOCABULARY, VOCABULARY)).astype(np.float32)
Ids = NDArray[np.int64]


class Counting:
    """Scores that depend on the last two tokens; counts the rows it was asked for."""

    def __init__(self) -> None:
        self.rows = 0
        self.longest = 0

    def __call__(self, ids_BT: Ids) -> NDArray[np.float32]:
        self.rows += len(ids_BT)
        self.longest = max(self.longest, ids_BT.shape[1])
        before_BT = np.concatenate([np.zeros_like(ids_BT[:, :1]), ids_BT[:, :-1]], axis=1)
        return TABLE[ids_BT] + 0.5 * TABLE[before_BT]


def plainly(before: Sequence[int], after: Sequence[int]) -> tuple[float, bool]:
    """One token after another."""
    total, greedy, ids = 0.0, True, list(before)
    for token in after:
        scores = Counting()(np.array([ids[-CONTEXT:]]))[0, -1].astype(np.float64)
        total += scores[token] - np.log(np.exp(scores).sum())
        greedy &= bool(scores.argmax() == token)
        ids.append(token)
    return total, greedy


def encode(text: str) -> list[int]:
    """A token a word, its blank belonging to it; a blank at the end is a token of its own."""
    words = text.split(" ")
    return [sum(map(ord, word)) % VOCABULARY if word else 39 for word in words] if text else []


@pytest.mark.parametrize("batch", [1, 3, 50])
def test_continuations_are_those_of_one_token_after_another_in_the_order_given(batch: int) -> None:
    random = np.random.default_rng(1)
    pairs = [
        (
            random.integers(VOCABULARY, size=random.integers(1, 9)).tolist(),
            random.integers(VOCABULARY, size=1 + n % 3).tolist(),
        )
        for n in range(20)
    ]
    pairs += [([1, 2, 3], [7]), ([1, 2, 3], [8]), ([1, 2], [3, 9])]
    best = int(Counting()(np.array([[1, 2]]))[0, -1].argmax())
    pairs.append(([1, 2], [best]))
    scorer = Counting()
    told: list[int] = []
    log_P, greedy_P, token_P = continuations(scorer, pairs, context=CONTEXT, batch=batch, on_batch=told.append)
    expected = [plainly(before, after) for before, after in pairs]
    assert log_P == pytest.approx([total for total, _ in expected], abs=1e-5)
    assert greedy_P.tolist() == [greedy for _, greedy in expected]
    assert greedy_P[-1]
    assert token_P.tolist() == [len(after) for _, after in pairs]
    assert sum(told) == len(pairs)
    assert scorer.rows <= len(pairs) - 2  # [1, 2, 3] is fed once for three of them


def test_what_is_too_long_loses_its_beginning_only() -> None:
    before, after = list(range(30)), [3, 4, 5]
    scorer = Counting()
    log_P, _, _ = continuations(scorer, [(before, after)], context=CONTEXT)
    assert scorer.longest == CONTEXT
    assert log_P[0] == pytest.approx(plainly(before, after)[0], abs=1e-5)
    with pytest.raises(ValueError, match="at most 12 tokens, the model's context, got 13"):
        continuations(scorer, [([1], list(range(13)))], context=CONTEXT)
    for empty in (([], [1]), ([1], [])):
        with pytest.raises(ValueError, match="at least a token"):
            continuations(scorer, [empty], context=CONTEXT)


def test_blanks_at_the_end_of_a_context_go_to_the_continuation() -> None:
    assert encode_pair(encode, "a b ", "c") == encode_pair(encode, "a b", " c")
    before, after = encode_pair(encode, "a b", " c")
    assert before + after == encode("a b c")
    assert len(before) == 2
    with pytest.raises(ValueError, match="at least a token"):
        encode_pair(encode, "", "c")


def test_labels_have_the_probability_of_their_answers() -> None:
    prompts, answers = ["x y is", "z is", "w v is"], {"good": " yes", "bad": " no at all"}
    items = ask_labeled(
        prompts, ["good", "bad", "bad"], answers, scorer=Counting(), encode=encode, context=CONTEXT, batch=2
    )
    for item, prompt in enumerate(prompts):
        score = [
            plainly(encode(prompt), encode(prompt + answer)[len(encode(prompt)) :])[0] for answer in answers.values()
        ]
        expected = np.exp(score) / np.exp(score).sum()
        assert [items.columns["probability.0"][item], items.columns["probability.1"][item]] == pytest.approx(
            expected, abs=1e-5
        )
    assert items.columns["label"].tolist() == [0, 1, 1]
    assert sum(map(sum, items.metadata["confusion"])) == 3
    assert "1 to 3 each" in items.metadata["protocol"]
    other = ask_labeled(prompts, ["bad", "bad", "bad"], answers, scorer=Counting(), encode=encode, context=CONTEXT)
    assert other.digest != items.digest


def test_generated_texts_stay_with_their_prompts_and_long_prompts_lose_their_beginning() -> None:
    pytest.importorskip("sacrebleu")
    pytest.importorskip("rouge_score")
    seen: list[int] = []

    def echo(prompts: Sequence[Ids], tokens: int) -> list[Ids]:
        seen.extend(len(prompt) for prompt in prompts)
        return [prompt[-tokens:] for prompt in prompts]

    prompts = ["a b", " ".join("abcdefghijklmnop"), "c d e"]
    expected = [" ".join(map(str, encode(prompt)[-3:])) for prompt in prompts]
    given = {
        "generator": echo,
        "encode": encode,
        "decode": lambda ids: " " + " ".join(map(str, ids)),
        "context": CONTEXT,
    }
    items = ask_generation(prompts, expected, tokens=3, prefix=[0], batch=2, **given)
    assert [row["text"] for row in items.metadata["texts"]][1:] == expected[1:]
    assert items.columns["rouge_1"][1:] == pytest.approx([1, 1])
    assert max(seen) == CONTEXT - 3
    with pytest.raises(ValueError, match="expected fewer than 11 new tokens"):
        ask_generation(prompts, expected, tokens=11, prefix=[0], **given)
