"""The distillation benchmark: every part on tiny models, what its tables show, and that a killed run goes on.

What runs the parts is thorough; that the page is what the stored results say is a quick test of test_benchmarks.py.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from conftest import Share

from benchmarks import distillation
from benchmarks.distillation import joined, measure, read_knob
from benchmarks.distillation_order import Part, Request, Texts, perplexity
from benchmarks.distillation_quality import (
    ALTERNATIVES,
    CONTROLS,
    DISTILLED,
    REAL_VARIANTS,
    TEACHER,
    UNTRAINED,
)
from benchmarks.distillation_speed import VARIANTS
from benchmarks.distillation_tables import TITLES, distillation_outcomes, distillation_tables
from benchmarks.page import write_page

BUDGET = {"tokens": 64, "batch": 2, "length": 32, "learning_rate": 1e-3, "checkpoints": 0}


@pytest.fixture(scope="session")
def the_request(
    shared_checkpoint: Callable[..., Path], text_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Request:
    texts = Texts(train=text_file, held_out=text_file, test=text_file)
    return Request(
        work=tmp_path_factory.mktemp("work"),
        tell=lambda what: None,
        model=shared_checkpoint("llama"),
        texts=texts,
        elsewhere=text_file,
        embedded=shared_checkpoint("gpt2", n_layer=4),
        novels=texts,
        tokens=128,
        knobs={"batch": 2, "length": 32, "checkpoints": 1},
        budget=BUDGET,
        seeds=(0, 1),
        positions=64,
        vocabulary=4000,
        width=32,
        blocks=2,
        steps=2,
        threads=1,
    )


@pytest.fixture(scope="session")
def run(shared: Share, the_request: Request) -> dict[str, Any]:
    """Every part, as it would be stored."""

    def make(out: Path) -> None:
        measure(["loss", "speed", "half"], replace(the_request, model=None), out)
        measure(["smollm2"], the_request, out)

    stored: dict[str, Any] = json.loads(shared("benchmark-distillation.json", make).read_text(encoding="utf-8"))
    return stored


@pytest.mark.thorough
def test_both_losses_give_the_same_gradients_and_are_measured(run: dict[str, Any]) -> None:
    part = run["parts"]["loss"]
    assert max(part["errors"].values()) < 1e-6
    assert set(part["rows"]) == {"chunked", "naive"}
    for name, row in part["rows"].items():
        assert row["peak"] > row["held"] > 0, name
        assert len(row["seconds"]) == 2, name
        assert min(row["seconds"]) > 0, name


@pytest.mark.thorough
def test_every_variant_trains(run: dict[str, Any], the_request: Request) -> None:
    rows = run["parts"]["speed"]["rows"]
    assert list(rows) == [the_request.embedded.name]
    row = rows[the_request.embedded.name]
    assert set(row["seconds"]) == set(VARIANTS) == set(TITLES)
    for variant, seconds in row["seconds"].items():
        assert len(seconds) == 2, variant
        assert min(seconds) > 0, variant


@pytest.mark.thorough
def test_controls_have_every_seed_and_variants_one(run: dict[str, Any]) -> None:
    part = run["parts"]["half"]
    expected = {f"{name}, seed {seed}" for name in CONTROLS for seed in (0, 1)} | {
        f"{name}, seed 0" for name in ALTERNATIVES
    }
    assert set(part["rows"]) == expected | {f"{UNTRAINED}, seed 0"}
    assert part["layers"] == 2
    for name, row in part["rows"].items():
        assert row["perplexity"] > 1, name
    kept = {row["variant"]: row["kept"] for row in part["rows"].values()}
    assert kept[DISTILLED] == kept[UNTRAINED] == [0, 3]
    trained, untrained = part["rows"][f"{DISTILLED}, seed 0"], part["rows"][f"{UNTRAINED}, seed 0"]
    assert trained["perplexity"] != untrained["perplexity"]
    assert trained["perplexity"] != part["rows"][f"{DISTILLED}, seed 1"]["perplexity"], "the seed orders the rows"


@pytest.mark.thorough
def test_a_real_model_is_followed_on_held_out_text(run: dict[str, Any]) -> None:
    part = run["parts"]["smollm2"]
    assert set(part["rows"]) == {TEACHER, *REAL_VARIANTS, UNTRAINED}
    assert part["layers"] == 2
    assert part["rows"][TEACHER]["agreement"] == 1
    assert part["rows"][TEACHER]["elsewhere"] > 1
    for name in REAL_VARIANTS:
        row = part["rows"][name]
        assert len(row["curve"]) >= 1
        assert row["curve"][-1][0] <= 128
        assert row["kept"] == part["rows"][UNTRAINED]["kept"]
        assert 0 <= row["agreement"] < 1


@pytest.mark.thorough
def test_the_tables_show_every_row_and_every_target(run: dict[str, Any], tmp_path: Path) -> None:
    tables = distillation_tables(run)
    assert set(tables) == {*distillation.PARTS, "targets"}
    text = "\n".join(table.markdown() for found in tables.values() for table in found)
    for name in ("chunked", "naive", *TITLES.values(), *CONTROLS, *ALTERNATIVES, *REAL_VARIANTS, UNTRAINED, TEACHER):
        assert f"| {name} |" in text, name
    assert len(list(distillation_outcomes(run["parts"]))) == 3 + 2
    page = page_of(run, tmp_path)
    assert "## Distillation" in page
    assert all(table.markdown() in page for found in tables.values() for table in found)


@pytest.mark.thorough
def test_the_page_shows_finished_parts_alone(run: dict[str, Any], tmp_path: Path) -> None:
    half = run["parts"]["half"]
    unfinished = run | {"parts": {"half": half, "speed": {"complete": False, "rows": {}}}}
    page = page_of(unfinished, tmp_path)
    assert all(table.markdown() in page for table in distillation_tables(run)["half"])
    assert "Training speed" not in page
    assert set(distillation_tables(unfinished)) == {"half"}


def page_of(run: dict[str, Any], folder: Path) -> str:
    (folder / "distillation.json").write_text(json.dumps(run), encoding="utf-8")
    write_page(folder, folder / "page.md")
    return (folder / "page.md").read_text(encoding="utf-8")


def test_targets_are_held_to_the_paired_ratio() -> None:
    slow, fast = [2.0, 2.2, 2.1, 2.0, 2.1, 2.0], [1.0, 1.1, 1.05, 1.0, 1.05, 1.0]
    rows = {"chunked": {"held": 10, "peak": 40, "seconds": slow}, "naive": {"held": 10, "peak": 110, "seconds": fast}}
    speed = {"tiny": {"seconds": {"plain": slow, "ours": fast, "stored": fast}}}
    parts = {"loss": {"rows": rows, "errors": {"hidden": 1e-9}}, "speed": {"rows": speed}}
    found = [(outcome.verdict, outcome.value) for outcome in distillation_outcomes(parts)]
    assert [verdict for verdict, _ in found] == ["PASS", "short", "PASS", "PASS", "short"]
    assert [value for _, value in found] == pytest.approx([0.3, 2.0, 1e-9, 2.0, 1.0])


def test_a_killed_run_goes_on_with_the_rows_it_has(
    the_request: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, measured, killed = tmp_path / "distillation.json", list[str](), list[str]()

    def three_rows(a_request: Request, part: Part) -> None:
        for name in ("a", "b", "c"):
            if name == "c" and not killed:
                killed.append(name)
                raise RuntimeError("killed")
            part.row(name, lambda name=name: measured.append(name) or {"name": name})

    monkeypatch.setitem(distillation.PARTS, "half", three_rows)
    with pytest.raises(RuntimeError, match="killed"):
        measure(["half"], the_request, out)
    measure(["half"], the_request, out)
    assert measured == ["a", "b", "c"]
    assert json.loads(out.read_text(encoding="utf-8"))["parts"]["half"]["complete"]
    measure(["half"], the_request, out)
    assert measured == ["a", "b", "c"] * 2, "a finished part is measured anew"


@pytest.mark.thorough
def test_perplexity_is_exp_of_the_mean_loss(the_request: Request, text_file: Path) -> None:
    import numpy as np
    import torch

    from compress.checkpoints.folder import load_tokenizer
    from compress.checkpoints.loading import load_model
    from compress.text import TextSource, end_of_text, pack, read_documents, tokenize

    model, tokenizer = load_model(the_request.embedded), load_tokenizer(the_request.embedded)
    rows_NT = pack(tokenize(read_documents(TextSource(file=text_file)), tokenizer), 32, end_of_text(tokenizer))
    with torch.inference_mode():
        losses = [
            float(model(input_ids=ids, labels=ids).loss) for ids in (torch.from_numpy(row[None]) for row in rows_NT[:3])
        ]
    found = perplexity(the_request.embedded, text_file, 3, 32, evenly=False)
    assert found == pytest.approx(float(np.exp(np.mean(losses))), rel=1e-5)
    assert perplexity(the_request.embedded, text_file, 3, 32, evenly=True) != found


def test_knobs_and_texts_of_the_command_line(tmp_path: Path) -> None:
    assert read_knob("batch=4") == ("batch", 4)
    assert read_knob("precision=bf16") == ("precision", "bf16")
    with pytest.raises(typer.BadParameter, match="expected name=value"):
        read_knob("batch")
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for file in files:
        file.write_text(file.stem, encoding="utf-8")
    assert joined(files[:1], tmp_path) == files[0]
    assert joined(files, tmp_path).read_text(encoding="utf-8") == "a\n<|endoftext|>\nb"
