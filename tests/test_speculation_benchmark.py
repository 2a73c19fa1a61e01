"""The benchmark of drafts: both variants' answers are compared, passes counted, and a row made of each kind."""

import dataclasses
from pathlib import Path

import pytest

from benchmarks.page import tables_of
from benchmarks.speculation import PROMPTS, VARIANTS, Answer, answers, prompts_of
from benchmarks.speculation_tables import COLUMNS
from export.runtime import speculation
from export.runtime.model import OnnxCausalLM
from export.runtime.speculation import ROWS


def test_answers_are_compared_and_timed(int8_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speculation, "pays", lambda right: True)
    model = OnnxCausalLM.open(int8_bundle, threads=1)
    prompts = [("copies", [5, 6, 7, 8, 9] * 5), ("prose", [1, 2, 3])]
    found = answers(model, prompts, tokens=9, blocks=2)
    assert [answer.kind for answer in found] == ["copies", "prose"]
    for answer in found:
        assert (answer.tokens - 1) / ROWS <= answer.passes <= answer.tokens - 1
        assert all(len(answer.seconds[name]) == 2 and min(answer.seconds[name]) > 0 for name in VARIANTS)


def test_other_tokens_are_an_error(int8_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = OnnxCausalLM.open(int8_bundle, threads=1)
    monkeypatch.setattr("export.runtime.model.speculative", lambda *_, **__: iter([1, 1, 1]))
    with pytest.raises(AssertionError, match="changed the answer to a prompt of prose"):
        answers(model, [("prose", [1, 2, 3])], tokens=9, blocks=1)


def test_every_prompt_is_read_with_the_bundles_tokenizer(int8_bundle: Path) -> None:
    kinds = [kind for kind, ids in prompts_of(int8_bundle) if len(ids) > 8]
    assert PROMPTS.is_file()
    assert {kind: kinds.count(kind) for kind in kinds} == {"quotes": 3, "JSON": 3, "code edits": 3, "prose": 5}


def test_a_kinds_row_has_its_speed_over_blocks_and_its_prompts_spread() -> None:
    def taken(kind: str, *ratios: float) -> list[Answer]:
        return [
            Answer(kind=kind, prompt=9, tokens=31, passes=10, seconds={"plain": [ratio] * 6, "ngram": [1.0] * 6})
            for ratio in ratios
        ]

    found = [*taken("JSON", 1.4, 1.8), *taken("prose", 0.9, 1.0)]
    run = {
        "kind": "speculation",
        "settings": {"bundle": "tiny"},
        "answers": [dataclasses.asdict(answer) for answer in found],
    }
    [table] = tables_of(run)["speculation"]
    copies, prose = (dict(zip(COLUMNS, row, strict=True)) for row in table.rows)
    assert (copies["tokens per pass"], copies["lowest prompt"], copies["highest prompt"]) == ("3.00", "1.40x", "1.80x")
    assert copies["speed"].startswith("1.6x")
    assert copies["target"] == "at least 1.5x: PASS"
    assert prose["target"] == "at least 0.97x: short"
