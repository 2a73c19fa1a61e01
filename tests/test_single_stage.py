"""Stages as verbs over folders: their options, what they leave, what they refuse."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
from conftest import Demitasse

from compress import StageConfig, StageError, StageInput
from compress.stage import Stage, StageMetadata
from recipes.cli.options import OptionError, build
from recipes.cli.stage import text_source
from recipes.config.recipe import EvaluateConfig
from recipes.engine.evaluation import EvaluationRequest, evaluate
from recipes.engine.output import RequestError
from recipes.engine.single import StageRequest, run_stage


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file below a folder."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


# ---- options


class Knobs(StageConfig):
    rate: float = 1e-3
    """How fast."""
    tokens: int = 5
    pattern: str | None = None
    losses: dict[str, float] = {"forward_kl": 1.0}  # noqa: RUF012 (pydantic copies defaults)
    keep: tuple[int, ...] | None = None


def test_values_are_read_as_in_yaml() -> None:
    given = {"rate": "1e-4", "tokens": "500_000", "pattern": "2:4", "losses": "{forward_kl: 0.5}", "keep": "[0, 2]"}
    expected = Knobs(rate=1e-4, tokens=500_000, pattern="2:4", losses={"forward_kl": 0.5}, keep=(0, 2))
    assert build(Knobs, given) == expected
    assert build(Knobs, dict.fromkeys(given)) == Knobs()


@pytest.mark.parametrize(("option", "value"), [("rate", "fast"), ("tokens", "1.5"), ("keep", "[0, "), ("losses", "3")])
def test_values_that_do_not_fit_name_their_option(option: str, value: str) -> None:
    with pytest.raises(OptionError, match=f"^--{option}: expected"):
        build(Knobs, {option: value})


def test_a_text_is_a_file_or_a_pinned_data_set() -> None:
    file = text_source("--test-text", "a.txt")
    dataset = text_source("--test-text", "{dataset: org/name, revision: abc}")
    assert file is not None
    assert str(file) == "a.txt"
    assert dataset is not None
    assert dataset.dataset == "org/name"
    with pytest.raises(OptionError, match=r"--test-text: expected a file that ends in"):
        text_source("--test-text", "a.pdf")


# ---- a stage as a verb


def test_verb_leaves_a_checkpoint_and_touches_nothing_else(gpt2: Path, tmp_path: Path, demitasse: Demitasse) -> None:
    before = digests(gpt2)
    code, said, err = demitasse("prune", gpt2, "--out", tmp_path / "pruned", "--sparsity", "0.5")
    assert (code, err) == (0, "")
    assert "is complete" in said
    assert (tmp_path / "pruned" / "model.safetensors").is_file()
    assert [item.name for item in tmp_path.iterdir()] == ["pruned"]
    assert digests(gpt2) == before


def test_verb_refuses_a_folder_that_holds_something(gpt2: Path, tmp_path: Path, demitasse: Demitasse) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    code, _, err = demitasse("prune", gpt2, "--out", tmp_path, "--sparsity", "0.5")
    assert code == 2
    assert "is not empty, and nothing is overwritten" in err
    assert [item.name for item in tmp_path.iterdir()] == ["mine.txt"]


def test_verb_refuses_to_write_into_the_model(gpt2: Path, demitasse: Demitasse) -> None:
    before = digests(gpt2)
    code, _, err = demitasse("prune", gpt2, "--out", gpt2 / "pruned", "--sparsity", "0.5")
    assert code == 2
    assert "apart from the model" in err
    assert digests(gpt2) == before


def test_verb_names_the_text_it_lacks(gpt2: Path, tmp_path: Path, demitasse: Demitasse) -> None:
    code, _, err = demitasse("distill", gpt2, "--out", tmp_path / "student", "--layers", "2")
    assert code == 2
    assert "give --train-text FILE" in err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def failing() -> tuple[Stage[Knobs], list[str]]:
    """A stage that fails at its first try, and the names of what each try found in its scratch folder."""
    found: list[str] = []

    def run(config: Knobs, given: StageInput) -> StageMetadata:
        found.append(" ".join(sorted(item.name for item in given.scratch.iterdir())))
        assert list(given.out.iterdir()) == []
        (given.scratch / "step-10").touch()
        (given.out / "half").touch()
        if len(found) == 1:
            raise StageError("no more")
        return {}

    stage = Stage(
        kind="fail", summary="", version=1, config=Knobs, takes=frozenset({"nothing"}), leaves="dense", run=run
    )
    return stage, found


def request_of(stage: Stage[Any], out: Path, **knobs: Any) -> StageRequest:
    return StageRequest(stage=stage, config=Knobs(**knobs), source=None, out=out)


@pytest.mark.parametrize(("tokens", "found_again"), [(5, "step-10"), (6, "")])
def test_failed_verb_leaves_no_result_and_goes_on_only_with_the_same_order(
    failing: tuple[Stage[Knobs], list[str]], tmp_path: Path, tokens: int, found_again: str
) -> None:
    stage, found = failing
    from compress import Silent

    with pytest.raises(StageError):
        run_stage(request_of(stage, tmp_path / "new", tokens=5), Silent())
    assert not (tmp_path / "new").exists()
    run_stage(request_of(stage, tmp_path / "new", tokens=tokens), Silent())
    assert found == ["", found_again]
    assert [item.name for item in tmp_path.iterdir()] == ["new"]


def test_two_verbs_cannot_write_one_folder(tmp_path: Path) -> None:
    from compress import Silent

    def run(config: Knobs, given: StageInput) -> StageMetadata:
        with pytest.raises(RequestError, match="another process is writing here"):
            run_stage(request, Silent())
        return {}

    stage = Stage(kind="x", summary="", version=1, config=Knobs, takes=frozenset({"nothing"}), leaves="dense", run=run)
    request = request_of(stage, tmp_path / "new")
    run_stage(request, Silent())


def test_evaluate_measures_a_model_against_a_baseline(
    gpt2: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from compress import Silent, TextSource

    monkeypatch.setattr("recipes.measure.footprint.probe", lambda *_, **__: 5)  # two more processes, tested elsewhere
    wanted = EvaluationRequest(
        model=gpt2,
        baseline=gpt2,
        out=tmp_path / "figures",
        test=TextSource(file=text_file),
        quality=EvaluateConfig(window=32, windows=8),
        benchmark=None,
    )
    report = evaluate(wanted, Silent())
    perplexity = report.measurement("model", "perplexity")
    assert perplexity is not None
    assert perplexity.ratio is not None
    assert perplexity.ratio.value == pytest.approx(1.0)
    assert {"report.html", "report.json", "report.md"} <= {item.name for item in (tmp_path / "figures").iterdir()}
    assert [item.name for item in tmp_path.iterdir()] == ["figures"]


def test_evaluate_refuses_more_than_the_model_reads_before_anything_runs(
    gpt2: Path, text_file: Path, tmp_path: Path, demitasse: Demitasse
) -> None:
    given = ["evaluate", gpt2, "--test-text", text_file, "--out", tmp_path / "out"]
    code, _, wrong = demitasse(*given, "--window", 10_000, "--benchmark", "--prompt", 9_990)
    assert code == 2
    assert "--window: expected at most " in wrong
    assert "got 9990 of the prompt and " in wrong
    assert list(tmp_path.iterdir()) == []


def test_a_verb_leaves_its_curves_beside_the_model(
    demitasse: Demitasse, gpt2: Path, text_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    knobs = ["--tokens", 512, "--length", 32, "--batch", 8, "--layers", 2]
    code, said, wrong = demitasse("distill", gpt2, "--out", out, "--train-text", text_file, *knobs)
    assert code == 0, said + wrong
    assert list((out / "tensorboard").glob("events.out.tfevents.*"))
    code, _, wrong = demitasse(
        "distill", gpt2, "--out", tmp_path / "b", "--train-text", text_file, "--student", tmp_path
    )
    assert code == 2
    assert "config.json" in wrong
