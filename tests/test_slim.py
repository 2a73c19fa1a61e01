"""The stage that slims: what it leaves, what it reads, and that it keeps what matters."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from exported import exported, quantized
from slim_models import anatomy, loud

from compress import SlimConfig, StageError, StageInput, TextSource, inspect_checkpoint
from compress.checkpoints.folder import load_tokenizer
from compress.checkpoints.loading import load_model
from compress.models.block_linears import blocks
from compress.models.calibration import calibration_rows
from compress.stage import Silent
from compress.structured.config import IMPORTANCES, Goal, inputs_read
from compress.structured.depth import Stack, block_influence, least_missed
from compress.structured.importance import ActivationStatistics, most_important, most_important_heads
from compress.structured.reconstruction import refit
from compress.structured.shapes import SHRINK_AXES
from compress.structured.stage import run

Make = Callable[..., Path]


@pytest.fixture
def given(gpt2: Path, text_file: Path, tmp_path: Path) -> StageInput:
    for name in ("out", "scratch"):
        (tmp_path / name).mkdir()
    return StageInput(
        source=gpt2, out=tmp_path / "out", scratch=tmp_path / "scratch", calibration_text=TextSource(file=text_file)
    )


def slimmed(given: StageInput, source: Path, **knobs: Any) -> dict[str, Any]:
    return run(SlimConfig(**{"rows": 4, "length": 32, **knobs}), dataclasses.replace(given, source=source))


def test_knobs_name_the_registries_entries() -> None:
    assert set(SHRINK_AXES) < {"ffn", "heads", "hidden", "layers", "kv_heads"}
    assert set(get_args(Goal)) == {"parameters", "decode_latency"}


@pytest.mark.parametrize(
    ("knobs", "reads"),
    [
        ({"ffn": 0.5}, True),
        ({"ffn": 0.5, "importance": "weights"}, True),
        ({"ffn": 0.5, "importance": "weights", "repair": False}, False),
        ({"hidden": 0.5, "importance": "random", "repair": False}, False),
        ({"layers": 2, "importance": "weights", "repair": False}, True),
        ({"target": {"parameters": 0.5}, "axes": ["layers"]}, True),
    ],
)
def test_text_is_read_where_something_is_measured_on_it(knobs: dict[str, Any], reads: bool) -> None:
    assert inputs_read(SlimConfig(**knobs)) == (frozenset({"calibration_text"}) if reads else frozenset())


@pytest.mark.parametrize(
    ("family", "changes", "knobs", "expected"),
    [
        (
            "gpt2",
            {"n_head": 4},
            {"hidden": 0.5, "ffn": 0.5, "layers": 2},
            {"layers": 2, "hidden": 32, "heads": 2, "ffn": 128},
        ),
        ("llama", {}, {"kv_heads": 1, "ffn": 0.75, "hidden": 48}, {"kv_heads": 1, "heads": 2, "ffn": 96, "hidden": 48}),
        ("opt", {}, {"heads": 3, "ffn": 64}, {"heads": 3, "hidden": 48, "ffn": 64}),
        ("gpt_neox", {}, {"heads": 0.5, "importance": "weights"}, {"heads": 2, "hidden": 32}),
        ("qwen2", {}, {"heads": 2}, {"heads": 2, "kv_heads": 2}),
        ("qwen3", {"num_attention_heads": 8, "num_key_value_heads": 4}, {"heads": 4}, {"heads": 4, "kv_heads": 4}),
        ("mistral", {}, {"layers": 1, "ffn": 0.5}, {"layers": 1, "ffn": 48}),
    ],
)
def test_the_checkpoint_has_the_widths_that_were_asked_for(
    family: str,
    changes: dict[str, Any],
    knobs: dict[str, Any],
    expected: dict[str, int],
    make_checkpoint: Make,
    given: StageInput,
) -> None:
    source = make_checkpoint(family, **changes)
    metadata = slimmed(given, source, **knobs)
    model = load_model(given.out)
    _, shape = anatomy(model)
    assert {name: getattr(shape, name) for name in expected} == expected
    assert metadata["widths"]["after"] == shape.sizes()
    assert metadata["parameters"]["after"] == inspect_checkpoint(given.out).parameters
    assert metadata["parameters"]["before"] == inspect_checkpoint(source).parameters
    assert len(metadata["kept_layers"]) == shape.layers
    json.dumps(metadata)
    assert torch.isfinite(model(torch.arange(8)[None]).logits).all()


@pytest.mark.parametrize("family", ["gpt2", "qwen3"])
def test_a_slim_model_exports_with_parity(
    family: str, make_checkpoint: Make, given: StageInput, text_file: Path, tmp_path: Path
) -> None:
    """The export stage refuses a graph that does not reproduce the checkpoint."""
    source = loud(make_checkpoint(family, **({"n_head": 4} if family == "gpt2" else {})))
    slimmed(given, source, heads=2, ffn=0.5, layers=1)
    bundle = exported(quantized(given.out, tmp_path / "int8", embeddings=True), tmp_path / "bundle", text_file)
    assert (bundle / "model.onnx").is_file()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_it_stays_in_the_sources_precision(
    dtype: str, make_checkpoint: Make, given: StageInput, tmp_path: Path
) -> None:
    from compress.checkpoints.folder import save_checkpoint

    source = tmp_path / "source"
    folder = make_checkpoint("llama")
    save_checkpoint(load_model(folder), load_tokenizer(folder), source, dtype=dtype)  # type: ignore[arg-type]
    slimmed(given, source, ffn=0.5)
    assert json.loads((given.out / "config.json").read_text())["dtype"] == dtype
    assert inspect_checkpoint(given.out).disk_bytes < 0.9 * inspect_checkpoint(source).disk_bytes


def test_activations_are_scored_as_naive_loops_score_them() -> None:
    fed_NTI = torch.randn(3, 5, 8)
    expected = []
    for unit in range(4):
        rows = []
        for row in range(3):
            lengths = [
                float((fed_NTI[row, token, 2 * unit] ** 2 + fed_NTI[row, token, 2 * unit + 1] ** 2) ** 0.5)
                for token in range(5)
            ]
            rows.append(sum(lengths) / 5)
        expected.append(sum(mean**2 for mean in rows) ** 0.5)
    score_U = IMPORTANCES["activations"].score(ActivationStatistics(fed_NTI, unit=2))
    torch.testing.assert_close(score_U, torch.tensor(expected))


@pytest.mark.parametrize("name", sorted(IMPORTANCES))
def test_every_importance_scores_each_unit_and_repeats_itself(name: str) -> None:
    statistics = ActivationStatistics(torch.randn(2, 3, 6), 2, [torch.randn(3, 4)], 3, "an rng_key")
    score_U = IMPORTANCES[name].score(statistics)
    assert score_U.shape == (3,)
    assert (score_U >= 0).all()
    assert torch.equal(score_U, IMPORTANCES[name].score(statistics))
    assert IMPORTANCES[name].summary


def test_the_most_important_are_kept_in_their_order() -> None:
    assert most_important(torch.tensor([0.1, 3.0, 2.0, 3.0]), 2) == [1, 3]
    assert most_important(torch.tensor([1.0, 1.0, 1.0]), 2) == [0, 1]
    score_H = torch.tensor([9.0, 1.0, 4.0, 4.0, 0.0, 7.0])
    assert most_important_heads(score_H, 3, 4, 2) == ([0, 1, 2, 3], [0, 1])
    assert most_important_heads(score_H, 3, 3, 3) == ([0, 2, 5], [0, 1, 2])
    assert most_important_heads(score_H, 3, 2, 2) == ([0, 5], [0, 2])


def test_what_carries_nothing_goes_first(make_checkpoint: Make, given: StageInput, tmp_path: Path) -> None:
    """Neurons and heads whose outputs are zero are the ones removed: the logits stay as they are."""
    from compress.checkpoints.folder import save_checkpoint

    folder = loud(make_checkpoint("llama", num_key_value_heads=4))
    model = load_model(folder)
    with torch.no_grad():
        for _, block in blocks(model):
            block.get_submodule("mlp.up_proj").weight[1::2] = 0
            block.get_submodule("self_attn.v_proj").weight[16:48] = 0
    source = tmp_path / "source"
    save_checkpoint(model, load_tokenizer(folder), source)
    slimmed(given, source, ffn=0.5, heads=2)
    ids_BT = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        torch.testing.assert_close(load_model(given.out)(ids_BT).logits, model(ids_BT).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bias", [False, True])
def test_refitting_solves_the_ridge_regression(bias: bool) -> None:
    """Against numpy's least squares on the same problem, written out with its damping as further rows."""
    random = torch.Generator().manual_seed(1)
    x_TI = torch.randn(60, 6, generator=random) @ torch.randn(6, 6, generator=random) + 0.5
    weight_OI, bias_O = torch.randn(3, 6, generator=random), torch.randn(3, generator=random)
    kept_S, removed_R = torch.tensor([0, 2, 3, 5]), torch.tensor([1, 4])
    refitted_OI, refitted_O = refit(weight_OI, bias_O if bias else None, x_TI, kept_S)
    x, length = x_TI.double().numpy(), x_TI.norm(dim=1).double().numpy()
    mean = np.average(x, axis=0, weights=length**-2) if bias else np.zeros(6)
    scaled = (x - mean) / length[:, None]
    damping = 2.0 * 6 / 60 * np.mean(np.square(scaled).sum(axis=0))
    weight = weight_OI.double().numpy()
    rows = np.vstack([scaled[:, kept_S], np.sqrt(damping) * np.eye(4)])
    wanted = np.vstack([scaled[:, removed_R] @ weight[:, removed_R].T, np.zeros((4, 3))])
    change = np.linalg.lstsq(rows, wanted, rcond=None)[0].T
    np.testing.assert_allclose(refitted_OI[:, kept_S].numpy(), weight[:, kept_S] + change, rtol=1e-3, atol=1e-4)
    assert not refitted_OI[:, removed_R].any()
    if bias:
        assert refitted_O is not None
        expected = bias_O.numpy() + (weight - refitted_OI.numpy()) @ mean
        np.testing.assert_allclose(refitted_O.numpy(), expected, rtol=1e-3, atol=1e-4)
    else:
        assert refitted_O is None


def test_repair_brings_a_layer_closer_on_other_text() -> None:
    random = torch.Generator().manual_seed(2)
    mixing = torch.randn(8, 24, generator=random)
    x_TI, other_TI = (torch.randn(tokens, 8, generator=random) @ mixing for tokens in (512, 256))
    weight_OI, kept_S = torch.randn(5, 24, generator=random), torch.arange(0, 24, 2)
    refitted_OI, _ = refit(weight_OI, None, x_TI, kept_S)
    cut_OI = torch.zeros_like(weight_OI)
    cut_OI[:, kept_S] = weight_OI[:, kept_S]
    errors = [float((other_TI @ (weight_OI - new_OI).T).norm()) for new_OI in (cut_OI, refitted_OI)]
    assert errors[1] < 0.2 * errors[0]


@pytest.mark.parametrize("repair", [False, True])
def test_units_are_chosen_on_what_the_narrower_layers_before_leave(
    repair: bool, make_checkpoint: Make, given: StageInput, text_file: Path
) -> None:
    """Against a plain loop that cuts a whole model layer by layer and runs all of it anew for each."""
    source = loud(make_checkpoint("llama"))
    ids_NT = calibration_rows(TextSource(file=text_file), load_tokenizer(source), 4, 32)
    model, kept = load_model(source), []
    for _, block in blocks(model):
        down = block.get_submodule("mlp.down_proj")
        seen: list[torch.Tensor] = []
        hook = down.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0].detach()))
        with torch.no_grad():
            model(torch.from_numpy(ids_NT))
            hook.remove()
            score_U = seen[0].abs().mean(dim=1).norm(dim=0)
            kept.append(sorted(score_U.topk(64).indices.tolist()))
            weight_OI = torch.zeros_like(down.weight)
            weight_OI[:, kept[-1]] = down.weight[:, kept[-1]]
            if repair:
                weight_OI, _ = refit(down.weight, None, seen[0].flatten(0, 1), torch.tensor(kept[-1]))
            down.weight.copy_(weight_OI)
    slimmed(given, source, ffn=64, repair=repair)
    small = load_model(given.out)
    original = load_model(source)
    for layer, ((_, narrow), (_, wide)) in enumerate(zip(blocks(small), blocks(original), strict=True)):
        up_FI = wide.get_submodule("mlp.up_proj").weight
        assert torch.equal(narrow.get_submodule("mlp.up_proj").weight, up_FI[kept[layer]])
    ids_BT = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        torch.testing.assert_close(small(ids_BT).logits, model(ids_BT).logits, rtol=1e-3, atol=1e-3)


def test_block_influence_is_one_minus_the_mean_cosine() -> None:
    before, after = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]]), torch.tensor([[[1.0, 1.0], [0.0, -1.0]]])
    assert block_influence(before, after) == pytest.approx(1 - (2**-0.5 - 1) / 2)


def silenced(folder: Path, layer: int, out: Path) -> Path:
    """A copy of a Llama checkpoint in which a layer adds nothing."""
    from compress.checkpoints.folder import save_checkpoint

    model = load_model(folder)
    with torch.no_grad():
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            blocks(model)[layer][1].get_submodule(name).weight.mul_(1e-4)
    save_checkpoint(model, load_tokenizer(folder), out)
    return out


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_the_layer_that_adds_nothing_goes_wherever_it_stands(
    layer: int, make_checkpoint: Make, given: StageInput, tmp_path: Path
) -> None:
    source = silenced(loud(make_checkpoint("llama")), layer, tmp_path / "source")
    metadata = slimmed(given, source, layers=2)
    assert metadata["kept_layers"] == [index for index in range(3) if index != layer]
    assert metadata["depth"]["influence"][layer] < 0.01


def test_layers_go_by_perplexity_where_that_is_asked_for(make_checkpoint: Make, given: StageInput) -> None:
    metadata = slimmed(given, loud(make_checkpoint("llama")), layers=2, depth_by="perplexity")
    (gone,) = metadata["depth"]["gone"]
    assert metadata["kept_layers"] == [index for index in range(3) if index != gone["layer"]]


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "gpt_neox"])
def test_losses_without_a_layer_are_the_models_own(family: str, make_checkpoint: Make, text_file: Path) -> None:
    """Greedy search on cached prefixes against leaving layers out of the whole model, run from the start."""
    folder = loud(make_checkpoint(family, **({} if family in {"gpt2", "llama"} else {"num_hidden_layers": 3})))
    ids_NT = calibration_rows(TextSource(file=text_file), load_tokenizer(folder), 3, 24)
    kept, gone = least_missed(Stack(folder, ids_NT), 1, Silent())

    def loss_without(layers: set[int]) -> float:
        model = load_model(folder)
        for layer in layers:
            blocks(model)[layer][1].forward = lambda hidden, *rest, **named: hidden  # type: ignore[method-assign]
        with torch.no_grad():
            logits_NTV = model(torch.from_numpy(ids_NT), use_cache=False).logits
        following = torch.from_numpy(ids_NT)[:, 1:].flatten()
        return float(torch.nn.functional.cross_entropy(logits_NTV[:, :-1].flatten(0, 1), following))

    first = {layer: loss_without({layer}) for layer in range(3)}
    least = min(first, key=first.__getitem__)
    second = {layer: loss_without({least, layer}) for layer in range(3) if layer != least}
    assert [entry["layer"] for entry in gone] == [least, min(second, key=second.__getitem__)]
    assert gone[0]["loss_before"] == pytest.approx(loss_without(set()), rel=1e-5)
    assert gone[0]["loss_after"] == pytest.approx(first[least], rel=1e-5)
    assert gone[1]["loss_after"] == pytest.approx(min(second.values()), rel=1e-5)
    assert kept == [layer for layer in range(3) if layer not in {entry["layer"] for entry in gone}]


def test_a_parameter_target_is_met(make_checkpoint: Make, given: StageInput) -> None:
    source = make_checkpoint("llama", hidden_size=128, intermediate_size=384, num_attention_heads=8, head_dim=16)
    metadata = slimmed(given, source, target={"parameters": 0.6})
    assert 0.57 < metadata["parameters"]["ratio"] <= 0.6
    assert metadata["parameters"]["after"] == inspect_checkpoint(given.out).parameters


def test_a_latency_target_is_decided_by_what_was_measured(make_checkpoint: Make, given: StageInput) -> None:
    source = make_checkpoint("llama")
    folders = []

    def seconds(folder: Path) -> float:
        """A runtime whose time is the bytes it reads."""
        folders.append(folder)
        assert inspect_checkpoint(folder).format == "dense"
        return 1e-9 * inspect_checkpoint(folder).weight_bytes

    measured = dataclasses.replace(given, decode_seconds=seconds)
    metadata = slimmed(measured, source, target={"decode_latency": 0.7}, axes=("ffn", "layers"))
    table = metadata["latency_table"]
    limit = 0.7 * table[0]["seconds"]
    assert table[0]["parameters"] == inspect_checkpoint(source).parameters
    assert metadata["parameters"]["after"] == max(row["parameters"] for row in table if row["seconds"] <= limit)
    assert len(folders) == len(table) >= 3
    assert not any(folder.exists() for folder in folders)
    assert not list(given.scratch.iterdir())
    with pytest.raises(StageError, match="decode_latency is measured on the runtime"):
        slimmed(given, source, target={"decode_latency": 0.7})


def test_nothing_to_remove_is_an_error(given: StageInput, gpt2: Path) -> None:
    with pytest.raises(StageError, match="nothing to remove"):
        slimmed(given, gpt2, layers=3)


def test_text_that_is_missing_or_too_short_is_an_error(given: StageInput, gpt2: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="expected a calibration text"):
        slimmed(dataclasses.replace(given, calibration_text=None), gpt2, ffn=0.5)
    (tmp_path / "short.txt").write_text("Too short.")
    short = dataclasses.replace(given, calibration_text=TextSource(file=tmp_path / "short.txt"))
    with pytest.raises(Exception, match="give more text"):
        slimmed(short, gpt2, ffn=0.5)


@pytest.mark.parametrize("importance", ["weights", "random"])
def test_without_text_only_the_weights_are_looked_at(importance: str, given: StageInput, gpt2: Path) -> None:
    metadata = slimmed(
        dataclasses.replace(given, calibration_text=None), gpt2, ffn=0.5, heads=1, importance=importance, repair=False
    )
    assert "calibration_tokens" not in metadata
    assert metadata["widths"]["after"]["hidden"] == 32
    source, small = load_model(gpt2), load_model(given.out)
    rows = {tuple(row.tolist()) for row in source.transformer.wpe.weight.T}
    assert all(tuple(column.tolist()) in rows for column in small.transformer.wpe.weight.T)
