"""Checkpoints that other tools quantized (tests/fixtures, with the scripts that made them): carried bit for bit, as
plain loops over their files tell it, or refused by name.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from carried import Format, Made, assert_carried, rounded
from conftest import Demitasse, Share
from exported import exported, sharpened
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.utils.quantization_config import QuantizationMethod

from compress import CheckpointError, inspect_checkpoint
from compress.checkpoints.folder import Checkpoint
from compress.checkpoints.loading import load_float_model, load_model
from compress.checkpoints.quantized_files import read_quantized_matrices
from compress.checkpoints.quantized_formats import NOT_READ, QUANTIZED_FORMATS
from export import verify_bundle
from export.coverage import CoverageError, check_carried
from export.external_data import BundleIntegrityError, read_graph
from export.runtime.model import OnnxCausalLM
from recipes.formats import FORMATS

Make = Callable[..., Path]
Tensors = dict[str, torch.Tensor]
ROOT = Path(__file__).resolve().parent / "fixtures"
PROMPT, LAST = [1, 17, 200, 45, 300, 8, 99, 261, 33, 150, 74, 311], 6
"""As in fixtures/tiny_llama.py."""
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
LINEARS = 7


@dataclass(frozen=True)
class Fixture:
    """A checkpoint that a tool wrote."""

    name: str
    bits: int
    symmetric: bool
    linears: int = LINEARS

    @property
    def folder(self) -> Path:
        return ROOT / self.name


FIXTURES = {
    fixture.name: fixture
    for fixture in (
        Fixture("gptq", 4, symmetric=True),
        Fixture("gptq_v2", 4, symmetric=False, linears=LINEARS - 1),
        Fixture("auto_gptq", 8, symmetric=True),
        Fixture("awq", 4, symmetric=False),
        Fixture("w4a16", 4, symmetric=False),
        Fixture("w8a16", 8, symmetric=True),
    )
}


@pytest.fixture(scope="module", params=FIXTURES.values(), ids=FIXTURES.keys())
def fixture(request: pytest.FixtureRequest) -> Fixture:
    found: Fixture = request.param
    return found


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return found


def settings_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = config_of(folder)["quantization_config"]
    return found


def field(word: int, place: int, bits: int) -> int:
    """A number without a sign in an int32, the first in the lowest bits."""
    return (word & 0xFFFFFFFF) >> bits * place & (1 << bits) - 1


def told(folder: Path) -> dict[str, Made]:
    """Every matrix of a checkpoint, one number after the other."""
    settings, tensors = settings_of(folder), load_file(folder / "model.safetensors")
    tell = {"gptq": told_gptq, "awq": told_awq, "compressed-tensors": told_packed}[settings["quant_method"]]
    modules = [name.rpartition(".")[0] for name in tensors if name.endswith((".qweight", ".weight_packed"))]
    return {module: tell(tensors, module, settings) for module in modules}


def made(codes: list[list[int]], zeros: list[list[int]], scales: torch.Tensor, bits: int) -> Made:
    """Of codes and zero points without a sign, [out, in] and [out, groups]."""
    middle = 1 << bits - 1
    shifted = [np.asarray([[number - middle for number in row] for row in rows], np.int8) for rows in (codes, zeros)]
    return Made(shifted[0], scales.float().numpy(), shifted[1])


def told_gptq(tensors: Tensors, module: str, settings: dict[str, Any]) -> Made:
    words, empty = (tensors[f"{module}.{end}"].tolist() for end in ("qweight", "qzeros"))
    bits, scales = settings["bits"], tensors[f"{module}.scales"].T.contiguous()
    each, more = 32 // bits, 0 if settings.get("checkpoint_format") == "gptq_v2" else 1
    outputs, inputs, groups = range(len(words[0])), range(len(words) * each), range(len(empty))
    codes = [[field(words[i // each][o], i % each, bits) for i in inputs] for o in outputs]
    zeros = [[field(empty[g][o // each], o % each, bits) + more for g in groups] for o in outputs]
    return made(codes, zeros, scales, bits)


def told_awq(tensors: Tensors, module: str, settings: dict[str, Any]) -> Made:
    words, empty = (tensors[f"{module}.{end}"].tolist() for end in ("qweight", "qzeros"))
    scales = tensors[f"{module}.scales"].T.contiguous()
    outputs = range(len(words[0]) * 8)
    codes = [[field(row[o // 8], AWQ_ORDER.index(o % 8), 4) for row in words] for o in outputs]
    zeros = [[field(row[o // 8], AWQ_ORDER.index(o % 8), 4) for row in empty] for o in outputs]
    return made(codes, zeros, scales, settings["bits"])


def told_packed(tensors: Tensors, module: str, settings: dict[str, Any]) -> Made:
    bits = settings["config_groups"]["group_0"]["weights"]["num_bits"]
    words, scales = tensors[f"{module}.weight_packed"].tolist(), tensors[f"{module}.weight_scale"]
    each, (rows, columns) = 32 // bits, tensors[f"{module}.weight_shape"].tolist()
    codes = [[field(words[o][i // each], i % each, bits) for i in range(columns)] for o in range(rows)]
    zeros = [[1 << bits - 1] * scales.shape[1]] * rows
    if f"{module}.weight_zero_point" in tensors:
        empty = tensors[f"{module}.weight_zero_point"].tolist()
        zeros = [[field(word, o % each, bits) for word in empty[o // each]] for o in range(rows)]
    return made(codes, zeros, scales, bits)


def assert_read(folder: Path, expected: dict[str, Made], bits: int) -> None:
    """Our reader and the model that it opens agree with what is expected, bit for bit."""
    matrices = read_quantized_matrices(folder)
    assert set(matrices) == set(expected)
    model = load_float_model(Checkpoint(folder))
    for name, matrix in matrices.items():
        assert matrix.bits == bits
        assert np.array_equal(matrix.codes_OI, expected[name].codes)
        assert np.array_equal(matrix.scale_OG, expected[name].scales)
        assert np.array_equal(matrix.zeros_OG(), expected[name].zeros)
        assert (matrix.zero_OG is None) == (not expected[name].zeros.any())
        held = model.get_submodule(name).weight.detach().numpy()
        weight_OI = expected[name].weight()
        assert np.array_equal(held if isinstance(model.get_submodule(name), torch.nn.Linear) else held.T, weight_OI)


def test_every_matrix_is_read_and_multiplied_out(fixture: Fixture) -> None:
    expected = told(fixture.folder)
    assert len(expected) == fixture.linears
    assert all((not matrix.zeros.any()) == fixture.symmetric for matrix in expected.values())
    assert_read(fixture.folder, expected, fixture.bits)


def logits_of(model: Any) -> np.ndarray:
    with torch.inference_mode():
        found: np.ndarray = model(torch.tensor([PROMPT]), use_cache=False).logits[0].float().numpy()
    return found


def test_what_it_computes_is_what_the_library_computes(fixture: Fixture) -> None:
    """GPTQModel's logits lie beside its formats' fixtures, in float16; compressed-tensors is asked here."""
    ours_TV = logits_of(load_model(fixture.folder))
    if (fixture.folder / "logits.npy").is_file():
        theirs_TV, ours_TV = np.load(fixture.folder / "logits.npy").astype(np.float32), ours_TV[-LAST:]
    else:
        pytest.importorskip("compressed_tensors")
        config = LlamaConfig.from_pretrained(fixture.folder)
        config.quantization_config["run_compressed"] = False  # else transformers has no room for packed zero points
        theirs_TV = logits_of(AutoModelForCausalLM.from_pretrained(fixture.folder, config=config, dtype=torch.float32))
    assert theirs_TV.std() > 1
    assert np.abs(ours_TV - theirs_TV).max() < 0.01 * theirs_TV.std()


@pytest.fixture(scope="module")
def bundle(fixture: Fixture, shared: Share, text_file: Path) -> Path:
    return shared(f"bundle-of-{fixture.name}", lambda out: exported(fixture.folder, out, text_file))


def test_export_carries_codes_scales_and_zero_points_bit_for_bit(fixture: Fixture, bundle: Path) -> None:
    expected = told(fixture.folder)
    assert_carried(bundle, expected, fixture.bits)
    summary = verify_bundle(bundle)
    assert summary.parity["float32"]["prefill"]["log_probability"] <= 2e-3
    assert summary.coverage[f"int{fixture.bits}"] == sorted(expected)


def test_the_bundle_says_what_a_model_of_these_floats_says(fixture: Fixture, bundle: Path) -> None:
    """Beside a plain Llama that holds what the loops tell; a bundle rounds activations to 8 bits."""
    tensors = load_file(fixture.folder / "model.safetensors")
    config = LlamaConfig.from_dict(
        {key: value for key, value in config_of(fixture.folder).items() if "quant" not in key}
    )
    model = LlamaForCausalLM(config).float().eval()
    floats = {name: torch.from_numpy(matrix.weight()) for name, matrix in told(fixture.folder).items()}
    state = {f"{name}.weight": weight for name, weight in floats.items()}
    state |= {name: tensor.float() for name, tensor in tensors.items() if name in model.state_dict()}
    assert set(model.load_state_dict(state, strict=False).missing_keys) == {"lm_head.weight"}, "which is tied"
    plain_TV = torch.log_softmax(torch.from_numpy(logits_of(model)), -1)
    bundle_TV = torch.from_numpy(np.asarray(OnnxCausalLM.open(bundle).score(np.asarray([PROMPT]))[0]))
    divergence = (plain_TV.exp() * (plain_TV - bundle_TV)).sum(-1).mean()
    assert 0 < divergence < 5e-3


def test_what_is_measured_of_it_agrees(fixture: Fixture, bundle: Path) -> None:
    """Parameters, bytes, zeros, multiply-accumulates and the runtime's name, of the checkpoint and of its bundle."""
    checkpoint, matrices = Checkpoint(fixture.folder), told(fixture.folder).values()
    adapter = FORMATS["quantized"]
    coded = sum(matrix.codes.size for matrix in matrices)
    floats = 57536 - coded  # of fixtures/tiny_llama.py
    sizes = coded * fixture.bits // 8 + 4 * sum(matrix.scales.size for matrix in matrices) + 4 * floats
    if not fixture.symmetric:
        sizes += sum(matrix.zeros.size for matrix in matrices) * fixture.bits // 8
    counts = adapter.counts(fixture.folder)
    zeros = sum(int((matrix.weight() == 0).sum()) for matrix in matrices)
    assert zeros
    assert (checkpoint.format, counts["parameters"]) == ("quantized", 57536)
    assert (
        counts["weight_bytes"]
        == sizes
        == sum(sum(part.values()) for part in adapter.components(fixture.folder).values())
    )
    assert counts["nonzero_parameters"] == 57536 - zeros
    assert adapter.macs(fixture.folder, context=16) == FORMATS["onnx"].macs(bundle, context=16)
    assert "multiplied out" in adapter.runtime(fixture.folder)
    assert FORMATS["onnx"].counts(bundle)["nonzero_parameters"] == counts["nonzero_parameters"]


def flip(bundle: Path, end: str) -> None:
    """Change a bit of a stored tensor, which lies in the graph's own file where it is small."""
    model = onnx.load(bundle / "model.onnx", load_external_data=False)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name.endswith(end))
    place = {entry.key: entry.value for entry in tensor.external_data}
    file, at = bundle / place.get("location", "model.onnx"), int(place.get("offset", 0))
    content = bytearray(file.read_bytes())
    if not place:
        at = content.index(tensor.raw_data)
    content[at + 5] ^= 16
    file.write_bytes(content)


@pytest.mark.parametrize("what", ["codes", "scales", "zeros"])
def test_a_bit_flipped_in_the_bundle_is_found(what: str, shared: Share, text_file: Path, tmp_path: Path) -> None:
    source = FIXTURES["gptq_v2"].folder
    whole = shared("bundle-of-gptq_v2", lambda out: exported(source, out, text_file))
    bundle = Path(shutil.copytree(whole, tmp_path / "bundle"))
    flip(bundle, f"o_proj.{what}")
    matrices = {name: matrix for name, matrix in read_quantized_matrices(source).items() if "o_proj" in name}
    check_carried(read_graph(whole), whole, matrices, matrices.items())
    kind = {"zeros": "zero points"}.get(what, what)
    with pytest.raises(CoverageError, match=f"o_proj: the bundle's {kind} are not the checkpoint's"):
        check_carried(read_graph(bundle), bundle, matrices, matrices.items())
    with pytest.raises(BundleIntegrityError, match="its content changed"):
        verify_bundle(bundle)


def put(numbers: list[list[int]], bits: int) -> torch.Tensor:
    """Numbers without a sign in int32, packed down the columns."""
    each = 32 // bits
    words = [
        [sum(numbers[at + place][column] << bits * place for place in range(each)) for column in range(len(numbers[0]))]
        for at in range(0, len(numbers), each)
    ]
    return torch.tensor(words, dtype=torch.int64).to(torch.int32)


def write_gptq(
    source: Path, out: Path, form: Format, *, version: int = 1, order: bool = True, **more: Any
) -> dict[str, Made]:
    """A dense checkpoint with its block linears in GPTQ's format; what they are by module."""
    shutil.copytree(source, out)
    held, written, middle = load_file(source / "model.safetensors"), {}, 1 << form.bits - 1
    turned = "transformer.wte.weight" in held  # GPT-2's Conv1D
    for name in [name for name in held if name.endswith(("_proj.weight", "c_attn.weight", "c_fc.weight"))]:
        weight, module = held.pop(name), name.removesuffix(".weight")
        written[module] = matrix = rounded(weight.T if turned else weight, form)
        held[f"{module}.qweight"] = put((matrix.codes.T.astype(int) + middle).tolist(), form.bits)
        stored = (matrix.zeros.astype(int) + middle - (version == 1)).tolist()
        held[f"{module}.qzeros"] = put(stored, form.bits).T.contiguous()
        held[f"{module}.scales"] = torch.tensor(matrix.scales).half().T.contiguous()
        columns = matrix.codes.shape[1]
        if order:
            held[f"{module}.g_idx"] = torch.arange(columns, dtype=torch.int32) // (form.group or columns)
    save_file(held, out / "model.safetensors", metadata={"format": "pt"})
    settings = {"quant_method": "gptq", "bits": form.bits, "group_size": form.group or -1, **more}
    edit(out, quantization_config=settings | ({} if version == 1 else {"checkpoint_format": "gptq_v2"}))
    return written


def edit(folder: Path, **changes: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(config_of(folder) | changes), encoding="utf-8")
    return folder


VARIANTS: dict[str, tuple[Format, dict[str, Any]]] = {
    "version 1 with zero points": (Format(32, 4, symmetric=False), {}),
    "version 2 of 8 bits with zero points": (Format(32, 8, symmetric=False), {"version": 2}),
    "rows, in an order that orders nothing": (Format(None, 4), {"desc_act": True}),
    "without g_idx": (Format(64, 8), {"order": False}),
}


@pytest.mark.parametrize(("form", "more"), VARIANTS.values(), ids=VARIANTS.keys())
def test_gptq_in_other_ways_is_read(form: Format, more: dict[str, Any], llama: Path, tmp_path: Path) -> None:
    assert_read(tmp_path / "gptq", write_gptq(llama, tmp_path / "gptq", form, **more), form.bits)


def test_gpt2_turns_its_matrices(shared_checkpoint: Make, text_file: Path, tmp_path: Path) -> None:
    dense = sharpened(shared_checkpoint("gpt2", n_layer=1), tmp_path / "dense")
    expected = write_gptq(dense, tmp_path / "gptq", Format(32, 4, symmetric=False))
    assert len(expected) == 4
    assert_read(tmp_path / "gptq", expected, 4)
    assert_carried(exported(tmp_path / "gptq", tmp_path / "bundle", text_file), expected, 4)


def test_a_packed_product_of_matrices_with_and_without_zero_points_has_them(
    llama: Path, text_file: Path, tmp_path: Path
) -> None:
    """Queries whose zero points are all 0 share a product with keys and values."""
    folder = tmp_path / "gptq"
    expected = write_gptq(llama, folder, Format(32, 4, symmetric=False), version=2)
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith("q_proj.qzeros")]:
        tensors[name] = torch.full_like(tensors[name], -0x77777778)
        module = name.removesuffix(".qzeros")
        expected[module] = replace(expected[module], zeros=np.zeros_like(expected[module].zeros))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert_carried(exported(folder, tmp_path / "bundle", text_file), expected, 4)


def test_biases_of_zeros_that_the_model_lacks_are_passed_over(llama: Path, tmp_path: Path) -> None:
    """As AutoGPTQ stored them with Llama; others are left over."""
    folder = tmp_path / "gptq"
    write_gptq(llama, folder, Format(32, 4))
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.bias"] = torch.zeros(128)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert inspect_checkpoint(folder).parameters == inspect_checkpoint(llama).parameters
    load_float_model(Checkpoint(folder))
    tensors["model.layers.0.mlp.up_proj.bias"][3] = 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"left over: model\.layers\.0\.mlp\.up_proj\.bias"):
        inspect_checkpoint(folder)


SETTINGS: dict[str, tuple[str, dict[str, Any], str]] = {
    "2 bits": ("gptq", {"bits": 2}, "`bits`: expected 4 or 8, got 2"),
    "3 bits": ("gptq", {"bits": 3}, "`bits`: expected 4 or 8, got 3"),
    "bits in a float": ("gptq", {"bits": 4.0}, "`bits`: expected 4 or 8, got 4.0"),
    "no group size": ("gptq", {"group_size": None}, "`group_size`: expected a number of columns, or -1 .*got None"),
    "another layout": (
        "gptq",
        {"checkpoint_format": "marlin"},
        "`checkpoint_format`: expected 'gptq' or 'gptq_v2', got",
    ),
    "marlin as once": ("gptq", {"is_marlin_format": True}, "`is_marlin_format`: expected none, got True"),
    "rotated": ("gptq", {"rotation": "hadamard"}, "`rotation`: expected none, got 'hadamard'"),
    "an adapter": ("gptq", {"adapter": {"name": "lora"}}, "`adapter`: expected none"),
    "activations": ("gptq", {"activation": "w4afp8"}, "`activation`: expected none, got 'w4afp8'"),
    "other words": ("gptq", {"pack_dtype": "int16"}, "`pack_dtype`: expected 'int32' or None, got 'int16'"),
    "a grid of its own": (
        "gptq",
        {"dynamic": {"+:.*up_proj": {"bits": 8, "group_size": 64}}},
        r"`dynamic`: expected modules that are left out \(-:...\) or have other bits \(4 or 8\), got .*64",
    ),
    "no mapping": ("gptq", {"dynamic": ["-:a"]}, "`dynamic`: expected modules that are left out"),
    "AWQ of 8 bits": ("awq", {"bits": 8}, "`bits`: expected 4, got 8"),
    "gemv": ("awq", {"version": "GEMV"}, "`version`: expected 'gemm', got 'gemv'"),
    "gemv_fast": ("awq", {"version": "gemv_fast"}, "`version`: expected 'gemm', got 'gemv_fast'"),
    "exllama": ("awq", {"version": "exllama"}, "`version`: expected 'gemm', got 'exllama'"),
    "AWQ for marlin": ("awq", {"version": "marlin"}, "`version`: expected 'gemm', got 'marlin'"),
    "the layout of llm-awq": ("awq", {"backend": "llm-awq"}, "`version`: expected 'gemm', got 'llm-awq'"),
    "symmetric AWQ": ("awq", {"zero_point": False}, "`zero_point`: expected True or None, got False"),
    "nf4": (
        "gptq",
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        "4 bits of nf4",
    ),
    "fp4": ("gptq", {"quant_method": "bitsandbytes", "load_in_4bit": True}, "`load_in_8bit`: .* 4 bits of fp4"),
    "nobody's": ("gptq", {"quant_method": "q4"}, "`quant_method`: expected 'awq', .*'gptq', got 'q4'"),
    "not even a name": ("gptq", {"quant_method": ["gptq"]}, r"`quant_method`: expected .* got \['gptq'\]"),
}


@pytest.mark.parametrize(("name", "changes", "message"), SETTINGS.values(), ids=SETTINGS.keys())
def test_what_is_not_covered_is_refused_by_its_key(name: str, changes: Any, message: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(ROOT / name, tmp_path / "checkpoint"))
    edit(folder, quantization_config=settings_of(folder) | changes)
    with pytest.raises(CheckpointError, match=f"{message}.*; start from the float checkpoint"):
        inspect_checkpoint(folder)


def test_every_other_method_is_refused_by_its_name(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(ROOT / "gptq", tmp_path / "checkpoint"))
    methods = {method.value for method in QuantizationMethod} | set(NOT_READ)
    others = methods - set(QUANTIZED_FORMATS)
    assert (
        {"hqq", "torchao", "gguf", "fp8", "quanto", "aqlm", "eetq", "spqr", "vptq", "higgs"} <= others == set(NOT_READ)
    )
    for method in others:
        edit(folder, quantization_config={"quant_method": method, "bits": 4})
        with pytest.raises(CheckpointError) as caught:
            inspect_checkpoint(folder)
        assert f"got {method!r} ({NOT_READ[method]}); start from the float checkpoint" in str(caught.value)


@pytest.mark.parametrize("nothing", [None, {}])
def test_no_quantization_is_a_dense_model(nothing: object, llama: Path, tmp_path: Path) -> None:
    folder = edit(Path(shutil.copytree(llama, tmp_path / "dense")), quantization_config=nothing)
    assert inspect_checkpoint(folder).format == "dense"


def scattered(tensors: Tensors) -> None:
    """As `desc_act: true` leaves them."""
    order = tensors["model.layers.0.mlp.up_proj.g_idx"]
    order[:] = order[torch.randperm(len(order), generator=torch.Generator().manual_seed(0))]


def without(end: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        del tensors[f"model.layers.0.mlp.up_proj.{end}"]

    return change


def cut(end: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        name = f"model.layers.0.mlp.up_proj.{end}"
        tensors[name] = tensors[name][:-1].clone()

    return change


def below_zero(tensors: Tensors) -> None:
    tensors["model.layers.0.mlp.up_proj.qzeros"][0, 0] = -1


TENSORS: dict[str, tuple[str, Callable[[Tensors], None], str]] = {
    "act-order": ("gptq", scattered, r"up_proj: `g_idx`: .* \(act-order\); quantize it with desc_act: false"),
    "an order of another length": ("gptq", cut("g_idx"), "up_proj: `g_idx`"),
    "a zero point of version 1 that is none": ("gptq", below_zero, "stored as 15, .*; save it as gptq_v2"),
    **{f"no {end}": ("gptq", without(end), f"up_proj.{end}") for end in ("scales", "qzeros")},
    "no qweight": ("gptq", without("qweight"), "missing: model.layers.0.mlp.up_proj.weight"),
    "fewer scales": ("gptq", cut("scales"), "up_proj: 1 scales for 64 columns do not fit config.json"),
    "fewer zero points": ("gptq", cut("qzeros"), "up_proj: expected int32 codes of 2 x 128 in 4 bits"),
    "fewer codes": ("gptq", cut("qweight"), "up_proj"),
    "AWQ without scales": ("awq", without("scales"), "up_proj.scales"),
    "AWQ with fewer scales": ("awq", cut("scales"), "up_proj: 1 scales for 64 columns do not fit config.json"),
    "AWQ with fewer zero points": ("awq", cut("qzeros"), "up_proj: expected a zero point for each scale"),
    "AWQ with fewer codes": ("awq", cut("qweight"), "up_proj"),
}


@pytest.mark.parametrize(("name", "change", "message"), TENSORS.values(), ids=TENSORS.keys())
def test_tensors_that_cannot_be_read_are_refused_before_any_work(
    name: str, change: Callable[[Tensors], None], message: str, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(ROOT / name, tmp_path / "checkpoint"))
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=message):
        inspect_checkpoint(folder)


def test_the_command_refuses_act_order_in_one_line(demitasse: Demitasse, text_file: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(ROOT / "gptq", tmp_path / "checkpoint"))
    tensors = load_file(folder / "model.safetensors")
    scattered(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    code, _, said = demitasse("export", folder, "--calibration-text", text_file, "--out", tmp_path / "bundle")
    assert code == 2
    assert "act-order" in said
    assert not (tmp_path / "bundle").exists()
