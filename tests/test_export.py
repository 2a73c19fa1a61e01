"""The exported graph: int8 values bit for bit, every weight once, nothing lost on the way."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from exported import exported, quantized, sharpened
from onnx import numpy_helper

from compress import Checkpoint, CheckpointError
from compress.checkpoints.quantized_files import read_quantized_matrices
from compress.checkpoints.quantized_matrix import QuantizedMatrix
from compress.stage import StageError, StageInput
from compress.text import TextSource
from export import EXPORT, verify_bundle
from export.passes import PASSES
from export.passes.context import block_for
from export.row_tracking import CodeTable

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def int8(make_checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("int8")
    dense = {family: sharpened(make_checkpoint(family), root / family) for family in ("gpt2", "llama")}
    return {family: quantized(path, root / f"{family}-int8", embeddings=True) for family, path in dense.items()}


@pytest.fixture(scope="module")
def bundles(int8: dict[str, Path], text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bundles")
    return {family: exported(path, root / family, text_file) for family, path in int8.items()}


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_int8_values_are_the_checkpoints_bit_for_bit(
    family: str, int8: dict[str, Path], bundles: dict[str, Path]
) -> None:
    held = constants(onnx.load(bundles[family] / "model.onnx"))
    matrices, found = read_quantized_matrices(int8[family]), set()
    for name in (name for name in held if name.endswith(".codes")):
        modules = name.removesuffix(".codes").split("+")
        codes = np.concatenate([matrices[module].codes_OI for module in modules])
        steps = np.concatenate([matrices[module].scale_OG for module in modules])
        values = (held[name].astype(np.int16) - 128).reshape(len(codes), -1)
        assert np.array_equal(values[:, : codes.shape[1]], codes), name
        assert not values[:, codes.shape[1] :].any(), "padding must be zero"
        assert np.array_equal(held[name.replace(".codes", ".scales")], steps), name
        found |= set(modules)
    assert found == set(matrices)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_embedding_and_head_share_one_int8_table(family: str, bundles: dict[str, Path]) -> None:
    model = onnx.load(bundles[family] / "model.onnx", load_external_data=False)
    head = next(node for node in model.graph.node if "logits" in node.output)
    assert head.op_type == "MatMulNBits"
    assert [node.op_type for node in model.graph.node if head.input[1] in node.input] == ["Gather", "MatMulNBits"]
    assert verify_bundle(bundles[family]).coverage["shared_table"]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_float_weights_are_stored_once(family: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    source: Path = request.getfixturevalue(family)
    text = request.getfixturevalue("text_file")
    bundle = exported(source, tmp_path / "bundle", text)
    weights = (source / "model.safetensors").stat().st_size
    assert abs((bundle / "model.onnx.data").stat().st_size - weights) < 0.08 * weights
    assert operators(onnx.load(bundle / "model.onnx", load_external_data=False))["FusedMatMul"] == 1


def test_conv1d_that_the_stock_quantizer_skips_is_int8(int8: dict[str, Path], bundles: dict[str, Path]) -> None:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
    from transformers.pytorch_utils import Conv1D

    from compress.checkpoints.loading import empty_model

    model = empty_model(int8["gpt2"])
    linears = {name for name, module in model.named_modules() if isinstance(module, Conv1D)}
    assert len(linears) == 3 * 4
    found = verify_bundle(bundles["gpt2"]).coverage
    assert set(found["int8"]) == linears | {"transformer.wte"}
    assert found["float"] == ["transformer.wpe.weight"]
    assert found["shared_table"]
    stock = MatMulNBitsQuantizer(as_torch_exports_it(model.transformer.h[0].mlp.c_fc), block_size=32, bits=8)
    stock.process()
    assert operators(stock.model.model) == {"Gemm": 1}


def as_torch_exports_it(layer: Any) -> onnx.ModelProto:
    """Conv1D, whose addmm torch.onnx writes as Gemm."""
    weight, bias = (numpy_helper.from_array(getattr(layer, name).detach().numpy(), name) for name in ("weight", "bias"))
    rows, columns = layer.weight.shape
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Gemm", ["x", "weight", "bias"], ["y"])],
        "conv1d",
        [value("x", onnx.TensorProto.FLOAT, ["tokens", rows])],
        [value("y", onnx.TensorProto.FLOAT, ["tokens", columns])],
        [weight, bias],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)


def test_graph_is_fused(bundles: dict[str, Path]) -> None:
    gpt2 = operators(onnx.load(bundles["gpt2"] / "model.onnx", load_external_data=False))
    llama = operators(onnx.load(bundles["llama"] / "model.onnx", load_external_data=False))
    assert gpt2["GroupQueryAttention"] == llama["GroupQueryAttention"] == 3
    assert gpt2["MatMulNBits"] == 3 * 4 + 1, "packed QKV, output, two of the MLP; the head"
    assert not gpt2["MatMul"]
    assert not llama["MatMul"]
    assert gpt2["Add"] == 3, "biases are folded; three count where the rows of a batch begin"
    assert gpt2["SkipLayerNormalization"] == 2 * 3 + 1
    assert llama["QuickGelu"] == 3
    assert not llama["Sigmoid"]


def test_every_pass_changes_some_graph(gpt2: Path, text_file: Path, tmp_path: Path, bundles: dict[str, Path]) -> None:
    dense = exported(gpt2, tmp_path / "dense", text_file)
    small = exported(gpt2, tmp_path / "small", text_file, cache="int8")
    manifests = [json.loads((path / "manifest.json").read_text()) for path in (*bundles.values(), dense, small)]
    corrections = {name for name in PASSES if name.startswith("fix_")}  # tests/test_families.py has their models
    assert {name for manifest in manifests for name in manifest["passes"]} - corrections == set(PASSES) - corrections
    assert len(PASSES) >= 6


def test_same_checkpoint_gives_the_same_bytes(
    int8: dict[str, Path], bundles: dict[str, Path], text_file: Path, tmp_path: Path, folder_digest: Any
) -> None:
    assert folder_digest(exported(int8["gpt2"], tmp_path / "again", text_file)) == folder_digest(bundles["gpt2"])


def test_source_is_unchanged_and_nothing_is_printed(
    int8: dict[str, Path], text_file: Path, tmp_path: Path, folder_digest: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    before = folder_digest(int8["llama"])
    exported(int8["llama"], tmp_path / "bundle", text_file)
    assert folder_digest(int8["llama"]) == before
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "changes",
    [
        {"activation_function": "gelu_pytorch_tanh"},
        {"activation_function": "gelu"},
        {"n_inner": 48},  # below n_embd: the shape alone does not tell which way the matrix lies
        {"n_inner": 64},
        {"n_embd": 72, "n_head": 3},  # 72 columns: the last block is padded
    ],
    ids=str,
)
def test_shapes_of_gpt2_pass_parity(
    changes: dict[str, Any], make_checkpoint: Make, text_file: Path, tmp_path: Path
) -> None:
    dense = sharpened(make_checkpoint("gpt2", n_layer=1, **changes), tmp_path / "dense")
    bundle = exported(quantized(dense, tmp_path / "int8", embeddings=True), tmp_path / "bundle", text_file)
    parity = verify_bundle(bundle).parity
    assert parity["float32"]["prefill"]["log_probability"] <= 2e-3
    assert parity["int8 activations"]["decode"]["kl"] <= 5e-2


def test_untied_float_head_stays_float(make_checkpoint: Make, text_file: Path, tmp_path: Path) -> None:
    dense = make_checkpoint("llama", num_hidden_layers=1, tie_word_embeddings=False)
    bundle = exported(quantized(dense, tmp_path / "int8"), tmp_path / "bundle", text_file)
    found = verify_bundle(bundle).coverage
    assert found["float"] == ["lm_head.weight_t", "model.embed_tokens.weight"]
    assert len(found["int8"]) == 7


def test_cuda_graph_is_float16_with_int8_weights(int8: dict[str, Path], tmp_path: Path) -> None:
    import onnx_ir

    from export.graph import build_decoder
    from export.passes import PassContext, apply_passes

    decoder = build_decoder(Checkpoint(int8["gpt2"]), "cuda")
    context = PassContext(weights=decoder.weights, provider="cuda", block_size=64, accuracy_level=0)
    apply_passes(decoder.model, context)
    onnx_ir.save(decoder.model, tmp_path / "model.onnx", external_data="model.onnx.data")
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model)
    assert operators(model)["MatMulNBits"] == 13
    assert operators(model)["GroupQueryAttention"] == 3
    kinds = {array.dtype for array in constants(model).values()}
    assert np.dtype(np.float16) in kinds
    assert np.dtype(np.float32) not in kinds
    types = {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    assert types == {onnx.TensorProto.FLOAT16, onnx.TensorProto.INT64}


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"n_embd": 60, "n_head": 3}, "multiple of 8"), ({"add_cross_attention": True}, "add_cross_attention")],
    ids=["head width", "a setting that the graph ignores"],
)
def test_what_cannot_be_exported_is_refused(
    changes: dict[str, Any], message: str, make_checkpoint: Make, text_file: Path, tmp_path: Path
) -> None:
    dense = sharpened(make_checkpoint("gpt2", n_layer=2, **changes), tmp_path / "dense")
    with pytest.raises(StageError, match=message):
        exported(dense, tmp_path / "bundle", text_file)


def test_calibration_text_is_needed(int8: dict[str, Path], tmp_path: Path) -> None:
    assert EXPORT.inputs_read(EXPORT.config()) == {"calibration_text"}
    with pytest.raises(StageError, match="calibration"):
        EXPORT.run(EXPORT.config(), StageInput(source=int8["gpt2"], out=tmp_path, scratch=tmp_path))


def test_weight_without_a_place_is_an_error(gpt2: Path, text_file: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(gpt2, broken)
    tensors = load_file(broken / "model.safetensors")
    tensors["transformer.h.0.attn.extra.weight"] = np.zeros((2, 2), dtype=np.float32)
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    given = StageInput(source=broken, out=tmp_path, scratch=tmp_path, calibration_text=TextSource(file=text_file))
    with pytest.raises(CheckpointError, match=r"left over: transformer\.h\.0\.attn\.extra\.weight"):
        EXPORT.run(EXPORT.config(), given)


def test_rows_are_followed_through_splits_and_joins() -> None:
    random = np.random.default_rng(0)
    first, second = (
        QuantizedMatrix(
            random.integers(-127, 128, (rows, 4)).astype(np.int8), random.random((rows, 2)).astype(np.float32)
        )
        for rows in (3, 5)
    )
    table = CodeTable.of({"first": first, "second": second})
    rows = np.asarray([1, 2, 3, 7, 0], dtype=np.int32)
    matrix = table.matrix(rows)
    codes = np.concatenate([first.codes_OI, second.codes_OI])[rows]
    assert np.array_equal(matrix.codes_OI, codes)
    assert np.array_equal(matrix.scale_OG, np.concatenate([first.scale_OG, second.scale_OG])[rows])
    assert table.modules(rows) == ["first", "second"]
    assert np.shares_memory(table.matrix(rows[:2]).codes_OI, first.codes_OI), "rows that lie together are a view"


@pytest.mark.parametrize(
    ("columns", "wanted", "block"),
    [
        (256, 64, 64),
        (256, 128, 128),
        (576, 128, 64),
        (96, 64, 32),
        (72, 64, 64),
        (40, 64, 64),
        (24, 64, 32),
        (8, 64, 16),
    ],
)
def test_block_fits_the_columns(columns: int, wanted: int, block: int) -> None:
    assert block_for(columns, wanted) == block
