"""Figures of items against independent references, and their intervals against simulations."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from evaluation.measurement import METRICS, Measurement, is_metric, metric_of
from evaluation.quality.classification_metrics import auc_parts, confusion
from evaluation.quality.per_example import ITEM_KINDS, PerExample, Share, item_measurements
from evaluation.quality.text_metrics import BLEU_COUNTS, ORDERS, bleu, overlap_columns

Floats = NDArray[np.float64]
TEXTS = [
    "the cat sat on the mat and looked at the dog",
    "a completely different sentence about ships",
    "the the the the the the",
    "",
    "Mr. Smith's dog, which barked, ran home quickly.",
    "one two",
]
REFERENCES = [
    "the cat sat on the mat and stared at the dog",
    "another sentence about boats on the sea",
    "the end of the road",
    "nothing came",
    "Mr. Smith's dog ran home barking.",
    "one two three",
]


def task(right: Floats, digest: str = "asked") -> PerExample:
    return PerExample("task", {"accuracy": right.astype(np.float64)}, digest, {"protocol": "a test"})


def labeled(label_I: NDArray[np.int64], score_IL: Floats) -> PerExample:
    probability_IL = np.exp(score_IL)
    probability_IL /= probability_IL.sum(axis=1, keepdims=True)
    columns = {"label": label_I.astype(np.float64)}
    columns |= {f"probability.{label}": probability_IL[:, label] for label in range(probability_IL.shape[1])}
    return PerExample("labeled", columns, "asked")


def by_metric(measured: list[Measurement]) -> dict[str, Measurement]:
    return {found.metric: found for found in measured}


def drawn(labels: int, items: int, seed: int = 0) -> tuple[NDArray[np.int64], Floats]:
    """Labels, and scores that know something of them, rounded so that ties come up."""
    random = np.random.default_rng(seed)
    label_I = random.integers(labels, size=items)
    return label_I, np.round(random.normal(size=(items, labels)) + 0.8 * np.eye(labels)[label_I], 1)


# ---- against references


@pytest.mark.parametrize("labels", [2, 3, 5])
def test_labels_are_ranked_as_scikit_learn_ranks_them(labels: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    label_I, score_IL = drawn(labels, 200)
    items = labeled(label_I, score_IL)
    probability_IL = np.stack([items.columns[f"probability.{label}"] for label in range(labels)], axis=1)
    given_I = probability_IL.argmax(axis=1)
    found = by_metric(item_measurements("x", items, method="m"))
    assert found["x/accuracy"].value == pytest.approx(metrics.accuracy_score(label_I, given_I), abs=1e-12)
    assert found["x/macro_f1"].value == pytest.approx(metrics.f1_score(label_I, given_I, average="macro"), abs=1e-12)
    scores = probability_IL[:, 1] if labels == 2 else probability_IL
    area = metrics.roc_auc_score(label_I, scores, multi_class="ovr", average="macro")
    assert found["x/roc_auc"].value == pytest.approx(area, abs=1e-12)
    assert confusion(items.columns) == metrics.confusion_matrix(label_I, given_I).tolist()


def test_a_label_that_never_occurs_and_is_never_given_is_left_out_of_macro_f1() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    label_I, score_IL = drawn(2, 60)
    items = labeled(label_I, np.concatenate([score_IL, np.full((60, 1), -50.0)], axis=1))
    found = by_metric(item_measurements("x", items, method="m"))
    assert found["x/macro_f1"].value == pytest.approx(
        metrics.f1_score(label_I, score_IL.argmax(axis=1), average="macro"), abs=1e-12
    )


def test_the_variance_of_roc_auc_is_delongs() -> None:
    label_I, score_IL = drawn(2, 120)
    items = labeled(label_I, score_IL)
    part_I = auc_parts(items.columns)
    score_I = items.columns["probability.1"]
    inside, outside = score_I[label_I == 1], score_I[label_I == 0]
    wins = (inside[:, None] > outside[None, :]) + 0.5 * (inside[:, None] == outside[None, :])
    inside_variance = ((wins.mean(axis=1) - wins.mean()) ** 2).sum() / len(inside) ** 2
    outside_variance = ((wins.mean(axis=0) - wins.mean()) ** 2).sum() / len(outside) ** 2
    assert part_I.mean() == pytest.approx(wins.mean(), abs=1e-12)
    assert part_I.var() / len(part_I) == pytest.approx(inside_variance + outside_variance, rel=1e-9)


@pytest.mark.parametrize("count", [1, 3, 4, 6])
def test_bleu_of_the_sums_is_sacrebleus_of_the_corpus(count: int) -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    pytest.importorskip("rouge_score")
    columns = overlap_columns(TEXTS[:count], REFERENCES[:count])
    sums = np.array([columns[name].sum() for name in BLEU_COUNTS])
    expected = sacrebleu.corpus_bleu(TEXTS[:count], [REFERENCES[:count]]).score
    assert float(bleu(sums)) == pytest.approx(expected, abs=1e-9)


def test_bleu_smooths_several_orders_without_a_match_as_sacrebleu_does() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    pytest.importorskip("rouge_score")
    texts, references = ["a b q r s t"], ["a b x y z w"]
    columns = overlap_columns(texts, references)
    sums = np.array([columns[name].sum() for name in BLEU_COUNTS])
    assert (sums[2 : 2 + ORDERS] == [2, 1, 0, 0]).all()
    assert float(bleu(sums)) == pytest.approx(sacrebleu.corpus_bleu(texts, [references]).score, abs=1e-9)


def test_bleu_is_zero_without_a_match_and_has_a_slope_where_there_is_one() -> None:
    nothing = np.array([4.0, 4.0, *np.zeros(ORDERS), 4.0, 3.0, 2.0, 1.0])
    some = np.array([9.0, 10.0, 8.0, 6.0, 5.0, 4.0, 9.0, 8.0, 7.0, 6.0])
    assert bleu(nothing) == 0
    step = 1e-6
    for column in range(len(some)):
        moved, turned = some.copy(), some.astype(np.complex128)
        moved[column] += step
        turned[column] += 1e-30j
        assert bleu(turned).imag / 1e-30 == pytest.approx((bleu(moved) - bleu(some)) / step, rel=1e-3, abs=1e-4)


def test_rouge_repetition_and_distinct_of_texts_that_one_can_count() -> None:
    pytest.importorskip("sacrebleu")
    pytest.importorskip("rouge_score")
    columns = overlap_columns(["a b c d a b c d", "a b", ""], ["a b c d", "x y", "x"])
    assert columns["rouge_1"] == pytest.approx([2 * 0.5 / 1.5, 0, 0])
    assert columns["rouge_l"] == pytest.approx([2 * 0.5 / 1.5, 0, 0])
    assert columns["repetition"] == pytest.approx([1 - 4 / 5, 0, 0])
    assert columns["distinct_1"] == pytest.approx([0.5, 1, 0])
    assert columns["distinct_2"] == pytest.approx([4 / 7, 1, 0])


# ---- intervals


def test_a_one_sided_bound_of_a_paired_accuracy_ratio_is_wrong_in_one_of_twenty_even_when_few_items_differ() -> None:
    items, right, lost, won, experiments = 150, 0.45, 0.03, 0.01, 600
    truth = (right - lost + won) / right
    below = above = 0
    for seed in range(experiments):
        random = np.random.default_rng(seed)
        baseline_I, chance_I = random.random(items) < right, random.random(items)
        model_I = np.where(baseline_I, chance_I >= lost / right, chance_I < won / (1 - right))
        (found,) = item_measurements("x", task(model_I), task(baseline_I), method="m")
        assert found.ratio is not None
        assert found.ratio.bounds is not None
        below += truth < found.ratio.bounds.low
        above += truth > found.ratio.bounds.high
    assert below / experiments < 0.075  # 0.05 is meant; a bootstrap of the same is at 0.1 and more
    assert above / experiments < 0.075


@pytest.mark.parametrize("metric", ["roc_auc", pytest.param("macro_f1", marks=pytest.mark.thorough)])
def test_intervals_of_macro_f1_and_roc_auc_hold_the_truth(metric: str) -> None:
    truth = by_metric(item_measurements("x", labeled(*drawn(3, 100_000, seed=1)), method="m"))[f"x/{metric}"].value
    held, experiments = 0, 100
    for seed in range(experiments):
        interval = by_metric(item_measurements("x", labeled(*drawn(3, 150, seed=10 + seed)), method="m"))[
            f"x/{metric}"
        ].interval
        assert interval is not None
        held += interval.low <= truth <= interval.high
    assert 0.9 <= held / experiments <= 0.99


def test_no_difference_at_all_on_few_items_proves_little() -> None:
    right_I = np.arange(30) % 2
    (found,) = item_measurements("x", task(right_I), task(right_I), method="m")
    assert found.ratio is not None
    assert found.change is not None
    assert found.ratio.bounds is not None
    assert found.ratio.value == 1
    assert found.ratio.bounds.low < 0.96  # three discordant items of 30 might have hidden
    many_I = np.arange(3000) % 2
    (found,) = item_measurements("x", task(many_I), task(many_I), method="m")
    assert found.ratio is not None
    assert found.ratio.bounds is not None
    assert found.ratio.bounds.low > 0.998


def test_all_right_has_an_interval_within_a_share() -> None:
    (found,) = item_measurements("x", task(np.ones(20)), method="m")
    assert found.interval is not None
    assert found.interval.high == 1
    assert 0.75 < found.interval.low < 0.95


# ---- pairing, refusals, files


def test_items_that_were_not_asked_alike_are_unpaired() -> None:
    right_I = np.arange(30) % 2
    (found,) = item_measurements("x", task(right_I), task(right_I, digest="others"), method="m")
    assert found.invalid.startswith("unpaired")


def test_what_is_not_a_number_is_invalid_and_says_where() -> None:
    right_I = np.ones(10)
    right_I[4] = np.nan
    (found,) = item_measurements("x", task(right_I), method="m")
    assert found.invalid == "the model's accuracy is NaN or infinite on 1 of 10 items, first 4"
    (found,) = item_measurements("x", task(np.ones(10)), task(right_I), method="m")
    assert "the baseline's accuracy" in found.invalid
    (found,) = item_measurements("x", task(np.ones(1)), method="m")
    assert "no interval" in found.invalid


def test_roc_auc_of_one_label_is_not_defined() -> None:
    found = by_metric(item_measurements("x", labeled(np.zeros(20, dtype=np.int64), drawn(2, 20)[1]), method="m"))
    assert "at least two labels" in found["x/roc_auc"].invalid
    assert not found["x/accuracy"].invalid


def test_items_come_back_from_their_file_as_they_were(tmp_path: Path) -> None:
    items = labeled(*drawn(3, 20))
    items.metadata["labels"] = ["a", "b", "c"]
    items.save(tmp_path / "items-x.npz")
    again = PerExample.load(tmp_path / "items-x.npz")
    assert (again.kind, again.digest, again.metadata) == (items.kind, items.digest, items.metadata)
    assert set(again.columns) == set(items.columns)
    assert all(np.array_equal(again.columns[name], items.columns[name]) for name in items.columns)
    np.savez(tmp_path / "bad.npz", about=np.array({"a": 1}, dtype=object))
    with pytest.raises(ValueError, match="pickle"):
        PerExample.load(tmp_path / "bad.npz")


def test_every_kind_gives_metrics_that_there_are_and_every_named_metric_has_a_kind() -> None:
    given = {metric for figures in ITEM_KINDS.values() for metric in figures}
    assert given == {name for name, metric in METRICS.items() if metric.named}
    shares = {
        metric for figures in ITEM_KINDS.values() for metric, figure in figures.items() if isinstance(figure, Share)
    }
    assert all(METRICS[metric].unit == "share" for metric in shares)


def test_a_name_before_a_metric_is_part_of_its_name() -> None:
    assert metric_of("my/own/accuracy").name == "my/own: Accuracy"
    assert metric_of("perplexity") is METRICS["perplexity"]
    assert not is_metric("hellaswag/weight_bytes")
    assert not is_metric("/accuracy")
    with pytest.raises(KeyError, match="expected one of"):
        metric_of("hellaswag/")
