"""Quality figures against naive loops over tokens and against closed forms."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from evaluation.measurement import Measurement
from evaluation.quality import (
    RATIOS,
    STATISTICS,
    Scorer,
    TokenScores,
    Windows,
    quality_measurements,
    score,
    windows_of,
)
from evaluation.quality.token_metrics import OF_TEXT

V = 11


def table_scorer(seed: int, sharpness: float = 1.0) -> Scorer:
    """A bigram model: the scores depend on the current token alone."""
    table_VV = np.random.default_rng(seed).normal(0, sharpness, (V, V)).astype(np.float32)
    return lambda ids_BT: table_VV[ids_BT]


def amounts(documents: list[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
    """As if every token were three bytes, and every other one began a word."""
    return [np.stack([np.full(len(ids), 3), np.arange(len(ids)) % 2], axis=1) for ids in documents]


def texts(count: int = 10, seed: int = 0) -> list[NDArray[np.int64]]:
    generator = np.random.default_rng(seed)
    return [generator.integers(0, V, generator.integers(5, 40)) for _ in range(count)]


def by_metric(measurements: list[Measurement]) -> dict[str, Measurement]:
    return {measurement.metric: measurement for measurement in measurements}


def measured(model: Scorer, baseline: Scorer, windows: Windows) -> dict[str, Measurement]:
    scores = score(model, windows, baseline, batch=4)
    return by_metric(quality_measurements(scores, score(baseline, windows), method="a test"))


def test_windows_cover_every_token_once_and_cross_no_document() -> None:
    documents = texts()
    windows = windows_of(documents, length=8)
    for number, document in enumerate(documents):
        rows = np.flatnonzero(windows.document_W == number)
        joined = np.concatenate([windows.ids_WT[row, : windows.length_W[row]] for row in rows])
        np.testing.assert_array_equal(joined, document[: len(joined)])
        assert len(document) - len(joined) <= 1  # a last window of one token has nothing to score
    assert windows.length_W.min() >= 2
    assert windows.tokens == (windows.length_W - 1).sum()
    assert "stride 8" in windows.protocol
    assert "no BOS" in windows.protocol


def test_joined_documents_are_one_stream() -> None:
    documents = texts()
    windows = windows_of(documents, length=8, join=True)
    assert set(windows.document_W) == {0}
    assert (windows.length_W[:-1] == 8).all()
    np.testing.assert_array_equal(windows.ids_WT[:-1].ravel(), np.concatenate(documents)[: 8 * (len(windows) - 1)])


def test_selected_windows_are_spread_evenly_or_come_first() -> None:
    stream = [np.arange(100, dtype=np.int64)]
    assert windows_of(stream, length=10, count=3).ids_WT[:, 0].tolist() == [0, 30, 60]
    assert windows_of(stream, length=10, count=3, select="first").ids_WT[:, 0].tolist() == [0, 10, 20]
    assert len(windows_of(stream, length=10, count=99)) == 10


@pytest.mark.parametrize(
    ("documents", "length", "count"), [([], 8, None), ([np.array([1])], 8, None), (texts(), 1, None), (texts(), 8, 0)]
)
def test_text_without_a_window_is_refused(documents: list[NDArray[np.int64]], length: int, count: int | None) -> None:
    with pytest.raises(ValueError, match="expected"):
        windows_of(documents, length=length, count=count)


def test_scores_equal_a_naive_loop() -> None:
    windows = windows_of(texts(), length=8)
    model, baseline = table_scorer(1), table_scorer(2)
    scores = score(model, windows, baseline, batch=3)
    expected = []
    for row, length in enumerate(windows.length_W):
        for position in range(length - 1):
            q = softmax(model(windows.ids_WT[row : row + 1])[0, position])
            p = softmax(baseline(windows.ids_WT[row : row + 1])[0, position])
            target = windows.ids_WT[row, position + 1]
            kl = sum(p[v] * (math.log(p[v]) - math.log(q[v])) for v in range(V))
            rank = sorted(range(V), key=lambda v: -q[v]).index(target)
            expected.append((-math.log(q[target]), rank, q.argmax() == p.argmax(), kl, row))
    nll, rank_N, agree, kl_N, window = (np.array(column) for column in zip(*expected, strict=True))
    np.testing.assert_allclose(scores.nll, nll, rtol=1e-6, atol=1e-14)
    np.testing.assert_array_equal(scores.rank, rank_N)
    np.testing.assert_array_equal(scores.agree, agree)
    np.testing.assert_allclose(scores.kl, kl_N, rtol=1e-6, atol=1e-9)
    np.testing.assert_array_equal(scores.window, window)
    np.testing.assert_array_equal(scores.document, windows.document_W[window])


def test_a_constant_model_ranks_nothing_first() -> None:
    scores = score(lambda ids_BT: np.zeros((*ids_BT.shape, V), dtype=np.float32), windows_of(texts(), length=8))
    assert (scores.rank == V - 1).all()


def softmax(scores_V: NDArray[np.float32]) -> NDArray[np.float64]:
    exponentials = np.exp(scores_V.astype(np.float64))
    return np.asarray(exponentials / exponentials.sum())


def test_scores_do_not_depend_on_the_batch_or_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    windows = windows_of(texts(), length=8)
    whole = score(table_scorer(1), windows, table_scorer(2), batch=100)
    monkeypatch.setattr("evaluation.quality.scoring._SCORES_AT_ONCE", 2 * V)
    single = score(table_scorer(1), windows, table_scorer(2), batch=1)
    for name in ("nll", "rank", "agree", "kl", "window"):
        np.testing.assert_array_equal(getattr(single, name), getattr(whole, name))


def test_log_probabilities_score_like_logits() -> None:
    windows = windows_of(texts(), length=8)
    logits = table_scorer(1)

    def log_probabilities(ids_BT: NDArray[np.int64]) -> NDArray[np.float32]:
        scores_BTV = logits(ids_BT)
        return np.asarray(scores_BTV - np.log(np.exp(scores_BTV).sum(axis=-1, keepdims=True)))

    np.testing.assert_allclose(score(log_probabilities, windows).nll, score(logits, windows).nll, rtol=1e-5)


def test_a_model_is_identical_to_itself() -> None:
    found = measured(table_scorer(1), table_scorer(1), windows_of(texts(), length=8))
    assert found["kl_divergence"].value == 0
    assert found["agreement"].value == 1
    assert found["perplexity"].ratio is not None
    assert found["perplexity"].ratio.value == 1
    assert not any(measurement.invalid for measurement in found.values())


def test_uniform_model_has_the_vocabulary_as_its_perplexity() -> None:
    found = by_metric(
        quality_measurements(
            score(lambda ids_BT: np.zeros((*ids_BT.shape, V), np.float32), windows_of(texts(), length=8)),
            method="a test",
        )
    )
    assert found["perplexity"].value == pytest.approx(V)
    assert set(found) == set(RATIOS) - OF_TEXT  # a baseline has nothing to agree with, ids alone are no text


def test_every_statistic_is_measured_with_an_interval() -> None:
    documents = texts(12)
    found = measured(table_scorer(1), table_scorer(2), windows_of(documents, length=8, amounts=amounts(documents)))
    assert set(found) == set(STATISTICS)
    assert found
    for measurement in found.values():
        assert measurement.interval is not None
        assert measurement.interval.low <= measurement.value <= measurement.interval.high
        assert measurement.samples == 12
        assert (measurement.ratio is not None) == (measurement.metric in RATIOS)


def test_perplexity_ratio_is_the_quotient_of_the_perplexities() -> None:
    windows = windows_of(texts(), length=8)
    baseline = by_metric(quality_measurements(score(table_scorer(2), windows), method="a test"))["perplexity"]
    ratio = measured(table_scorer(1), table_scorer(2), windows)["perplexity"].ratio
    model = by_metric(quality_measurements(score(table_scorer(1), windows), method="a test"))["perplexity"]
    assert ratio is not None
    assert ratio.value == pytest.approx(model.value / baseline.value)


def test_nan_is_an_invalid_measurement_that_names_the_place() -> None:
    windows = windows_of(texts(), length=8)

    def broken(ids_BT: NDArray[np.int64]) -> NDArray[np.float32]:
        return np.where(ids_BT[..., None] == 3, np.float32("nan"), table_scorer(1)(ids_BT))

    scores = score(broken, windows, table_scorer(2))
    found = by_metric(quality_measurements(scores, score(table_scorer(2), windows), method="a test"))
    assert set(found) == set(STATISTICS) - OF_TEXT
    for measurement in found.values():
        assert math.isnan(measurement.value)
        assert "the model scored" in measurement.invalid
        assert "first in window" in measurement.invalid
    spoiled = quality_measurements(score(table_scorer(1), windows, broken), score(broken, windows), method="a test")
    assert all("the baseline scored" in measurement.invalid for measurement in spoiled)


def test_a_token_that_the_model_rules_out_spoils_the_divergence_alone() -> None:
    windows = windows_of([document % (V - 1) for document in texts()], length=8)

    def without_last(ids_BT: NDArray[np.int64]) -> NDArray[np.float32]:
        scores_BTV = table_scorer(1)(ids_BT).copy()
        scores_BTV[..., V - 1] = -np.inf
        return scores_BTV

    found = measured(without_last, table_scorer(2), windows)
    assert "not finite" in found["kl_divergence"].invalid
    assert found["perplexity"].invalid == ""
    both = measured(without_last, without_last, windows)
    assert both["kl_divergence"].value == 0
    assert both["kl_divergence"].invalid == ""


def test_scores_of_other_windows_are_unpaired() -> None:
    first, second = windows_of(texts(seed=0), length=8), windows_of(texts(seed=1), length=8)
    measurements = quality_measurements(score(table_scorer(1), first), score(table_scorer(2), second), method="a test")
    assert measurements
    assert all(measurement.invalid.startswith("unpaired") for measurement in measurements)


def test_a_single_window_is_no_evidence() -> None:
    windows = windows_of([np.arange(8) % V], length=8)
    (perplexity, *_) = quality_measurements(score(table_scorer(1), windows), method="a test")
    assert "single window" in perplexity.invalid


def test_few_documents_are_said_in_the_method() -> None:
    windows = windows_of([np.random.default_rng(0).integers(0, V, 400)], length=8)
    (perplexity, *_) = quality_measurements(score(table_scorer(1), windows), method="a test")
    assert "contiguous blocks" in perplexity.method
    assert perplexity.interval is not None


@pytest.mark.parametrize("shape", [(1, 7), (1, 8, V), (1, 7, 3)])
def test_scores_of_the_wrong_shape_are_refused(shape: tuple[int, ...]) -> None:
    windows = windows_of([np.arange(8) % V], length=8)
    with pytest.raises(ValueError, match="expected"):
        score(lambda ids_BT: np.zeros(shape, np.float32), windows)


def test_other_vocabularies_cannot_be_compared() -> None:
    windows = windows_of([np.arange(8) % V], length=8)
    with pytest.raises(ValueError, match="one vocabulary"):
        score(table_scorer(1), windows, lambda ids_BT: np.zeros((*ids_BT.shape, V + 5), np.float32))


def test_scores_survive_a_file(tmp_path: Path) -> None:
    scores = score(table_scorer(1), windows_of(texts(), length=8), table_scorer(2))
    scores.save(tmp_path / "tokens.npz")
    loaded = TokenScores.load(tmp_path / "tokens.npz")
    assert loaded.digest == scores.digest
    for name in ("nll", "rank", "agree", "kl", "bytes", "words", "document", "window"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(scores, name))
        assert getattr(loaded, name).dtype == getattr(scores, name).dtype


def test_pickled_scores_are_refused(tmp_path: Path) -> None:
    scores = score(table_scorer(1), windows_of(texts(), length=8))
    replace(scores, nll=np.array([{}], dtype=object)).save(tmp_path / "tokens.npz")
    with pytest.raises(ValueError, match="allow_pickle"):
        TokenScores.load(tmp_path / "tokens.npz")


def test_scores_of_another_version_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "tokens.npz", nll=np.zeros(3), correct=np.ones(3))
    with pytest.raises(ValueError, match=r"expected the columns nll, rank.*got nll, correct.*run the recipe again"):
        TokenScores.load(tmp_path / "tokens.npz")


@pytest.mark.parametrize("vocabulary", [V, 1024, 5000, 49_152])
@pytest.mark.parametrize("sharpness", [0.5, 4.0, 12.0])
@pytest.mark.parametrize("shift", [0.0, 7.0])
def test_scores_are_within_a_millionth_of_float64(vocabulary: int, sharpness: float, shift: float) -> None:
    """Also where a token is all but certain: float32 sums that hold the 1 of the first token would lose its digits."""
    generator = np.random.default_rng(vocabulary)
    ids_WT = generator.integers(0, vocabulary, (4, 17))
    model_WTV = generator.normal(0, sharpness, (4, 16, vocabulary)).astype(np.float32)
    for row_TV, target_T in zip(model_WTV, ids_WT[:, 1:], strict=True):
        row_TV[np.arange(0, 16, 2), target_T[::2]] += np.float32(5 * sharpness)
    baseline_WTV = model_WTV + generator.normal(0, 0.02, model_WTV.shape).astype(np.float32) + np.float32(shift)
    windows = windows_of(list(ids_WT), length=17)
    scores = score(lambda ids_BT: model_WTV, windows, lambda ids_BT: baseline_WTV)
    q, p = (log_softmax(scores_WTV.reshape(64, vocabulary)) for scores_WTV in (model_WTV, baseline_WTV))
    nll = -q[np.arange(64), ids_WT[:, 1:].ravel()]
    np.testing.assert_allclose(scores.nll, nll, rtol=1e-6, atol=1e-14)
    assert nll.min() < 0.1 or sharpness < 1
    np.testing.assert_array_equal(scores.rank, (q > -nll[:, None]).sum(axis=1))
    np.testing.assert_allclose(scores.kl, (np.exp(p) * (p - q)).sum(axis=1), rtol=1e-4, atol=1e-6 if shift else 1e-7)


def test_a_constant_added_to_all_scores_is_no_divergence() -> None:
    """The rounding of the constant is taken out again; that of the scores themselves averages out."""
    model_BTV = np.random.default_rng(0).normal(0, 0.5, (2, 7, 8192)).astype(np.float32)
    windows = windows_of([np.arange(16)], length=8)
    constant = float(np.float32(61.3)) + 1.7e-6  # almost halfway to the next float32
    baseline_BTV = (model_BTV.astype(np.float64) + constant).astype(np.float32)
    found = score(lambda ids_BT: model_BTV, windows, lambda ids_BT: baseline_BTV)
    assert found.kl.max() < 5e-7


def log_softmax(scores_NV: NDArray[np.float32]) -> NDArray[np.float64]:
    exact_NV = scores_NV.astype(np.float64)
    exact_NV -= exact_NV.max(axis=1, keepdims=True)
    return np.asarray(exact_NV - np.log(np.exp(exact_NV).sum(axis=1, keepdims=True)))


def test_the_last_token_of_a_window_is_never_fed() -> None:
    seen: list[int] = []

    def scorer(ids_BT: NDArray[np.int64]) -> NDArray[np.float32]:
        seen.append(ids_BT.shape[1])
        return table_scorer(1)(ids_BT)

    windows = windows_of([np.arange(16) % V], length=8)
    assert len(score(scorer, windows).nll) == windows.tokens == 14
    assert seen == [7]


def test_word_perplexity_and_bits_per_byte_by_hand() -> None:
    documents = texts(12)
    windows = windows_of(documents, length=64, amounts=amounts(documents))
    scores = score(table_scorer(1), windows, table_scorer(2))
    baseline = score(table_scorer(2), windows)
    found = by_metric(quality_measurements(scores, baseline, method="a test"))
    scored = sum(len(ids) - 1 for ids in documents)
    words = sum(len(ids) // 2 for ids in documents)
    assert found["word_perplexity"].value == pytest.approx(math.exp(scores.nll.sum() / words))
    assert found["bits_per_byte"].value == pytest.approx(scores.nll.sum() / math.log(2) / (3 * scored))
    assert found["top5_accuracy"].value == pytest.approx((scores.rank < 5).mean())
    ratio, change = found["bits_per_byte"].ratio, found["bits_per_byte"].change
    assert ratio is not None
    assert change is not None
    assert ratio.value == pytest.approx(scores.nll.sum() / baseline.nll.sum())
    assert change.value == pytest.approx((scores.nll.sum() - baseline.nll.sum()) / math.log(2) / (3 * scored))
    words_ratio = found["word_perplexity"].ratio
    assert words_ratio is not None
    assert words_ratio.value == pytest.approx(math.exp((scores.nll.sum() - baseline.nll.sum()) / words))


def test_a_name_stands_before_every_metric() -> None:
    scores = score(table_scorer(1), windows_of(texts(), length=8))
    measured = quality_measurements(scores, method="a test", name="typos")
    assert {found.metric for found in measured} == {f"typos/{metric}" for metric in set(RATIOS) - OF_TEXT}
    assert not any(found.invalid for found in measured)


def test_progress_adds_up_to_the_windows() -> None:
    windows = windows_of(texts(), length=8)
    seen: list[int] = []
    score(table_scorer(1), windows, batch=7, on_batch=seen.append)
    assert sum(seen) == len(windows)
