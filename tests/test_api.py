"""The functions of `recipes`: what the command line does, with paths as text, knobs by name, and errors of one kind."""

from pathlib import Path
from typing import Any

import pytest
from finished_runs import finish

import recipes
from compress import PruneConfig
from recipes import DemitasseError, Limit, Recipe, RecipeError, load_recipe
from recipes.config.recipe import EvaluateConfig

ROOT = Path(__file__).resolve().parent.parent
CONTENT: dict[str, Any] = {
    "model": "models/novels-gpt2",
    "data": {"calibration": Path("data/novels/valid.txt"), "test": "data/novels/test.txt"},
    "stages": [{"prune": PruneConfig(sparsity=0.3)}, {"quantize": {"embeddings": True}}, "export"],
    "evaluate": {"window": 64},
    "gate": {"perplexity": Limit(max_ratio=1.1)},
}


def from_dict(**changes: Any) -> Recipe:
    return Recipe.from_dict(CONTENT | changes, name="mine", folder=ROOT / "recipes")


def test_a_mapping_is_the_recipe_that_a_file_of_the_same_text_is(tmp_path: Path) -> None:
    made = from_dict()
    file = ROOT / "recipes" / "mine.yaml"
    assert not file.exists()
    copied = tmp_path / "mine.yaml"
    text = made.text.replace("models/", f"{ROOT}/recipes/models/").replace("data/", f"{ROOT}/recipes/data/")
    copied.write_text(text, encoding="utf-8")
    loaded = load_recipe(copied)
    hidden = {"path", "text", "where"}
    assert loaded.model_dump(exclude=hidden) == made.model_dump(exclude=hidden)
    assert made.stages[0].config == PruneConfig(sparsity=0.3)
    assert made.path is None


def test_everything_that_is_wrong_with_a_mapping_is_told_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        from_dict(stages=[{"prune": {"sparsty": 0.5}}, "exprt"], evalute={}, gate={"perplexty": {"max_ratio": 2}})
    told = str(caught.value).splitlines()
    assert len(told) == 4
    assert all(line.startswith("mine: ") for line in told)
    meant = {"sparsty": "sparsity", "exprt": "export", "evalute": "evaluate", "perplexty": "perplexity"}
    for key, name in meant.items():
        assert any(repr(key) in line and f"did you mean {name!r}?" in line for line in told), key
    with pytest.raises(RecipeError, match="mine: expected texts, numbers, lists and mappings, got <object"):
        from_dict(seed=object())


def test_overrides_may_be_a_mapping(tmp_path: Path) -> None:
    text = tmp_path / "t.txt"
    text.write_text("Some text.\n")
    changed = load_recipe("quickstart", {"prune.sparsity": 0.5, "data.test": text, "gate": None, "stages.2.layers": 4})
    typed = load_recipe("quickstart", ["prune.sparsity=0.5", f"data.test={text}", "gate=null", "stages.2.layers=4"])
    assert changed.model_dump(exclude={"where"}) == typed.model_dump(exclude={"where"})
    for wrong, meant in (({"prune.sparsty": 0.5}, "sparsity"), ({"prun.sparsity": 0.5}, "prune")):
        with pytest.raises(RecipeError, match=f"did you mean '{meant}'"):
            load_recipe("quickstart", wrong)
    with pytest.raises(RecipeError, match="expected a mapping or a list of key=value, got 'prune"):
        load_recipe("quickstart", "prune.sparsity=0.5")


def test_an_unknown_name_is_told_what_was_meant() -> None:
    with pytest.raises(AttributeError, match="module 'recipes' has no attribute 'evalute'; did you mean 'evaluate'"):
        recipes.evalute  # type: ignore[attr-defined] # noqa: B018
    for config, knob, meant in ((PruneConfig, "sparsty", "sparsity"), (EvaluateConfig, "windw", "window")):
        with pytest.raises(DemitasseError, match=rf"{config.__name__}: .* got '{knob}'; did you mean '{meant}'"):
            config(**{knob: 1})
    with pytest.raises(RecipeError, match=r"quality: windw: .* did you mean 'window'"):
        recipes.evaluate("m", test="t.txt", out="o", quality={"windw": 3})
    with pytest.raises(RecipeError, match="got 'prun'; did you mean 'prune'"):
        recipes.run_stage("prun", "m", out="o")
    assert set(recipes.__all__) <= set(dir(recipes))


@pytest.mark.thorough
def test_a_model_is_pruned_and_measured_with_paths_as_text(gpt2: Path, text_file: Path, tmp_path: Path) -> None:
    metadata = recipes.run_stage("prune", str(gpt2), out=str(tmp_path / "pruned"), knobs={"sparsity": 0.5})
    assert metadata["sparsity"] == pytest.approx(0.5, abs=0.01)
    report = recipes.evaluate(
        str(tmp_path / "pruned"),
        baseline=str(gpt2),
        test=str(text_file),
        out=str(tmp_path / "measured"),
        quality={"window": 32, "windows": 8},
    )
    assert report.ratio("model", "perplexity").value > 0
    assert (tmp_path / "measured" / "report.json").is_file()
    with pytest.raises(KeyError, match="got 'perplexty'"):
        report.ratio("model", "perplexty")


def test_finished_runs_are_judged_and_compared_by_name(tmp_path: Path) -> None:
    finish(tmp_path / "one")
    finish(tmp_path / "other", cost=0.05)
    assert recipes.gate(str(tmp_path / "one")).verdict == "PASS"
    strict = recipes.gate(tmp_path / "one", {"perplexity": {"max_ratio": 1.001}})
    assert (strict.verdict, strict.exit_code) == ("FAIL", 1)
    with pytest.raises(RecipeError, match="did you mean 'max_ratio'"):
        recipes.gate(tmp_path / "one", {"perplexity": {"max_rato": 1.001}})
    pairs = {pair.metric for pair in recipes.compare(str(tmp_path / "one"), str(tmp_path / "other")).pairs}
    assert "perplexity" in pairs


def test_a_bundle_is_verified(int8_bundle: Path, tmp_path: Path) -> None:
    assert recipes.verify(str(int8_bundle)).folder == int8_bundle
    with pytest.raises(DemitasseError) as caught:
        recipes.verify(str(tmp_path))
    assert caught.value.exit_code == 2


def test_what_a_part_bears_is_measured(gpt2: Path, text_file: Path, tmp_path: Path) -> None:
    knobs = {"sparsities": [0.5], "rows": 2, "held_out": 2, "length": 16, "criterion": "magnitude", "kinds": False}
    found = recipes.sensitivity(str(gpt2), text=str(text_file), knobs=knobs)
    assert len(found.blocks) == 3


@pytest.mark.thorough
@pytest.mark.alone
def test_models_are_timed_side_by_side(gpt2: Path, int8_bundle: Path) -> None:
    result = recipes.benchmark(str(gpt2), int8_bundle, prompt=8, tokens=4, blocks=3, threads=1)
    assert len(result.targets) == 2


def test_results_and_recipes_show_themselves_in_a_line(tmp_path: Path) -> None:
    report = finish(tmp_path / "run")
    shown = [from_dict(), report, report.final, report.final.measurements[0], recipes.gate(tmp_path / "run")]
    shown += [recipes.compare(tmp_path / "run", tmp_path / "run"), recipes.plan(from_dict(), tmp_path / "out")]
    assert all(len(repr(one)) < 600 and "\n" not in repr(one) for one in shown), [repr(one) for one in shown]
    assert repr(report).startswith("Report(example: PASS, 3 of 3 gates hold; baseline -> ")
    assert "prune -> quantize -> export" in repr(from_dict())


@pytest.mark.thorough
def test_a_run_takes_its_folders_as_text(gpt2: Path, text_file: Path, tmp_path: Path) -> None:
    few = {"window": 32, "windows": 8}
    content = {"model": gpt2, "data": {"test": text_file}, "stages": [{"prune": {"sparsity": 0.5}}], "evaluate": few}
    recipe = Recipe.from_dict(content, name="small")
    report = recipes.run(recipe, out=str(tmp_path / "out"), store=str(tmp_path / "store"))
    assert report.recipe_text == recipe.text
    assert (tmp_path / "out" / "report.json").is_file()
    assert next((tmp_path / "store").glob("prune-*")).is_dir()
    assert recipes.read_report(str(tmp_path / "out")).rows == report.rows
