"""Every family of docs/models.md: exported dense and int8 and proven, or refused by name.

The models are tiny and random, but shaped as the family's own configs are: fewer key-value heads than heads, biases
that are not zero, windows smaller than the text, and a context that the text fills to its last token.

Each type is proven in its first variant, and what only another one has in that one; the other variants are thorough.
"""

import json
import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, SHORT, Share
from exported import Exported, genai_greedy, quantized, sharpened
from family_variants import ALSO, AS_WELL, FAMILIES, LONG, MIXTURES, OLD, REFUSALS, WINDOW, Changes

from compress import Checkpoint, CheckpointError
from compress.checkpoints.config import read_config
from compress.checkpoints.loading import load_model
from compress.models.block_linears import block_linears
from compress.stage import StageError, StageInput
from compress.text import TextSource
from export import EXPORT, OnnxCausalLM, verify_bundle
from export.attention_facts import LAYERS, Layer, layer_of
from export.families import CORRECTED, GRAPHS, REFUSED, REFUSED_TYPES, ROTATIONS, UNROTATED
from export.graph import build_decoder
from export.parity import CHECKS
from export.passes import PASSES, PassContext, apply_passes

Make = Callable[..., Path]
NOISE = 2e-4
"""Largest difference of log-probabilities that two right float32 graphs of these models may have."""
TOKENS = 32
"""Of each row of parity; one row fills the context."""
EVERY = FAMILIES | ALSO


def at_once(family: str, variant: str) -> bool:
    """Whether a variant is proven whenever tests run."""
    return variant in (first(family), AS_WELL.get(family))


def first(family: str) -> str:
    return next(iter(EVERY[family]))


def thorough_unless(quick: bool, *values: object, name: str) -> Any:
    return pytest.param(*values, id=name, marks=() if quick else pytest.mark.thorough)


CASES = [
    thorough_unless(at_once(family, variant), family, variant, name=f"{family}-{variant}" if variant else family)
    for family, variants in EVERY.items()
    for variant in variants
]
PAGE = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")


Dense = Callable[[str, str], Path]
Exports = Callable[[str, str], Exported]


def export(source: Path, out: Path, text: Path, **knobs: Any) -> Path:
    """A bundle whose proof fills the context."""
    out.mkdir()
    given = StageInput(source=source, out=out, scratch=out, calibration_text=TextSource(file=text))
    EXPORT.run(EXPORT.config(parity_tokens=TOKENS, **knobs), given)
    return out


def slug(family: str, variant: str) -> str:
    return re.sub(r"\W+", "-", f"{family} {variant}")


@pytest.fixture(scope="module")
def dense(shared: Share, shared_checkpoint: Make) -> Dense:
    """`dense(family, variant)`: its checkpoint of floats. Shared."""

    def make(family: str, variant: str) -> Path:
        changes = deepcopy(EVERY[family][variant])  # transformers' configs write into what they are given
        return shared(
            f"dense-{slug(family, variant)}", lambda out: sharpened(shared_checkpoint(family, **changes), out)
        )

    return make


@pytest.fixture(scope="module")
def int8(shared: Share, dense: Dense) -> Dense:
    """`int8(family, variant)`: the same as int8, its embedding too. Shared."""

    def make(family: str, variant: str) -> Path:
        source = dense(family, variant)
        return shared(f"int8-{slug(family, variant)}", lambda out: quantized(source, out, embeddings=True))

    return make


@pytest.fixture(scope="module")
def exports(shared: Share, dense: Dense, int8: Dense, text_file: Path) -> Exports:
    """`exports(family, variant)`: its int8 bundle, verified. Shared."""

    @cache
    def make(family: str, variant: str) -> Exported:
        source = int8(family, variant)
        bundle = shared(f"bundle-{slug(family, variant)}", lambda out: export(source, out, text_file))
        verify_bundle(bundle)
        return Exported(dense=dense(family, variant), int8=source, bundle=bundle)

    return make


def figures(bundle: Path, arithmetic: str, name: str) -> float:
    """The largest figure of this name over all checks."""
    parity = json.loads((bundle / "manifest.json").read_text())["parity"]
    return max(parity[arithmetic][check][name] for check in CHECKS)


def stated_kl(family: str) -> float:
    """The KL that docs/models.md gives the family."""
    row = re.search(rf"^\| `{re.escape(family)}` \|.*\| ([0-9.e-]+) \|$", PAGE, re.MULTILINE)
    assert row, f"docs/models.md has no row for {family}"
    return float(row[1])


@pytest.mark.parametrize(("family", "variant"), CASES)
def test_int8_export_is_proven(family: str, variant: str, exports: Exports) -> None:
    bundle = exports(family, variant).bundle
    parity = verify_bundle(bundle).parity
    assert parity["tokens"] == TOKENS
    assert parity["context"] == OnnxCausalLM.open(bundle).config.context, "the context is filled"
    assert figures(bundle, "float32", "log_probability") <= NOISE


@pytest.mark.parametrize(
    ("family", "variants"),
    [
        *(pytest.param(family, [first(family)], id=family) for family in EVERY),
        *(
            pytest.param(family, [*variants], id=f"{family}, every variant", marks=pytest.mark.thorough)
            for family, variants in EVERY.items()
            if len(variants) > 1
        ),
    ],
)
def test_the_page_states_what_rounding_costs(family: str, variants: list[str], exports: Exports) -> None:
    """Of all variants the largest; of the first one alone no more than that."""
    bundles = [exports(family, variant).bundle for variant in variants]
    measured = max(figures(bundle, "int8 activations", "kl") for bundle in bundles)
    assert measured <= 2 * stated_kl(family), "kernels differ from processor to processor"
    if len(variants) == len(EVERY[family]):
        assert measured >= stated_kl(family) / 4


@pytest.mark.parametrize(("family", "variant"), CASES)
def test_every_block_linear_and_the_embedding_are_int8(family: str, variant: str, exports: Exports) -> None:
    made = exports(family, variant)
    model = load_model(made.dense)
    table = model.get_input_embeddings().weight
    embedding = next(name for name, parameter in model.named_parameters() if parameter is table)
    found = verify_bundle(made.bundle).coverage
    linears = {linear.name for linear in block_linears(model)}
    assert set(found["int8"]) == linears | {embedding.removesuffix(".weight")}
    tied = bool(model.config.tie_word_embeddings)
    assert found["shared_table"] or not tied
    positions = {"transformer.wpe.weight", "model.wpe.weight"}
    heads = set() if tied else {"lm_head.weight_t", "embed_out.weight_t"}
    assert set(found["float"]) <= positions | heads


@pytest.mark.parametrize(
    "family", [thorough_unless(family in {"gpt2", "llama"}, family, name=family) for family in FAMILIES]
)
def test_dense_export_is_proven(family: str, dense: Dense, text_file: Path, tmp_path: Path) -> None:
    bundle = export(dense(family, first(family)), tmp_path / "bundle", text_file)
    assert figures(bundle, "float32", "log_probability") <= NOISE
    assert not verify_bundle(bundle).coverage["int8"]


@pytest.mark.parametrize(
    "family",
    [thorough_unless(family in {"gpt_neox", "gemma3_text"}, family, name=family) for family in FAMILIES],
)
def test_onnxruntime_genai_runs_the_folder_as_it_is(family: str, exports: Exports) -> None:
    """Of GPT-2 and Llama in test_runtime.py; here with positions as an input, and with windows."""
    bundle = exports(family, first(family)).bundle
    config = json.loads((bundle / "genai_config.json").read_text())
    assert config["model"]["context_length"] == config["search"]["max_length"] == SHORT
    ids, theirs = genai_greedy(bundle, "It was a dark night", 24)
    ours = OnnxCausalLM.open(bundle, threads=2).generate([ids], max_new_tokens=24)[0]
    assert len(ids) + len(ours) > WINDOW
    assert theirs[: len(ours)] == ours


@pytest.mark.parametrize("family", [thorough_unless(family == "mixtral", family, name=family) for family in MIXTURES])
def test_mixtures_pass_as_floats_and_are_refused_as_int8(
    family: str, make_checkpoint: Make, text_file: Path, tmp_path: Path
) -> None:
    dense = sharpened(make_checkpoint(family), tmp_path / "dense")
    assert figures(export(dense, tmp_path / "bundle", text_file), "float32", "log_probability") <= NOISE
    int8 = quantized(dense, tmp_path / "int8")
    with pytest.raises(StageError, match=r"its experts are not int8.*experts\.gate_up_proj"):
        export(int8, tmp_path / "refused", text_file)
    assert not any((tmp_path / "refused").iterdir())
    assert f"`{family}`" in PAGE


@pytest.mark.parametrize(("family", "changes", "message"), REFUSALS, ids=[f"{row[0]}-{[*row[1]]}" for row in REFUSALS])
def test_what_has_no_right_graph_is_refused(
    family: str, changes: Changes, message: str, make_checkpoint: Make, text_file: Path, tmp_path: Path
) -> None:
    dense = sharpened(make_checkpoint(family, **changes), tmp_path / "dense")
    with pytest.raises(StageError, match=message):
        export(dense, tmp_path / "bundle", text_file)
    if "parity" not in message:
        assert not any((tmp_path / "bundle").iterdir()), "refused before the work"


def test_unknown_type_is_refused_in_a_short_message(make_checkpoint: Make, text_file: Path, tmp_path: Path) -> None:
    folder = make_checkpoint("llama")
    config = read_config(folder) | {"model_type": "no_such_model"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="type 'no_such_model' is none that transformers has") as it:
        export(folder, tmp_path / "bundle", text_file)
    assert len(str(it.value)) < 400


def test_every_rotation_is_proven_at_once() -> None:
    proven = [
        changes for family, variants in EVERY.items() for name, changes in variants.items() if at_once(family, name)
    ]
    assert all(f'"rope_type": "{kind}"' in json.dumps(proven) for kind in ROTATIONS)


def test_every_rule_is_under_test() -> None:
    refused = {(family, key) for family, changes, _ in REFUSALS for key in changes}
    rules = {(family, setting.key) for family, settings in REFUSED.items() for setting in settings}
    bidirectional = {("gemma3_text", "use_bidirectional_attention")}  # as in gemma and gemma2
    assert rules - refused == bidirectional
    assert {*CORRECTED, *GRAPHS, *UNROTATED} <= set(EVERY)
    assert set(REFUSED_TYPES) - {family for family, _, _ in REFUSALS} == {"persimmon"}


def test_the_page_lists_what_is_under_test() -> None:
    rows = set(re.findall(r"^\| `([^`]+)` \|", PAGE, re.MULTILINE))
    assert rows == set(EVERY)
    named = set(re.findall(r"`([^`]+)`", PAGE))
    assert {setting.key for settings in REFUSED.values() for setting in settings} <= named
    assert set(REFUSED_TYPES) <= named


# --- the passes


def decoder_layers(folder: Path) -> tuple[list[Layer], list[Any]]:
    """What is known of each layer of a checkpoint, and its attention node before any pass."""
    model = build_decoder(Checkpoint(folder), "cpu").model
    layers = model.meta[LAYERS]
    return layers, [node for node in model.graph if layer_of(node, layers)]


@pytest.mark.parametrize(
    ("name", "family", "variant"),
    [
        ("fix_attention", "gpt2", "scores divided by the layer's number"),
        ("fix_attention", "gpt_neo", "windows in every other layer"),
        pytest.param("fix_attention", "qwen2", "windows in some layers", marks=pytest.mark.thorough),
        ("fix_rotation", "llama", "dynamic"),
        pytest.param("fix_rotation", "gemma3_text", "two rotations", marks=pytest.mark.thorough),
    ],
)
def test_without_the_pass_the_bundle_is_refused(
    name: str,
    family: str,
    variant: str,
    dense: Dense,
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    others = {other: graph_pass for other, graph_pass in PASSES.items() if other != name}
    monkeypatch.setattr("export.passes.PASSES", others)  # and not an item of it, which would come back as the last
    with pytest.raises(StageError, match="parity on prefill"):
        export(dense(family, variant), tmp_path / "bundle", text_file)


def test_every_fix_changes_some_bundle(exports: Exports) -> None:
    bundles = [
        exports("gpt_neo", "windows in every other layer"),
        exports("gpt_neox", "rotation of few columns"),
        exports("gemma", "a root that is no short number"),
    ]
    told = {name for made in bundles for name in json.loads((made.bundle / "manifest.json").read_text())["passes"]}
    fixes = {name for name in PASSES if name.startswith("fix_")}
    assert len(fixes) == 4
    assert fixes <= told


def test_windows_and_scales_of_each_layer(dense: Dense) -> None:
    layers, nodes = decoder_layers(dense("gpt_neo", "windows in every other layer"))
    assert [layer.window for layer in layers] == [None, WINDOW]
    assert not any("local_window_size" in node.attributes for node in nodes)
    layers, nodes = decoder_layers(dense("gpt2", "scores divided by the layer's number"))
    assert [layer.scale for layer in layers] == pytest.approx([32**-0.5, 32**-0.5 / 2])
    assert [node.attributes["scale"].as_float() for node in nodes] == pytest.approx([32**-0.5] * 2)


def test_passes_tell_the_attention_what_its_layer_is(exports: Exports) -> None:
    import onnx

    graph = onnx.load(exports("gemma3_text", "two rotations").bundle / "model.onnx").graph
    attention = [node for node in graph.node if node.op_type == "GroupQueryAttention"]
    told = [{attribute.name: attribute for attribute in node.attribute} for node in attention]
    assert [told[0]["local_window_size"].i, "local_window_size" in told[1]] == [WINDOW, False]
    assert all(attributes["scale"].f == pytest.approx(32**-0.5) for attributes in told)
    made = {node.output[0]: node for node in graph.node}
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    local_F, whole_F = (stored[made[made[node.input[7]].input[0]].input[1]] for node in attention)
    assert local_F.shape == whole_F.shape
    assert not np.array_equal(local_F, whole_F)
    assert sum(node.op_type == "Cos" for node in graph.node) == 2, "the tables that nobody reads are gone"
    assert not any(name.endswith("cos_cache") for name in stored)


@pytest.mark.parametrize("variant", ["llama3", "linear", "dynamic"])
def test_rotary_tables_are_transformers_own(variant: str, dense: Dense) -> None:
    import torch

    from export.passes.fix_rotation import tables

    folder = dense("llama", variant)
    layers, _ = decoder_layers(folder)
    rotation = layers[0].rotation
    assert rotation is not None
    embedding = load_model(folder).model.rotary_emb
    for found, expected in zip(
        tables(rotation, SHORT, np.dtype(np.float32)),
        embedding(torch.zeros(1), torch.arange(SHORT)[None]),
        strict=True,
    ):
        assert found.dtype == np.float32
        assert np.abs(found - expected[0, :, : found.shape[1]].numpy()).max() < 1e-6


def test_narrow_rotation_stands_before_the_attention(exports: Exports) -> None:
    import onnx

    bundle = exports("gpt_neox", "rotation of few columns").bundle
    graph = onnx.load(bundle / "model.onnx", load_external_data=False).graph
    attention = [node for node in graph.node if node.op_type == "GroupQueryAttention"]
    rotary = [node for node in graph.node if node.op_type == "RotaryEmbedding"]
    assert len(rotary) == 2 * len(attention) == 4
    assert all(attribute.i == 0 for node in attention for attribute in node.attribute if attribute.name == "do_rotary")
    assert "position_ids" in {value.name for value in graph.input}
    assert "position_ids" in json.loads((bundle / "genai_config.json").read_text())["model"]["decoder"]["inputs"]


def test_embedding_scale_is_the_exact_root(exports: Exports) -> None:
    import onnx

    bundle = exports("gemma", "a root that is no short number").bundle
    graph = onnx.load(bundle / "model.onnx").graph
    scale = next(tensor for tensor in graph.initializer if tensor.name == "embedding_scale")
    assert float(onnx.numpy_helper.to_array(scale)) == np.float32(72**0.5)


def test_longrope_bundle_ends_where_its_frequencies_change(exports: Exports) -> None:
    bundle = exports("phi3", "longrope").bundle
    assert OnnxCausalLM.open(bundle).config.context == LONG["original_max_position_embeddings"] == SHORT // 2


@pytest.mark.parametrize(
    ("family", "variant"),
    [
        ("gpt_neox", "rotation of few columns"),
        ("gemma3_text", "two rotations"),
        ("opt", "relu"),
        ("qwen3", "untied, biases"),
    ],
)
def test_cuda_graph_of_every_kind_is_float16(family: str, variant: str, int8: Dense, tmp_path: Path) -> None:
    import onnx
    import onnx_ir

    decoder = build_decoder(Checkpoint(int8(family, variant)), "cuda")
    context = PassContext(weights=decoder.weights, provider="cuda", block_size=64, accuracy_level=0)
    apply_passes(decoder.model, context)
    onnx_ir.save(decoder.model, tmp_path / "model.onnx", external_data="model.onnx.data")
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model)
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert onnx.TensorProto.FLOAT16 in kinds.values()
    fixed = set(kinds)
    floats = {name for name, kind in kinds.items() if kind == onnx.TensorProto.FLOAT}
    for node in model.graph.node:
        if set(node.input) <= fixed:  # computed when a session opens: in float32, and then cast
            fixed |= set(node.output)
            floats |= set(node.output) if node.op_type != "Cast" and set(node.input) & floats else set()
        else:
            assert not set(node.input) & floats, node.name


# --- configs and weights as old checkpoints have them


def plainly(layers: list[Layer]) -> Iterator[tuple[Any, ...]]:
    for layer in layers:
        rotation = layer.rotation
        rotates = None if rotation is None else (rotation.frequencies.tolist(), rotation.scaling)
        yield layer.scale, layer.window, rotates, layer.rotates


@pytest.mark.parametrize("family", OLD)
def test_old_configs_are_read_as_new_ones(family: str, dense: Dense, make_checkpoint: Make) -> None:
    variant, rewrite = OLD[family]
    folder = make_checkpoint(family, **deepcopy(FAMILIES[family][variant]))
    expected, _ = decoder_layers(dense(family, variant))
    config = rewrite(read_config(folder))
    (folder / "config.json").write_text(json.dumps(config))
    found, _ = decoder_layers(folder)
    assert list(plainly(found)) == list(plainly(expected))


def test_bfloat16_checkpoints_and_old_buffers_are_proven(dense: Dense, text_file: Path, tmp_path: Path) -> None:
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "dense"
    shutil.copytree(dense("gpt_neox", "parallel residual"), folder)
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(folder / "model.safetensors").items()}
    for index in range(2):
        prefix = f"gpt_neox.layers.{index}.attention"
        tensors[f"{prefix}.bias"] = torch.ones(1, 1, SHORT, SHORT, dtype=torch.uint8)
        tensors[f"{prefix}.masked_bias"] = torch.tensor(-1e9)
        tensors[f"{prefix}.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert figures(export(folder, tmp_path / "bundle", text_file), "float32", "log_probability") <= NOISE
