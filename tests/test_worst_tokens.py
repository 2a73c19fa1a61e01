"""What lost most: found where it was put."""

import json
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from evaluation.quality import TokenScores, Windows, score, windows_of, worst_tokens

V = 50


def flat(ids_BT: NDArray[np.int64]) -> NDArray[np.float32]:
    return np.zeros((*ids_BT.shape, V), np.float32)


def case(documents: int = 10) -> tuple[Windows, TokenScores]:
    generator = np.random.default_rng(0)
    windows = windows_of([generator.integers(0, V - 1, 40) for _ in range(documents)], length=16, stride=8)
    return windows, score(flat, windows)


def decode(ids: object) -> str:
    return " ".join(str(one) for one in ids)  # type: ignore[attr-defined]  # a list of ints, as a tokenizer takes it


def test_the_worst_token_stands_first_with_its_text() -> None:
    windows, baseline = case()
    nll = baseline.nll.copy()
    nll[123] += 5
    nll[7] += 3
    found = worst_tokens(replace(baseline, nll=nll), baseline, windows, decode)
    first, second = found["tokens"]
    assert first["loss"] == pytest.approx(5)
    assert second["loss"] == pytest.approx(3)
    row, position = baseline.window[123], int(windows.position_N()[123])
    assert first["token"] == str(windows.ids_WT[row, position])
    assert first["before"] == decode(windows.ids_WT[row, :position].tolist())
    assert first["after"] == decode(windows.ids_WT[row, position + 1 : position + 9].tolist())
    assert (first["window"], first["document"]) == (row, baseline.document[123])
    assert json.loads(json.dumps(found)) == found


def test_a_token_that_lost_everywhere_leads_the_vocabulary() -> None:
    windows, baseline = case()
    token_N = windows.ids_WT[baseline.window, windows.position_N()]
    worst = int(np.bincount(token_N).argmax())
    (found,) = worst_tokens(replace(baseline, nll=baseline.nll + (token_N == worst)), baseline, windows, decode)[
        "vocabulary"
    ]
    assert (found["id"], found["count"]) == (worst, int((token_N == worst).sum()))
    assert found["loss"] == pytest.approx(1)


def test_positions_and_documents_average_to_the_whole() -> None:
    windows, baseline = case()
    scores = replace(baseline, nll=baseline.nll + np.random.default_rng(1).normal(0.2, 0.1, len(baseline.nll)))
    found = worst_tokens(scores, baseline, windows, decode, count=99)
    for name in ("positions", "documents"):
        assert sum(one["count"] for one in found[name]) == found["scored"] == windows.tokens
        mean = sum(one["count"] * one["loss"] for one in found[name]) / found["scored"]
        assert mean == pytest.approx(found["loss"])
    assert [(one["from"], one["to"]) for one in found["positions"]] == [(1, 1), (2, 3), (4, 7), (8, 15)]
    losses = [one["loss"] for one in found["documents"]]
    assert losses == sorted(losses, reverse=True)
    assert len(losses) == 10
    assert all(one["window"] is None for one in found["documents"])


def test_windows_stand_for_documents_where_those_are_few() -> None:
    windows, baseline = case(documents=1)
    nll = baseline.nll + (baseline.window == 2)
    (found,) = worst_tokens(replace(baseline, nll=nll), baseline, windows, decode)["documents"]
    assert (found["document"], found["window"]) == (0, 2)
    assert found["opening"] == decode(windows.ids_WT[2].tolist())


def test_lists_are_short() -> None:
    windows, baseline = case(documents=30)
    found = worst_tokens(replace(baseline, nll=baseline.nll + 0.5), baseline, windows, decode)
    assert {len(found[name]) for name in ("tokens", "vocabulary", "documents")} == {12}


def test_nothing_is_said_of_what_cannot_be_measured() -> None:
    windows, baseline = case()
    assert worst_tokens(replace(baseline, nll=np.full_like(baseline.nll, np.nan)), baseline, windows, decode) == {}
    with pytest.raises(ValueError, match="of these windows"):
        worst_tokens(baseline, baseline, windows_of([np.arange(30)], length=8), decode)
