"""Tasks: our scorer gives lm-evaluation-harness the answers that its own PyTorch model gives, for every format."""

import json
import math
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exported import Exported
from numpy.typing import NDArray
from ruamel.yaml import YAML

from compress import FormatName
from compress.checkpoints.folder import load_tokenizer
from evaluation.measurement import is_metric
from evaluation.quality.per_example import PerExample, item_measurements
from recipes.config.evaluations import TaskConfig
from recipes.formats import FORMATS
from recipes.formats.base import LoadedModel
from recipes.measure import harness_tasks as harness
from recipes.measure.harness_tasks import ask_task, digest_of_evaluation, open_task, task_problems
from recipes.measure.question_files import TaskError

pytest.importorskip("lm_eval")
ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "recipes" / "models" / "novels-gpt2"
CONTEXT = 256
QUESTIONS = 20
Ids = NDArray[np.int64]


def sentences() -> list[str]:
    """Some 200 lines of novels."""
    lines = (ROOT / "recipes" / "data" / "novels" / "test.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if 200 < len(line) < 600][:200]


def write(file: Path, rows: Sequence[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions: how does the sentence go on? Among them an empty context, one too long, and one that ends blank."""
    texts = sentences()
    rows = []
    for index in range(QUESTIONS):
        right, *wrong = (texts[index + 40 * other][60 : 100 + 9 * other] for other in range(4))
        endings = [*wrong[: index % 4], right, *wrong[index % 4 :]]
        rows.append({"context": texts[index][:60], "endings": endings, "label": index % 4})
    rows[7]["context"] = ""
    rows[8]["context"] = "\n".join(texts[:10])
    rows[9]["context"] += "  "
    return write(tmp_path_factory.mktemp("questions") / "novels.jsonl", rows)


@pytest.fixture(scope="module")
def reference() -> Any:
    """The harness's own model."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(MODEL), dtype="float32", device="cpu", batch_size=8)


@cache
def opened() -> LoadedModel:
    """Our model, opened once."""
    return FORMATS["dense"].open(MODEL)


def ask(config: TaskConfig, folder: Path = MODEL, format: FormatName = "dense", **knobs: Any) -> PerExample:
    model = opened() if folder == MODEL else FORMATS[format].open(folder)
    given = {"scorer": model.logits, "generator": model.generate, "context": model.context, **knobs}
    return ask_task(config, tokenizer=load_tokenizer(folder), **given)


def asked_of(reference: Any, config: TaskConfig) -> list[dict[str, Any]]:
    """What the harness itself makes of the same task, with its own model."""
    from lm_eval.evaluator import evaluate

    found = evaluate(lm=reference, task_dict={"tasks": dict(open_task(config).tasks)}, bootstrap_iters=0)
    rows: list[dict[str, Any]] = found["samples"][config.name]
    return rows


@pytest.mark.parametrize("shots", [0, 2])
def test_figures_equal_those_of_the_harness_itself(shots: int, questions: Path, reference: Any) -> None:
    config = TaskConfig(name="novels", file=questions, shots=shots)
    items, rows = ask(config), asked_of(reference, config)
    assert len(rows) == len(items) == QUESTIONS - shots
    assert items.columns["accuracy"].tolist() == [row["acc"] for row in rows]
    assert items.columns["accuracy_norm"].tolist() == [row["acc_norm"] for row in rows]
    assert 0.3 < items.columns["accuracy"].mean() < 1.0  # it has learned something, and could be wrong


OWN = """
task: own
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {cache}}}
test_split: test
metadata: {{version: 1.0}}
"""
"""Beginning of configurations that are written as the harness's own are."""
LAST_WORD = """output_type: loglikelihood
doc_to_text: "{{text.split(' ')[:-1]|join(' ')}}"
doc_to_target: "{{' '+text.split(' ')[-1]}}"
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
EXACT_MATCH = """output_type: generate_until
doc_to_text: "{{context}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: [",", "."], max_gen_toks: 4, do_sample: false}
filter_list: [{name: bare, filter: [{function: remove_whitespace}, {function: take_first}]}]
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true, ignore_case: true}]
"""
JOINED = """output_type: multiple_choice
doc_to_text: "{{context}}"
doc_to_choice: endings
doc_to_target: label
target_delimiter: "\\n- "
"""


def own_figures(text: str, rows: Path, place: Path, reference: Any) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """What the harness makes of a configuration over rows, with its own model: its aggregates and its samples."""
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager

    folder = place / "own"
    folder.mkdir()
    (folder / "own.yaml").write_text(OWN.format(data=rows, cache=place / "cache") + text, encoding="utf-8")
    tasks = TaskManager(include_path=str(folder), include_defaults=False).load(["own"])["tasks"]
    found = evaluate(lm=reference, task_dict={"tasks": tasks}, bootstrap_iters=0)
    figures = {key.split(",")[0]: value for key, value in found["results"]["own"].items()}
    return figures, found["samples"]["own"]


def test_last_words_equal_those_of_the_harness_itself(tmp_path: Path, reference: Any) -> None:
    texts = [line.rsplit(" ", index % 3 + 1)[0] for index, line in enumerate(sentences()[:12])]
    rows = write(tmp_path / "rows.jsonl", [{"text": text} for text in texts])
    items = ask(TaskConfig(name="own", kind="last_word", file=rows, context="text"))
    figures, samples = own_figures(LAST_WORD, rows, tmp_path, reference)
    found = {figure.metric: figure for figure in item_measurements("own", items, None, method="here")}
    assert found["own/answer_perplexity"].value == pytest.approx(figures["perplexity"], rel=1e-5)
    assert found["own/accuracy"].value == figures["acc"]
    assert items.columns["accuracy"].tolist() == [row["acc"] for row in samples]
    assert all(figure.interval is not None and figure.samples == 12 for figure in found.values())
    assert "the last word given the text before it" in found["own/accuracy"].method


def test_exact_matches_equal_those_of_the_harness_itself(tmp_path: Path, reference: Any) -> None:
    contexts = [line[:80].rsplit(" ", 1)[0] for line in sentences()[:10]]
    said = model().generate_until(
        instances(*[(text, {"until": [",", "."], "max_gen_toks": 4}) for text in contexts], kind="generate_until")
    )
    answers = [text.upper().strip() if index % 2 else "" for index, text in enumerate(said)]
    asked = [{"context": one, "answer": two or "never"} for one, two in zip(contexts, answers, strict=True)]
    rows = write(tmp_path / "rows.jsonl", asked)
    knobs: dict[str, Any] = {"until": [",", "."], "tokens": 4, "ignore": ["case"]}
    items = ask(TaskConfig(name="own", kind="exact_match", file=rows, **knobs))
    figures, samples = own_figures(EXACT_MATCH, rows, tmp_path, reference)
    assert items.columns["exact_match"].tolist() == [row["exact_match"] for row in samples]
    assert items.columns["exact_match"].mean() == figures["exact_match"] > 0
    assert figures["exact_match"] < 1
    assert "up to ',' or '.', compared without blanks at its ends and without case" in items.metadata["protocol"]


def test_joined_endings_equal_those_of_the_harness_itself(questions: Path, tmp_path: Path, reference: Any) -> None:
    items = ask(TaskConfig(name="own", file=questions, join="\n- "))
    _, samples = own_figures(JOINED, questions, tmp_path, reference)
    assert [row["arguments"][0][1][:3] for row in samples] == ["\n- "] * QUESTIONS
    assert items.columns["accuracy"].tolist() == [row["acc"] for row in samples]
    assert r"endings joined by '\n- '" in items.metadata["protocol"]
    assert items.digest != ask(TaskConfig(name="own", file=questions)).digest


def instances(*arguments: tuple[Any, ...], kind: str = "loglikelihood") -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(request_type=kind, doc={}, arguments=given, idx=0) for given in arguments]


def model(**knobs: Any) -> Any:
    from recipes.measure.harness_model import ScorerLM

    given = {"scorer": opened().logits, "generator": opened().generate, "context": CONTEXT, "batch": 3, **knobs}
    return ScorerLM(tokenizer=load_tokenizer(MODEL), **given)


def test_log_likelihoods_equal_those_of_the_harness_itself(reference: Any) -> None:
    texts = sentences()
    pairs = [(text[:80], text[80:120]) for text in texts[:9]]
    pairs += [("", texts[9]), ("The end. ", "of it"), (" ".join(texts[:12]), " was over."), ("She said", " the")]
    ours, theirs = model().loglikelihood(instances(*pairs)), reference.loglikelihood(instances(*pairs))
    assert [first for _, first in ours] == [first for _, first in theirs]
    np.testing.assert_allclose([value for value, _ in ours], [value for value, _ in theirs], rtol=1e-5)


def test_rolling_log_likelihoods_equal_those_of_the_harness_itself(reference: Any) -> None:
    texts = ["\n".join(sentences()[:8]), sentences()[9], "A"]
    requests = [(text,) for text in texts]
    ours = model().loglikelihood_rolling(instances(*requests, kind="loglikelihood_rolling"))
    theirs = reference.loglikelihood_rolling(instances(*requests, kind="loglikelihood_rolling"))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert len(load_tokenizer(MODEL).encode(texts[0])) > 2 * CONTEXT  # it took several windows


def test_texts_equal_those_of_the_harness_itself(reference: Any) -> None:
    short, long = {"until": [".", "\n"], "max_gen_toks": 16}, {"until": "never", "max_gen_toks": 24}
    contexts = [*sentences()[:2], " ".join(sentences()[:12])]
    requests = [(text, knobs) for text in contexts for knobs in (short, long)]
    ours = model().generate_until(instances(*requests, kind="generate_until"))
    theirs = reference.generate_until(instances(*requests, kind="generate_until"))
    assert ours == theirs
    assert all("." not in text for text in ours[::2])
    assert len(set(ours)) > 3


def test_generated_text_ends_at_the_end_of_text() -> None:
    tokenizer = load_tokenizer(MODEL)
    said = np.array([*tokenizer.encode("Good night"), tokenizer.eos_token_id, *tokenizer.encode("And then")])
    talker = model(generator=lambda prompts, tokens: [said for _ in prompts])
    assert talker.generate_until(instances(("She said:", {"until": ["x"]} | {"max_gen_toks": 9}))) == ["Good night"]


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("generate_until", ("a", {"do_sample": True, "temperature": 0.7, "max_gen_toks": 9}), "got one that samples"),
        ("generate_until", ("a", {"max_gen_toks": CONTEXT}), "generates fewer than 256 tokens, .* generates 256"),
        ("loglikelihood", ("a", " word" * 300), "continuations of 1 to 256 tokens"),
        ("loglikelihood", ("a", ""), "continuations of 1 to 256 tokens, .* got 0"),
    ],
)
def test_requests_that_cannot_be_met_are_refused(kind: str, arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        getattr(model(), kind)(instances(arguments, kind=kind))


def test_examples_stand_before_every_question(questions: Path) -> None:
    task = open_task(TaskConfig(name="novels", file=questions, shots=2)).tasks["novels"]
    task.build_all_requests()
    first, second = (json.loads(line) for line in questions.read_text(encoding="utf-8").splitlines()[:2])
    shown = "".join(f"{row['context']} {row['endings'][row['label']]}\n\n" for row in (first, second))
    contexts = {instance.arguments[0] for instance in task.instances}
    assert len(contexts) == QUESTIONS - 2
    assert all(context.startswith(shown) for context in contexts)


def test_every_form_is_asked_the_same(int8_exports: Callable[[str], Exported], questions: Path) -> None:
    made = int8_exports("gpt2")
    config, told = TaskConfig(name="novels", file=questions, limit=12), []
    variants: list[tuple[Path, FormatName]] = [(made.dense, "dense"), (made.int8, "quantized"), (made.bundle, "onnx")]
    dense, int8, onnx = (ask(config, folder, format, on_item=told.append) for folder, format in variants)
    assert dense.digest == int8.digest == onnx.digest
    assert math.isclose(sum(told), 3 * 12)
    agreeing = (dense.columns["accuracy_norm"] == onnx.columns["accuracy_norm"]).mean()
    assert agreeing >= 0.75  # random weights: a few questions lie on the edge
    ratio = item_measurements("novels", onnx, dense, method="here")
    assert {figure.metric for figure in ratio} == {"novels/accuracy", "novels/accuracy_norm"}
    assert all(figure.samples == 12 and not figure.invalid and figure.change is not None for figure in ratio)


def test_other_questions_have_another_digest(questions: Path) -> None:
    digests = {
        ask(TaskConfig(name="novels", file=questions, limit=4, shots=shots), seed=seed).digest
        for shots, seed in ((0, 0), (0, 1), (1, 0))
    }
    assert len(digests) == 3


def test_a_model_that_answers_no_numbers_is_invalid(questions: Path) -> None:
    def broken(ids_BT: Ids) -> NDArray[np.float32]:
        return np.full((*ids_BT.shape, 4096), np.nan, dtype=np.float32)

    items = ask(TaskConfig(name="novels", file=questions, limit=9), scorer=broken)
    assert all(np.isnan(column).all() for column in items.columns.values())
    figures = item_measurements("novels", items, None, method="here")
    assert figures
    assert all(figure.invalid for figure in figures)


TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {cache}}}
test_split: test
doc_to_text: context
metadata: {{version: 3.0}}
"""
CHOICE = TASK + "output_type: multiple_choice\ndoc_to_choice: endings\ndoc_to_target: label\n"
TEXT = TASK + "output_type: generate_until\ndoc_to_target: '{{{{endings[label]}}}}'\n"
EXACT = TEXT + "generation_kwargs: {{until: ['.'], max_gen_toks: 8}}\nmetric_list: [{{metric: exact_match}}]\n"


@pytest.fixture
def task_file(questions: Path, tmp_path: Path) -> Callable[..., Path]:
    """`task_file("mine", CHOICE)`: the folder with a task configuration, over a data set on the disk."""

    def make(name: str, text: str, more: str = "", data: Path = questions) -> Path:
        folder = tmp_path / "tasks"
        folder.mkdir(exist_ok=True)
        written = text.format(name=name, data=data, cache=tmp_path / "cache") + more
        (folder / f"{name}.yaml").write_text(written, encoding="utf-8")
        return folder

    return make


def test_a_named_task_equals_the_same_questions_from_a_file(task_file: Any, questions: Path) -> None:
    named = ask(TaskConfig(name="mine", include=task_file("mine", CHOICE)))
    filed = ask(TaskConfig(name="mine", file=questions))
    assert named.digest == filed.digest
    assert {name: column.tolist() for name, column in named.columns.items()} == {
        name: column.tolist() for name, column in filed.columns.items()
    }
    assert f"task mine, version 3.0, {QUESTIONS} of {QUESTIONS} questions, 0-shot" in named.metadata["protocol"]


def test_a_limit_of_a_named_task_is_spread(task_file: Any, questions: Path) -> None:
    config = TaskConfig(name="mine", include=task_file("mine", CHOICE), limit=10)
    assert ask(config, seed=5).digest == ask(TaskConfig(name="mine", file=questions, limit=10), seed=5).digest
    assert max(open_task(config, seed=5).rows["mine"]) > 0.75 * QUESTIONS


def test_a_named_task_that_generates_gives_a_score(task_file: Any) -> None:
    items = ask(TaskConfig(name="mine", include=task_file("mine", EXACT), limit=3))
    assert list(items.columns) == ["exact_match"]
    assert items.metadata["figures"] == {"exact_match": ["exact_match"]}


def test_a_group_asks_all_of_its_tasks(task_file: Any) -> None:
    task_file("first", CHOICE, "tag: both\n")
    include = task_file("second", CHOICE, "tag: both\n")
    items = ask(TaskConfig(name="both", include=include, limit=4))
    assert len(items) == 8
    assert items.metadata["questions"] == {"first": 4, "second": 4}
    assert items.columns["accuracy"][:4].tolist() == items.columns["accuracy"][4:].tolist()


def test_a_task_without_a_mean_over_questions_is_refused(task_file: Any) -> None:
    figures = "metric_list: [{metric: brier_score, aggregation: brier_score, higher_is_better: false}]\n"
    config = TaskConfig(name="mine", include=task_file("mine", CHOICE, figures), limit=3)
    with pytest.raises(TaskError, match=r"mine: expected a task with a figure that is a mean .*got brier_score;"):
        ask(config)


def test_examples_that_a_task_refuses_are_not_dropped_silently(task_file: Any) -> None:
    include = task_file("mine", CHOICE, "num_fewshot: 0\n")
    with pytest.raises(TaskError, match="mine takes no examples, got `shots: 3`; leave `shots` out"):
        open_task(TaskConfig(name="mine", include=include, shots=3))


def test_a_task_that_runs_code_is_refused(task_file: Any) -> None:
    include = task_file("mine", EXACT, "unsafe_code: true\n")
    with pytest.raises(TaskError, match="mine: expected a task of text alone, but mine runs code"):
        open_task(TaskConfig(name="mine", include=include))


def test_data_that_cannot_be_loaded_names_the_way_out(task_file: Any, tmp_path: Path) -> None:
    config = TaskConfig(name="mine", include=task_file("mine", CHOICE, data=tmp_path / "none.jsonl"))
    with pytest.raises(TaskError, match=r"mine: expected a task whose data can be loaded, got .*none.* as `file:`"):
        open_task(config)
    assert len(task_problems(config)) == 1


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.thorough)])
def test_an_unknown_task_is_told_what_was_perhaps_meant(whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all the harness's tasks, whose thousands of files take long to read; or of the files of one."""
    if not whole:
        import lm_eval.tasks

        one = lm_eval.tasks.TaskManager(
            include_path=str(Path(lm_eval.tasks.__file__).parent / "hellaswag"), include_defaults=False
        )
        monkeypatch.setattr(harness, "_manager", lambda include, *, include_defaults: one)
    problems = task_problems(TaskConfig(name="hellaswagg"))
    assert len(problems) == 1
    assert problems[0].startswith("hellaswagg: expected a task of lm-evaluation-harness")
    assert problems[0].endswith("are given as `file:`; did you mean 'hellaswag'?")


def test_the_tasks_that_the_page_shows_are_read() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    shown = [YAML().load(block) for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)]
    tasks = [TaskConfig(**task) for block in shown for task in block["evaluate"].get("tasks", ())]
    assert [task.name for task in tasks] == ["hellaswag", "lambada_openai"]
    assert all(is_metric(metric) for block in shown for metric in block["gate"])


def test_what_is_wrong_is_known_early(questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert task_problems(TaskConfig(name="novels", file=questions)) == []
    assert task_problems(TaskConfig(name="mine", include=tmp_path / "none")) == [
        f"mine: expected an existing folder as `include`, got '{tmp_path / 'none'}'"
    ]
    monkeypatch.setattr(harness, "find_spec", lambda name: None)
    problems = task_problems(TaskConfig(name="novels", file=tmp_path / "none.jsonl"))
    assert len(problems) == 2
    assert "pip install 'demitasse[tasks]'" in problems[0]
    with pytest.raises(TaskError, match="lm-evaluation-harness for `tasks`, which is not installed; pip install"):
        open_task(TaskConfig(name="novels", file=questions))


@pytest.mark.parametrize("swapped", ["data", "configuration", "code", "what the code calls"])
def test_the_digest_of_a_task_holds_what_it_reads_wherever_that_lies(swapped: str, tmp_path: Path) -> None:
    """The folder that is named stays as it is."""
    include, elsewhere = tmp_path / "include", tmp_path / "elsewhere"
    include.mkdir()
    elsewhere.mkdir()
    rows = [{"text": "It was", "good": " a night", "bad": " an xylophone", "label": 0} for _ in range(3)]
    data = write(elsewhere / "data.jsonl", rows)
    code = "def choices(doc):\n    return order([doc['good'], doc['bad']])\n\n\ndef order(pair):\n    return pair\n"
    (elsewhere / "own.py").write_text(code, encoding="utf-8")
    base = (
        f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: text\ndoc_to_target: label\n"
        "doc_to_choice: !function own.choices\n"
    )
    (elsewhere / "base.yaml").write_text(base, encoding="utf-8")
    (include / "mine.yaml").write_text(f"task: mine\ninclude: {elsewhere}/base.yaml\n", encoding="utf-8")
    config = TaskConfig(name="mine", include=include, allow_code=True)
    before, named = digest_of_evaluation(config), config.digest()
    assert digest_of_evaluation(config) == before
    if swapped == "data":
        write(data, [{**row, "label": 1} for row in rows])
    elif swapped == "configuration":
        (elsewhere / "base.yaml").write_text(base.replace("doc_to_text: text", "doc_to_text: bad"), encoding="utf-8")
    elif swapped == "code":
        (elsewhere / "own.py").write_text(code.replace("doc['bad']", "doc['text']"), encoding="utf-8")
    else:
        (elsewhere / "own.py").write_text(code.replace("return pair", "return pair[::-1]"), encoding="utf-8")
    assert config.digest() == named
    harness._manager.cache_clear()
    assert digest_of_evaluation(config) != before
