"""What each part of a model bears: against a full computation with an independently pruned model, and as a command."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from conftest import Demitasse
from exported import sharpened
from matplotlib import image
from pydantic import ValidationError
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from compress.checkpoints.loading import load_model
from compress.models.block_linears import block_linears, blocks
from compress.pruning.ablation import Prefix, linear_inputs, measure_sensitivity
from compress.pruning.config import CRITERIA, SensitivityConfig
from compress.pruning.sensitivity import Sensitivity
from compress.stage import StageError

LEVELS = (0.25, 0.6)
WINDOWS: dict[str, Any] = {"attention_types": [[["global", "local"], 1]], "window_size": 16}
FAMILIES = ["gpt2", "llama", "gpt_neo", "gpt_neox", "opt", "gemma3_text", "phi"]


def make(make_checkpoint: Callable[..., Path], family: str) -> Path:
    return make_checkpoint(family, **(WINDOWS if family == "gpt_neo" else {}))


@pytest.fixture(scope="module", params=["gpt2", "llama", "gpt_neo"])
def model_folder(
    request: pytest.FixtureRequest, make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A tiny model whose layers matter."""
    return sharpened(make(make_checkpoint, request.param), tmp_path_factory.mktemp("sharp") / "model")


@pytest.fixture(scope="module")
def sharp(gpt2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sharpened(gpt2, tmp_path_factory.mktemp("sharp") / "gpt2")


def some_rows(rows: int = 7, length: int = 24, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(1, 200, size=(rows, length))


def small(**knobs: Any) -> SensitivityConfig:
    return SensitivityConfig(**{"sparsities": LEVELS, "held_out": 3, **knobs})


# ---- the naive reference


def loss_of(model: Any, ids_NT: Any) -> float:
    ids = torch.from_numpy(ids_NT)
    with torch.no_grad():
        return float(model(input_ids=ids, labels=ids).loss)


def fed_to(folder: Path, ids_NT: Any) -> dict[str, Tensor]:
    """The inputs [tokens, in] of every block linear, one row at a time."""
    model = load_model(folder)
    names = {linear.name for linear in block_linears(model)}
    found: dict[str, list[Tensor]] = {name: [] for name in names}

    def keep(name: str) -> Callable[..., None]:
        return lambda module, args: found[name].append(args[0].flatten(0, -2))

    for name in names:
        model.get_submodule(name).register_forward_pre_hook(keep(name))
    with torch.no_grad():
        for row_T in ids_NT:
            model(input_ids=torch.from_numpy(row_T[None]))
    return {name: torch.cat(parts) for name, parts in found.items()}


def loss_without(folder: Path, names: list[str], share: float, x: dict[str, Tensor], ids_NT: Any) -> float:
    """Wanda by loops over rows in a fresh copy of the model, and a whole forward pass."""
    model = load_model(folder)
    for name in names:
        module: Any = model.get_submodule(name)
        weight_OI = module.weight.detach().T if isinstance(module, Conv1D) else module.weight.detach()
        score_OI = (weight_OI.abs() * x[name].square().sum(dim=0).sqrt()).numpy()
        for output, score_I in enumerate(score_OI):
            order = np.argsort(score_I, kind="stable").tolist()
            weight_OI[output, order[: round(share * len(order))]] = 0.0
    return loss_of(model, ids_NT)


def test_every_curve_equals_a_full_computation(model_folder: Path) -> None:
    ids_NT = some_rows()
    found = measure_sensitivity(model_folder, ids_NT, small())
    model = load_model(model_folder)
    held_out, x = ids_NT[-3:], fed_to(model_folder, ids_NT[:-3])
    assert found.dense == pytest.approx(loss_of(model, held_out), abs=1e-5)
    assert [curve.name for curve in found.blocks] == [name for name, _ in blocks(model)]
    names = [linear.name for linear in block_linears(model)]
    compared = 0
    for curve in (*found.blocks, *found.kinds):
        of_kind = curve in found.kinds
        picked = [name for name in names if (name.endswith(f".{curve.name}") if of_kind else f"{curve.name}." in name)]
        sizes = [model.get_submodule(name).weight.numel() for name in picked]  # type: ignore[operator, union-attr]
        assert curve.parameters == sum(sizes) > 0
        for point in curve.points:
            naive = loss_without(model_folder, picked, float(point.level), x, held_out)
            assert point.loss == pytest.approx(naive, abs=2e-5), f"{curve.name} at {point.level}"
            assert point.increase == pytest.approx(point.loss - found.dense, abs=1e-9)
            compared += 1
    assert compared == 2 * (len(found.blocks) + len(found.kinds)) >= 10
    assert max(abs(point.increase) for curve in found.blocks for point in curve.points) > 1e-3


def test_the_error_is_that_of_the_paired_increases(sharp: Path) -> None:
    ids_NT = some_rows()
    found = measure_sensitivity(sharp, ids_NT, small(kinds=False))
    assert found.kinds == ()
    x, names = fed_to(sharp, ids_NT[:-3]), [linear.name for linear in block_linears(load_model(sharp))]
    first = [name for name in names if f"{found.blocks[0].name}." in name]
    rows = [row_T[None] for row_T in ids_NT[-3:]]
    model = load_model(sharp)
    increases = [loss_without(sharp, first, 0.6, x, row) - loss_of(model, row) for row in rows]
    assert found.blocks[0].points[1].error == pytest.approx(np.std(increases, ddof=1) / 3**0.5, abs=1e-5)


# ---- running from a block on


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_go_on_from_a_block_have_the_whole_models_loss(
    family: str, make_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compress.pruning.ablation.AT_ONCE", 48)  # two rows at once, the last one alone
    model, ids_NT = load_model(make(make_checkpoint, family)), some_rows(rows=5)
    whole = [loss_of(model, row_T[None]) for row_T in ids_NT]
    prefix = Prefix(model, torch.from_numpy(ids_NT))
    for index in range(len(blocks(model))):
        assert prefix.first == index
        assert prefix.loss_N().tolist() == pytest.approx(whole, abs=1e-5)
        if index + 1 < len(blocks(model)):
            prefix.advance()
    assert [loss_of(model, row_T[None]) for row_T in ids_NT] == pytest.approx(whole, abs=1e-7)


def test_blocks_before_the_part_are_not_run(sharp: Path) -> None:
    model, ran = load_model(sharp), list[int]()
    for index, (_, module) in enumerate(blocks(model)):
        for linear in module.modules():
            if isinstance(linear, Conv1D):
                linear.register_forward_hook(lambda *_, index=index: ran.append(index))
    prefix = Prefix(model, torch.from_numpy(some_rows(rows=2)))
    prefix.advance()
    prefix.advance()
    ran.clear()
    prefix.loss_N()
    assert set(ran) == {2}


def test_linears_that_are_fed_one_tensor_share_what_is_known_of_it(llama: Path) -> None:
    inputs = linear_inputs(load_model(llama), torch.from_numpy(some_rows(rows=2)), "norms")
    q, k, o = (inputs[f"model.layers.0.self_attn.{name}_proj"] for name in "qko")
    assert q is k
    assert q is not o
    assert q.count == 2 * 24


# ---- what is refused, noted, read back


@pytest.mark.parametrize("criterion", sorted(CRITERIA))
def test_every_criterion_gives_curves_and_leaves_the_checkpoint(
    criterion: str, sharp: Path, folder_digest: Callable[[Path], dict[str, str]]
) -> None:
    before = folder_digest(sharp)
    found = measure_sensitivity(sharp, some_rows(), small(criterion=criterion, sparsities=(0.5, "2:4")))
    assert all([point.level for point in curve.points] == [0.5, "2:4"] for curve in (*found.blocks, *found.kinds))
    assert len({point.loss for curve in found.blocks for point in curve.points}) == 2 * len(found.blocks)
    assert all(np.isfinite(point.loss) for curve in found.kinds for point in curve.points)
    assert folder_digest(sharp) == before


def test_too_few_rows_and_unfit_patterns_are_refused(sharp: Path) -> None:
    with pytest.raises(StageError, match="expected more than the 3 rows that are held out, got 3"):
        measure_sensitivity(sharp, some_rows(rows=3), small())
    with pytest.raises(StageError, match=r"transformer\.h\.0\.\S+: cannot be pruned: .* multiple of 7"):
        measure_sensitivity(sharp, some_rows(), small(sparsities=("3:7",)))


@pytest.mark.parametrize(("levels", "message"), [((1.5,), "between 0 and 1"), (("4:2",), "N:M"), ((), "at least 1")])
def test_levels_that_mean_nothing_are_refused(levels: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SensitivityConfig(sparsities=levels)


def test_levels_are_put_in_order() -> None:
    assert SensitivityConfig(sparsities=(0.75, "2:4", 0.25, 0.75)).sparsities == (0.25, 0.75, "2:4")


class _Stop(Exception):  # noqa: N818 (not an error: what a user's interrupt is)
    pass


class Impatient:
    """A progress that is interrupted after some steps; and how many there were."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def task(self, label: str, total: float, done: float = 0.0) -> AbstractContextManager["Impatient"]:
        return nullcontext(self)

    def advance(self, amount: float = 1.0, note: str = "") -> None:
        self.left -= 1
        if not self.left:
            raise _Stop


def test_an_interrupted_survey_goes_on_from_its_notes(sharp: Path, tmp_path: Path) -> None:
    notes, ids_NT = tmp_path / "notes.json", some_rows()
    with pytest.raises(_Stop):
        measure_sensitivity(sharp, ids_NT, small(), notes=notes, progress=Impatient(4))
    noted = json.loads(notes.read_text())
    assert len(noted) == 1 + 4
    whole = measure_sensitivity(sharp, ids_NT, small())
    assert measure_sensitivity(sharp, ids_NT, small(), notes=notes) == whole
    first = next(key for key in noted if key.endswith(" 0.25"))
    notes.write_text(json.dumps({**noted, first: [50.0, 50.0, 50.0]}))
    assert measure_sensitivity(sharp, ids_NT, small(), notes=notes).blocks[0].points[0].loss == 50.0


def test_it_is_read_back_as_it_was_written(sharp: Path, tmp_path: Path) -> None:
    found = measure_sensitivity(sharp, some_rows(), small(sparsities=(0.5, "2:4")))
    found.write(tmp_path / "sensitivity.json")
    assert Sensitivity.read(tmp_path / "sensitivity.json") == found
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(StageError, match=r"other\.json: expected what `demitasse sensitivity` writes"):
        Sensitivity.read(tmp_path / "other.json")


# ---- the command


def test_the_command_leaves_a_table_and_a_picture(
    sharp: Path, text_file: Path, tmp_path: Path, demitasse: Demitasse
) -> None:
    knobs = ["--rows", "3", "--held-out", "2", "--length", "32", "--sparsities", "[0.25, 0.5, 2:4]"]
    code, said, err = demitasse("sensitivity", sharp, "--text", text_file, "--out", tmp_path / "found", *knobs)
    assert (code, err) == (0, "")
    assert all(
        word in said for word in ("Kind", "Block", "attn.c_attn", "transformer.h.0", "25 %", "2:4", "perplexity")
    )
    assert [item.name for item in tmp_path.iterdir()] == ["found"]
    names = {"sensitivity.json", "sensitivity.png", "sensitivity.svg"}
    assert {item.name for item in (tmp_path / "found").iterdir()} == names
    found = Sensitivity.read(tmp_path / "found" / "sensitivity.json")
    assert (len(found.blocks), found.held_out_tokens, found.calibration_tokens) == (3, 2 * 31, 3 * 32)
    assert min(image.imread(tmp_path / "found" / "sensitivity.png").shape[:2]) > 400
    assert ElementTree.parse(tmp_path / "found" / "sensitivity.svg").getroot().tag.endswith("svg")


def test_the_command_without_a_folder_only_says_it(
    sharp: Path, text_file: Path, tmp_path: Path, demitasse: Demitasse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    knobs = ["--rows", "2", "--held-out", "2", "--length", "16", "--sparsities", "[0.5]", "--no-kinds"]
    code, said, err = demitasse("sensitivity", sharp, "--text", text_file, *knobs)
    assert (code, err) == (0, "")
    assert "50 %" in said
    assert "Kind" not in said
    assert list(tmp_path.iterdir()) == []


def test_the_command_refuses_all_at_once(sharp: Path, tmp_path: Path, demitasse: Demitasse) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    arguments = ["--text", tmp_path / "no.txt", "--out", tmp_path, "--length", "1000"]
    code, _, err = demitasse("sensitivity", sharp, *arguments)
    assert code == 2
    assert "--text: expected an existing file" in err
    assert "is not empty" in err
    assert "--length: expected at most 128 tokens" in err
    code, _, err = demitasse("sensitivity", sharp, "--text", tmp_path / "mine.txt", "--length", "64")
    assert code == 2
    assert "for calibration" in err
    code, _, err = demitasse("sensitivity", sharp, "--text", tmp_path / "mine.txt", "--sparsities", "[2]")
    assert code == 2
    assert "--sparsities" in err
