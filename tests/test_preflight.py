"""What is looked at before anything runs."""

from collections.abc import Callable
from pathlib import Path

import pytest

from recipes.config.errors import RecipeError, raise_problems
from recipes.config.loader import load_recipe
from recipes.engine.model_source import digest_folder, resolve
from recipes.engine.plan import chain, plan
from recipes.engine.preflight import available_memory, check_model, existing
from recipes.engine.text_checks import compare_texts, overlap

RECIPE = """\
model: {model}
data: {{test: test.txt}}
stages:
  - prune: {{sparsity: 0.3}}
evaluate: {{window: {window}}}
"""


def words(count: int, name: str = "word") -> str:
    return " ".join(f"{name}{number}" for number in range(count))


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "test.txt").write_text(words(50), encoding="utf-8")

    def write(model: Path, window: int = 16) -> Path:
        (tmp_path / "r.yaml").write_text(RECIPE.format(model=model, window=window), encoding="utf-8")
        return tmp_path / "r.yaml"

    return write


def test_overlap_against_sets_of_word_sequences() -> None:
    test = [words(40), words(20, "own")]
    other = [words(30, "other") + " " + words(25), words(8)]

    def sequences(documents: list[str]) -> list[tuple[str, ...]]:
        split = [document.split() for document in documents]
        whole = [tuple(own[start : start + 13]) for own in split for start in range(len(own) - 12)]
        return whole + [tuple(own) for own in split if len(own) < 13]

    test_sequences, other_sequences = sequences(test), sequences(other)
    found = overlap(test, other)
    shared = set(test_sequences) & set(other_sequences)
    assert len(shared) == 13
    assert found.of_test == sum(sequence in shared for sequence in test_sequences) / len(test_sequences)
    assert found.of_other == sum(sequence in shared for sequence in other_sequences) / len(other_sequences)
    assert found.example == words(13)


def test_overlap_sees_other_line_breaks_and_capitals_and_no_sequence_across_documents() -> None:
    assert overlap([words(20)], [words(20).upper().replace(" ", "\n")]).of_test == 1.0
    assert overlap([words(12), words(12, "b")], [words(12) + " " + words(12, "b")]).of_test == 0.0
    assert overlap(["one two three four five"], ["One two three\nfour five", "x"]).of_test == 1.0
    assert overlap(["yes"], ["yes"]).of_test == 0.0


def test_texts_that_cannot_be_read_are_all_named(write: Callable[..., Path], gpt2: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    recipe = load_recipe(write(gpt2), ["data.calibration=empty.txt", "data.train=binary.txt"][:1])
    (tmp_path / "test.txt").write_bytes(b"\xff\x00\xfe")
    with pytest.raises(RecipeError) as caught:
        compare_texts(recipe)
    calibration, test = str(caught.value).splitlines()
    file = tmp_path / "empty.txt"
    assert calibration == f"--set data.calibration=empty.txt: {file}: expected text, got an empty file"
    assert test.startswith("r.yaml:2: data.test: ")
    assert "expected UTF-8 text, got binary data at byte 0" in test


def test_a_model_that_is_none(write: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(RecipeError) as caught:
        resolve(load_recipe(write(tmp_path / "folder")))
    assert str(caught.value) == (
        f"r.yaml:1: model: {tmp_path / 'folder'}: expected a Hugging Face checkpoint, but it has no config.json"
    )


def test_more_than_the_model_can_read(write: Callable[..., Path], gpt2: Path) -> None:
    recipe = load_recipe(write(gpt2, window=200), ["benchmark={prompt: 100, tokens: 50}"])
    source = resolve(recipe)
    with pytest.raises(RecipeError) as caught:
        raise_problems(check_model(recipe, source, tuple(chain(recipe, source))))
    limit = "expected at most 128 tokens, all that the model can read at once"
    assert str(caught.value).splitlines() == [
        f"--set benchmark={{prompt: 100, tokens: 50}}: {limit}, got 100 of the prompt and 50 decoded",
        f"r.yaml:5: evaluate.window: {limit}, got 200",
    ]


def test_an_int8_model_cannot_be_pruned(write: Callable[..., Path], int8_bundle: Path) -> None:
    recipe = load_recipe(write(int8_bundle.parent / "int8"))
    source = resolve(recipe)
    with pytest.raises(RecipeError) as caught:
        raise_problems(check_model(recipe, source, tuple(chain(recipe, source))))
    assert str(caught.value) == "r.yaml:4: prune: stage 1 'prune' takes dense, but the model is quantized"


def test_a_readme_beside_the_weights_does_not_change_the_key(gpt2: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in gpt2.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (copy / "README.md").touch()
    assert digest_folder(copy) == digest_folder(gpt2)
    (copy / "config.json").write_text((gpt2 / "config.json").read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert digest_folder(copy) != digest_folder(gpt2)


def test_a_plan_writes_nothing(write: Callable[..., Path], gpt2: Path, tmp_path: Path) -> None:
    planned = plan(load_recipe(write(gpt2)), tmp_path / "out")
    assert [(step.number, step.kind, step.format, step.cached) for step in planned.steps] == [
        (1, "prune", "dense", False)
    ]
    assert planned.memory > 500_000_000
    assert planned.disk > 100_000
    assert planned.seconds > 1
    assert not (tmp_path / "out").exists()


def test_keys_change_with_what_goes_in(write: Callable[..., Path], gpt2: Path) -> None:
    file = write(gpt2)
    keys = {plan(load_recipe(file, overrides)).steps[-1].key for overrides in ([], ["seed=1"], ["prune.sparsity=0.4"])}
    assert len(keys) == 3
    assert plan(load_recipe(file, ["evaluate.window=8"])).steps[-1].key in keys


def test_the_machine_is_known(tmp_path: Path) -> None:
    assert available_memory() > 0
    assert existing(tmp_path / "a" / "b") == tmp_path
