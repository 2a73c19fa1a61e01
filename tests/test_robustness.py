"""Noise: its rate, that it can be repeated, what it leaves alone; and what it is said to cost."""

from collections import Counter

import numpy as np
import pytest

from evaluation.quality import NOISES, TokenScores, describe_noise, noise_measurements, noised
from evaluation.quality.robustness import NEIGHBORS, NOISE_WORDS

TEXT = "Sing, O goddess, the anger of Achilles son of Peleus, that brought countless ills upon the Achaeans. " * 200
LETTERS = sum(letter.isalpha() for letter in TEXT)


def texts(count: int = 4) -> list[str]:
    return [f"{number}: {TEXT[:2000]}" for number in range(count)]


@pytest.mark.parametrize("kind", NOISES)
def test_a_document_is_noised_alike_wherever_it_stands(kind: str) -> None:
    assert NOISES
    first = noised(texts(), kind, 0.1, seed=3)
    assert noised(texts()[::-1], kind, 0.1, seed=3) == first[::-1]
    assert first != texts()
    if kind != "truncation":
        assert noised(texts(), kind, 0.1, seed=4) != first


@pytest.mark.parametrize("kind", NOISES)
def test_no_share_is_no_noise(kind: str) -> None:
    assert noised([*texts(), "", "one"], kind, 0.0) == [*texts(), "", "one"]


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_the_share_of_letters_is_flipped(share: float) -> None:
    (found,) = noised([TEXT], "case", share)
    flipped = sum(one != other for one, other in zip(TEXT, found, strict=True))
    assert flipped / LETTERS == pytest.approx(share, rel=0.1)
    assert found.lower() == TEXT.lower()


@pytest.mark.parametrize("share", [0.02, 0.1])
def test_the_share_of_letters_is_mistyped(share: float) -> None:
    """Each typo leaves its trace: on letters apart, a typo changes one word, and a quarter of them drops a letter."""
    text = "ab cd ef gh " * 3000
    (found,) = noised([text], "typos", share)
    words, typed = text.split(" "), found.split(" ")
    changed = sum(one != other for one, other in zip(words, typed, strict=True))
    assert changed == pytest.approx(24_000 * share * (1 - share / 2), rel=0.1)
    lengths = Counter(len(other) - len(one) for one, other in zip(words, typed, strict=True))
    assert lengths[-1] == pytest.approx(24_000 * share / 4, rel=0.2)
    assert lengths[1] > 24_000 * share / 4  # doubled, and swaps at the end of a word


def test_a_greater_share_hits_the_same_letters_and_more() -> None:
    (little,), (much,) = noised([TEXT], "case", 0.05), noised([TEXT], "case", 0.2)
    few = {place for place, (one, other) in enumerate(zip(TEXT, little, strict=True)) if one != other}
    many = {place for place, (one, other) in enumerate(zip(TEXT, much, strict=True)) if one != other}
    assert few < many


def test_neighbors_touch_each_other() -> None:
    assert set(NEIGHBORS) == set("abcdefghijklmnopqrstuvwxyz")
    assert set(NEIGHBORS["s"]) == set("weadzx")
    assert all(letter in NEIGHBORS[near] for letter, all_near in NEIGHBORS.items() for near in all_near)


def test_typos_keep_the_case_and_leave_other_signs_alone() -> None:
    (found,) = noised(["AAAA 1234 ,.;! " * 500], "typos", 0.5)
    assert found.upper() == found
    assert Counter(sign for sign in found if not sign.isalpha()) == Counter(
        "     1234 ,.;!".replace("     ", " ") * 500 + " " * 500
    )


def test_letters_that_no_keyboard_has_are_mistyped_too() -> None:
    (found,) = noised(["\u03b1\u03b2\u03b3\u03b4 " * 500], "typos", 0.3)
    assert found != "\u03b1\u03b2\u03b3\u03b4 " * 500
    assert set(found) == set("\u03b1\u03b2\u03b3\u03b4 ")


def test_truncation_cuts_the_beginning_up_to_a_word() -> None:
    text = TEXT[:2000]
    (found,) = noised([text], "truncation", 0.25)
    assert text.endswith(found)
    assert text[-len(found) - 1] == " "
    assert 0.25 <= 1 - len(found) / len(text) < 0.26


@pytest.mark.parametrize(("kind", "share"), [("typo", 0.1), ("typos", 1.0), ("case", -0.1)])
def test_noise_that_is_none_is_refused(kind: str, share: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        noised(["text"], kind, share)


@pytest.mark.parametrize("kind", NOISES)
def test_every_noise_is_said_in_words(kind: str) -> None:
    assert set(NOISE_WORDS) == set(NOISES)
    assert "0.25" in describe_noise(kind, 0.25, 7)
    assert "seed 7" in describe_noise(kind, 0.25, 7)


def scores_of(means: list[float], tokens: int, digest: str, seed: int = 0) -> TokenScores:
    document = np.repeat(np.arange(len(means)), tokens)
    count = len(document)
    return TokenScores(
        nll=np.array(means)[document] + np.random.default_rng(seed).normal(0, 0.01, count),
        rank=np.zeros(count, np.int64),
        agree=np.ones(count, np.bool_),
        kl=np.zeros(count),
        bytes=np.full(count, 4),
        words=np.ones(count, np.int64),
        document=document,
        window=document,
        digest=digest,
    )


def test_noise_cost_is_the_quotient_of_two_perplexity_ratios() -> None:
    generator = np.random.default_rng(1)
    base = generator.normal(3, 0.3, 12)
    clean_baseline, clean = scores_of(list(base), 30, "clean"), scores_of(list(base + 0.1), 30, "clean", 1)
    worse = base + 1.0
    baseline, scores = scores_of(list(worse), 40, "typos", 2), scores_of(list(worse + 0.25), 40, "typos", 3)
    found = {
        one.metric: one for one in noise_measurements("typos", scores, baseline, clean, clean_baseline, method="a test")
    }
    cost, ratio = found["typos/noise_cost"], found["typos/perplexity"].ratio
    assert ratio is not None
    clean_ratio = np.exp((clean.nll - clean_baseline.nll).mean())
    assert cost.value == pytest.approx(ratio.value / clean_ratio)
    assert cost.value == pytest.approx(np.exp(0.15), rel=0.01)
    assert cost.interval is not None
    assert cost.interval.low < cost.value < cost.interval.high
    assert cost.samples == 12
    assert cost.invalid == ""


def test_noise_cost_of_documents_that_only_one_text_has_is_of_those_in_both() -> None:
    base = [3.0] * 12
    clean_baseline, clean = scores_of(base, 30, "clean"), scores_of([3.1] * 12, 30, "clean", 1)
    baseline, scores = scores_of(base[:9], 30, "case"), scores_of([3.1] * 9, 30, "case", 1)
    *_, cost = noise_measurements("case", scores, baseline, clean, clean_baseline, method="a test")
    assert cost.samples == 9
    assert cost.value == pytest.approx(1, abs=0.01)


def test_noise_cost_of_few_documents_is_invalid_and_says_what_to_do() -> None:
    few = scores_of([3.0, 3.2], 30, "few")
    *_, cost = noise_measurements("case", few, few, few, few, method="a test")
    assert cost.metric == "case/noise_cost"
    assert "leave `join` out" in cost.invalid


def test_a_baseline_has_no_noise_cost() -> None:
    found = noise_measurements("case", scores_of([3.0] * 9, 30, "few"), method="a test")
    assert found
    assert all(one.metric != "case/noise_cost" for one in found)
