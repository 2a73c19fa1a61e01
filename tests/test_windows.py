"""Windows: every token is scored once, after as much as the protocol promises; what a token stands for adds up."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from compress.checkpoints.folder import load_tokenizer
from evaluation.quality import Windows, amounts_of, windows_of

MODELS = Path(__file__).parents[1] / "recipes" / "models"
MODEL = MODELS / "novels-gpt2"
TEXTS = {
    "plain": "The quick brown fox jumps over the lazy dog. " * 5,
    "spaces around": "  two before, and after \n\n",
    "many bytes": "\u6f22\u5b57 na\u00efve \U0001f9ea\U0001f9ea \u00e9\u00e9 \u03b1\u03b2\u03b3 mixed",
    "lines": "one\n\ntwo\tthree\r\n four",
    "one word": "word",
}


def documents() -> list[NDArray[np.int64]]:
    """Tokens that tell their document and their place: 1000 d + place."""
    return [1000 * number + np.arange(length) for number, length in enumerate((1, 2, 7, 8, 9, 40))]


def scored(windows: Windows) -> list[int]:
    return [
        int(token)
        for row_T, first, length in zip(windows.ids_WT, windows.first_W, windows.length_W, strict=True)
        for token in row_T[first:length]
    ]


@pytest.mark.parametrize("stride", [1, 3, 6])
@pytest.mark.parametrize("bos", [(), (99_999,), (99_999, 88_888)])
def test_overlapping_windows_score_every_token_once_after_enough_others(stride: int, bos: tuple[int, ...]) -> None:
    windows = windows_of(documents(), length=8, stride=stride, bos=bos)
    unscored = set() if bos else {1000 * number for number in range(6)}
    room = 8 - len(bos)
    if stride == room:  # side by side: the first of each window has nothing before it but BOS
        unscored = set()
    expected = [int(token) for ids in documents() for token in ids if token not in unscored]
    assert scored(windows) == expected
    for row_T, first, length in zip(windows.ids_WT, windows.first_W, windows.length_W, strict=True):
        start = row_T[len(bos)]
        assert tuple(row_T[: len(bos)]) == bos
        if start % 1000:  # not the first window of its document
            assert first >= 8 - stride
            assert stride == room or length == 8  # moved back to be full


def test_a_stride_of_the_length_is_none_at_all() -> None:
    for count in (None, 3):
        apart, stated = (windows_of(documents(), length=8, stride=stride, count=count) for stride in (None, 8))
        assert apart.digest() == stated.digest()
        assert apart.protocol == stated.protocol


def test_bos_lets_the_first_token_count() -> None:
    windows = windows_of(documents(), length=8, bos=[5])
    assert sorted(scored(windows)) == sorted(int(token) for ids in documents() for token in ids)
    assert (windows.ids_WT[:, 0] == 5).all()
    assert (windows.first_W == 1).all()
    assert "BOS (token 5) before every window" in windows.protocol


@pytest.mark.parametrize(("stride", "bos"), [(0, ()), (9, ()), (8, (1,))])
def test_a_stride_that_leaves_gaps_is_refused(stride: int, bos: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected a stride between 1 and the"):
        windows_of(documents(), length=8, stride=stride, bos=bos)


@pytest.mark.parametrize("tokens", [1, 5, 8, 9, 16, 17, 30, 100])
def test_windows_are_those_of_the_harness(tokens: int) -> None:
    """A prefix token before the document, length L + 1, stride L: lm-evaluation-harness with context 1."""
    utils = pytest.importorskip("lm_eval.utils")
    ids, limit, prefix = list(range(100, 100 + tokens)), 8, 7
    expected = [
        ([*context, *predicted[:-1]], predicted)
        for context, predicted in map(
            utils.make_disjoint_window,
            utils.get_rolling_token_windows(ids, prefix_token=prefix, max_seq_len=limit, context_len=1),
        )
    ]
    windows = windows_of([np.array([prefix, *ids])], length=limit + 1, stride=limit)
    found = [
        (row_T[: length - 1].tolist(), row_T[first:length].tolist())
        for row_T, first, length in zip(windows.ids_WT, windows.first_W, windows.length_W, strict=True)
    ]
    assert found == expected


def test_the_digest_covers_what_is_scored() -> None:
    ids = [np.arange(40)]
    amounts = [np.ones((40, 2), dtype=np.int64)]
    found = {
        windows_of(ids, length=8).digest(),
        windows_of(ids, length=8, stride=4).digest(),
        windows_of(ids, length=8, bos=[1]).digest(),
        windows_of(ids, length=8, amounts=amounts).digest(),
        windows_of([np.arange(20), np.arange(20, 40)], length=8).digest(),
    }
    assert len(found) == 5
    windows = windows_of(ids, length=8)
    for name in ("ids_WT", "length_W", "first_W", "document_W", "bytes_N", "words_N"):
        assert replace(windows, **{name: getattr(windows, name) + 1}).digest() != windows.digest()


def test_positions_count_what_stands_before() -> None:
    windows = windows_of([np.arange(20)], length=8, stride=4)
    rows = np.repeat(np.arange(len(windows)), windows.scored_W)
    np.testing.assert_array_equal(windows.ids_WT[rows, windows.position_N()], scored(windows))


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_bytes_and_words_of_the_tokens_are_those_of_the_text(text: str) -> None:
    tokenizer = load_tokenizer(MODEL)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    amounts_T2 = amounts_of(text, np.array([end for _, end in encoded["offset_mapping"]]))
    assert len(amounts_T2) == len(encoded["input_ids"])
    assert amounts_T2.sum(axis=0).tolist() == [len(text.encode()), len(re.split(r"\s+", text))]
    assert (amounts_T2 >= 0).all()


def test_a_token_that_begins_a_word_counts_it() -> None:
    text = "one two\u00e9 three"
    amounts_T2 = amounts_of(text, np.array([3, 7, 8, 8, 12, 14]))  # one | two|e'|(second byte)| thr|ee
    assert amounts_T2.tolist() == [[3, 1], [4, 1], [2, 0], [0, 0], [4, 1], [2, 0]]
    assert amounts_of("one two", np.array([3, 4, 7])).tolist() == [[3, 1], [1, 0], [3, 1]]  # a space of its own


def test_offsets_that_go_back_or_stop_early_lose_nothing() -> None:
    assert amounts_of("one two", np.array([4, 3, 7])).tolist() == [[4, 1], [0, 0], [3, 1]]
    assert amounts_of("one two  ", np.array([3, 7])).tolist() == [[3, 1], [6, 2]]


def test_no_tokens_are_no_text() -> None:
    assert amounts_of("", np.zeros(0, dtype=np.int64)).shape == (0, 2)


def test_amounts_follow_the_scored_tokens() -> None:
    ids = [np.arange(20), np.arange(9)]
    amounts = [np.stack([10 + document, 20 + document], axis=1) for document in ids]
    windows = windows_of(ids, length=8, stride=5, count=3, amounts=amounts)
    np.testing.assert_array_equal(windows.bytes_N, np.array(scored(windows)) + 10)
    np.testing.assert_array_equal(windows.words_N, np.array(scored(windows)) + 20)
