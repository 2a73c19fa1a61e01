"""`demitasse verify`: what it says of a whole bundle, and the exit code of each way in which one is not."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import Demitasse
from onnx import numpy_helper

from export.manifest import write_manifest


@pytest.fixture
def bundle(int8_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(int8_bundle, tmp_path / "bundle"))


def test_whole_bundle_is_replayed(bundle: Path, demitasse: Demitasse) -> None:
    code, out, _ = demitasse("verify", bundle)
    assert code == 0
    assert "whole" in out
    assert "parity holds here" in out
    code, out, _ = demitasse("verify", bundle, "--no-replay")
    assert code == 0
    assert "parity holds here" not in out


def test_one_changed_byte_is_exit_code_5(bundle: Path, demitasse: Demitasse) -> None:
    for name in ("model.onnx.data", "model.onnx", "parity.safetensors"):
        content = bytearray((bundle / name).read_bytes())
        content[len(content) // 3] ^= 1
        (bundle / name).write_bytes(content)
        code, _, err = demitasse("verify", bundle)
        assert code == 5
        assert f"{name}: its content changed" in err
        content[len(content) // 3] ^= 1
        (bundle / name).write_bytes(content)
    assert demitasse("verify", bundle)[0] == 0


def test_a_link_out_of_the_bundle_is_exit_code_5(bundle: Path, tmp_path: Path, demitasse: Demitasse) -> None:
    shutil.move(bundle / "model.onnx.data", tmp_path / "outside")
    os.symlink(tmp_path / "outside", bundle / "model.onnx.data")
    code, _, err = demitasse("verify", bundle)
    assert code == 5
    assert "a link" in err
    assert demitasse("generate", bundle, "It was a dark night")[0] == 5


def test_a_forged_bundle_that_computes_something_else_is_exit_code_4(bundle: Path, demitasse: Demitasse) -> None:
    model = onnx.load(bundle / "model.onnx", load_external_data=False)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "transformer.h.1.ln_1.weight")
    tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))
    (bundle / "model.onnx").write_bytes(model.SerializeToString())
    manifest = json.loads((bundle / "manifest.json").read_text())
    write_manifest(bundle, {key: value for key, value in manifest.items() if key not in {"format", "files", "seal"}})
    code, out, err = demitasse("verify", bundle)
    assert code == 4
    assert "whole" in out
    assert "does not say what its checkpoint said" in err


def unknown_operator(bundle: Path) -> None:
    model = onnx.load(bundle / "model.onnx", load_external_data=False)
    model.graph.node[3].op_type = "NoSuch"
    (bundle / "model.onnx").write_bytes(model.SerializeToString())


def test_a_graph_that_onnx_runtime_refuses_is_told_by_its_file(bundle: Path, demitasse: Demitasse) -> None:
    unknown_operator(bundle)
    manifest = json.loads((bundle / "manifest.json").read_text())
    write_manifest(bundle, {key: value for key, value in manifest.items() if key not in {"format", "files", "seal"}})
    code, _, err = demitasse("generate", bundle, "It was")
    assert code == 5
    assert "model.onnx: ONNX Runtime" in err
    assert "NoSuch" in err
    (bundle / "manifest.json").unlink()
    code, _, err = demitasse("generate", bundle, "It was", "--provider", "cpu")
    assert code == 2
    assert "model.onnx: ONNX Runtime" in err


def test_a_graph_that_fails_on_the_way_is_no_bundle_any_more(bundle: Path, demitasse: Demitasse) -> None:
    model = onnx.load(bundle / "model.onnx", load_external_data=False)
    ids = next(tensor for tensor in model.graph.initializer if "wpe" in tensor.name or "position" in tensor.name)
    assert ids.dims[0] > 1
    place = next(node for node in model.graph.node if node.op_type == "Gather" and ids.name in node.input)
    place.input[1] = "far"
    far = onnx.helper.make_node("Constant", [], ["far"], value=numpy_helper.from_array(np.full((1, 1), 10**6), "far"))
    model.graph.node.insert(0, far)
    (bundle / "model.onnx").write_bytes(model.SerializeToString())
    code, _, err = demitasse("generate", bundle, "It was")
    assert code == 5
    assert "model.onnx: ONNX Runtime cannot run it" in err


def test_more_threads_than_cores_are_refused(bundle: Path, demitasse: Demitasse) -> None:
    for threads in (2000, 10**12):
        code, _, err = demitasse("generate", bundle, "It was", "--threads", threads)
        assert code == 2
        assert f"the cores there are, got {threads}" in err


@pytest.mark.parametrize("option", ["--repetition-penalty", "--temperature", "--top-p"])
def test_a_figure_that_is_no_number_is_a_usage_error(option: str, bundle: Path, demitasse: Demitasse) -> None:
    assert demitasse("generate", bundle, "It was", option, "nan")[0] == 2


def test_a_prompt_that_is_no_utf8_is_a_usage_error(bundle: Path, demitasse: Demitasse) -> None:
    code, _, err = demitasse("generate", bundle, os.fsdecode(b"It \xff was"))
    assert code == 2
    assert "surrogate" in err
