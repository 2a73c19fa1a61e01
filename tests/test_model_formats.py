"""One battery over the adapter of every format: what a caller may rely on, whatever the format is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compress.stage import FormatName
from recipes.formats import FORMATS, format_of, open_model, opener_of
from recipes.formats.base import Format, Ids, LoadedModel

NAMES = list(FORMATS)
PROMPTS = [np.array([5, 9, 12, 7, 3], dtype=np.int64), np.array([8, 1], dtype=np.int64)]
TOKENS = 6


@pytest.fixture
def folders(gpt2: Path, int8_bundle: Path) -> dict[FormatName, Path]:
    """The same model in every format."""
    return {"dense": gpt2, "quantized": int8_bundle.parent / "int8", "onnx": int8_bundle}


@pytest.fixture(params=NAMES)
def case(request: pytest.FixtureRequest, folders: dict[FormatName, Path]) -> tuple[Format, Path]:
    return FORMATS[request.param], folders[request.param]


@pytest.fixture
def opened(case: tuple[Format, Path]) -> LoadedModel:
    adapter, folder = case
    return adapter.open(folder, threads=1)


def test_every_format_is_looked_at_and_told_from_its_folder(folders: dict[FormatName, Path]) -> None:
    assert folders.keys() == FORMATS.keys()
    assert {name: format_of(folder) for name, folder in folders.items()} == {name: name for name in FORMATS}


def test_padding_on_the_right_changes_no_score(opened: LoadedModel, case: tuple[Format, Path]) -> None:
    adapter, folder = case
    rows_BT = np.zeros((2, 5), dtype=np.int64)
    for row, prompt in zip(rows_BT, PROMPTS, strict=True):
        row[: len(prompt)] = prompt
    logits_BTV = opened.logits(rows_BT)
    assert logits_BTV.shape == (2, 5, adapter.sizes(folder).vocabulary)
    assert logits_BTV.dtype == np.float32
    for row, prompt in enumerate(PROMPTS):
        alone_TV = opened.logits(prompt[None])[0]
        np.testing.assert_allclose(logits_BTV[row, : len(prompt)], alone_TV, atol=2e-4)
    np.testing.assert_array_equal(opened.text_logits(rows_BT), logits_BTV)


def by_scores(logits: Callable[[Ids], Any], prompt: Ids, tokens: int) -> list[int]:
    """The likeliest tokens after a prompt, each from the scores of the whole row."""
    row = prompt.tolist()
    for _ in range(tokens):
        row.append(int(logits(np.array([row]))[0, -1].argmax()))
    return row[len(prompt) :]


def test_generated_and_timed_steps_take_the_likeliest_token(opened: LoadedModel) -> None:
    expected = [by_scores(opened.logits, prompt, TOKENS) for prompt in PROMPTS]
    found = [text.tolist() for text in opened.generate(PROMPTS, TOKENS)]
    assert [text[: len(ended)] for text, ended in zip(expected, found, strict=True)] == found
    assert any(len(ended) == TOKENS for ended in found)
    variant = opened.decoding(PROMPTS[0][None], TOKENS)
    steps = [variant.prefill(), *(variant.decode() for _ in range(TOKENS - 1))]
    assert [int(np.asarray(step).flatten()[0]) for step in steps] == expected[0]
    assert variant.problem() == ""


def test_what_is_counted_adds_up(case: tuple[Format, Path]) -> None:
    adapter, folder = case
    counts = adapter.counts(folder)
    assert counts.keys() == {"parameters", "nonzero_parameters", "weight_bytes", "disk_bytes"}
    assert 0 < counts["nonzero_parameters"] <= counts["parameters"]
    assert adapter.weight_bytes(folder) == counts["weight_bytes"]
    held = sum(size for numbers in adapter.components(folder).values() for size in numbers.values())
    assert 0.5 * counts["weight_bytes"] < held <= counts["weight_bytes"]
    files = adapter.weight_files(folder)
    assert files
    assert sum(file.stat().st_size for file in files) <= counts["disk_bytes"] + 1


def test_products_are_the_same_in_every_format(folders: dict[FormatName, Path]) -> None:
    found = {name: [FORMATS[name].macs(folders[name], context=context) for context in (0, 10, 20)] for name in FORMATS}
    assert len({tuple(macs) for macs in found.values()}) == 1
    none, ten, twenty = found["dense"]
    assert 0 < none < ten
    assert twenty - ten == ten - none


def test_sizes_and_places_are_told_without_opening(folders: dict[FormatName, Path]) -> None:
    assert len({FORMATS[name].sizes(folder) for name, folder in folders.items()}) == 1
    assert {FORMATS[name].device(folder) for name, folder in folders.items()} == {"cpu"}
    for name, folder in folders.items():
        opened = FORMATS[name].open(folder)
        assert opened.context == FORMATS[name].sizes(folder).context
        assert opened.runtime.startswith(FORMATS[name].runtime(folder))


def test_what_is_timed_is_opened_by_name(gpt2: Path) -> None:
    from recipes.formats import OPENER

    assert opener_of(OPENER) is open_model
    assert opener_of(OPENER)(gpt2, "dense", threads=1, device="cpu").context > 0
