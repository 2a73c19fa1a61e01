"""Each evaluation of an artifact is there once it is finished; `evaluate.stages: last` leaves out those between."""

from collections.abc import Callable
from pathlib import Path

import pytest
from killing import KillAt, KilledError

from compress import TextSource
from compress.stage import Progress, Silent
from evaluation.render import write_report
from recipes.config.loader import load_recipe
from recipes.config.recipe import DataConfig, EvaluateConfig, Recipe
from recipes.engine.measuring import Measuring, Subject
from recipes.engine.rejudge import judge_run
from recipes.engine.runner import run
from recipes.engine.sequential import Patience
from recipes.engine.steps import Engine
from recipes.measure import footprint
from recipes.runs.records import Artifact, IntegrityError
from recipes.runs.store import Store
from recipes.runs.upkeep import held

TEXT = "\n<|endoftext|>\n".join(
    f"The old house stood {number} miles from the sea, and nobody came." for number in range(24)
)
QUALITY = EvaluateConfig.model_validate({"window": 16, "windows": 16, "batch": 2, "noise": {"typos": 0.1, "case": 0.1}})
WINDOWS = 16


@pytest.fixture(autouse=True)
def _no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprint, "probe", lambda *_, **__: 5)  # a process each, tested elsewhere


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "test.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path / "test.txt"


def measured(model: Path, text: Path, store: Path, progress: Progress, quality: EvaluateConfig = QUALITY) -> Artifact:
    """The quality of a model, measured twice: as the baseline, and against that."""
    recipe = Recipe(name="r", data=DataConfig(test=TextSource(file=text)), evaluate=quality)
    told: list[str] = []
    engine = Engine(store=Store(store), progress=progress, log=told.append)
    measuring = Measuring(engine=engine, recipe=recipe, patience=Patience(recipe=recipe))
    measuring.begin(recipe)
    subjects = [Subject(name=name, kind=name, key=name * 8, format="dense", folder=model) for name in ("first", "last")]
    rows = [measuring.measure(subject) for subject in subjects]
    found = Store(store).read(rows[-1].samples["quality"])
    (store / "told.txt").write_text("\n".join(told), encoding="utf-8")
    return found


@pytest.mark.parametrize("step", [WINDOWS // 2 + 2, 4 * WINDOWS // 2 + 2])
def test_a_killed_measurement_goes_on_with_what_was_finished_and_ends_alike(
    step: int, gpt2: Path, text: Path, tmp_path: Path, folder_digest: Callable[[Path], dict[str, str]]
) -> None:
    """It ends in the noise of the baseline, and in that of what is held against it."""
    whole = measured(gpt2, text, tmp_path / "whole", Silent())
    with pytest.raises(KilledError):
        measured(gpt2, text, tmp_path / "killed", KillAt(step))
    finished = {path.name for path in (tmp_path / "killed").glob("evaluation-*")}
    assert finished
    again = measured(gpt2, text, tmp_path / "killed", Silent())
    told = (tmp_path / "killed" / "told.txt").read_text(encoding="utf-8")
    assert finished <= {path.name for path in (tmp_path / "whole").glob("evaluation-*")}
    assert any(f"{name} reused" in told for name in finished)
    assert folder_digest(again.files) == folder_digest(whole.files)
    assert again.metadata["measurements"] == whole.metadata["measurements"]


def test_another_evaluation_leaves_those_that_are_there(gpt2: Path, text: Path, tmp_path: Path) -> None:
    measured(gpt2, text, tmp_path / "store", Silent())
    before = {path.name for path in (tmp_path / "store").glob("evaluation-*")}
    fewer = QUALITY.model_copy(update={"noise": None})
    measured(gpt2, text, tmp_path / "store", KillAt(1), fewer)
    assert {path.name for path in (tmp_path / "store").glob("evaluation-*")} == before
    with pytest.raises(KilledError):  # more of the text is another text
        measured(gpt2, text, tmp_path / "store", KillAt(1), fewer.model_copy(update={"windows": 17}))


def test_a_rerun_keeps_the_single_evaluations_of_what_it_reuses(gpt2: Path, text: Path, tmp_path: Path) -> None:
    content = {"model": gpt2, "data": {"test": text}, "stages": [{"prune": {"sparsity": 0.2}}]}
    recipe = Recipe.from_dict(content | {"evaluate": {"window": 16, "windows": 8, "noise": {"typos": 0.1}}}, name="r")
    for _ in range(2):
        run(recipe, out=tmp_path / "out")
        kept = list(held(Store(tmp_path / "out" / "artifacts")))
        assert [result.kind for result in kept].count("evaluation") == 4
        assert [result.name for result in kept if not result.runs] == []


def test_a_changed_single_evaluation_of_what_is_reused_is_told(gpt2: Path, text: Path, tmp_path: Path) -> None:
    content = {"model": gpt2, "data": {"test": text}, "stages": [{"prune": {"sparsity": 0.2}}]}
    recipe, out = Recipe.from_dict(content | {"evaluate": {"window": 16, "windows": 8}}, name="r"), tmp_path / "out"
    run(recipe, out=out)
    part = next((out / "artifacts").glob("evaluation-*"))
    for file in (part / "artifact.json", next((part / "files").iterdir())):
        before = file.read_bytes()
        file.write_bytes(before[:-9] + bytes([before[-9] ^ 1]) + before[-8:])
        for judged in (lambda: run(recipe, out=out), lambda: judge_run(out)):
            with pytest.raises(IntegrityError, match=r"evaluation-.* was changed"):
                judged()
        file.write_bytes(before)
    assert [row.reused for row in run(recipe, out=out).rows] == [True, True]
    judge_run(out)


def test_stages_between_have_no_quality_where_the_last_alone_is_asked_for(
    gpt2: Path, text: Path, tmp_path: Path
) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(
        f"model: {gpt2}\ndata: {{test: test.txt}}\nstages: [prune: {{sparsity: 0.2}}, prune: {{sparsity: 0.4}}]\n"
        "evaluate: {window: 16, windows: 8, stages: last}\ngate: {perplexity: {max_ratio: 9}}\n",
        encoding="utf-8",
    )
    report = run(load_recipe(file), out=tmp_path / "out")
    figures = [{found.metric for found in row.measurements} for row in report.rows]
    assert [("perplexity" in of_row, "weight_bytes" in of_row) for of_row in figures] == [
        (True, True),
        (False, True),
        (True, True),
    ]
    assert report.verdict == judge_run(tmp_path / "out").verdict == "PASS"
    write_report(report, tmp_path / "out")
    every = run(load_recipe(file, ["evaluate.stages=all"]), out=tmp_path / "out")
    assert every.rows[2].measurement("perplexity") == report.rows[2].measurement("perplexity")
    assert every.rows[2].samples == report.rows[2].samples
