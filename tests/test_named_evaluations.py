"""A recipe that names evaluations and noise: carried out on PyTorch and on the bundle, and judged again."""

import json
from pathlib import Path

import pytest

from evaluation.measurement import metric_of
from evaluation.quality.items import Items
from evaluation.report import Report
from recipes.comparing import compare_runs
from recipes.errors import RecipeError
from recipes.judging import judge_run
from recipes.loader import load_gates, load_recipe
from recipes.runner import run
from recipes.store import IntegrityError

pytest.importorskip("sacrebleu")
pytest.importorskip("rouge_score")
RECIPES = Path(__file__).resolve().parent.parent / "recipes"
NOVELS = RECIPES / "data" / "novels"
RECIPE = f"""
model: {RECIPES / "models" / "novels-gpt2"}
data: {{test: test.txt, calibration: calibration.txt}}
stages: [export]
evaluate:
  window: 64
  windows: 16
  stride: 48
  bos: true
  noise: {{typos: 0.05, truncation: 0.25}}
  labeled:
    - {{name: pronoun, file: pronouns.jsonl, text: line, answers: {{he: " he", she: " she"}}, limit: 16}}
  generation:
    - {{name: lines, file: lines.csv, prompt: "{{text}}", reference: rest, tokens: 8}}
gate:
  pronoun/accuracy: {{min_ratio: 0.5}}
  lines/repetition: {{max_increase: 0.9}}
  typos/perplexity: {{max_ratio: 1.1}}
"""
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


def lines() -> list[str]:
    text = (NOVELS / "test.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if 120 < len(line) < 400][:60]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe with its files."""
    place = tmp_path_factory.mktemp("named")
    rows = [{"line": line[:60].rstrip(), "label": ("he", "she")[index % 2]} for index, line in enumerate(lines()[:30])]
    (place / "pronouns.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    texts = [(line[:50].replace('"', ""), line[50:100].replace('"', "")) for line in lines()[:8]]
    (place / "lines.csv").write_text(
        "text,rest\n" + "".join(f'"{text}","{rest}"\n' for text, rest in texts), encoding="utf-8"
    )
    for name, source in (("test", "test"), ("calibration", "valid")):
        text = (NOVELS / f"{source}.txt").read_text(encoding="utf-8").replace("<|endoftext|>", "")
        documents = [text[start : start + 900] for start in range(0, 18_000, 900)]
        (place / f"{name}.txt").write_text("\n<|endoftext|>\n".join(documents), encoding="utf-8")
    (place / "named.yaml").write_text(RECIPE, encoding="utf-8")
    return place


@pytest.fixture(scope="module")
def finished(folder: Path) -> Report:
    return run(load_recipe(folder / "named.yaml"), out=folder / "run")


def test_everything_that_was_named_is_measured_on_every_artifact_and_paired(finished: Report) -> None:
    for row in finished.rows:
        assert {found.metric for found in row.measurements} >= METRICS
        assert {found.metric: found.invalid for found in row.measurements if found.invalid} == {}
    final = finished.final
    assert {gate.metric: gate.verdict for gate in finished.gates} == {
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


def test_people_see_the_confusion_matrix_and_texts(finished: Report) -> None:
    for row in finished.rows:
        assert sum(map(sum, row.evaluations["pronoun"]["confusion"])) == 16
        assert len(row.evaluations["lines"]["texts"]) == 8
    assert finished.final.hardest["tokens"]


def test_it_is_judged_again_to_the_last_digit_from_its_samples(finished: Report) -> None:
    assert finished.folder is not None
    judged = judge_run(finished.folder)
    assert judged.report.verdict == finished.verdict == "PASS"
    assert judged.differences == ()
    assert not [note for note in judged.notes if "/" in note]
    gates = finished.folder / "gates.yaml"
    gates.write_text("gate: {lines/distinct_1: {at_least: 1.5}}\n", encoding="utf-8")
    assert judge_run(finished.folder, load_gates(gates)).report.verdict == "FAIL"


def test_a_changed_answer_is_found_out(finished: Report) -> None:
    assert finished.folder is not None
    (file,) = (finished.folder / "artifacts" / finished.final.samples["quality"]).rglob("items-pronoun.npz")
    before = file.read_bytes()
    items = Items.load(file)
    file.chmod(0o644)
    try:
        Items(items.kind, {**items.columns, "label": 1 - items.columns["label"]}, items.digest, items.facts).save(file)
        with pytest.raises(IntegrityError, match=r"items-pronoun\.npz"):
            judge_run(finished.folder)
    finally:
        file.write_bytes(before)


def test_a_run_compared_with_itself_is_paired_item_by_item(finished: Report) -> None:
    assert finished.folder is not None
    pairs = {pair.metric: pair for pair in compare_runs(finished.folder, finished.folder).pairs}
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
    import recipes.quality.evaluations as evaluations

    monkeypatch.setattr(evaluations, "LIBRARIES", {"sacrebleu_that_is_not_there": "sacrebleu"})
    config = load_recipe(folder / "named.yaml").evaluate
    (problem,) = evaluations.evaluation_problems(config.tasks, config.labeled, config.generation)
    assert problem == "generation: expected sacrebleu, which is not installed; pip install 'demitasse[tasks]'"
