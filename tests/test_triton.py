"""The bundle as a model of Triton's: config.pbtxt against its schema and the session, and a client's conversation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from exported import exported, sharpened
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from compress.stage import StageError
from export import OnnxCausalLM, verify_bundle
from export.external_data import BundleError, read_graph
from export.manifest import bundle_folder
from export.triton import TYPES, bundle_place, config_text, write_config

Make = Callable[..., Path]
NUMPY = {"TYPE_FP32": np.float32, "TYPE_FP16": np.float16, "TYPE_INT64": np.int64}
ORT = {"tensor(float)": "TYPE_FP32", "tensor(float16)": "TYPE_FP16", "tensor(int64)": "TYPE_INT64"}
DATA_TYPES = {
    "TYPE_BOOL": 1,
    "TYPE_INT8": 6,
    "TYPE_INT32": 8,
    "TYPE_INT64": 9,
    "TYPE_FP16": 10,
    "TYPE_FP32": 11,
    "TYPE_BF16": 14,
}
KINDS = {"KIND_AUTO": 0, "KIND_GPU": 1, "KIND_CPU": 2, "KIND_MODEL": 3}


def schema() -> Any:
    """ModelConfig, as far as it is used here, with the names, numbers and types of Triton's model_config.proto."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="model_config.proto", package="inference", syntax="proto3")

    def enum(name: str, values: dict[str, int]) -> None:
        kind = file.enum_type.add(name=name)
        for key, number in ({"INVALID": 0} | values if 0 not in values.values() else values).items():
            kind.value.add(name=key, number=number)

    def message(name: str, *fields: tuple[str, int, int, bool, str]) -> None:
        kind = file.message_type.add(name=name)
        for key, number, code, repeated, type_name in fields:
            label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
            kind.field.add(name=key, number=number, type=code, label=label, type_name=type_name or None)

    enum("DataType", DATA_TYPES)
    enum("Kind", KINDS)
    kind, dims = ("data_type", 2, field.TYPE_ENUM, False, ".inference.DataType"), field.TYPE_INT64
    name = ("name", 1, field.TYPE_STRING, False, "")
    message("ModelInput", name, kind, ("dims", 4, dims, True, ""), ("optional", 8, field.TYPE_BOOL, False, ""))
    message("ModelOutput", name, kind, ("dims", 3, dims, True, ""))
    message(
        "ModelInstanceGroup",
        ("count", 2, field.TYPE_INT32, False, ""),
        ("kind", 4, field.TYPE_ENUM, False, ".inference.Kind"),
    )
    message(
        "ModelConfig",
        name,
        ("max_batch_size", 4, field.TYPE_INT32, False, ""),
        ("input", 5, field.TYPE_MESSAGE, True, ".inference.ModelInput"),
        ("output", 6, field.TYPE_MESSAGE, True, ".inference.ModelOutput"),
        ("instance_group", 7, field.TYPE_MESSAGE, True, ".inference.ModelInstanceGroup"),
        ("backend", 17, field.TYPE_STRING, False, ""),
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))


def parsed(text: str) -> Any:
    return text_format.Parse(text, schema()())


def type_name(number: int) -> str:
    return next(name for name, code in DATA_TYPES.items() if code == number)


@pytest.fixture(scope="module")
def repository(make_checkpoint: Make, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the model "tiny", its bundle written by the export."""
    root = tmp_path_factory.mktemp("triton")
    place = bundle_place(root / "repository", "tiny")
    place.parent.mkdir(parents=True)
    exported(sharpened(make_checkpoint("llama", num_hidden_layers=2), root / "dense"), place, text_file)
    write_config(root / "repository", "tiny", read_graph(place), "cpu")
    return root / "repository"


@pytest.fixture(scope="module")
def session(repository: Path) -> onnxruntime.InferenceSession:
    """Opened as Triton opens it: by the path of the file in the directory."""
    return onnxruntime.InferenceSession(
        repository / "tiny" / "1" / "model.onnx" / "model.onnx", providers=["CPUExecutionProvider"]
    )


def test_config_says_what_the_session_says(repository: Path, session: onnxruntime.InferenceSession) -> None:
    config = parsed((repository / "tiny" / "config.pbtxt").read_text(encoding="utf-8"))
    assert (config.name, config.backend, config.max_batch_size) == ("tiny", "onnxruntime", 0)
    assert [(group.count, group.kind) for group in config.instance_group] == [(1, KINDS["KIND_CPU"])]
    required = [value for value in config.input if not value.optional]
    optional = [value for value in config.input if value.optional]
    for said, held in (
        (required, session.get_inputs()),
        (optional, session.get_overridable_initializers()),
        (config.output, session.get_outputs()),
    ):
        assert [value.name for value in said] == [value.name for value in held]
        for value, other in zip(said, held, strict=True):
            assert type_name(value.data_type) == ORT[other.type]
            assert list(value.dims) == [size if isinstance(size, int) else -1 for size in other.shape]
            assert all(size == -1 or size >= 1 for size in value.dims), "Triton refuses 0"
    assert len(required) >= 2 + 2 * 2


def test_a_client_decodes_over_whole_tensors(repository: Path, session: onnxruntime.InferenceSession) -> None:
    """Every request sends what config.pbtxt requires and no more; the cache starts empty and goes back and forth."""
    config = parsed((repository / "tiny" / "config.pbtxt").read_text(encoding="utf-8"))
    prompt, new = [3, 14, 15, 92], 6
    required = [value for value in config.input if not value.optional]
    cache = {
        value.name: np.zeros([1, value.dims[1], 0, value.dims[3]], NUMPY[type_name(value.data_type)])
        for value in required
        if value.name.startswith("past_key_values.")
    }
    ids, past, chosen = prompt, 0, []
    for _ in range(new):
        total = past + len(ids)
        given = {
            "input_ids": np.asarray([ids]),
            "attention_mask": np.ones((1, total), np.int64),
            "position_ids": np.arange(past, total)[None],
        }
        request = {value.name: (given | cache)[value.name] for value in required}
        answer = dict(zip((value.name for value in config.output), session.run(None, request), strict=True))
        cache = {name.replace("past_key_values.", "present."): array for name, array in cache.items()}
        cache = {name.replace("present.", "past_key_values."): answer[name] for name in cache}
        ids, past = [int(answer["logits"][0, -1].argmax())], total
        chosen += ids
    model = OnnxCausalLM.open(bundle_folder(repository))
    assert [chosen] == model.generate([prompt], max_new_tokens=new, stop_ids=[])


def test_input_with_a_default_is_optional() -> None:
    make, kinds = onnx.helper, onnx.TensorProto
    values = [
        make.make_tensor_value_info("x", kinds.FLOAT16, ["batch", 3]),
        make.make_tensor_value_info("from", kinds.INT64, [1]),
    ]
    start = onnx.numpy_helper.from_array(np.asarray([0]), "from")
    inner = onnx.numpy_helper.from_array(np.asarray([9]), "end")
    node = make.make_node("Slice", ["x", "from", "end"], ["y"])
    result = make.make_tensor_value_info("y", kinds.FLOAT16, [None, 3])
    model = make.make_model(make.make_graph([node], "g", values, [result], [start, inner]))
    config = parsed(config_text(model, "m", "KIND_GPU"))
    assert [(value.name, value.optional) for value in config.input] == [("x", False), ("from", True)]
    assert [list(value.dims) for value in (*config.input, *config.output)] == [[-1, 3], [1], [-1, 3]]
    assert [group.kind for group in config.instance_group] == [KINDS["KIND_GPU"]]
    assert type_name(config.output[0].data_type) == "TYPE_FP16"


def test_type_that_triton_lacks_is_refused() -> None:
    make, kinds = onnx.helper, onnx.TensorProto
    values = [make.make_tensor_value_info(name, kinds.INT4, [1]) for name in "xy"]
    model = make.make_model(make.make_graph([make.make_node("Identity", ["x"], ["y"])], "g", values[:1], values[1:]))
    with pytest.raises(StageError, match=r"^x: expected a type that Triton knows .*, got INT4"):
        config_text(model, "m", "KIND_CPU")


def test_every_type_is_one_of_tritons() -> None:
    assert set(TYPES.values()) == set(DATA_TYPES)
    assert all(hasattr(onnx.TensorProto, name) for name in TYPES)


def test_bundle_is_found_and_is_still_a_bundle(repository: Path) -> None:
    bundle = repository / "tiny" / "1" / "model.onnx"
    places = (repository, repository / "tiny", repository / "tiny" / "1", bundle)
    assert [bundle_folder(place) for place in places] == [bundle] * 4
    assert verify_bundle(bundle).provider == "cpu"
    assert sorted(path.name for path in (repository / "tiny").iterdir()) == ["1", "config.pbtxt"]


def test_onnxruntime_genai_opens_it(repository: Path) -> None:
    genai = pytest.importorskip("onnxruntime_genai")
    model = genai.Model(str(bundle_folder(repository)))
    settings = genai.GeneratorParams(model)
    settings.set_search_options(max_length=5)
    generator = genai.Generator(model, settings)
    generator.append_tokens([[3, 14, 15, 92]])
    generator.generate_next_token()
    assert len(generator.get_sequence(0)) == 5


def test_folder_without_a_bundle_comes_back(tmp_path: Path) -> None:
    assert bundle_folder(tmp_path) == tmp_path
    assert bundle_folder(tmp_path / "none") == tmp_path / "none"


def test_several_bundles_are_named(tmp_path: Path) -> None:
    for name in ("first", "second"):
        place = bundle_place(tmp_path, name)
        place.mkdir(parents=True)
        (place / "model.onnx").touch()
    with pytest.raises(BundleError, match=r"expected one bundle, found 2; .*first.*second"):
        bundle_folder(tmp_path)


@pytest.mark.parametrize("name", ["", "a/b", "..", "a b", "-a", 'a"'])
def test_name_that_is_no_folder_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="expected a model name"):
        bundle_place(tmp_path, name)


def test_export_lays_the_bundle_out_for_triton(llama: Path, text_file: Path, tmp_path: Path) -> None:
    from recipes.formats import format_of
    from recipes.measure.footprint import measure_footprint

    repository = exported(llama, tmp_path / "repository", text_file, layout="triton")
    assert sorted(str(file.relative_to(repository)) for file in repository.rglob("*.*") if file.is_file()) == [
        "README.md",
        "model/1/model.onnx/config.json",
        "model/1/model.onnx/genai_config.json",
        "model/1/model.onnx/generation_config.json",
        "model/1/model.onnx/manifest.json",
        "model/1/model.onnx/model.onnx",
        "model/1/model.onnx/model.onnx.data",
        "model/1/model.onnx/parity.safetensors",
        "model/1/model.onnx/tokenizer.json",
        "model/1/model.onnx/tokenizer_config.json",
        "model/config.pbtxt",
    ]
    assert parsed((repository / "model" / "config.pbtxt").read_text()).max_batch_size == 0
    assert verify_bundle(repository).provider == "cpu"
    assert format_of(repository) == "onnx"
    [optional] = [
        value for value in parsed((repository / "model" / "config.pbtxt").read_text()).input if value.optional
    ]
    assert (optional.name, list(optional.dims)) == ("logits_from", [1])
    assert OnnxCausalLM.open(repository).generate([[5, 6, 7]], max_new_tokens=4, stop_ids=[])[0]
    assert measure_footprint(repository, "onnx", prompt=4)[2].value > 10_000
