"""Bundles that were touched, cut short, or point outside of themselves."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import Demitasse
from exported import exported, quantized
from forging import edit_sealed
from onnx import numpy_helper

from compress.digests import digest_file, sealed
from export import BundleError, BundleIntegrityError, OnnxCausalLM, verify_bundle
from export.external_data import read_graph
from export.manifest import write_manifest
from export.parity import ParityError
from export.self_test import coarse_kl, run_self_test
from recipes.engine.model_source import digest_folder


@pytest.fixture
def bundle(int8_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(int8_bundle, tmp_path / "bundle"))


def test_untouched_bundle_is_verified(bundle: Path) -> None:
    (bundle / "artifact.json").write_text("{}")  # the run store's own
    summary = verify_bundle(bundle)
    assert summary.provider == "cpu"
    assert summary.size == sum(file.stat().st_size for file in bundle.iterdir() if file.name != "README.md") - 2
    assert len(summary.coverage["int8"]) == 3 * 4 + 1
    assert "onnx" in summary.libraries


def test_one_changed_byte_is_found_in_any_file(int8_bundle: Path, bundle: Path) -> None:
    names = sorted(file.name for file in int8_bundle.iterdir() if file.name not in {"manifest.json", "README.md"})
    assert {"model.onnx", "model.onnx.data", "genai_config.json", "tokenizer.json"} <= set(names)
    for name in names:
        content = bytearray((int8_bundle / name).read_bytes())
        content[len(content) // 2] ^= 1
        (bundle / name).write_bytes(content)
        with pytest.raises(BundleIntegrityError, match=rf"{name}: its content changed"):
            verify_bundle(bundle)
        shutil.copyfile(int8_bundle / name, bundle / name)
    verify_bundle(bundle)


def test_a_swapped_data_file_is_found(
    gpt2: Path, int8_bundle: Path, bundle: Path, text_file: Path, tmp_path: Path
) -> None:
    swapped = exported(quantized(gpt2, tmp_path / "int8", embeddings=True), tmp_path / "swapped", text_file)
    data = swapped / "model.onnx.data"
    assert data.stat().st_size == (int8_bundle / data.name).stat().st_size
    shutil.copyfile(data, bundle / data.name)
    with pytest.raises(BundleIntegrityError, match=r"model\.onnx\.data: its content changed"):
        verify_bundle(bundle)
    seal_again(bundle)
    verify_bundle(bundle)
    with pytest.raises(ParityError, match="on this machine the bundle does not say what its checkpoint said"):
        run_self_test(bundle, "cpu")


def stated_kl(bundle: Path) -> float:
    return float(json.loads((bundle / "manifest.json").read_text())["parity"]["self_test"]["kl"])


def seal_again(bundle: Path) -> None:
    """A manifest over the files as they are now: what a forger would do."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    write_manifest(bundle, {key: value for key, value in manifest.items() if key not in {"format", "files", "seal"}})


def test_replay_finds_what_the_export_found(int8_bundle: Path) -> None:
    stated = json.loads((int8_bundle / "manifest.json").read_text())["parity"]["self_test"]
    assert stated["positions"] == 4 * 25
    found = run_self_test(int8_bundle, "cpu")
    assert found["kl"] == pytest.approx(stated["kl"], rel=0.2, abs=1e-9)
    assert found["kl"] < found["tolerance"]


@pytest.mark.parametrize("weight", ["transformer.h.1.ln_1.weight", "transformer.h.2.mlp.down_proj.bias"])
def test_one_perturbed_weight_in_the_graph_is_found(weight: str, bundle: Path) -> None:
    model = onnx.load(bundle / "model.onnx", load_external_data=False)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == weight)
    values = numpy_helper.to_array(tensor).copy()
    values[0] += 20
    tensor.CopyFrom(numpy_helper.from_array(values, weight))
    (bundle / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BundleIntegrityError, match=r"model\.onnx: its content changed"):
        verify_bundle(bundle)
    seal_again(bundle)
    with pytest.raises(ParityError, match="on the rows that it carries"):
        run_self_test(bundle, "cpu", stated=stated_kl(bundle))


def test_coarse_kl_is_that_of_the_tokens_and_the_rest() -> None:
    random = np.random.default_rng(0)
    p_NV, q_NV = random.dirichlet(np.ones(8), 5), random.dirichlet(np.ones(8), 5)
    merged = [np.concatenate([x[:, :3], x[:, 3:].sum(1, keepdims=True)], axis=1) for x in (p_NV, q_NV)]
    expected = (merged[0] * np.log(merged[0] / merged[1])).sum(1).mean()
    assert coarse_kl(np.log(p_NV[:, :3]), np.log(q_NV[:, :3])) == pytest.approx(expected, rel=1e-6)
    whole = (p_NV * np.log(p_NV / q_NV)).sum(1).mean()
    assert expected <= whole


def test_every_fault_is_named_at_once(bundle: Path) -> None:
    (bundle / "tokenizer.json").unlink()
    (bundle / "extra.bin").write_bytes(b"x")
    (bundle / "model.onnx.data").write_bytes(b"short")
    with pytest.raises(
        BundleIntegrityError, match=r"tokenizer.json: missing; extra.bin: not in .*; model.onnx.data: exp"
    ):
        verify_bundle(bundle)


def test_a_model_card_may_lie_in_the_bundle(bundle: Path) -> None:
    (bundle / "README.md").write_text("PASS", encoding="utf-8")
    verify_bundle(bundle)
    (bundle / "readme.md").write_text("PASS", encoding="utf-8")
    with pytest.raises(BundleIntegrityError, match=r"readme\.md: not in the manifest"):
        verify_bundle(bundle)


def test_a_link_is_no_file_of_the_bundle(bundle: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.data"
    shutil.move(bundle / "model.onnx.data", outside)
    os.symlink(outside, bundle / "model.onnx.data")
    with pytest.raises(BundleIntegrityError, match="a link"):
        verify_bundle(bundle)
    with pytest.raises(BundleIntegrityError, match="a link"):
        OnnxCausalLM.open(bundle)


def in_hub_cache(bundle: Path, cache: Path) -> Path:
    """The bundle as huggingface_hub leaves it: a snapshot of links into the repository's store."""
    snapshot = cache / "models--me--bundle" / "snapshots" / "abc"
    blobs = snapshot.parents[1] / "blobs"
    for folder in (snapshot, blobs):
        folder.mkdir(parents=True)
    for file in bundle.iterdir():
        name = digest_file(file)[:40]
        shutil.copyfile(file, blobs / name)
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", name))
    return snapshot


def test_a_bundle_in_the_cache_of_a_hub_is_whole_and_runs(
    int8_bundle: Path, tmp_path: Path, demitasse: Demitasse
) -> None:
    snapshot = in_hub_cache(int8_bundle, tmp_path / "hüb cache")
    (tmp_path / "final").symlink_to(snapshot)
    for folder in (snapshot, tmp_path / "final"):
        assert verify_bundle(folder).coverage == verify_bundle(int8_bundle).coverage
    expected = OnnxCausalLM.open(int8_bundle).generate([[1, 2, 3]], max_new_tokens=8)
    assert OnnxCausalLM.open(snapshot).generate([[1, 2, 3]], max_new_tokens=8) == expected
    assert run_self_test(snapshot, "cpu")["kl"] == run_self_test(int8_bundle, "cpu")["kl"]
    assert digest_folder(snapshot) == digest_folder(int8_bundle)
    assert demitasse("verify", snapshot)[0] == 0


def test_a_link_of_the_cache_that_leads_to_other_content_is_found(int8_bundle: Path, tmp_path: Path) -> None:
    snapshot = in_hub_cache(int8_bundle, tmp_path)
    (snapshot / "tokenizer.json").unlink()
    (snapshot / "tokenizer.json").symlink_to((snapshot / "genai_config.json").readlink())
    size = (int8_bundle / "tokenizer.json").stat().st_size
    with pytest.raises(BundleIntegrityError, match=rf"tokenizer\.json: expected {size} bytes, got"):
        verify_bundle(snapshot)


@pytest.mark.parametrize("name", ["model.onnx.data", "manifest.json", "tokenizer.json"])
@pytest.mark.parametrize("where", ["../../../models--me--other/blobs/x", "../../blobs/x", "../../refs/x", "/x", "gone"])
def test_a_link_out_of_the_repositorys_store_is_refused(
    name: str, where: str, int8_bundle: Path, tmp_path: Path
) -> None:
    snapshot = in_hub_cache(int8_bundle, tmp_path)
    link, repository = snapshot / name, snapshot.parents[1]
    target = repository / "blobs" / link.readlink().name
    place = Path(os.path.normpath(snapshot / where)) if where != "/x" else tmp_path / "x"
    if where == "../../blobs/x":  # in the store, but a link again
        outside = target.rename(tmp_path / "outside")
        place.symlink_to(outside)
    elif where != "gone":
        place.parent.mkdir(parents=True, exist_ok=True)
        target.rename(place)
    link.unlink()
    link.symlink_to(place if where == "/x" else where)
    with pytest.raises(BundleIntegrityError, match=rf"{name}: expected a plain file, got a link"):
        verify_bundle(snapshot)


def test_links_of_a_cache_that_were_copied_elsewhere_are_refused(int8_bundle: Path, tmp_path: Path) -> None:
    snapshot = in_hub_cache(int8_bundle, tmp_path)
    plain = Path(shutil.copytree(snapshot, tmp_path / "plain", symlinks=True))
    with pytest.raises(BundleIntegrityError, match="got a link"):
        verify_bundle(plain)


def test_what_hubs_and_file_managers_leave_beside_a_bundle_is_named_and_does_no_harm(
    bundle: Path, demitasse: Demitasse
) -> None:
    before = digest_folder(bundle)
    for folder in (".cache/huggingface", ".git"):
        (bundle / folder).mkdir(parents=True)
    for name in (".gitattributes", ".DS_Store", "LICENSE", "Thumbs.db"):
        (bundle / name).write_text("*.onnx.data filter=lfs", encoding="utf-8")
    assert verify_bundle(bundle).foreign == (".DS_Store", ".cache", ".git", ".gitattributes", "LICENSE", "Thumbs.db")
    assert digest_folder(bundle) == before
    code, said, _ = demitasse("verify", bundle, "--no-replay")
    assert code == 0
    assert ".DS_Store, .cache, .git, .gitattributes, LICENSE, Thumbs.db: of others" in said
    (bundle / "special_tokens_map.json").write_text("{}", encoding="utf-8")  # this some readers would read
    with pytest.raises(BundleIntegrityError, match=r"special_tokens_map\.json: not in the manifest"):
        verify_bundle(bundle)


def retold(bundle: Path, change: Callable[[Any], None]) -> None:
    """Rewrite what the graph says about its first external weight."""
    model = onnx.load(bundle / "model.onnx", load_external_data=False)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.external_data)
    entries = {entry.key: entry.value for entry in tensor.external_data}
    change(entries)
    del tensor.external_data[:]
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    (bundle / "model.onnx").write_bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"location": "../outside.data"}, "points at"),
        ({"location": "/etc/passwd"}, "points at"),
        ({"location": "sub\\file"}, "points at"),
        ({"location": ".."}, "points at"),
        ({"location": ""}, "points at"),
        ({"location": "absent.data"}, "missing"),
        ({"offset": "99999999"}, "cut short or swapped"),
        ({"offset": "-8"}, "cut short or swapped"),
        ({"offset": "nine"}, "cut short or swapped"),
        ({"length": "1"}, "cut short or swapped"),
    ],
    ids=str,
)
def test_weights_outside_of_the_bundle_are_refused(changes: dict[str, str], message: str, bundle: Path) -> None:
    (bundle.parent / "outside.data").write_bytes((bundle / "model.onnx.data").read_bytes())
    retold(bundle, lambda entries: entries.update(changes))
    with pytest.raises(BundleIntegrityError, match=message):
        OnnxCausalLM.open(bundle)


def test_a_type_that_onnx_does_not_have_is_refused(bundle: Path) -> None:
    model = onnx.load(bundle / "model.onnx", load_external_data=False)
    next(tensor for tensor in model.graph.initializer if tensor.external_data).data_type = 99
    (bundle / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BundleIntegrityError, match="is of type 99"):
        read_graph(bundle)


def test_overlapping_weights_are_refused(bundle: Path) -> None:
    model = onnx.load(bundle / "model.onnx", load_external_data=False)
    first, second = [tensor for tensor in model.graph.initializer if tensor.external_data][:2]
    offset = {entry.key: entry.value for entry in first.external_data}["offset"]
    next(entry for entry in second.external_data if entry.key == "offset").value = offset
    (bundle / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BundleIntegrityError, match="overlap"):
        read_graph(bundle)


def in_a_node(model: onnx.ModelProto) -> onnx.TensorProto:
    return model.graph.node.add().attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t


def in_a_sparse_attribute(model: onnx.ModelProto) -> onnx.TensorProto:
    return (
        model.graph.node.add().attribute.add(name="value", type=onnx.AttributeProto.SPARSE_TENSOR).sparse_tensor.values
    )


def in_a_list_of_sparse_tensors(model: onnx.ModelProto) -> onnx.TensorProto:
    attribute = model.graph.node.add().attribute.add(name="values", type=onnx.AttributeProto.SPARSE_TENSORS)
    return attribute.sparse_tensors.add().indices


def in_a_branch(model: onnx.ModelProto) -> onnx.TensorProto:
    return model.graph.node.add().attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH).g.initializer.add()


def in_a_function(model: onnx.ModelProto) -> onnx.TensorProto:
    return model.functions.add().node.add().attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t


def in_the_default_of_a_function(model: onnx.ModelProto) -> onnx.TensorProto:
    return model.functions.add().attribute_proto.add(name="value", type=onnx.AttributeProto.TENSOR).t


def in_the_training(model: onnx.ModelProto) -> onnx.TensorProto:
    return model.training_info.add().algorithm.initializer.add()


@pytest.mark.parametrize(
    "place",
    [
        in_a_node,
        in_a_sparse_attribute,
        in_a_list_of_sparse_tensors,
        in_a_branch,
        in_a_function,
        in_the_default_of_a_function,
        in_the_training,
    ],
)
def test_external_data_is_checked_wherever_a_tensor_may_lie(
    place: Callable[[onnx.ModelProto], onnx.TensorProto], bundle: Path
) -> None:
    model = onnx.load(bundle / "model.onnx", load_external_data=False)
    tensor = place(model)
    tensor.name, tensor.data_type, tensor.data_location = "hidden", 1, onnx.TensorProto.EXTERNAL
    tensor.dims.append(4)
    tensor.external_data.add(key="location", value="../outside.data")
    (bundle / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BundleIntegrityError, match="'hidden' points at"):
        OnnxCausalLM.open(bundle)


def test_a_graph_reads_only_files_that_the_manifest_lists(bundle: Path) -> None:
    model = onnx.load(bundle / "model.onnx", load_external_data=False)
    tensor = in_the_training(model)
    tensor.name, tensor.data_type, tensor.data_location = "hidden", 1, onnx.TensorProto.EXTERNAL
    tensor.dims.append(4)
    tensor.external_data.add(key="location", value="unlisted")
    (bundle / "unlisted").write_bytes(bytes(16))
    (bundle / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BundleIntegrityError, match="lie in unlisted, which the manifest does not list"):
        OnnxCausalLM.open(bundle)


@pytest.mark.parametrize(
    "change",
    [
        lambda told: told["placement"].pop("nodes"),
        lambda told: told.update(arithmetic={"proven": 3}),
        lambda told: told.update(arithmetic=[]),
        lambda told: told["parity"]["self_test"].update(kl="much"),
        lambda told: told["parity"]["float32"]["tolerance"].update(other=1),
        lambda told: told["placement"].update(remarks=[1]),
        lambda told: told.update(placement=[told["placement"]]),
        lambda told: told["parity"]["float32"].update(decode=[{"kl": 0.0}]),
        lambda told: told.update(libraries=[told["libraries"]]),
        lambda told: told["parity"].pop("self_test"),
    ],
    ids=[
        "placement",
        "arithmetic",
        "a list",
        "self-test",
        "parity",
        "remarks",
        "list of it",
        "check",
        "versions",
        "none",
    ],
)
def test_a_sealed_manifest_of_another_shape_is_refused(bundle: Path, change: Any, demitasse: Demitasse) -> None:
    edit_sealed(bundle / "manifest.json", change)
    code, _, error = demitasse("verify", bundle, "--no-replay")
    assert code == 5
    assert "expected a bundle's manifest as it was written" in error


def test_a_broken_file_of_golden_outputs_is_told_in_a_line_that_can_be_read(bundle: Path) -> None:
    header = json.dumps({"ids": {"dtype": "I32", "shape": [1], "data_offsets": "a" * 9000}}).encode()
    (bundle / "parity.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(BundleIntegrityError, match="cannot be read") as refused:
        run_self_test(bundle, "cpu")
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize("name", ["present.0.key", "present.1.value", "logits"])
def test_a_graph_with_another_face_is_refused_before_it_runs(bundle: Path, name: str) -> None:
    graph = onnx.load(bundle / "model.onnx", load_external_data=False)
    for node in graph.graph.node:
        for place, output in enumerate(node.output):
            node.output[place] = "x" if output == name else output
    for value in graph.graph.output:
        value.name = "x" if value.name == name else value.name
    onnx.save(graph, bundle / "model.onnx")
    with pytest.raises(BundleIntegrityError, match=r"expected the outputs logits and present.*got 'x'"):
        OnnxCausalLM.open(bundle).generate([[1, 2]], max_new_tokens=1)


def test_what_is_no_bundle_is_said_to_be_none(bundle: Path, tmp_path: Path) -> None:
    for folder in (tmp_path / "nothing", tmp_path):
        with pytest.raises(BundleError, match=r"expected a bundle with manifest\.json"):
            verify_bundle(folder)
        with pytest.raises(BundleError, match="genai_config"):
            OnnxCausalLM.open(folder)


def test_a_manifest_that_lies_is_refused(bundle: Path) -> None:
    whole = (bundle / "manifest.json").read_text()
    for broken in ("[]", "{", whole.replace('"cpu"', '"cuda"'), sealed({"format": 99}), sealed({"files": {}})):
        (bundle / "manifest.json").write_text(broken)
        with pytest.raises(BundleIntegrityError):
            verify_bundle(bundle)
    (bundle / "manifest.json").write_text(whole)
    edit_sealed(bundle / "manifest.json", lambda told: told["coverage"]["int8"].pop())
    with pytest.raises(BundleIntegrityError, match="coverage"):
        verify_bundle(bundle)


def test_a_graph_that_is_no_graph_is_refused(bundle: Path) -> None:
    (bundle / "model.onnx").write_bytes(b"\xff" * 64)
    with pytest.raises(BundleIntegrityError, match="expected an ONNX graph"):
        OnnxCausalLM.open(bundle)
