"""Pruning: exact counts, the right axis, what later linears see, and zeros that stay."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from exported import quantized
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from compress import PruneConfig, StageError, StageInput, TextError, TextSource
from compress.checkpoints.folder import load_tokenizer
from compress.checkpoints.loading import load_model
from compress.distillation.config import DistillConfig
from compress.distillation.stage import run as distill
from compress.models.block_linears import block_linears, blocks, sparsity
from compress.models.calibration import calibration_rows, inputs_of
from compress.pruning import criteria
from compress.pruning.config import CRITERIA, PRUNE
from compress.pruning.masks import choose, keep_largest
from compress.pruning.sparsity import Amount
from compress.pruning.stage import run as prune

MakeCheckpoint = Callable[..., Path]
TEACHER = Path(__file__).resolve().parent.parent / "recipes" / "models" / "novels-gpt2"
LITTLE: dict[str, Any] = {"rows": 6, "length": 48}


def prune_into(source: Path, folder: Path, text: Path | None = None, **knobs: Any) -> tuple[Path, dict[str, Any]]:
    out = folder / "pruned"
    out.mkdir(parents=True)
    given = StageInput(
        source=source,
        out=out,
        scratch=folder,
        seed=5,
        calibration_text=None if text is None else TextSource(file=text),
    )
    return out, prune(PruneConfig(**knobs), given)


def pruned(source: Path, folder: Path, text: Path | None = None, **knobs: Any) -> Path:
    return prune_into(source, folder, text, **knobs)[0]


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize(("pattern", "family"), [("2:4", "gpt2"), ("2:4", "llama"), ("4:8", "gpt2")])
def test_pattern_holds_along_the_inputs_of_every_linear(
    criterion: str, pattern: str, family: str, text_file: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """GPT-2 stores [in, out]: a pattern along the wrong axis would fail here."""
    knobs = {**LITTLE, "criterion": criterion, "pattern": pattern}
    model = load_model(pruned(request.getfixturevalue(family), tmp_path, text_file, **knobs))
    n, m = map(int, pattern.split(":"))
    linears = list(block_linears(model))
    assert linears
    for linear in linears:
        outputs, inputs = linear.weight_OI().shape
        counts = (linear.weight_OI() != 0).reshape(outputs, inputs // m, m).sum(dim=-1)
        assert counts.unique().tolist() == [n], linear.name


def test_layer_scope_prunes_every_layer_alike_and_leaves_the_rest(gpt2: Path, tmp_path: Path) -> None:
    before, after = load_model(gpt2), load_model(pruned(gpt2, tmp_path, sparsity=0.3))
    for linear in block_linears(after):
        zeros = int((linear.parameter == 0).sum())
        assert zeros == round(0.3 * linear.parameter.numel()), linear.name
    touched = {f"{linear.name}.weight" for linear in block_linears(after)}
    rest = [name for name in before.state_dict() if name not in touched]
    assert "transformer.wte.weight" in rest
    assert all(torch.equal(before.state_dict()[name], after.state_dict()[name]) for name in rest)


def test_what_is_written_says_nothing_beside_the_model(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    """No kernel that not everybody has, and nothing empty that transformers trips over."""
    source = make_checkpoint("gpt2")
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    asked = {"_attn_implementation": "flash_attention_2", "auto_map": None, "quantization_config": {}}
    (source / "config.json").write_text(json.dumps(config | asked), encoding="utf-8")
    out = pruned(source, tmp_path / "a", sparsity=0.3)
    assert asked.keys().isdisjoint(json.loads((out / "config.json").read_text(encoding="utf-8")))
    assert AutoModelForCausalLM.from_pretrained(out).config._attn_implementation == "sdpa"
    grouped = quantized(source, tmp_path / "b", scheme="int8_group")
    told = json.loads((grouped / "config.json").read_text(encoding="utf-8"))
    assert "_attn_implementation" not in told
    assert told["quantization_config"]


def test_what_is_kept_is_unchanged(gpt2: Path, tmp_path: Path) -> None:
    before, after = load_model(gpt2), load_model(pruned(gpt2, tmp_path, sparsity=0.5))
    for old, new in zip(block_linears(before), block_linears(after), strict=True):
        kept = new.parameter != 0
        assert torch.equal(old.parameter[kept], new.parameter[kept])
        assert old.parameter[~kept].abs().max() <= old.parameter[kept].abs().min()


def sequentially(source: Path, ids_NT: Tensor, criterion: str, amount: Amount) -> nn.Module:
    """The whole model in memory: each linear in turn, its inputs taken from a whole forward pass of its own."""
    model = load_model(source)
    for name, linear in [(linear.name, linear) for linear in block_linears(model)]:
        fed: list[Tensor] = []
        hook = model.get_submodule(name).register_forward_pre_hook(lambda module, args, fed=fed: fed.append(args[0]))
        with torch.inference_mode():
            model(input_ids=ids_NT, use_cache=False)
        hook.remove()
        inputs = inputs_of(fed[0].flatten(0, -2).clone(), "gram")
        weight_OI = linear.weight_OI()
        weight_OI.copy_(criteria.pruned(CRITERIA[criterion], weight_OI.clone(), inputs, choose(amount)))
    return model


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
@pytest.mark.parametrize("criterion", ["wanda", "sparsegpt"])
def test_every_linear_is_pruned_by_what_the_pruned_model_feeds_it(
    criterion: str, family: str, make_checkpoint: MakeCheckpoint, text_file: Path, tmp_path: Path
) -> None:
    """One pass, block by block, equals a pass of the whole model for each linear, those before it being pruned."""
    source = make_checkpoint(family, seed=3)
    ids_NT = torch.from_numpy(calibration_rows(TextSource(file=text_file), load_tokenizer(source), 6, 48))
    expected = sequentially(source, ids_NT, criterion, Amount(sparsity=0.6, scope="row"))
    knobs = {**LITTLE, "criterion": criterion, "sparsity": 0.6, "scope": "row"}
    found = load_model(pruned(source, tmp_path, text_file, **knobs))
    masks = 0
    for ours, theirs in zip(block_linears(found), block_linears(expected), strict=True):
        same = (ours.parameter == 0) == (theirs.parameter == 0)
        masks += int((~same).sum())
        torch.testing.assert_close(ours.parameter[same], theirs.parameter[same], rtol=1e-3, atol=1e-4)
    assert masks <= 4, "beyond scores that are equal but for rounding the masks are the same"


@pytest.mark.parametrize("criterion", ["wanda", "sparsegpt"])
def test_a_later_mask_depends_on_what_earlier_blocks_lost(
    criterion: str, llama: Path, text_file: Path, tmp_path: Path
) -> None:
    knobs = {**LITTLE, "criterion": criterion, "sparsity": 0.6}
    whole = load_model(pruned(llama, tmp_path / "whole", text_file, **knobs))
    alone = load_model(pruned(llama, tmp_path / "alone", text_file, **knobs, linears=["model.layers.2.*"]))
    _, last = blocks(whole)[2]
    _, last_alone = blocks(alone)[2]
    assert not torch.equal(last.mlp.down_proj.weight == 0, last_alone.mlp.down_proj.weight == 0)
    untouched = load_model(llama)
    for (_, one), (_, other) in zip(blocks(alone)[:2], blocks(untouched)[:2], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("criterion", ["magnitude", "random", "wanda"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_global_scope_is_one_threshold_for_all(
    criterion: str, family: str, text_file: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    source = request.getfixturevalue(family)
    knobs = {**LITTLE, "criterion": criterion, "sparsity": 0.4, "scope": "global"}
    after = list(block_linears(load_model(pruned(source, tmp_path, text_file, **knobs))))
    total = sum(linear.parameter.numel() for linear in after)
    assert sum(int((linear.parameter == 0).sum()) for linear in after) == round(0.4 * total)
    if criterion == "random":
        return
    before = load_model(source)
    scores = dense_scores(before, criterion, TextSource(file=text_file), source)
    flat = torch.cat([scores[linear.name].flatten() for linear in after]).reshape(1, -1)
    found = torch.cat([(linear.weight_OI() != 0).flatten() for linear in after])
    assert int((found != keep_largest(flat, total - round(0.4 * total))[0]).sum()) <= 2


def dense_scores(model: nn.Module, criterion: str, text: TextSource, source: Path) -> dict[str, Tensor]:
    fed: dict[str, Tensor] = {}
    linears = list(block_linears(model))
    for linear in linears:
        model.get_submodule(linear.name).register_forward_pre_hook(
            lambda module, args, name=linear.name: fed.update({name: args[0].flatten(0, -2)})
        )
    ids_NT = torch.from_numpy(calibration_rows(text, load_tokenizer(source), 6, 48))
    with torch.inference_mode():
        model(input_ids=ids_NT, use_cache=False)
    return {
        linear.name: CRITERIA[criterion].score(linear.weight_OI(), inputs_of(fed[linear.name], "gram"))
        for linear in linears
    }


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("scope", ["row", "layer"])
def test_counts_are_exact_per_group_and_told_as_facts(
    criterion: str, scope: str, gpt2: Path, text_file: Path, tmp_path: Path
) -> None:
    knobs = {**LITTLE, "criterion": criterion, "sparsity": 0.45, "scope": scope}
    out, metadata = prune_into(gpt2, tmp_path, text_file, **knobs)
    zeros, total = 0, 0
    for linear in block_linears(load_model(out)):
        zero_OI = linear.weight_OI() == 0
        zeros, total = zeros + int(zero_OI.sum()), total + zero_OI.numel()
        told = metadata["tensors"][f"{linear.name}.weight"]
        assert told == {"asked": 0.45, "sparsity": int(zero_OI.sum()) / zero_OI.numel()}
        if scope == "row":
            assert zero_OI.sum(dim=1).unique().tolist() == [round(0.45 * zero_OI.shape[1])]
        else:
            assert int(zero_OI.sum()) == round(0.45 * zero_OI.numel())
    assert (metadata["zeros"], metadata["sparsity"]) == (zeros, zeros / total)
    assert metadata["criterion"] == criterion
    assert metadata.get("calibration_tokens") == (6 * 48 if criterion in {"wanda", "sparsegpt"} else None)
    assert "no sparse kernels" in metadata["latency"]


def test_layers_have_their_own_sparsity_where_it_is_said(gpt2: Path, tmp_path: Path) -> None:
    layers = {"transformer.h.0.*": 0.2, "*.mlp.c_proj": 0.0, "transformer.h.2.mlp.c_proj": 0.7}
    out, metadata = prune_into(gpt2, tmp_path, sparsity=0.5, layers=layers)
    asked = {name: 0.2 if ".h.0." in name else 0.5 for name in metadata["tensors"]}
    asked["transformer.h.2.mlp.c_proj.weight"] = 0.7
    assert {name: told["asked"] for name, told in metadata["tensors"].items()} == asked
    for linear in block_linears(load_model(out)):
        part = asked.get(f"{linear.name}.weight", 0.0)
        assert int((linear.parameter == 0).sum()) == round(part * linear.parameter.numel()), linear.name
    assert "transformer.h.1.mlp.c_proj.weight" not in asked


def test_sensitivities_spread_the_sparsity_over_the_blocks(text_file: Path, tmp_path: Path) -> None:
    """On the trained model that the repository carries: blocks of a random one cost next to nothing."""
    knobs: dict[str, Any] = {"rows": 8, "length": 64, "criterion": "wanda", "allocation": "sensitivity"}
    out, metadata = prune_into(TEACHER, tmp_path, text_file, sparsity=0.5, **knobs)
    asked = {
        linear.name: metadata["tensors"][f"{linear.name}.weight"]["asked"] for linear in block_linears(load_model(out))
    }
    assert len(set(asked.values())) > 1, "blocks of unlike curves get unlike shares"
    assert metadata["sparsity"] == pytest.approx(0.5, abs=0.005)
    for linear in block_linears(load_model(out)):
        zeros_O = (linear.weight_OI() == 0).sum(dim=1)
        assert zeros_O.unique().tolist() == [round(asked[linear.name] * linear.weight_OI().shape[1])]


def test_linears_limits_what_is_touched(gpt2: Path, tmp_path: Path) -> None:
    before, after = load_model(gpt2), load_model(pruned(gpt2, tmp_path, pattern="2:4", linears=["*.mlp.*"]))
    for old, new in zip(block_linears(before), block_linears(after), strict=True):
        assert torch.equal(old.parameter, new.parameter) == (".attn." in new.name), new.name


@pytest.mark.parametrize("criterion", ["magnitude", "sparsegpt", "random"])
def test_the_embedding_is_pruned_when_asked(criterion: str, llama: Path, text_file: Path, tmp_path: Path) -> None:
    knobs = {**LITTLE, "criterion": criterion, "sparsity": 0.25, "include": ["*embed_tokens.weight"]}
    out, metadata = prune_into(llama, tmp_path, text_file, **knobs)
    model = load_model(out)
    table = model.get_input_embeddings().weight
    assert int((table == 0).sum()) == round(0.25 * table.numel())
    assert torch.equal(model.get_output_embeddings().weight, table)
    assert metadata["tensors"]["model.embed_tokens.weight"]["asked"] == 0.25
    if criterion != "random":
        assert table[table != 0].abs().min() >= load_model(llama).get_input_embeddings().weight[table == 0].abs().max()


def test_lots_depend_on_the_seed_and_the_name_alone(gpt2: Path, tmp_path: Path) -> None:
    folders = [
        pruned(gpt2, tmp_path / name, sparsity=0.5, criterion="random", linears=linears)
        for name, linears in (("all", ["*"]), ("one", ["transformer.h.1.*"]))
    ]
    everything, one = ({linear.name: linear.parameter for linear in block_linears(load_model(f))} for f in folders)
    same = [name for name in one if torch.equal(one[name], everything[name])]
    assert same == [name for name in one if ".h.1." in name]
    assert not torch.equal(everything[same[0]] == 0, everything[same[0].replace(".1.", ".2.")] == 0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_checkpoint_keeps_its_own_precision(dtype: str, llama: Path, text_file: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from compress.checkpoints.folder import save_checkpoint

    source = tmp_path / "source"
    save_checkpoint(load_model(llama), load_tokenizer(llama), source, dtype=dtype)  # type: ignore[arg-type]
    out = pruned(source, tmp_path, text_file, criterion="sparsegpt", sparsity=0.5, **LITTLE)
    assert {str(value.dtype) for value in load_file(out / "model.safetensors").values()} == {f"torch.{dtype}"}
    assert (out / "config.json").read_bytes() == (source / "config.json").read_bytes()
    assert sparsity(load_model(out)) == pytest.approx(0.5, abs=1e-3)


def test_a_pattern_that_does_not_fit_names_the_tensors(gpt2: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"pattern 2:7.*transformer\.h\.0\.attn\.c_attn \(64 inputs\)"):
        pruned(gpt2, tmp_path, pattern="2:7")


@pytest.mark.parametrize("knob", ["linears", "layers", "include"])
def test_a_glob_that_matches_nothing_names_the_choices(knob: str, gpt2: Path, tmp_path: Path) -> None:
    value = {"*.up_proj": 0.3} if knob == "layers" else ["*.up_proj"]
    there = "transformer.wte.weight" if knob == "include" else "transformer.h.0.attn.c_attn"
    with pytest.raises(StageError, match=rf"{knob}: '\*\.up_proj' matches nothing; there are: {there}"):
        pruned(gpt2, tmp_path, sparsity=0.5, **{knob: value})


def test_pruning_nothing_is_an_error(gpt2: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="`layers` sets every linear's sparsity to 0"):
        pruned(gpt2, tmp_path / "none", sparsity=0.5, layers={"*": 0.0})
    with pytest.raises(StageError, match=r"not one weight of transformer\.h\.0\.attn\.c_attn.*was set to zero"):
        pruned(gpt2, tmp_path / "few", sparsity=1e-6)


def test_calibration_text_that_is_too_short_is_an_error(gpt2: Path, text_file: Path, tmp_path: Path) -> None:
    with pytest.raises(TextError, match=r"expected 12800000 tokens for calibration \(100000 rows of 128\), got \d+"):
        pruned(gpt2, tmp_path, text_file, criterion="wanda", sparsity=0.5, rows=100_000, length=128)


@pytest.mark.parametrize(
    ("knobs", "read"),
    [
        ({"criterion": "magnitude"}, False),
        ({"criterion": "random"}, False),
        ({"criterion": "wanda"}, True),
        ({"criterion": "sparsegpt"}, True),
        ({"criterion": "magnitude", "allocation": "sensitivity"}, True),
    ],
)
def test_text_is_asked_for_where_it_is_read(knobs: dict[str, Any], read: bool) -> None:
    assert PRUNE.inputs_read(PruneConfig(sparsity=0.5, **knobs)) == ({"calibration_text"} if read else set())


def test_wanda_counts_within_rows_unless_told_otherwise() -> None:
    assert PruneConfig(sparsity=0.5, criterion="wanda").scope == "row"
    assert PruneConfig(sparsity=0.5, criterion="wanda", scope="layer").scope == "layer"
    assert PruneConfig(sparsity=0.5, criterion="sparsegpt").scope == "layer"


def test_knobs_are_read_from_json_as_a_recipe_and_the_command_line_do() -> None:
    knobs = {
        "sparsity": 0.5,
        "criterion": "wanda",
        "linears": ["*.mlp.*"],
        "include": ["*embed*"],
        "layers": {"*.0.*": 0.3},
        "rows": 4,
    }
    config = PruneConfig.model_validate_json(json.dumps(knobs), strict=True)
    assert config == PruneConfig(**knobs)
    assert config.scope == "row"


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({}, "either `sparsity`"),
        ({"sparsity": 0.5, "pattern": "2:4"}, "either `sparsity`"),
        ({"pattern": "4:2"}, '"N:M" such as "2:4", got \'4:2\''),
        ({"pattern": 124}, '"N:M" such as "2:4", got 124'),
        ({"sparsity": 1.0}, "less than 1"),
        ({"sparsity": 0.5, "criterion": "sparsegpt", "scope": "global"}, "scope: global: sparsegpt prunes one matrix"),
        ({"sparsity": 0.5, "scope": "global", "layers": {"*": 0.3}}, "layers: expected `sparsity` with scope row"),
        ({"pattern": "2:4", "allocation": "sensitivity"}, "allocation: expected `sparsity` with scope row"),
        ({"sparsity": 0.5, "allocation": "sensitivity", "layers": {"*": 0.3}}, "either `layers` or `allocation"),
        ({"sparsity": 0.5, "layers": {"*": 1.0}}, "layers: expected sparsities from 0 to below 1"),
        ({"sparsity": 0.5, "linears": []}, "at least 1 item"),
        ({"sparsity": 0.5, "allocation": "sensitivity", "rows": 3}, "rows: expected at least 4 with `allocation"),
        ({"sparsity": 0.5, "rows": 0}, "greater than or equal to 1"),
        ({"sparsity": 0.5, "criterion": "taylor"}, "magnitude"),
    ],
)
def test_contradictory_knobs_are_refused(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        PruneConfig(**knobs)


def test_zeros_survive_training_with_weight_decay(gpt2: Path, text_file: Path, tmp_path: Path) -> None:
    source = pruned(gpt2, tmp_path, pattern="2:4")
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    out.mkdir()
    scratch.mkdir()
    config = DistillConfig(tokens=2048, length=64, batch=4, learning_rate=1e-2, weight_decay=0.5)
    metadata = distill(
        config, StageInput(source=source, out=out, scratch=scratch, teacher=gpt2, train_text=TextSource(file=text_file))
    )
    before, after = load_model(source), load_model(out)
    for old, new in zip(block_linears(before), block_linears(after), strict=True):
        assert torch.equal(old.parameter == 0, new.parameter == 0), new.name
        assert not torch.equal(old.parameter, new.parameter), "training changed nothing"
    assert sparsity(after) == metadata["sparsity"] == 0.5


def test_calibration_rows_are_no_longer_than_the_context(gpt2: Path, text_file: Path, tmp_path: Path) -> None:
    """The tiny GPT-2 reads fewer tokens at once than the default length."""
    context = load_model(gpt2).config.n_positions
    out = tmp_path / "out"
    out.mkdir()
    given = StageInput(source=gpt2, out=out, scratch=tmp_path, calibration_text=TextSource(file=text_file))
    config = PruneConfig(criterion="wanda", sparsity=0.5, rows=2, length=10 * context)
    assert prune(config, given)["calibration_tokens"] == 2 * context
