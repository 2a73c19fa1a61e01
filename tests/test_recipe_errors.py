"""Wrong recipes, and the whole message that each of them gets."""

from collections.abc import Callable
from pathlib import Path

import pytest

from compress import DistillConfig
from recipes.config.errors import RecipeError, raise_problems
from recipes.config.loader import load_recipe
from recipes.engine.model_source import NOTHING
from recipes.engine.plan import Estimate, chain
from recipes.engine.preflight import check_room
from recipes.engine.text_checks import compare_texts

GOOD = """\
model: model
data:
  train: train.txt
  calibration: calibration.txt
  test: test.txt
stages:
  - prune: {sparsity: 0.3}
  - distill: {layers: 2}
  - quantize
  - export
benchmark: {prompt: 8, tokens: 8, threads: 1}
gate:
  perplexity: {max_ratio: 1.1}
  decode_latency: {max_ratio: 0.5}
"""
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write recipe.yaml (GOOD with some text replaced) beside a model folder and three texts, and work there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    for name in ("train", "calibration", "test"):
        words = " ".join(f"{name}{number}" for number in range(60))
        (tmp_path / f"{name}.txt").write_text(words, encoding="utf-8")

    def write(*changes: tuple[str, str]) -> Path:
        text = GOOD
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        file = tmp_path / "recipe.yaml"
        file.write_text(text, encoding="utf-8")
        return file

    return write


def errors_of(file: Path, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(file, overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_the_recipe_that_the_others_are_made_from_is_right(write: Write) -> None:
    assert [stage.kind for stage in load_recipe(write()).stages] == ["prune", "distill", "quantize", "export"]


def test_unknown_knob(write: Write) -> None:
    *knobs, last = sorted(DistillConfig.model_fields)
    assert {"layers", "losses", "temperature"} <= {*knobs, last}
    assert errors_of(write(("layers: 2", "layers: 2, temprature: 2.0"))) == (
        f"recipe.yaml:8: distill.temprature: expected {', '.join(knobs)} or {last}, "
        "got the unknown key 'temprature'; did you mean 'temperature'?"
    )


def test_unknown_section(write: Write) -> None:
    assert errors_of(write(("gate:", "gates:"))) == (
        "recipe.yaml:12: gates: expected benchmark, data, evaluate, gate, launcher, model, seed or stages, "
        "got the unknown key 'gates'; did you mean 'gate'?"
    )


def test_wrong_type(write: Write) -> None:
    assert (
        errors_of(write(("layers: 2", 'layers: "2"'))) == "recipe.yaml:8: distill.layers: expected an integer, got '2'"
    )


def test_out_of_bounds(write: Write) -> None:
    assert (
        errors_of(write(("prompt: 8", "prompt: 0"))) == "recipe.yaml:11: benchmark.prompt: expected at least 1, got 0"
    )


def test_repeated_key(write: Write) -> None:
    file = write(("  perplexity: {max_ratio: 1.1}", "  perplexity: {max_ratio: 1.1}\n  perplexity: {max_ratio: 1.2}"))
    assert errors_of(file) == (
        "recipe.yaml:14: gate.perplexity: expected each key once, got it again (first in line 13)"
    )


def test_unknown_stage(write: Write) -> None:
    assert errors_of(write(("- quantize", "- quantise"), ("  - export\n", ""))) == (
        "recipe.yaml:9: quantise: expected a stage (train, prune, slim, distill, quantize, export), got 'quantise'; "
        "did you mean 'quantize'?"
    )


def test_wrong_order(write: Write) -> None:
    file = write(("  - distill: {layers: 2}\n  - quantize\n", "  - quantize\n  - distill: {layers: 2}\n"))
    assert errors_of(file) == (
        "recipe.yaml:9: distill: stage 3 'distill' takes dense, but stage 2 'quantize' leaves quantized"
    )


def test_missing_files(write: Write) -> None:
    file = write(("model: model", "model: modle"), ("test: test.txt", "test: tset.txt"))
    assert errors_of(file).splitlines() == [
        "recipe.yaml:1: model: expected an existing folder, got 'modle'",
        "recipe.yaml:5: data.test: expected an existing file, got 'tset.txt'",
    ]


def test_missing_material(write: Write) -> None:
    assert errors_of(write(("  train: train.txt\n", ""))) == (
        "recipe.yaml:7: distill: reads data.train: expected a text there, got nothing"
    )


@pytest.mark.parametrize(
    ("given", "revision"), [("{hub: org/name}", "no revision"), ("{hub: org/name, revision: main}", "revision 'main'")]
)
def test_unpinned_model(write: Write, given: str, revision: str) -> None:
    assert errors_of(write(("model: model", f"model: {given}"))) == (
        "recipe.yaml:1: model: expected a pinned model {hub: org/name, revision: <commit hash of 40 hex digits>} "
        f"(the hash stands at https://huggingface.co/org/name/commits/main), got {revision}"
    )


def test_gates_that_nothing_could_judge(write: Write) -> None:
    file = write(
        ("benchmark: {prompt: 8, tokens: 8, threads: 1}\n", ""),
        (
            "perplexity: {max_ratio: 1.1}",
            "perplexity: {max_ratio: 1.1, at_most: 30}\n  weight_bytes: {ratio: 0.3}\n  agreement: {max_ratio: 1}",
        ),
    )
    assert errors_of(file).splitlines() == [
        "recipe.yaml:12: gate.perplexity: expected exactly one of max_ratio, min_ratio, max_increase, at_most, "
        "at_least, got max_ratio and at_most",
        "recipe.yaml:13: gate.weight_bytes.ratio: expected at_least, at_most, max_increase, max_ratio or min_ratio, "
        "got the unknown key 'ratio'; did you mean 'min_ratio'?",
        "recipe.yaml:14: gate.agreement: agreement compares with the baseline by itself and has no `max_ratio`; "
        "expected `at_least`",
        "recipe.yaml:15: gate.decode_latency: expected a `benchmark` section that measures it, got none",
    ]


def test_no_model(write: Write) -> None:
    assert errors_of(write(("model: model\n", ""))) == (
        "recipe.yaml: model: expected a folder or a model of the hub, got nothing; "
        "only a recipe whose first stage is `train` with `architecture` needs none"
    )


def test_overlapping_texts(write: Write, tmp_path: Path) -> None:
    recipe = load_recipe(write())
    test = (tmp_path / "test.txt").read_text(encoding="utf-8")
    (tmp_path / "calibration.txt").write_text(f"{test.upper()}\n{test.replace('test', 'more')}", encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        compare_texts(recipe)
    words = " ".join(f"test{number}" for number in range(13))
    assert str(caught.value) == (
        "recipe.yaml:4: data.calibration: expected a text apart from data.test, got one that holds 100.0% of it "
        f'(44.4% of this text), such as "{words}"; split the texts by document'
    )


def test_too_little_room(write: Write, tmp_path: Path) -> None:
    recipe = load_recipe(write())
    step = next(iter(chain(recipe, NOTHING)))
    problems = check_room(recipe, tmp_path, [(step, Estimate(memory=2**60, disk=2**70, seconds=1.0))])
    with pytest.raises(RecipeError) as caught:
        raise_problems(problems)
    disk, memory = str(caught.value).splitlines()
    assert disk.startswith(f"{tmp_path}: the run needs about 1099511627776.0 GiB of disk, got ")
    assert disk.endswith(" GiB free; free some, or choose another --out")
    assert memory.startswith("recipe.yaml:7: prune: needs about 1073741824.0 GiB of memory, got ")


def test_overrides_have_no_line(write: Write) -> None:
    overrides = ("data.test=none.txt", "distill.layers=two", "prnue.sparsity=1", "stages.9.layers=2", "seed")
    assert errors_of(write(), *overrides).splitlines() == [
        "--set prnue.sparsity=1: expected benchmark, data, distill, evaluate, export, gate, launcher, model, prune, "
        "quantize, seed or stages, got the unknown key 'prnue'; did you mean 'prune'?",
        "--set stages.9.layers=2: expected a stage's number from 1 to 4, got '9'",
        "--set seed: expected key=value, such as data.test=my.txt",
        "--set distill.layers=two: expected an integer, got 'two'",
        "--set data.test=none.txt: expected an existing file, got 'none.txt'",
    ]


def test_everything_at_once_in_the_order_of_the_file(write: Write) -> None:
    file = write(
        ("sparsity: 0.3", "sparsity: 3"), ("test: test.txt", "test: tset.txt"), ("max_ratio: 0.5", "max_ration: 0.5")
    )
    lines = errors_of(file).splitlines()
    assert [line.split(": ")[0:2] for line in lines] == [
        ["recipe.yaml:5", "data.test"],
        ["recipe.yaml:7", "prune.sparsity"],
        ["recipe.yaml:14", "gate.decode_latency.max_ration"],
    ]


def test_no_yaml(write: Write, tmp_path: Path) -> None:
    file = write()
    file.write_text("stages: [prune\nmodel: x\n", encoding="utf-8")
    assert errors_of(file) == "recipe.yaml:2: no valid YAML: expected ',' or ']', but got ':'"
    file.write_bytes(b"\xff\xfe\x00")
    assert errors_of(file) == "recipe.yaml: expected a YAML text in UTF-8, got binary data at byte 0"
    file.write_text("- prune\n", encoding="utf-8")
    assert errors_of(file) == (
        "recipe.yaml:1: expected a mapping with model, data, stages, evaluate, benchmark, gate, seed, launcher, "
        "got a list of 1"
    )


def test_no_such_recipe() -> None:
    with pytest.raises(RecipeError, match=r"quikstart: expected a recipe file .*; did you mean 'quickstart'\?"):
        load_recipe("quikstart")


# ---- what people leave behind


def test_an_empty_list_of_stages(write: Write) -> None:
    file = write()
    text = file.read_text(encoding="utf-8")
    file.write_text(text[: text.index("stages:")] + "stages:\nseed: 1\n", encoding="utf-8")
    assert "stages: expected a list of stages" in errors_of(file)


def test_the_home_of_nobody(write: Write) -> None:
    error = errors_of(write(("model: model", "model: ~nosuch/a/model")))
    assert error == "recipe.yaml:1: model: expected an existing folder, got '~nosuch/a/model'"


def test_a_name_too_long_for_any_file(write: Write) -> None:
    error = errors_of(write(("test: test.txt", f"test: {'a' * 5000}.txt")))
    assert "data.test: expected an existing file" in error
    assert len(error) < 1200


def test_a_recipe_that_is_no_file_that_can_be_read_whole(tmp_path: Path) -> None:
    huge = tmp_path / "huge.yaml"
    with huge.open("wb") as stream:
        stream.truncate(40 * 2**30)  # a hole: no disk is used
    assert errors_of(huge).endswith("expected at most 1,048,576 bytes, got more")


def test_settings_of_items_and_of_whole_stages(write: Write) -> None:
    file = write()
    assert load_recipe(file, ["distill.layers=1", "quantize=null"]).stages[2].kind == "quantize"
    assert "--set prune=null: expected either `sparsity`" in errors_of(file, "prune=null")
    tasks = "evaluate.tasks=[{name: hs, file: test.txt}]"
    assert "expected the number of an item of evaluate.tasks, of which there are 1 from 0 on, got '7'" in errors_of(
        file, tasks, "evaluate.tasks.7.limit=3"
    )
    assert "--set evaluate.tasks.0.limit=x: expected an integer" in errors_of(file, tasks, "evaluate.tasks.0.limit=x")
