"""Drafts of what stood in the text before: the same tokens as without, and a rule that stops what does not pay."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Demitasse
from exported import Exported, exported

from export.runtime import speculation
from export.runtime.batch import PromptError
from export.runtime.model import OnnxCausalLM
from export.runtime.sampling import Sampling
from export.runtime.speculation import FIRST, ROWS, Drafts, learned, pays

REPEATING = [5, 6, 7, 8, 9] * 6


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest, int8_exports: Callable[[str], Exported]) -> OnnxCausalLM:
    return OnnxCausalLM.open(int8_exports(request.param).bundle, threads=1)


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts are tried wherever there is one."""
    monkeypatch.setattr(speculation, "pays", lambda right: True)


def _prompts(vocabulary: int, count: int) -> list[list[int]]:
    """Random ones, and ones that repeat what they began with."""
    random = np.random.default_rng(11)
    found = []
    for index in range(count):
        part = random.integers(0, vocabulary, int(random.integers(1, 12))).tolist()
        found.append(part * int(random.integers(1, 5)) if index % 2 else part)
    return found


def tell(monkeypatch: pytest.MonkeyPatch, model: OnnxCausalLM, prompt: list[int], wrong: float = 0.0) -> list[int]:
    """Have drafts be what the model writes after a prompt, a share of their tokens wrong; and return what it writes."""
    room = model.config.context - len(prompt) + 1
    [written] = model.generate([prompt], max_new_tokens=room, stop_ids=[])
    random = np.random.default_rng(5)

    class Told(Drafts):
        def find(self) -> tuple[int, int]:
            return 3, len(self._text) - len(prompt)

        def copy(self, place: int, count: int) -> list[int]:
            told = [*written, *[0] * count][place : place + count]
            return [(token + 1) % 50 if random.random() < wrong else token for token in told]

    monkeypatch.setattr(speculation, "Drafts", Told)
    return written


def test_several_tokens_in_one_pass_are_steps_to_the_bit(model: OnnxCausalLM) -> None:
    batch, ids = model.new_batch(1, 40), np.random.default_rng(2).integers(0, model.config.vocabulary, 20)
    batch.feed(ids[None, :8], np.asarray([8]), logits_from=7)
    steps = np.stack([batch.step(np.asarray([token]))[0].copy() for token in ids[8:]])
    cache = {name: value.numpy().copy() for name, value in batch.cache.items()}
    batch.rewind(8)
    parts = [batch.check(ids[start : start + ROWS], model.checker).copy() for start in range(8, 20, ROWS)]
    assert np.array_equal(np.concatenate(parts), steps)
    assert all(np.array_equal(value.numpy(), cache[name]) for name, value in batch.cache.items())
    assert batch.length_B.tolist() == [20]


def test_a_float_graphs_passes_are_close_to_steps(gpt2: Path, text_file: Path, tmp_path: Path) -> None:
    model = OnnxCausalLM.open(exported(gpt2, tmp_path / "float", text_file), threads=1)
    batch, ids = model.new_batch(1, 20), np.arange(30, 42)
    batch.feed(ids[None, :8], np.asarray([8]))
    steps = np.stack([batch.step(np.asarray([token]))[0].copy() for token in ids[8:]])
    assert np.abs(batch.rewind(8).check(ids[8:], model.checker) - steps).max() < 1e-5


@pytest.mark.parametrize("adaptive", [True, False])
def test_tokens_are_those_of_plain_greedy(model: OnnxCausalLM, adaptive: bool, request: pytest.FixtureRequest) -> None:
    if not adaptive:
        request.getfixturevalue("always")
    prompts = [*_prompts(model.config.vocabulary, 20), REPEATING]
    for prompt in prompts:
        plain = model.generate([prompt], max_new_tokens=32, stop_ids=[])
        assert model.generate([prompt], max_new_tokens=32, stop_ids=[], speculate="ngram") == plain


@pytest.mark.parametrize("wrong", [0.0, 0.3, 1.0])
def test_a_draft_changes_no_token_however_much_of_it_is_right(
    model: OnnxCausalLM, wrong: float, always: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for prompt in ([3, 1, 4], REPEATING):
        written = tell(monkeypatch, model, prompt, wrong)
        assert model.generate([prompt], max_new_tokens=60, stop_ids=[], speculate="ngram") == [written[:60]]


def test_tokens_end_where_they_end_without_drafts(
    model: OnnxCausalLM, always: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After so many, at a stop token in the midst of a draft, and where the context is full."""
    written = tell(monkeypatch, model, prompt := [3, 1, 4])
    assert list(model.stream(prompt, max_new_tokens=999, stop_ids=[], speculate="ngram")) == written
    assert len(written) == model.config.context - 3 + 1
    for tokens in range(10):
        assert list(model.stream(prompt, max_new_tokens=tokens, stop_ids=[], speculate="ngram")) == written[:tokens]
    for stop in written[:8]:
        found = list(model.stream(prompt, max_new_tokens=30, stop_ids=[stop], speculate="ngram"))
        assert found == written[: written.index(stop)]
    for length in range(model.config.context - 5, model.config.context + 1):
        full = (REPEATING * model.config.context)[:length]
        written = tell(monkeypatch, model, full)
        assert list(model.stream(full, max_new_tokens=50, stop_ids=[], speculate="ngram")) == written


def test_right_drafts_save_passes(model: OnnxCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two guesses come true by steps; then each pass gives four tokens, and the last ones are stepped to."""
    tell(monkeypatch, model, [3, 1, 4])
    passes: list[int] = []
    for name in ("step", "check"):
        count_passes(monkeypatch, name, passes)
    model.generate([[3, 1, 4]], max_new_tokens=30, stop_ids=[], speculate="ngram")
    assert passes == [1, 1, *[ROWS] * 6, 1, 1, 1]


def count_passes(monkeypatch: pytest.MonkeyPatch, name: str, passes: list[int]) -> None:
    """Note the rows of every pass."""
    from export.runtime.batch import Batch

    original = getattr(Batch, name)

    def noted(batch: Batch, ids: Any, *rest: Any) -> Any:
        passes.append(len(ids))
        return original(batch, ids, *rest)

    monkeypatch.setattr(Batch, name, noted)


def test_the_session_that_checks_is_opened_for_a_draft_and_once(
    int8_bundle: Path, always: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = OnnxCausalLM.open(int8_bundle, threads=1)
    model.generate([[1]], max_new_tokens=2, stop_ids=[], speculate="ngram")
    assert "checker" not in vars(model)
    tell(monkeypatch, model, [3, 1, 4])
    for _ in range(2):
        model.generate([[3, 1, 4]], max_new_tokens=12, stop_ids=[], speculate="ngram")
        session = vars(model)["checker"]
    assert model.checker is session


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sampling": Sampling(temperature=0.5)}, "expected temperature 0 .*got 0.5 and 1"),
        ({"sampling": Sampling(repetition_penalty=1.1)}, "repetition penalty 1, got 0 and 1.1"),
        ({"speculate": "draft"}, "expected ngram, got 'draft'"),
        ({"prompts": [[1], [2]]}, "expected one prompt at a time, got 2"),
        ({"prompts": []}, "expected one prompt at a time, got 0"),
        ({"prompts": [[]]}, "at least one token"),
    ],
)
def test_what_drafts_cannot_be_had_with_is_refused(model: OnnxCausalLM, given: dict[str, Any], message: str) -> None:
    asked: dict[str, Any] = {"prompts": [[1, 2, 3]], "max_new_tokens": 4, "speculate": "ngram"} | given
    with pytest.raises(PromptError, match=message):
        model.generate(**asked)


def test_the_command_writes_the_same_text_and_refuses_to_draw(demitasse: Demitasse, int8_bundle: Path) -> None:
    command = ("generate", int8_bundle, "It was a dark night", "--tokens", 12)
    plain, speculated = demitasse(*command), demitasse(*command, "--speculate", "ngram")
    assert plain[:2] == speculated[:2]
    assert plain[0] == 0
    code, _, err = demitasse(*command, "--speculate", "ngram", "--temperature", 1)
    assert code == 2
    assert "speculate: expected temperature 0" in err


def test_cuda_is_refused() -> None:
    with pytest.raises(PromptError, match="expected provider cpu, got cuda"):
        speculation.check_speculation("ngram", 1, None, "cuda")


def test_drafts_are_the_latest_place_of_the_longest_end() -> None:
    drafts = Drafts([1, 2, 3, 4, 9, 2, 3, 5, 1, 2, 3])
    assert drafts.find() == (3, 3)
    assert drafts.copy(3, 3) == [4, 9, 2]
    drafts.append(8)
    assert drafts.find() is None
    for token in (2, 3):
        drafts.append(token)
    assert drafts.find() == (2, 11)
    assert Drafts([1, 1, 1]).copy(2, 3) == [1, 1, 1]
    assert Drafts([4, 5, 6, 4, 5]).copy(3, 5) == [4, 5, 4, 5, 4]
    assert Drafts([1, 2]).find() is None


def test_what_came_true_begins_drafts_and_what_did_not_ends_them() -> None:
    assert not pays(FIRST)
    assert not pays(0)
    assert pays(1)
    right, steps = FIRST, 0
    while not pays(right):
        right, steps = learned(right, 1, 1), steps + 1
    assert steps == 2
    sure = learned(right, 3, 3)
    assert right < sure < 1
    wrong = 0
    while pays(sure):
        sure, wrong = learned(sure, 0, 3), wrong + 1
    assert wrong <= 2
    assert learned(0.5, 2, 3) == pytest.approx((0.5 + 0.125 + 0.09375) * 0.75)


def test_wrong_guesses_cost_no_pass(monkeypatch: pytest.MonkeyPatch, model: OnnxCausalLM) -> None:
    """Where what followed never comes again, no more than steps are run."""
    passes: list[int] = []
    count_passes(monkeypatch, "check", passes)
    monkeypatch.setattr(Drafts, "copy", lambda drafts, place, count: [-1] * count)
    model.generate([REPEATING], max_new_tokens=30, stop_ids=[], speculate="ngram")
    assert passes == []
