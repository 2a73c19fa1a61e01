"""Placement on CUDA without a GPU: the rule agrees with what sessions say, refuses by name, and admits what it does not
know.

Sessions on CUDA are opened over stand-ins for the CUDA libraries (export/placement/stub_libraries.py).
"""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
from conftest import Share
from exported import quantized
from family_variants import ALSO, FAMILIES, MIXTURES
from onnx import TensorProto, helper
from placement_graphs import HALF, REFUSED, attention, branching, model_of, product

from compress import Checkpoint
from export import EXPORT
from export.external_data import read_graph
from export.graph import build_decoder
from export.passes import PassContext, apply_passes
from export.placement import stub_libraries
from export.placement.assignments import Asked, ask
from export.placement.kernel_table import KernelTable, path_of, read_table
from export.placement.place import assign, place
from export.placement.read_nodes import read_nodes
from export.placement.trials import account
from export.runtime.session import ProviderError
from export.stage import build_bundle

Make = Callable[..., Path]
Build = Callable[[str, str, str], Path]
MISSING = stub_libraries.missing()
over_stubs = pytest.mark.skipif(bool(MISSING), reason=f"stand-ins for CUDA cannot be built: no {', '.join(MISSING)}")
CAPTURE = {"enable_cuda_graph": "1"}
QUICK = [("gpt2", "tied", "int8"), ("llama", "tied", "dense")]
EVERY = FAMILIES | ALSO | {family: {"": {}} for family in MIXTURES}
CASES = [
    pytest.param(family, variant, kind, id=f"{family}-{variant}-{kind}", marks=() if quick else pytest.mark.thorough)
    for family, variants in EVERY.items()
    for variant in variants
    for kind in (["dense"] if family in MIXTURES else ["dense", "int8"])
    for quick in [(family, variant, kind) in QUICK]
]


@pytest.fixture(scope="session")
def table() -> KernelTable:
    """The table of the installed version."""
    import onnxruntime

    found = read_table(onnxruntime.__version__)
    if found is None:
        pytest.skip(f"there is no table for ONNX Runtime {onnxruntime.__version__}")
    return found


@pytest.fixture(scope="session")
def libraries(shared: Share) -> Path:
    """Stand-ins for the CUDA libraries. Shared."""

    def build(folder: Path) -> None:
        folder.mkdir()
        stub_libraries.build(folder)

    return shared("stubs", build)


@pytest.fixture(scope="session")
def cuda_graphs(shared: Share, shared_checkpoint: Make) -> Build:
    """`cuda_graphs("gpt2", "tied", "int8")`: a folder with the graph for CUDA of a tiny model. Shared."""

    def make(family: str, variant: str, kind: str) -> Path:
        changes = deepcopy(EVERY[family][variant])
        dense = shared_checkpoint(family, **changes)
        name = f"{dense.name}-{kind}"

        def build(folder: Path) -> None:
            import onnx_ir

            source = dense if kind == "dense" else quantized(dense, folder.with_suffix(".int8"), embeddings=True)
            decoder = build_decoder(Checkpoint(source), "cuda")
            context = PassContext(weights=decoder.weights, provider="cuda", block_size=32, accuracy_level=0)
            apply_passes(decoder.model, context)
            folder.mkdir()
            onnx_ir.save(decoder.model, folder / "model.onnx", external_data="model.onnx.data")

        return shared(f"cuda-{name}", build)

    return make


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str, table: KernelTable, tmp_path: Path) -> None:
    make, message, _ = REFUSED[name]
    with pytest.raises(ProviderError, match=message):
        place(make(), tmp_path)


@over_stubs
def test_sessions_agree_with_every_refusal(libraries: Path, tmp_path: Path) -> None:
    asked = []
    for number, (make, _, _) in enumerate(REFUSED.values()):
        file = tmp_path / f"{number}.onnx"
        file.write_bytes(make().SerializeToString())
        asked.append(Asked(model=str(file), settings=CAPTURE if make is branching else {}))
    for told, (name, (_, _, agrees)) in zip(ask(libraries, asked), REFUSED.items(), strict=True):
        assert agrees(told), (name, told)


def test_block_that_fails_on_prompts_only_is_refused(table: KernelTable, tmp_path: Path) -> None:
    """A session with it opens, and decodes one token; MatMulNBits unpacks 4-bit codes for several."""
    with pytest.raises(ProviderError, match=r"product .*block size 256 is not supported"):
        place(product(4, 256), tmp_path)
    assert place(product(4, 128), tmp_path).proven == place(product(8, 256), tmp_path).proven == "static"


def test_half_precision_attention_is_proven(table: KernelTable, tmp_path: Path) -> None:
    placement = place(attention(HALF), tmp_path)
    assert (placement.proven, placement.nodes, placement.shape_arithmetic) == ("static", 2, 1)
    assert placement.sm == table.architectures
    assert placement.remarks == ("1 of 1 GroupQueryAttention can decode with the XQA kernels",)


def test_remarks_say_which_products_are_fast(table: KernelTable, tmp_path: Path) -> None:
    for bits, block, fast in [(8, 32, 1), (4, 32, 1), (4, 64, 0)]:
        (remark,) = place(product(bits, block), tmp_path).remarks
        assert remark.startswith(f"{fast} of 1 MatMulNBits can take the fpA_intB kernels"), (bits, block)


def test_unknown_version_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("onnxruntime.__version__", "0.0.1")
    placement = place(attention(HALF), tmp_path)
    assert (placement.proven, placement.onnxruntime, placement.nodes) == ("unknown", "0.0.1", 0)
    assert "nothing is known of ONNX Runtime 0.0.1" in placement.remarks[0]


def test_what_nobody_knows_of_a_kernel_is_unknown(table: KernelTable, tmp_path: Path) -> None:
    node = helper.make_node("Compress", ["x", "condition"], ["y"], name="compress")
    inputs = {"x": (HALF, ["rows", 8]), "condition": (TensorProto.BOOL, ["rows"])}
    placement = place(model_of([node], inputs, {"y": HALF}), tmp_path)
    assert placement.proven == "unknown"
    assert "compress (Compress): nobody knows" in placement.remarks[0]


def test_table_is_sorted_and_says_something() -> None:
    import onnxruntime

    file = path_of(onnxruntime.__version__)
    if not file.is_file():
        pytest.skip(f"there is no table for ONNX Runtime {onnxruntime.__version__}")
    content = json.loads(file.read_text(encoding="utf-8"))
    assert len(content["kernels"]) > 100
    assert all([*content[key]] == sorted(content[key]) for key in ("types", "kernels", "host"))
    assert all(kinds.split() == sorted(kinds.split()) for kinds in content["types"])
    assert content["architectures"]
    assert all(content[key] for key in ("xqa", "fast", "refused"))
    assert all(when for _, when, _ in content["refused"])
    assert all(when for when in content["fast"].values())


def test_account_of_refusals_is_the_shortest() -> None:
    outcomes = [
        ({"bits": bits, "block": block}, "no" if bits == 3 else "too wide" if (bits, block) == (4, 256) else "")
        for bits in (3, 4, 5, 8)
        for block in (32, 256)
    ]
    found = [(refusal.when, refusal.says) for refusal in account("Product", outcomes)]
    assert found == [({"bits": [3]}, "no"), ({"bits": [4], "block": [256]}, "too wide")]


@over_stubs
@pytest.mark.parametrize(("family", "variant", "kind"), CASES)
def test_sessions_place_every_node_alike(
    family: str, variant: str, kind: str, cuda_graphs: Build, libraries: Path, table: KernelTable
) -> None:
    folder = cuda_graphs(family, variant, kind)
    model = read_graph(folder)
    nodes = read_nodes(model)
    devices = dict(zip((node.name for node in nodes.nodes), assign(nodes, table, folder), strict=True))
    ours = {name for name, device in devices.items() if device == "cpu"}
    placement = place(model, folder)
    file = str(folder / "model.onnx")
    told = ask(
        libraries,
        [
            Asked(model=file, optimize=False),
            Asked(model=file),
            Asked(model=file, settings=CAPTURE),
        ],
    )
    assert not any(answer.error for answer in told)
    plain, optimized, _ = told
    constant = {name for name, device in devices.items() if device == "constant"}
    assert {name for name, _ in plain.elsewhere} - constant == ours
    assert {name for name, _ in plain.cuda} >= {name for name, device in devices.items() if device == "cuda"}
    operators = Counter(node.operator for node in nodes.nodes if node.name in ours)
    for answer in told:
        assert (answer.copies, answer.inputs_on_host, answer.outputs_on_host) == (0, [], [])
    assert Counter(name for _, name in optimized.elsewhere) == operators
    assert (placement.proven, placement.shape_arithmetic) == ("static", len(ours))
    assert placement.nodes == sum(device == "cuda" for device in devices.values())


PROOF = """
import sys
from pathlib import Path
from export.provider import prove_provider
proof = prove_provider(Path(sys.argv[1]), "cuda")
assert proof["nodes"] > 4 * proof["shape_arithmetic"] > 0, proof
"""


@over_stubs
@pytest.mark.parametrize(
    "family", ["gpt2", *(pytest.param(family, marks=pytest.mark.thorough) for family in FAMILIES if family != "gpt2")]
)
def test_a_step_can_be_captured(family: str, shared_checkpoint: Make, libraries: Path, tmp_path: Path) -> None:
    """A prompt and steps of the bundle, over stand-ins that refuse while capturing what CUDA refuses."""
    variant = next(iter(FAMILIES[family].values()))
    source = quantized(shared_checkpoint(family, **deepcopy(variant)), tmp_path / "int8", embeddings=True)
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    build_bundle(EXPORT.config(provider="cuda"), Checkpoint(source), bundle)
    environment = stub_libraries.environment_with(libraries)
    command = [sys.executable, "-c", PROOF, str(bundle)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]


FORBIDDEN = """
import ctypes, sys
cuda = ctypes.CDLL(sys.argv[1])
place, graph = ctypes.c_void_p(), ctypes.c_void_p()
assert cuda.cudaMalloc(ctypes.byref(place), 8) == 0
assert cuda.cudaStreamBeginCapture(None, 0) == 0
assert cuda.cudaMemcpyAsync(place, place, 8, 3, None) == 0
assert cuda.cudaMalloc(ctypes.byref(graph), 8) == cuda.cudaStreamSynchronize(None) == 900
assert cuda.cudaStreamEndCapture(None, ctypes.byref(graph)) == 0
assert cuda.cudaStreamSynchronize(None) == 0
"""


@over_stubs
def test_stand_ins_refuse_what_capturing_forbids(libraries: Path) -> None:
    command = [sys.executable, "-c", FORBIDDEN, str(libraries / "libcudart.so.13")]
    if not Path(command[-1]).is_file():
        pytest.skip("this ONNX Runtime needs another CUDA than 13")
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


@over_stubs
@pytest.mark.thorough
def test_the_script_makes_the_same_table_again() -> None:
    import onnxruntime

    from export.placement.make_kernel_table import as_text, make_table

    file = path_of(onnxruntime.__version__)
    if not file.is_file():
        pytest.skip(f"there is no table for ONNX Runtime {onnxruntime.__version__}")
    assert as_text(make_table()) == file.read_text(encoding="utf-8")
