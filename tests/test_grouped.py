"""Schemes with groups: rounding by hand, a checkpoint that the ecosystem's library reads, carried into a bundle."""

import itertools
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported import exported, quantized, sharpened
from safetensors.torch import load_file

from compress import Checkpoint, StageError, inspect_checkpoint
from compress.checkpoints.codes import from_words, to_words
from compress.checkpoints.compressed_tensors import packed_faults
from compress.checkpoints.config import CheckpointError
from compress.checkpoints.loading import load_float_model
from compress.checkpoints.quantized_files import read_quantized_matrices
from compress.checkpoints.quantized_matrix import QuantizedMatrix
from compress.models.calibration import inputs_of
from compress.quantization.config import QUANTIZE
from compress.quantization.rounding import gptq, rtn
from export import verify_bundle
from export.external_data import read_graph
from export.initializers import attributes_of
from export.manifest import read_manifest
from recipes.formats import FORMATS

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def dense(make_checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1}
    return sharpened(make_checkpoint("llama", **shape), tmp_path_factory.mktemp("dense") / "dense")


@pytest.fixture(scope="module", params=[32, 128])
def group(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def checkpoint(dense: Path, group: int, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("grouped") / "int8"
    return quantized(dense, out, scheme="int8_group", group=group, embeddings=True)


def test_groups_are_rounded_by_hand() -> None:
    """Two groups a row; scales 127 / 127 and 63.5 / 127; 0.4 rounds to nothing, 63.4 / 0.5 to 127."""
    weight = torch.tensor([[127, 0.4, -63.5, 63.4], [0, 0, 0, 2.54]])
    matrix = rtn(weight, None, 2, 8)
    assert matrix.codes_OI.tolist() == [[127, 0, -127, 127], [0, 0, 0, 127]]
    np.testing.assert_allclose(matrix.scale_OG, [[1, 0.5], [1, 0.02]], rtol=1e-6)
    assert (matrix.group, matrix.bits) == (2, 8)
    with pytest.raises(ValueError, match="expected a multiple of 3 columns, got 4"):
        rtn(torch.zeros(1, 4), None, 3, 8)


def test_four_bits_are_rounded_by_hand() -> None:
    """Scales 7 / 7 and 0.7 / 7; where the largest weight is negative, code -8 is its own."""
    matrix = rtn(torch.tensor([[7, 3, -2, 0, 0.7, -0.3, 0.1, 0], [-8, 4, 1, 0, 0, 0, 0, 0]]), None, 4, 4)
    assert matrix.codes_OI.tolist() == [[7, 3, -2, 0, 7, -3, 1, 0], [-8, 4, 1, 0, 0, 0, 0, 0]]
    np.testing.assert_allclose(matrix.scale_OG, [[1, 0.1], [1, 1]], rtol=1e-2)
    assert matrix.bits == 4


def test_one_large_weight_is_clipped_where_that_costs_less() -> None:
    small = 0.12 * torch.randn(1, 63, generator=torch.Generator().manual_seed(0))
    weight = torch.cat([torch.ones(1, 1), small], dim=1)
    [[scale]] = rtn(weight, None, 64, 4).scale_OG
    assert scale < 1 / 7
    assert error(weight, rtn(weight, None, 64, 4)) < error(weight, plainly(weight, 1 / 7))


def plainly(weight: torch.Tensor, scale: float) -> QuantizedMatrix:
    codes = (weight / scale).round().clamp(-8, 7).to(torch.int8).numpy()
    return QuantizedMatrix(codes, np.array([[scale]], dtype=np.float32), bits=4)


def error(weight: torch.Tensor, matrix: QuantizedMatrix) -> float:
    return float((torch.from_numpy(matrix.dequantize()) - weight).square().sum())


def test_gptq_leaves_less_error_of_the_output_and_the_columns_in_their_order() -> None:
    """Inputs that go together: what one column loses, another can make up for."""
    random = torch.Generator().manual_seed(1)
    x_TI = torch.randn(512, 8, generator=random) @ torch.randn(8, 64, generator=random)
    x_TI += 0.1 * torch.randn(512, 64, generator=random)
    weight_OI = torch.randn(32, 64, generator=random)
    inputs = inputs_of(x_TI, "gram")

    def lost(matrix: QuantizedMatrix) -> float:
        return float(((torch.from_numpy(matrix.dequantize()) - weight_OI) @ x_TI.T).square().sum())

    near, far = gptq(weight_OI, inputs, 32, 4), rtn(weight_OI, None, 32, 4)
    assert lost(near) < 0.3 * lost(far)
    assert np.abs(near.dequantize() - weight_OI.numpy()).max() < 1.5 * near.scale_OG.max(), "each weight near its own"
    exact = gptq(torch.from_numpy(far.dequantize()), inputs, 32, 4)
    assert np.array_equal(exact.codes_OI, far.codes_OI), "a matrix on the grid stays as it is"


def test_a_group_that_is_not_finite_stays_so() -> None:
    found = rtn(torch.tensor([[0.02, torch.nan, 1, 1]]), None, 2, 8).dequantize()
    assert np.isnan(found[0, :2]).all()
    np.testing.assert_allclose(found[0, 2:], 1)


def test_products_are_those_of_the_dense_checkpoint(dense: Path, checkpoint: Path) -> None:
    for context in (0, 16):
        assert FORMATS["quantized"].macs(checkpoint, context=context) == FORMATS["dense"].macs(dense, context=context)


def test_groups_of_another_size_than_the_config_says_are_refused(checkpoint: Path, group: int, tmp_path: Path) -> None:
    """Such as a last group that is shorter: equal groups of some other size would be wrong numbers."""
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"]["config_groups"]["group_0"]["weights"]["group_size"] = group + 64
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"scales for \d+ columns do not fit config\.json"):
        read_quantized_matrices(folder)


def test_tokens_that_end_a_text_are_read_from_the_generation_config(checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 7, 9]}', encoding="utf-8")
    assert load_float_model(Checkpoint(folder)).generation_config.eos_token_id == [2, 7, 9]


@pytest.mark.parametrize("groups", [None, {}, ["Linear"], {"W8A16": ["Linear"]}])
def test_groups_without_their_weights_are_refused(groups: object) -> None:
    (fault,) = packed_faults({"format": "pack-quantized", "config_groups": groups})
    assert "`config_groups`: expected groups with their `weights`" in fault


def test_a_zero_point_is_taken_off_before_the_scale() -> None:
    codes = np.array([[5, 3, -1, 0]], dtype=np.int8)
    matrix = QuantizedMatrix(codes, np.array([[2.0, 0.5]], dtype=np.float32), np.array([[3, -1]], dtype=np.int8))
    assert matrix.dequantize().tolist() == [[4.0, 0.0, 0.0, 0.5]]


@pytest.mark.parametrize("columns", [1, 4, 7, 32])
@pytest.mark.parametrize("bits", [4, 8])
def test_packing_is_undone_by_unpacking(columns: int, bits: int) -> None:
    half = 1 << bits - 1
    codes = np.random.default_rng(columns).integers(-half, half, (3, columns)).astype(np.int8)
    assert np.array_equal(from_words(to_words(codes, bits), (3, columns), bits), codes)


def test_the_checkpoint_holds_what_rounding_gives(checkpoint: Path, dense: Path, group: int) -> None:
    original = load_file(dense / "model.safetensors")
    matrices = read_quantized_matrices(checkpoint)
    assert len(matrices) == 7 + 1  # and the embedding
    weights = {
        name: parameter.detach().numpy()
        for name, parameter in load_float_model(Checkpoint(checkpoint)).named_parameters()
    }
    for name, matrix in matrices.items():
        if "embed" in name:
            continue
        weight_OI = original[f"{name}.weight"].numpy()
        expected = rtn(torch.from_numpy(weight_OI), None, group, 8)
        assert np.array_equal(matrix.codes_OI, expected.codes_OI)
        assert np.array_equal(matrix.scale_OG, expected.scale_OG)
        assert np.array_equal(weights[f"{name}.weight"], expected.dequantize())
        half = np.repeat(expected.scale_OG, group, axis=1) / 2
        assert (np.abs(weights[f"{name}.weight"] - weight_OI) <= half * 1.0001).all()
    assert np.array_equal(weights["model.norm.weight"], original["model.norm.weight"].numpy())
    assert inspect_checkpoint(checkpoint).format == "quantized"
    assert packed_faults(json.loads((checkpoint / "config.json").read_text())["quantization_config"]) == []
    assert "compressed-tensors" in FORMATS["quantized"].runtime(checkpoint)


def test_smaller_groups_are_closer(dense: Path, tmp_path: Path) -> None:
    original = load_file(dense / "model.safetensors")
    errors = []
    for number, knobs in enumerate(
        ({"scheme": "int8"}, *({"scheme": "int8_group", "group": n} for n in (128, 64, 32)))
    ):
        matrices = read_quantized_matrices(quantized(dense, tmp_path / str(number), **knobs))
        squares = [np.square(m.dequantize() - original[f"{n}.weight"].numpy()).sum() for n, m in matrices.items()]
        errors.append(sum(squares))
    assert all(more > less for more, less in itertools.pairwise(errors))


def test_it_is_carried_into_a_bundle_with_parity(checkpoint: Path, text_file: Path, tmp_path: Path) -> None:
    bundle = exported(checkpoint, tmp_path / "bundle", text_file, block_size=32)
    assert len(verify_bundle(bundle).coverage["int8"]) == 7 + 1


def test_the_library_loads_it_in_plain_transformers(checkpoint: Path) -> None:
    assert_library_agrees(checkpoint)


def assert_library_agrees(checkpoint: Path) -> None:
    pytest.importorskip("compressed_tensors")
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    ids_BT = torch.arange(24).reshape(2, 12)
    with torch.inference_mode():
        torch.testing.assert_close(
            theirs(input_ids=ids_BT).logits,
            load_float_model(Checkpoint(checkpoint))(input_ids=ids_BT).logits,
            atol=1e-4,
            rtol=1e-4,
        )


@pytest.fixture(scope="module")
def int4(dense: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    knobs = {
        "method": "gptq",
        "rows": 4,
        "length": 32,
        "embeddings": True,
        "bits": {"*.down_proj": 8, "*.layers.0.*.o_*": 8},
    }
    out = tmp_path_factory.mktemp("int4") / "int4"
    return quantized(dense, out, text=text_file, scheme="int4", group=32, **knobs)


def test_four_bits_by_gptq_with_some_linears_in_eight(int4: Path, text_file: Path, tmp_path: Path) -> None:
    bits = {name: matrix.bits for name, matrix in read_quantized_matrices(int4).items()}
    eight = {"model.layers.0.mlp.down_proj", "model.layers.0.self_attn.o_proj", "model.embed_tokens"}
    assert {name for name, width in bits.items() if width == 8} == eight
    assert len(bits) == 8
    assert_library_agrees(int4)
    coverage = verify_bundle(exported(int4, tmp_path / "bundle", text_file)).coverage
    assert set(coverage["int8"]) == eight
    assert set(coverage["int4"]) == set(bits) - eight


def test_what_is_no_linear_of_a_block_stays_as_it_was(int4: Path, dense: Path) -> None:
    before, after = load_file(dense / "model.safetensors"), load_file(int4 / "model.safetensors")
    kept = [name for name in before if not name.endswith("_proj.weight") and "embed" not in name]
    assert kept
    assert all(torch.equal(after[name], before[name]) for name in kept)


def test_values_of_other_bits_than_queries_and_keys_are_a_product_of_their_own(
    dense: Path, short_text: Path, tmp_path: Path
) -> None:
    """The graph packs the three; what differs is multiplied by alone."""
    source = quantized(dense, tmp_path / "int4", scheme="int4", group=32, bits={"*.v_proj": 8})
    bundle = exported(source, tmp_path / "bundle", short_text, block_size=32)
    products = Counter(
        (settings["bits"], settings["N"])
        for node in read_graph(bundle).graph.node
        if node.op_type == "MatMulNBits" and (settings := attributes_of(node))
    )
    assert products[8, 64] == 1
    assert products[4, 192] == 1
    assert verify_bundle(bundle).coverage["int8"] == ["model.layers.0.self_attn.v_proj"]


def test_a_glob_that_names_no_linear_is_refused(dense: Path, tmp_path: Path) -> None:
    with pytest.raises(
        StageError, match=r"bits: expected a glob over names such as model\.layers\.0\..*, got '\*\.fc'"
    ):
        quantized(dense, tmp_path / "out", scheme="int4", bits={"*.fc": 8})


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"method": "gptq"}, "method: gptq: expected scheme int8_group or int4 beside it, got int8"),
        ({"scheme": "int8_group", "bits": {"*": 4}}, "bits: expected scheme int4 beside it, got int8_group"),
        ({"scheme": "int8_group", "average_bits": 5}, "average_bits: expected scheme int4 beside it, got int8_group"),
        ({"scheme": "int4", "average_bits": 5, "bits": {"*": 8}}, "expected either `bits` or `average_bits`"),
        ({"scheme": "int4", "average_bits": 3}, "greater than or equal to 4"),
        ({"scheme": "int4", "group": 48}, "group"),
        ({"scheme": "int2"}, "int8_group"),
    ],
)
def test_knobs_that_do_not_go_together_are_refused(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QUANTIZE.config(**knobs)


def test_what_the_format_cannot_hold_is_refused(make_checkpoint: Make, tmp_path: Path) -> None:
    odd = make_checkpoint("gpt2", n_inner=100, n_layer=1)
    with pytest.raises(StageError, match=r"h\.0\.mlp\.c_fc has 100 outputs, and GPTQ's format needs a multiple of 8"):
        quantized(odd, tmp_path / "odd", scheme="int4")
    narrow = make_checkpoint("llama", hidden_size=96, intermediate_size=128, num_hidden_layers=1)
    with pytest.raises(StageError, match=r"the columns of model\..* \(96\) are no multiple of 64"):
        quantized(narrow, tmp_path / "c", scheme="int8_group", group=64)


@pytest.mark.parametrize(("scheme", "method"), [("int4", "gptq"), ("int8_group", "rtn")])
def test_gpt2_is_written_as_gptq_holds_it(
    scheme: str, method: str, gpt2: Path, short_text: Path, tmp_path: Path
) -> None:
    """Codes, zero points and scales unpacked here by loops over the file, as the format's description has them."""
    text = short_text if method == "gptq" else None
    knobs = {"bits": {"*": 4}} if scheme == "int4" else {}
    out = quantized(gpt2, tmp_path / "out", text=text, scheme=scheme, method=method, group=32, embeddings=True, **knobs)
    settings = json.loads((out / "config.json").read_text())["quantization_config"]
    bits = {"int4": 4, "int8_group": 8}[scheme]
    assert (settings["quant_method"], settings["bits"], settings["group_size"]) == ("gptq", bits, 32)
    tensors, dense = load_file(out / "model.safetensors"), load_file(gpt2 / "model.safetensors")
    name = "transformer.h.1.attn.c_attn"
    held = 32 // bits
    words, zeros, scales = (tensors[f"{name}.{end}"].numpy() for end in ("qweight", "qzeros", "scales"))
    columns, rows = words.shape[0] * held, words.shape[1]
    weight_IO = np.empty((columns, rows), dtype=np.float32)
    for i in range(columns):
        for o in range(rows):
            code = int(words[i // held, o]) >> bits * (i % held) & (1 << bits) - 1
            zero = (int(zeros[i // 32, o // held]) >> bits * (o % held) & (1 << bits) - 1) + 1
            weight_IO[i, o] = (code - zero) * scales[i // 32, o]
    assert tensors[f"{name}.g_idx"].tolist() == [i // 32 for i in range(columns)]
    opened = load_float_model(Checkpoint(out)).get_submodule(name)
    np.testing.assert_array_equal(opened.weight.detach().numpy(), weight_IO)
    apart = np.abs(weight_IO - dense[f"{name}.weight"].numpy())
    assert np.median(apart / np.repeat(scales, 32, axis=0)) < (1.0 if method == "gptq" else 0.5)


def test_gpt2_in_4_bits_is_exported_with_parity(gpt2: Path, short_text: Path, tmp_path: Path) -> None:
    source = quantized(sharpened(gpt2, tmp_path / "dense"), tmp_path / "int4", scheme="int4", embeddings=True)
    bundle = exported(source, tmp_path / "bundle", short_text, block_size=32, parity_context=48)
    covered = read_manifest(bundle)["coverage"]
    assert len(covered["int4"]) == 4 * 3
    assert len(covered["int8"]) == 1


def test_some_linears_of_gpt2_have_8_bits(gpt2: Path, short_text: Path, tmp_path: Path) -> None:
    """GPTQModel looks a module's own bits up in `dynamic`, by a match from the beginning of its name."""
    knobs = {"method": "gptq", "rows": 4, "length": 32, "average_bits": 5, "group": 32}
    source = quantized(sharpened(gpt2, tmp_path / "dense"), tmp_path / "out", text=short_text, scheme="int4", **knobs)
    settings = json.loads((source / "config.json").read_text())["quantization_config"]
    matrices = read_quantized_matrices(source)
    eight = {name for name, matrix in matrices.items() if matrix.bits == 8}
    assert 0 < len(eight) < len(matrices) == 12
    for name, matrix in matrices.items():
        found = [values["bits"] for glob, values in settings["dynamic"].items() if re.match(glob[2:], name)]
        assert found == ([8] if matrix.bits == 8 else [])
        assert matrix.codes_OI.min() < -8 or matrix.bits == 4
    assert settings["bits"] == 4
    coverage = read_manifest(exported(source, tmp_path / "bundle", short_text, block_size=32))["coverage"]
    assert set(coverage["int8"]) == eight
    assert len(coverage["int4"]) == 12 - len(eight)


@pytest.mark.parametrize(
    ("knobs", "average"),
    [
        ({"method": "gptq"}, 4.75),
        ({"method": "gptq", "average_bits": 4}, 4),
        ({"method": "gptq", "bits": {"*.a": 8}}, None),
        ({"method": "rtn"}, None),
        ({}, None),
    ],
)
def test_four_bits_are_mixed_where_text_is_read(knobs: dict[str, Any], average: float | None) -> None:
    assert QUANTIZE.config(scheme="int4", **knobs).average_bits == average
    assert QUANTIZE.config().average_bits is None
