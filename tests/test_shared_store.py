"""One store for several runs and commands: what they share is made once, and is looked after."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Demitasse
from forging import edit_sealed

from compress.digests import digest_of
from compress.stage import Stage, StageConfig
from recipes.config.loader import load_recipe
from recipes.config.stages import STAGES
from recipes.engine.model_source import resolve
from recipes.engine.output import publish
from recipes.engine.plan import chain
from recipes.engine.stages import stage_step
from recipes.engine.steps import Engine
from recipes.runs.folder import add_card
from recipes.runs.records import CARD, RECORD, StoreError
from recipes.runs.store import Store
from recipes.runs.upkeep import broken, free, held, open_store

RECIPE = """\
model: {model}
data: {{calibration: text.txt, test: test.txt}}
stages:
  - prune: {{sparsity: 0.3}}
  - quantize: {{embeddings: {embeddings}}}
evaluate: {{window: 16, windows: 4}}
"""


@pytest.fixture
def recipe(tmp_path: Path, gpt2: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, bool], Path]:
    """`recipe(name, embeddings)`: a recipe file; those of two names share their first stage."""
    monkeypatch.setattr("recipes.measure.footprint.probe", lambda *_, **__: 5)  # a process each, tested elsewhere
    (tmp_path / "text.txt").write_text("some words to look at", encoding="utf-8")
    text = " ".join(f"word {number}" for number in range(400))
    (tmp_path / "test.txt").write_text(text, encoding="utf-8")

    def write(name: str, embeddings: bool) -> Path:
        file = tmp_path / f"{name}.yaml"
        file.write_text(RECIPE.format(model=gpt2, embeddings=str(embeddings).lower()), encoding="utf-8")
        return file

    return write


def test_two_recipes_share_a_stage_and_prune_keeps_what_is_in_use(
    recipe: Callable[[str, bool], Path],
    gpt2: Path,
    tmp_path: Path,
    demitasse: Demitasse,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DEMITASSE_STORE", str(tmp_path / "store"))
    code, said, wrong = demitasse("run", recipe("one", True), "--out", tmp_path / "one")
    assert code == 0, wrong
    code, said, _ = demitasse("run", recipe("two", False), "--out", tmp_path / "two")
    assert code == 0
    reused = [line.split()[1] for line in said.splitlines() if line.startswith("done") and "reused" in line]
    assert reused == ["baseline", "prune"]
    store = open_store(tmp_path / "store")
    kinds = [result.kind for result in held(store)]
    assert kinds.count("prune") == 1
    assert kinds.count("quantize") == 2
    assert {len(result.runs) for result in held(store) if result.kind == "prune"} == {2}
    report = json.loads((tmp_path / "one" / "report.json").read_text(encoding="utf-8"))
    assert report["store"] == str(tmp_path / "store")
    assert demitasse("gate", tmp_path / "one")[0] == 0

    code, said, _ = demitasse("store", "list", tmp_path / "store")
    assert code == 0
    assert "prune-" in said
    (tmp_path / "two").rename(tmp_path / "gone")
    only = [result.name for result in held(store) if not result.runs]
    assert any(name.startswith("quantize-") for name in only)
    code, said, _ = demitasse("store", "prune", tmp_path / "store", "--yes")
    assert code == 0
    assert f"{len(only)} results that no run refers to" in said
    assert all(not (store.root / name).exists() for name in only)
    assert "every result is one that a run refers to" in demitasse("store", "prune", "--yes")[1]
    assert demitasse("gate", tmp_path / "one")[0] == 0


def test_a_command_finds_what_a_run_has_made(
    recipe: Callable[[str, bool], Path], gpt2: Path, tmp_path: Path, demitasse: Demitasse
) -> None:
    store = tmp_path / "store"
    assert demitasse("prune", gpt2, "--out", tmp_path / "pruned", "--sparsity", "0.3", "--store", store)[0] == 0
    (made,) = [result for result in held(open_store(store)) if result.kind == "prune"]
    assert (store / made.name / "files" / "model.safetensors").read_bytes() == (
        tmp_path / "pruned" / "model.safetensors"
    ).read_bytes()
    code, said, _ = demitasse("plan", recipe("one", True), "--store", store)
    assert code == 0
    assert "cached" in said
    assert demitasse("run", recipe("one", True), "--out", tmp_path / "one", "--store", store)[0] == 0
    assert [result.name for result in held(open_store(store)) if result.kind == "prune"] == [made.name]


def test_every_byte_is_verified(
    recipe: Callable[[str, bool], Path], gpt2: Path, tmp_path: Path, demitasse: Demitasse
) -> None:
    store = tmp_path / "store"
    demitasse("prune", gpt2, "--out", tmp_path / "pruned", "--sparsity", "0.3", "--store", store)
    code, said, _ = demitasse("store", "verify", store)
    assert code == 0
    assert "1 of 1 results are what was stored" in said
    (file,) = store.glob("prune-*/files/model.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    code, said, errors = demitasse("store", "verify", store)
    assert code == 5
    assert "model.safetensors: was changed" in errors
    assert "0 of 1" in said


def test_a_store_of_another_version_is_one_clear_line(tmp_path: Path) -> None:
    store = Store(tmp_path)
    made = store.obtain("copy", {"a": 1}, lambda files, scratch: {})
    edit_sealed(made.folder / RECORD, lambda record: record.update(format=99))
    with pytest.raises(StoreError, match=r"written by another version of demitasse \(format 99, this one reads 2\)"):
        store.find("copy", made.key)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only to root")
def test_a_read_only_store_serves_what_it_holds_and_says_what_it_cannot(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    made = store.obtain("copy", {"a": 1}, lambda files, scratch: {})
    store.root.chmod(0o555)
    try:
        assert store.obtain("copy", {"a": 1}, lambda files, scratch: {}).key == made.key
        with pytest.raises(StoreError, match="permission denied"):
            store.obtain("copy", {"a": 2}, lambda files, scratch: {})
    finally:
        store.root.chmod(0o755)


def test_what_is_no_store_is_refused(tmp_path: Path, demitasse: Demitasse) -> None:
    code, _, errors = demitasse("store", "list", tmp_path)
    assert code == 2
    assert "expected a store of results or the folder of a run" in errors


def test_nothing_is_removed_while_something_works_in_the_store(tmp_path: Path, demitasse: Demitasse) -> None:
    store = Store(tmp_path)
    store.obtain("copy", {"a": 1}, lambda files, scratch: {})

    def look(files: Path, scratch: Path) -> dict[str, int]:
        code, _, errors = demitasse("store", "prune", tmp_path, "--yes")
        return {"code": code, "told": "something works in it (copy-" in errors}

    assert store.obtain("copy", {"a": 2}, look).metadata == {"code": 2, "told": True}


def made(store: Store, number: int) -> str:
    return store.obtain("copy", {"a": number}, lambda files, scratch: {}).folder.name


def in_use(store: Store) -> set[str]:
    return {result.name for result in held(store) if result.runs}


def test_a_run_under_way_keeps_what_its_last_report_is_about(tmp_path: Path) -> None:
    store, run = Store(tmp_path / "store"), tmp_path / "run"
    run.mkdir()
    names = [made(store, number) for number in range(3)]
    first = Engine(store=store, run=run)
    first.use(names[0])
    first.use(names[1])
    first.settle()
    again = Engine(store=store, run=run)
    again.use(names[2])
    assert in_use(store) == set(names)
    again.settle()
    assert in_use(store) == {names[2]}


def test_what_came_to_be_needed_since_it_was_listed_stays(tmp_path: Path) -> None:
    store = Store(tmp_path)
    names = [made(store, number) for number in range(2)]
    listed = list(held(store))
    store.note_run(tmp_path, [names[0]])
    (store.root / ".copy-half.gone").mkdir()  # of a prune that was killed
    assert free(store, listed) == 0
    assert sorted(store.root.glob("*copy*")) == [store.root / names[0]]


def test_nothing_is_removed_while_results_are_read(tmp_path: Path) -> None:
    store = Store(tmp_path)
    made(store, 1)
    with store.in_use(), pytest.raises(StoreError, match="something works in it"):
        free(store, held(store))
    free(store, held(store))
    assert list(held(store)) == []


def test_a_run_that_was_moved_or_is_elsewhere_keeps_its_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    store = Store(run / "artifacts")
    name = made(store, 1)
    (run / "report.json").write_text("{}", encoding="utf-8")
    store.note_run(run, [name])
    run.rename(tmp_path / "moved")
    assert in_use(Store(tmp_path / "moved" / "artifacts")) == {name}
    shared = Store(tmp_path / "shared")
    other = made(shared, 1)
    monkeypatch.setattr("socket.gethostname", lambda: "another")
    shared.note_run(tmp_path / "only-there", [other])
    monkeypatch.undo()
    assert in_use(shared) == {other}


def test_a_note_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.note_run(tmp_path, [made(store, 1)])
    (note,) = (store.root / ".runs").glob("*.json")
    note.write_text("", encoding="utf-8")
    with pytest.raises(StoreError, match="expected what a run is about"):
        list(held(store))


@pytest.mark.parametrize(
    ("entry", "value", "told"),
    [
        ("key", digest_of({}), "its key is not the digest of its identity"),
        ("identity", {}, "its key is not the digest of its identity"),
        ("metadata", [], "it is no record of format"),
        ("files", {"weights": 7}, "it is no record of format"),
        ("seconds", "long", "it is no record of format"),
    ],
)
def test_a_record_of_something_else_is_found(tmp_path: Path, entry: str, value: object, told: str) -> None:
    store = Store(tmp_path)
    name = made(store, 1)
    edit_sealed(store.root / name / RECORD, lambda record: record.update({entry: value}))
    ((_, problem),) = broken(store, [name])
    assert told in problem


def test_the_card_of_a_run_stays_out_of_what_runs_share(tmp_path: Path) -> None:
    own, shared = tmp_path / "run" / "artifacts" / "files", tmp_path / "store" / "files"
    for bundle in (own, shared):
        bundle.mkdir(parents=True)
        add_card("verdict", bundle, tmp_path / "run")
    assert (own / CARD).is_file()
    assert not (shared / CARD).exists()
    assert (tmp_path / "run" / CARD).read_text(encoding="utf-8") == "verdict"


def test_what_is_published_is_whole_and_the_store_stays_so(tmp_path: Path) -> None:
    store, work, curves = Store(tmp_path / "store"), tmp_path / "work", tmp_path / "work" / "tensorboard"
    artifact = store.obtain("copy", {}, lambda files, scratch: {"size": (files / "x").write_text("x")})
    (work / "copy").mkdir(parents=True)
    (work / "copy" / "stale").touch()
    curves.mkdir()
    publish(artifact.files, tmp_path / "out", work, beside=[curves])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["tensorboard", "x"]
    assert store.find("copy", artifact.key)


def test_a_target_of_latency_is_one_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def key(goal: str, threads: int = 1) -> str:
        config = STAGES["slim"].config(target={goal: 0.5})
        given: dict[str, Any] = {"parent": "x", "teacher": None, "texts": {}, "seed": 0, "lineage": ()}
        return stage_step(STAGES["slim"], config, threads=threads, **given).key

    before = [key("parameters"), key("decode_latency")]
    assert key("decode_latency", threads=2) != before[1]
    monkeypatch.setattr("recipes.engine.stages.processor", lambda: "another")
    assert key("parameters") == before[0]
    assert key("decode_latency") != before[1]


def test_a_knob_at_its_default_is_no_part_of_an_identity(
    recipe: Callable[[str, bool], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a new knob does not throw away what is stored."""
    file = recipe("one", True)
    loaded = load_recipe(file)
    before = [step.key for step in chain(loaded, resolve(loaded))]

    class Further(STAGES["prune"].config):  # type: ignore[misc, name-defined]  # as the next version would have it
        further: int = 7

    stage = STAGES["prune"]
    newer: Stage[StageConfig] = Stage(
        **{**{name: getattr(stage, name) for name in stage.__dataclass_fields__}, "config": Further}
    )
    stages = {**STAGES, "prune": newer}
    again = load_recipe(file, stages=stages)
    assert [step.key for step in chain(again, resolve(again), stages)] == before
    changed = load_recipe(file, ["prune.further=8"], stages=stages)
    assert [step.key for step in chain(changed, resolve(changed), stages)] != before
