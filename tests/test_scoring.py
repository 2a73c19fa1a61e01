"""Whole texts score as lm-evaluation-harness scores them; the benchmark takes the same windows in every variant."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exported import exported, quantized, sharpened

from benchmarks.scoring import cost, documents_of, rolled
from compress.checkpoints.folder import load_tokenizer
from evaluation.quality import score
from recipes.formats import FORMATS
from recipes.formats.base import MeasureError
from recipes.measure.text_windows import windows_in

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "recipes" / "models" / "novels-gpt2"
NOVELS = ROOT / "recipes" / "data" / "novels"
TEXT = (NOVELS / "test.txt").read_text(encoding="utf-8")
LENGTH = 64


@pytest.fixture(scope="module")
def harness() -> Any:
    """The harness's own model, which reads windows of LENGTH tokens."""
    pytest.importorskip("lm_eval")
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(MODEL), dtype="float32", device="cpu", max_length=LENGTH)


@pytest.mark.thorough
def test_log_likelihoods_are_those_of_the_harness(harness: Any) -> None:
    """Documents of less than a window and of several: word perplexity and every token's mean within 1e-4."""
    found = rolled(MODEL, documents_of(TEXT, count=6, letters=900), length=LENGTH, harness=harness)
    assert [one.tokens > LENGTH for one in found].count(True) >= 3
    assert [one.tokens <= LENGTH for one in found].count(True) >= 1
    for one in found:
        assert one.per_token < 1e-4
        assert one.per_word < 1e-4
        assert one.harness / one.tokens < -2  # of a text, and not of nothing


def test_short_documents_score_alike_with_bos(harness: Any) -> None:
    """Where documents fit into one window, `bos: true` of a recipe is the harness's protocol."""
    texts = [TEXT[place : place + 180] for place in (1000, 50_000, 90_000)]
    windows = windows_in(texts, load_tokenizer(MODEL), length=LENGTH + 1, bos=True)
    assert len(windows) == 3
    scores = score(FORMATS["dense"].open(MODEL).logits, windows)
    for document, one in enumerate(rolled(MODEL, texts, length=LENGTH, harness=harness)):
        own = -scores.nll[scores.document == document].sum()
        assert own == pytest.approx(one.harness, rel=1e-5)
        assert scores.words[scores.document == document].sum() == one.words


def test_joined_texts_are_one_document_with_blank_lines_between() -> None:
    tokenizer = load_tokenizer(MODEL)
    texts = [TEXT[:400], TEXT[1000:1400]]
    joined = windows_in(texts, tokenizer, length=LENGTH, join=True)
    assert joined.digest() == windows_in(["\n\n".join(texts)], tokenizer, length=LENGTH).digest()
    assert joined.bytes_N.sum() > 0


def test_text_without_tokens_is_refused() -> None:
    with pytest.raises(MeasureError, match="at least two tokens"):
        windows_in(["", ""], load_tokenizer(MODEL), length=LENGTH)


@pytest.mark.thorough
def test_every_variant_takes_the_same_windows(tmp_path: Path) -> None:
    int8 = quantized(sharpened(MODEL, tmp_path / "dense"), tmp_path / "int8", embeddings=True)
    bundle = exported(int8, tmp_path / "bundle", NOVELS / "valid.txt")
    windows = windows_in([TEXT], load_tokenizer(MODEL), length=LENGTH, count=21, select="first")
    found = cost(bundle, windows, batch=2)
    assert {len(seconds) for seconds in found.seconds.values()} == {3}
    assert set(found.seconds) == {"alone", "scored"}
    expected = np.exp(score(FORMATS["onnx"].open(bundle).logits, windows, batch=2).nll.mean())
    assert found.perplexity == pytest.approx(expected, rel=1e-5)
    assert found.ratio("scored") > 0
