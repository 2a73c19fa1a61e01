"""Task configurations with code are refused before any of it runs; without code they are asked as the page shows."""

import re
from pathlib import Path

import pytest

from recipes.config.evaluations import TaskConfig
from recipes.measure import harness_tasks as harness
from recipes.measure.harness_tasks import open_task, task_problems
from recipes.measure.question_files import TaskError

pytest.importorskip("lm_eval")
PAGE = Path(__file__).resolve().parent.parent / "docs" / "evaluation.md"
ROWS = '{"text": "It was", "right": " a night"}\n' * 2
TASK = """task: mine
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {cache}}}
test_split: test
output_type: loglikelihood
doc_to_text: text
doc_to_target: right
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


def write(place: Path, more: str = "", drop: str = "") -> Path:
    """A folder with one task, and Python beside it that leaves a marker when it is run."""
    folder = place / "tasks"
    folder.mkdir()
    (place / "rows.jsonl").write_text(ROWS, encoding="utf-8")
    text = TASK.format(data=place / "rows.jsonl", cache=place / "cache")
    lines = [line for line in text.splitlines(keepends=True) if not (drop and line.startswith(drop))]
    (folder / "mine.yaml").write_text("".join(lines) + more, encoding="utf-8")
    planted = (
        f"import pathlib\npathlib.Path({str(place / 'marker')!r}).touch()\n\n\ndef text(doc):\n    return doc['text']\n"
    )
    (folder / "planted.py").write_text(planted, encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def read_anew() -> None:
    """What the harness knows of folders is forgotten."""
    harness._manager.cache_clear()


@pytest.mark.parametrize(
    ("drop", "more", "told"),
    [
        ("doc_to_text", "doc_to_text: !function planted.text\n", r"mine\.yaml:8: .*got !function planted\.text"),
        ("doc_to_text", "doc_to_text: &a !function planted.text\nprocess_docs: *a\n", r"mine\.yaml:8: .*!function"),
        ("task", "class: !function planted.text\ntask: mine\n", r"mine\.yaml:8: .*got !function"),
        ("doc_to_text", "doc_to_text: !!python/name:os.system\n", r"mine\.yaml:8: .*python/name:os\.system"),
        ("metric", "metric_list: [{metric: tasks/planted.py}]\n", r"mine\.yaml:8: .*`metric: tasks/planted\.py`"),
        ("metric", "metric_list: [{metric: acc, hf_evaluate: true}]\n", r"mine\.yaml:8: .*`hf_evaluate: true`"),
    ],
)
def test_code_is_refused_by_its_line_and_never_run(
    drop: str, more: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (problem,) = task_problems(TaskConfig(name="mine", include=write(tmp_path, more, drop)))
    assert re.search(told, problem), problem
    assert "allow it with `allow_code: true` beside `include`" in problem
    assert not (tmp_path / "marker").exists()


def test_code_of_a_configuration_that_lies_elsewhere_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, f"include: {tmp_path}/else/where.yml\n", "doc_to_text")
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "where.yml").write_text("doc_to_text: !function planted.text\n", encoding="utf-8")
    (folder / "planted.py").rename(tmp_path / "else" / "planted.py")
    with pytest.raises(TaskError, match=r"where\.yml:1: .*!function"):
        open_task(TaskConfig(name="mine", include=folder))
    assert not (tmp_path / "marker").exists()


def test_code_that_is_allowed_runs(tmp_path: Path) -> None:
    folder = write(tmp_path, "doc_to_text: !function planted.text\n", "doc_to_text")
    assert len(open_task(TaskConfig(name="mine", include=folder, allow_code=True))) == 2
    assert (tmp_path / "marker").exists()


def test_a_template_reaches_no_module(tmp_path: Path) -> None:
    reach = "{{ cycler.__init__.__globals__.os.mkdir('" + str(tmp_path / "marker") + "') }}"
    folder = write(tmp_path, f'doc_to_text: "{reach}"\n', "doc_to_text")
    with pytest.raises(TaskError, match=r"cycler|unsafe|__init__"):
        open_task(TaskConfig(name="mine", include=folder))
    assert not (tmp_path / "marker").exists()


def test_the_example_of_the_page_is_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    page = PAGE.read_text(encoding="utf-8")
    (task,) = [block for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if block.startswith("task: ")]
    (rows,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "capitals_yaml.yaml").write_text(task, encoding="utf-8")
    (tmp_path / "capitals.jsonl").write_text(rows, encoding="utf-8")
    opened = open_task(TaskConfig(name="capitals_yaml", include=Path("tasks"))).tasks["capitals_yaml"]
    opened.build_all_requests()
    asked = [instance.arguments[0] for instance in opened.instances]
    assert asked[1] == "Question: What is the capital of Peru?\nAnswer:"
    for instance in opened.instances:
        instance.resps = [" LIMA.  "]
    opened.apply_filters()
    instance = opened.instances[1]
    figures = opened.process_results(instance.doc, [instance.filtered_resps["bare"]])
    assert figures == {"exact_match": 1.0}
