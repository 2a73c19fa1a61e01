"""How int8 matrices lie in the file: each scale once, spread out before anything runs, and checked as they lie."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from exported import exported, quantized, sharpened
from onnx import numpy_helper

from compress.checkpoints.quantized_files import read_quantized_matrices
from compress.checkpoints.quantized_matrix import QuantizedMatrix
from export.coverage import CoverageError, check_carried
from export.external_data import read_graph
from export.passes.context import block_in
from export.row_tracking import CodeTable, WeightError

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def int8(make_checkpoint: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("int8")
    dense = sharpened(make_checkpoint("gpt2", n_embd=128, n_layer=2), root / "dense")
    return quantized(dense, root / "int8", embeddings=True)


@pytest.fixture(scope="module")
def bundle(int8: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(int8, tmp_path_factory.mktemp("bundles") / "bundle", text_file)


def graph_in(bundle: Path) -> tuple[onnx.ModelProto, Path]:
    return read_graph(bundle), bundle


def feeds(session: onnxruntime.InferenceSession) -> dict[str, np.ndarray]:
    """A prompt of four tokens over an empty cache."""
    given: dict[str, np.ndarray] = {
        "input_ids": np.asarray([[3, 1, 4, 1]]),
        "attention_mask": np.ones((1, 4), np.int64),
    }
    given["position_ids"] = np.arange(4)[None]
    for value in session.get_inputs():
        if value.name.startswith("past_key_values."):
            given[value.name] = np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
    names = {value.name for value in session.get_inputs()}
    return {name: array for name, array in given.items() if name in names}


def operators_run(bundle: Path, scratch: Path, level: onnxruntime.GraphOptimizationLevel) -> Counter[str]:
    """Operators that the profile of one run names."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.enable_profiling = True
    options.profile_file_prefix = str(scratch / "profile")
    session = onnxruntime.InferenceSession(bundle / "model.onnx", options, providers=["CPUExecutionProvider"])
    session.run(None, feeds(session))
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return Counter(event["args"]["op_name"] for event in events if event["name"].endswith("_kernel_time"))


def rewritten(bundle: Path, out: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    """A copy of a bundle with a changed graph."""
    shutil.copytree(bundle, out)
    model = onnx.load(out / "model.onnx", load_external_data=False)
    change(model)
    (out / "model.onnx").write_bytes(model.SerializeToString())
    return out


def test_a_scale_is_stored_once(bundle: Path, int8: Path) -> None:
    model = onnx.load(bundle / "model.onnx", load_external_data=False)
    stored = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    scales = {name: shape for name, shape in stored.items() if name.endswith(".scales")}
    assert len(scales) == len(read_quantized_matrices(int8)) == 9
    assert {shape[1:] for shape in scales.values()} == {(1,)}
    shapes = {node.input[1] for node in model.graph.node if node.op_type == "Expand"}
    assert len(shapes) == 5, "128, 384, 512 and 320 rows of 2 blocks, 128 of 8: matrices of one shape share its vector"


@pytest.mark.parametrize("level", ["ORT_ENABLE_ALL", "ORT_ENABLE_BASIC"])
def test_scales_are_spread_before_anything_runs(bundle: Path, tmp_path: Path, level: str) -> None:
    ran = operators_run(bundle, tmp_path, getattr(onnxruntime.GraphOptimizationLevel, level))
    assert ran["MatMulNBits"] == 9
    assert not ran["Expand"]


def test_without_optimization_the_profile_shows_the_spreading(bundle: Path, tmp_path: Path) -> None:
    assert operators_run(bundle, tmp_path, onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL)["Expand"] == 9


def test_onnxruntime_genai_spreads_them_too(bundle: Path, tmp_path: Path) -> None:
    genai = pytest.importorskip("onnxruntime_genai")
    folder = tmp_path / "bundle"
    shutil.copytree(bundle, folder)
    config = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))
    config["model"]["decoder"]["session_options"]["enable_profiling"] = str(tmp_path / "profile")
    (folder / "genai_config.json").write_text(json.dumps(config), encoding="utf-8")
    model = genai.Model(str(folder))
    settings = genai.GeneratorParams(model)
    settings.set_search_options(max_length=8)
    generator = genai.Generator(model, settings)
    generator.append_tokens([[3, 1, 4, 1]])
    generator.generate_next_token()
    del generator, settings, model  # the profile is written as the session closes
    events = [event for file in tmp_path.glob("profile*") for event in json.loads(file.read_text(encoding="utf-8"))]
    ran = Counter(event["args"]["op_name"] for event in events if event["name"].endswith("_kernel_time"))
    assert ran["MatMulNBits"] >= 9
    assert not ran["Expand"]


def test_changed_scale_is_found(bundle: Path, int8: Path, tmp_path: Path) -> None:
    matrices = read_quantized_matrices(int8)
    placed = list(matrices.items())
    check_carried(*graph_in(bundle), matrices, placed)

    def change(model: onnx.ModelProto) -> None:
        name = "transformer.h.0.mlp.c_fc.scales"
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        scales = numpy_helper.to_array(tensor, base_dir=str(bundle)).copy()
        scales[3] = np.nextafter(scales[3], np.float32(1))
        tensor.CopyFrom(numpy_helper.from_array(scales, name))

    with pytest.raises(CoverageError, match=r"h\.0\.mlp\.c_fc: .*scales are not the checkpoint's"):
        check_carried(*graph_in(rewritten(bundle, tmp_path / "changed", change)), matrices, placed)


def test_product_with_the_scales_of_another_matrix_is_found(bundle: Path, int8: Path, tmp_path: Path) -> None:
    matrices = read_quantized_matrices(int8)

    def change(model: onnx.ModelProto) -> None:
        first, second = [node for node in model.graph.node if node.op_type == "Expand" and "c_fc" in node.input[0]]
        first.input[0] = second.input[0]

    with pytest.raises(CoverageError, match=r"h\.0\.mlp\.c_fc: .*scales are not the checkpoint's"):
        check_carried(*graph_in(rewritten(bundle, tmp_path / "changed", change)), matrices, matrices.items())


def test_product_with_computed_scales_is_found(bundle: Path, int8: Path, tmp_path: Path) -> None:
    matrices = read_quantized_matrices(int8)

    def change(model: onnx.ModelProto) -> None:
        node = next(node for node in model.graph.node if node.op_type == "Expand")
        node.op_type = "Mul"

    with pytest.raises(CoverageError, match="expected scales that are stored, or spread from stored ones"):
        check_carried(*graph_in(rewritten(bundle, tmp_path / "changed", change)), matrices, matrices.items())


@pytest.mark.parametrize(
    ("group", "wanted", "block"), [(128, 64, 64), (128, 256, 128), (32, 64, 32), (48, 64, 16), (96, 128, 32)]
)
def test_a_block_lies_in_one_group(group: int, wanted: int, block: int) -> None:
    assert block_in(group, wanted) == block


def test_group_that_no_block_divides_is_refused() -> None:
    with pytest.raises(WeightError, match=r"groups of a multiple of 16 columns, .* got 24"):
        block_in(24, 64)


@pytest.mark.parametrize("shapes", [((4, 2), (4, 1)), ((4, 2), (6, 2))], ids=["groups", "columns"])
def test_packing_matrices_that_differ_is_refused(shapes: tuple[tuple[int, int], ...]) -> None:
    matrices = {
        name: QuantizedMatrix(np.ones((3, columns), np.int8), np.ones((3, groups), np.float32))
        for name, (columns, groups) in zip("ab", shapes, strict=True)
    }
    with pytest.raises(WeightError, match="a, b: expected matrices of one width, group size"):
        CodeTable.of(matrices).matrix(np.arange(6, dtype=np.int32))


def test_rows_that_are_alike_stay_together_in_their_order() -> None:
    shapes = {"a": (4, 2), "b": (4, 2), "c": (4, 1), "d": (4, 2)}
    table = CodeTable.of(
        {
            name: QuantizedMatrix(np.ones((2, columns), np.int8), np.ones((2, groups), np.float32))
            for name, (columns, groups) in shapes.items()
        }
    )
    rows = np.asarray([2, 3, 0, 1, 4, 5, 7], dtype=np.int32)
    assert [part.tolist() for part in table.alike(rows)] == [[2, 3, 0, 1], [4, 5], [7]]
    assert [part.tolist() for part in table.alike(rows[:4])] == [[2, 3, 0, 1]]
