"""Quality figures against naive loops over tokens and against closed forms."""

import math
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

V = 11


def table_scorer(seed: int, sharpness: float = 1.0) -> Scorer:
    """A bigram model: the scores depend on the current token alone."""
    table_VV = np.random.default_rng(seed).normal(0, sharpness, (V, V)).astype(np.float32)
    return lambda ids_BT: table_VV[ids_BT]


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
            expected.append((-math.log(q[target]), q.argmax() == target, q.argmax() == p.argmax(), kl, row))
    nll, correct, agree, kl_N, window = (np.array(column) for column in zip(*expected, strict=True))
    np.testing.assert_allclose(scores.nll, nll, rtol=1e-6)
    np.testing.assert_array_equal(scores.correct, correct)
    np.testing.assert_array_equal(scores.agree, agree)
    np.testing.assert_allclose(scores.kl, kl_N, rtol=1e-6, atol=1e-9)
    np.testing.assert_array_equal(scores.window, window)
    np.testing.assert_array_equal(scores.document, windows.document_W[window])


def softmax(scores_V: NDArray[np.float32]) -> NDArray[np.float64]:
    exponentials = np.exp(scores_V.astype(np.float64))
    return np.asarray(exponentials / exponentials.sum())


def test_scores_do_not_depend_on_the_batch_or_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    windows = windows_of(texts(), length=8)
    whole = score(table_scorer(1), windows, table_scorer(2), batch=100)
    monkeypatch.setattr("evaluation.quality.scoring._SCORES_AT_ONCE", 2 * V)
    single = score(table_scorer(1), windows, table_scorer(2), batch=1)
    for name in ("nll", "correct", "agree", "kl", "window"):
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
    assert set(found) == set(RATIOS)  # a baseline has nothing to agree with


def test_every_statistic_is_measured_with_an_interval() -> None:
    found = measured(table_scorer(1), table_scorer(2), windows_of(texts(12), length=8))
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
    assert set(found) == set(STATISTICS)
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
    (perplexity, _) = quality_measurements(score(table_scorer(1), windows), method="a test")
    assert "single window" in perplexity.invalid


def test_few_documents_are_said_in_the_method() -> None:
    windows = windows_of([np.random.default_rng(0).integers(0, V, 400)], length=8)
    (perplexity, _) = quality_measurements(score(table_scorer(1), windows), method="a test")
    assert "contiguous blocks" in perplexity.method
    assert perplexity.interval is not None


@pytest.mark.parametrize("shape", [(1, 8), (1, 7, V), (1, 8, 3)])
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
    for name in ("nll", "correct", "agree", "kl", "document", "window"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(scores, name))
        assert getattr(loaded, name).dtype == getattr(scores, name).dtype


def test_pickled_scores_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "tokens.npz", nll=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        TokenScores.load(tmp_path / "tokens.npz")


def test_progress_adds_up_to_the_windows() -> None:
    windows = windows_of(texts(), length=8)
    seen: list[int] = []
    score(table_scorer(1), windows, batch=7, on_batch=seen.append)
    assert sum(seen) == len(windows)
