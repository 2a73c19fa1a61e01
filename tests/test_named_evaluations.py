"""A recipe that names evaluations and noise: carried out on PyTorch and on the bundle, and judged again."""

import shutil
from pathlib import Path

import pytest
from named_run import RECIPE

from evaluation.measurement import metric_of
from evaluation.quality.per_example import PerExample
from evaluation.report import Report
from recipes.config.errors import RecipeError
from recipes.config.loader import load_gates, load_recipe
from recipes.engine.compare import compare_runs
from recipes.engine.rejudge import judge_run
from recipes.engine.runner import run
from recipes.runs.records import IntegrityError

pytest.importorskip("sacrebleu")
pytest.importorskip("rouge_score")
METRICS = {
    "perplexity",
    "typos/perplexity",
    "truncation/word_perplexity",
    "pronoun/accuracy",
    "pronoun/macro_f1",
    "pronoun/roc_auc",
    "lines/bleu",
    "lines/rouge_l",
    "lines/distinct_2",
}


@pytest.fixture
def folder(named_recipe: Path, tmp_path: Path) -> Path:
    """A copy of the recipe with its files."""
    return Path(shutil.copytree(named_recipe, tmp_path / "recipe"))


def test_everything_that_was_named_is_measured_on_every_artifact_and_paired(named_run: Report) -> None:
    for row in named_run.rows:
        assert {found.metric for found in row.measurements} >= METRICS
        assert {found.metric: found.invalid for found in row.measurements if found.invalid} == {}
    final = named_run.final
    assert {gate.metric: gate.verdict for gate in named_run.gates} == {
        "perplexity": "PASS",
        "weight_bytes": "PASS",
        "pronoun/accuracy": "PASS",
        "lines/repetition": "PASS",
        "typos/perplexity": "PASS",
    }
    paired = final.measurement("pronoun/accuracy")
    assert paired is not None
    assert paired.ratio is not None
    assert paired.samples == 16
    assert metric_of(paired.metric).name == "pronoun: Accuracy"
    assert "likeliest of 2 answers" in paired.method
    noisy, clean = final.measurement("typos/perplexity"), final.measurement("perplexity")
    assert noisy is not None
    assert clean is not None
    assert noisy.value > 1.1 * clean.value
    assert "stride 48" in clean.method
    assert "BOS" in clean.method


def test_people_see_the_confusion_matrix_and_texts(named_run: Report) -> None:
    for row in named_run.rows:
        assert sum(map(sum, row.evaluations["pronoun"]["confusion"])) == 16
        assert len(row.evaluations["lines"]["texts"]) == 8
    assert named_run.final.worst_tokens["tokens"]


def test_it_is_judged_again_to_the_last_digit_from_its_samples(named_run: Report, tmp_path: Path) -> None:
    assert named_run.folder is not None
    judged = judge_run(named_run.folder)
    assert judged.report.verdict == named_run.verdict == "PASS"
    assert judged.differences == ()
    assert not [note for note in judged.notes if "/" in note]
    gates = tmp_path / "gates.yaml"
    gates.write_text("gate: {lines/distinct_1: {at_least: 1.5}}\n", encoding="utf-8")
    assert judge_run(named_run.folder, load_gates(gates)).report.verdict == "FAIL"


def test_a_changed_answer_is_found_out(named_run: Report, tmp_path: Path) -> None:
    assert named_run.folder is not None
    changed = shutil.copytree(named_run.folder, tmp_path / "run", symlinks=True)
    (file,) = (changed / "artifacts" / named_run.final.samples["quality"]).rglob("items-pronoun.npz")
    items = PerExample.load(file)
    file.chmod(0o644)
    PerExample(items.kind, {**items.columns, "label": 1 - items.columns["label"]}, items.digest, items.metadata).save(
        file
    )
    with pytest.raises(IntegrityError, match=r"items-pronoun\.npz"):
        judge_run(changed)


def test_a_run_compared_with_itself_is_paired_item_by_item(named_run: Report) -> None:
    assert named_run.folder is not None
    pairs = {pair.metric: pair for pair in compare_runs(named_run.folder, named_run.folder).pairs}
    assert set(pairs) >= METRICS
    ratio = pairs["pronoun/accuracy"].ratio
    assert ratio is not None
    assert ratio.value == 1
    assert pairs["pronoun/accuracy"].how == "paired by item, 16 of them"


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("file: pronouns.jsonl", "file: absent.jsonl", r"evaluate.labeled.0.file: expected an existing file"),
        ("file: pronouns.jsonl", "file: pronouns.txt", r"expected a file that ends in \.jsonl"),
        ("name: lines", "name: pronoun", "expected each name once, got 'pronoun' again"),
        ("name: lines", "name: typos", "expected another name than .* which are noises, got 'typos'"),
        ("name: lines", "name: a/b", "expected a name of up to 64 letters"),
        ("pronoun/accuracy:", "pronouns/accuracy:", r"expected a noise or an evaluation .*did you mean 'pronoun'\?"),
        ("pronoun/accuracy:", "accuracy:", "expected the name of an evaluation before it, such as typos/accuracy"),
        ("pronoun/accuracy:", "pronoun/acuracy:", r"unknown key 'acuracy'; did you mean 'accuracy'\?"),
        ("pronoun/accuracy:", "case/perplexity:", "expected a noise or an evaluation that `evaluate` names"),
        ("min_ratio: 0.5", "max_ratio: 0.5", "pronoun/accuracy is better when higher"),
        ("typos: 0.05", "tpyos: 0.05", r"unknown key 'tpyos'; did you mean 'typos'\?"),
        ("stride: 48", "stride: 64", "expected a stride of at most 63"),
        ('prompt: "{text}"', 'prompt: "Go on:"', r"expected a prompt with \{text\} in it"),
        ("tokens: 8", "tokenz: 8", r"unknown key 'tokenz'; did you mean 'tokens'\?"),
    ],
)
def test_what_is_wrong_in_the_recipe_is_refused_when_it_is_loaded(folder: Path, old: str, new: str, told: str) -> None:
    assert old in RECIPE
    (folder / "pronouns.txt").touch()
    (folder / "wrong.yaml").write_text(RECIPE.replace(old, new), encoding="utf-8")
    with pytest.raises(RecipeError, match=told):
        load_recipe(folder / "wrong.yaml")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("text: line", "text: lines", r"pronouns.jsonl:1: expected the column 'lines'.*did you mean 'line'\?"),
        ("she: ", "it: ", r"pronouns.jsonl:2: label: expected a label of `answers` \('he' or 'it'\), got 'she'"),
        ("reference: rest", "reference: summary", "expected the column 'summary'.*name the column with `reference`"),
    ],
)
def test_what_is_wrong_in_the_files_is_refused_before_anything_runs(
    folder: Path, tmp_path: Path, old: str, new: str, told: str
) -> None:
    assert old in RECIPE
    (folder / "wrong.yaml").write_text(RECIPE.replace(old, new), encoding="utf-8")
    with pytest.raises(RecipeError, match=told):
        run(load_recipe(folder / "wrong.yaml"), out=tmp_path / "run")
    assert not list((tmp_path / "run" / "artifacts").glob("quality-*"))


def test_without_the_extra_the_way_out_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import recipes.engine.preflight as evaluations

    monkeypatch.setattr(evaluations, "LIBRARIES", {"sacrebleu_that_is_not_there": "sacrebleu"})
    config = load_recipe(folder / "named.yaml").evaluate
    (problem,) = evaluations.evaluation_problems(config.tasks, config.labeled, config.generation)
    assert problem == "generation: expected sacrebleu, which is not installed; pip install 'demitasse[tasks]'"
