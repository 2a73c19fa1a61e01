"""Bundles for CUDA on a machine without a GPU: made, proven as far as that goes, and recognized once a GPU has proven
the rest. What a GPU would do is played by the CPU, which computes the same file.
"""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import Demitasse
from exported import exported, quantized
from forging import edit_sealed

import export.proof
import export.provider
import recipes.engine.finish
import recipes.measure.footprint
import recipes.measure.latency
from compress.digests import digest_file, digest_of, sealed
from evaluation.report import Report, Source
from export.external_data import BundleIntegrityError, read_graph
from export.genai import CONFIG
from export.manifest import PROOF, read_manifest
from export.parity import AS_STORED, ParityError, arithmetics
from export.proof import PendingError, _check_gpu, _runs, check_nothing_pending, pending, prove_here, read_proof
from export.runtime import gpu, session
from export.runtime.batch import LOGITS, NEXT_IDS, Batch
from export.runtime.model import OnnxCausalLM
from export.runtime.session import ProviderError, choose_on_device, declare_logits_from, is_here, nearest
from export.self_test import run_self_test
from recipes import verify
from recipes.engine.finish import _is_hub_model, finish_run
from recipes.engine.rejudge import RejudgeError, judge_run
from recipes.engine.tracking_server import _pending
from recipes.runs.records import is_added_later
from recipes.runs.store import Store
from recipes.runs.upkeep import held

pytestmark = pytest.mark.skipif(is_here("cuda"), reason="this machine has a GPU, where nothing stays pending")
H200 = gpu.Gpu(name="NVIDIA H200", capability=90)


@pytest.fixture(scope="module")
def made(gpt2: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle for CUDA, made here."""
    root = tmp_path_factory.mktemp("cuda")
    source = quantized(gpt2, root / "int8", scheme="int8_group", group=32, method="rtn")
    return exported(source, root / "bundle", text_file, provider="cuda")


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "bundle"))


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of CUDA is carried out by the CPU."""
    play_a_gpu(monkeypatch)


def play_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (export.proof, export.provider, recipes.engine.finish, recipes.measure.latency):
        monkeypatch.setattr(module, "is_here", lambda provider: True)
    for module in (export.proof, export.provider, recipes.engine.finish):
        if hasattr(module, "gpus"):
            monkeypatch.setattr(module, "gpus", lambda: (H200,))
    monkeypatch.setitem(session.PROVIDERS, "cuda", "CPUExecutionProvider")
    monkeypatch.setitem(session.SETTINGS, "cuda", {})
    monkeypatch.setattr(
        export.proof, "run_self_test", lambda bundle, provider, stated: {"kl": 0.0, "tolerance": 1.0, "positions": 1}
    )
    monkeypatch.setattr(
        export.proof,
        "prove_provider",
        lambda bundle, provider: {"provider": provider, "nodes": 9, "shape_arithmetic": 2},
    )


def test_a_bundle_for_cuda_says_what_is_proven_and_what_is_pending(made: Path) -> None:
    manifest = read_manifest(made)
    assert manifest["arithmetic"] == {"proven": "cpu float16", "pending": "cuda"}
    placement = manifest["placement"]
    assert (placement["proven"], placement["provider"], placement["shape_arithmetic"]) == ("static", "cuda", 2)
    assert placement["nodes"] > 20
    assert "sm_90a" in placement["sm"]
    assert arithmetics(read_graph(made)) == ["float16"]
    assert set(manifest["parity"]["float16"]) > {"prefill", "decode", "batch", "left padding", "context"}
    assert set(manifest["parity"][AS_STORED]) == {"tolerance", "prefill", "decode"}
    kinds = {value.type.tensor_type.elem_type for value in read_graph(made).graph.output}
    assert kinds == {onnx.TensorProto.FLOAT16}


def test_its_products_are_laid_out_for_the_fast_kernels(made: Path) -> None:
    products = [node for node in read_graph(made).graph.node if node.op_type == "MatMulNBits"]
    blocks = {attribute.i for node in products for attribute in node.attribute if attribute.name == "block_size"}
    assert blocks == {32}
    assert all(len(node.input) == 3 for node in products)  # neither zero points nor a bias
    options = json.loads((made / CONFIG).read_text())["model"]["decoder"]["session_options"]
    assert options["optimization.disable_specified_optimizers"] == "MatMulNBitsFusion"
    assert options["ep.cuda.fpa_intb_gemm"] == "1"


def test_it_runs_on_the_cpu_where_that_is_asked_for_and_nowhere_else_by_itself(made: Path) -> None:
    assert OnnxCausalLM.open(made, provider="cpu").generate([[1, 2, 3]], max_new_tokens=4)
    with pytest.raises(ProviderError, match="demitasse doctor"):
        OnnxCausalLM.open(made)
    assert nearest("cuda") == "cpu"


def test_verify_says_what_is_pending_and_takes_it_where_that_is_accepted(made: Path, demitasse: Demitasse) -> None:
    code, said, error = demitasse("verify", made)
    assert code == 4
    assert "parity holds here" in said
    assert "static: " in said
    assert "cpu float16; pending: cuda" in said
    assert _pending(made) == "what its bundle computes on CUDA is pending: run `demitasse verify` on a GPU"
    assert "what CUDA computes is pending: run `demitasse verify` on a machine with such a GPU" in error
    assert demitasse("verify", made, "--allow-pending")[0] == 0
    with pytest.raises(PendingError):
        verify(made)
    assert verify(made, allow_pending=True).provider == "cuda"
    assert not (made / PROOF).exists()


@pytest.mark.usefixtures("on_a_gpu")
def test_a_proof_is_kept_beside_the_bundle_and_recognized_elsewhere(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, demitasse: Demitasse
) -> None:
    before = (bundle / "manifest.json").read_bytes()
    prove_here(bundle, "cuda", 0.0)
    proof = read_proof(bundle)
    assert proof is not None
    assert proof.device == "NVIDIA H200"
    assert pending(bundle) == ""
    assert (bundle / "manifest.json").read_bytes() == before
    assert sorted(path.name for path in bundle.iterdir() if path.name.startswith(".")) == []
    monkeypatch.undo()
    check_nothing_pending(bundle)
    code, said, _ = demitasse("verify", bundle)
    assert code == 0
    assert "cpu float16; cuda on NVIDIA H200" in said
    assert _pending(bundle) == ""


@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.write_text(file.read_text().replace("H200", "H100")), "expected a proof as it was written"),
        (lambda file: file.write_text(sealed({"device": "GPU"})), "expected a proof as it was written"),
        (lambda file: edit_sealed(file, lambda told: told.update(manifest="0" * 64)), "proves another bundle"),
    ],
    ids=["edited", "of another shape", "of another bundle"],
)
def test_a_proof_that_is_not_this_bundles_proves_nothing(bundle: Path, change: Any, message: str) -> None:
    prove_here(bundle, "cuda", 0.0)
    change(bundle / PROOF)
    with pytest.raises(BundleIntegrityError, match=message):
        pending(bundle)


@pytest.mark.parametrize(
    ("architecture", "capability", "runs"),
    [
        ("sm_80", 86, True),
        ("sm_86", 80, False),
        ("sm_90a", 91, False),
        ("compute_90", 100, True),
        ("compute_90", 89, False),
    ],
)
def test_machine_code_and_text_run_on_what_they_were_made_for(architecture: str, capability: int, runs: bool) -> None:
    assert _runs(architecture, capability) == runs


@pytest.mark.parametrize(
    ("capability", "runs"), [(90, True), (86, True), (87, True), (75, True), (100, False), (121, False), (70, False)]
)
def test_a_gpu_that_no_kernel_was_compiled_for_is_named_before_anything_runs(
    made: Path, capability: int, runs: bool
) -> None:
    card = gpu.Gpu(name="some GPU", capability=capability)
    if runs:
        _check_gpu(made, card)
        return
    with pytest.raises(ProviderError, match=rf"got some GPU \(sm_{capability}\); use another GPU"):
        _check_gpu(made, card)


def test_a_choice_that_is_not_the_likeliest_token_is_found(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_self_test(made, "cpu")
    monkeypatch.setattr(Batch, "likeliest", lambda batch: batch.logits().argmin(axis=-1))
    with pytest.raises(ParityError, match="the token that is chosen is not the likeliest one"):
        run_self_test(made, "cpu")


def test_a_stored_bundle_may_get_its_proof_later_and_nothing_else() -> None:
    assert all(map(is_added_later, ("README.md", PROOF, f"model/1/{PROOF}", f"onnx/{PROOF}")))
    assert is_added_later(f".{PROOF}.4711")  # what a kill left
    assert not any(map(is_added_later, ("model.onnx", "onnx/README.md", f"{PROOF}.bak", f".{PROOF}.x", "proof")))


def test_the_likeliest_token_chosen_in_the_graph_is_the_one_chosen_outside(made: Path) -> None:
    graph = read_graph(made)
    opened = session.open_session(made, provider="cpu")
    plain = Batch(opened, 2, 12, "cpu")
    choose_on_device(graph)
    assert [value.name for value in graph.graph.output][-1] == NEXT_IDS
    choosing = Batch(session.open_session(made, provider="cpu", graph=graph), 2, 12, "cpu")
    ids_BT, count_B = np.asarray([[5, 6, 7, 8], [9, 10, 0, 0]]), np.asarray([4, 2])
    for batch in (plain, choosing):
        batch.read(ids_BT, count_B)
    for _ in range(4):
        next_B = plain.likeliest()
        assert np.array_equal(next_B, plain.logits().argmax(axis=-1))
        assert np.array_equal(next_B, choosing.likeliest())
        for batch in (plain, choosing):
            batch.append(next_B)
    without = onnx.ModelProto()
    declare_logits_from(without)
    choose_on_device(without)
    assert LOGITS not in {node.input[0] for node in without.graph.node}


# ---- a whole run


@pytest.fixture(scope="module")
def run(gpt2: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose bundle is for CUDA, on a machine without a GPU."""
    from recipes import Recipe
    from recipes import run as carry_out

    root = tmp_path_factory.mktemp("runs")
    out, texts = root / "run", (root / "calibration.txt", root / "test.txt")
    documents = text_file.read_text(encoding="utf-8").split("\n<|endoftext|>\n")
    for file, part in zip(texts, (documents[:6], documents[6:]), strict=True):
        file.write_text("\n<|endoftext|>\n".join(part), encoding="utf-8")
    content = {
        "model": str(gpt2),
        "data": {"calibration": str(texts[0]), "test": str(texts[1])},
        "stages": [
            {"quantize": {"scheme": "int8_group", "group": 32, "method": "rtn"}},
            {"export": {"provider": "cuda", "parity_tokens": 16}},
        ],
        "evaluate": {"window": 16, "windows": 4},
        "benchmark": {"prompt": 8, "tokens": 4, "blocks": 3, "threads": 1},
        "gate": {"perplexity": {"max_ratio": 2}, "decode_latency": {"max_ratio": 1000}},
    }
    carry_out(Recipe.from_dict(content), out=out)
    return out


def test_its_quality_is_measured_here_and_its_latency_stays_pending(run: Path) -> None:
    report = Report.model_validate_json((run / "report.json").read_text())
    assert report.exit_code == 4
    perplexity, latency = (report.final.measurement(metric) for metric in ("perplexity", "decode_latency"))
    assert perplexity is not None
    assert latency is not None
    assert math.isfinite(perplexity.value)
    assert latency.invalid.startswith("pending: it runs on CUDA")
    assert "demitasse gate RUN --measure" in latency.invalid
    assert {gate.metric: gate.verdict for gate in report.gates} == {"perplexity": "PASS", "decode_latency": "INVALID"}
    assert judge_run(run).verdict == "INVALID"


def test_it_is_not_finished_without_a_gpu(run: Path, demitasse: Demitasse) -> None:
    code, _, error = demitasse("gate", run, "--measure")
    assert code == 2
    assert "expected a GPU that CUDA can use, got none" in error
    code, _, error = demitasse("gate", run, "--model", run)
    assert code == 2
    assert "--model: says where the model lies that --measure times" in error


def all_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = recipes.measure.latency.run_trials
    monkeypatch.setattr(
        recipes.measure.latency,
        "run_trials",
        lambda session, targets, ids, **more: taken(
            session, [replace(target, on_gpu=False) for target in targets], ids, **more
        ),
    )
    monkeypatch.setattr(recipes.engine.finish, "_check_torch", lambda targets: None)


def test_on_a_gpu_the_same_run_is_finished(
    run: Path, gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run", symlinks=True))
    play_a_gpu(monkeypatch)
    all_on_the_cpu(monkeypatch)
    with pytest.raises(RejudgeError, match="say where it lies with --model"):
        finish_run(copy, model=tmp_path)
    report = finish_run(copy, model=gpt2)
    assert report.session is not None
    assert report.session.pending is None
    assert all(report.session.of(row.name) for row in report.rows)
    timed = [row.measurement("decode_latency") for row in report.rows]
    assert all(one is not None and "pending" not in one.invalid for one in timed)  # a busy machine may spoil them
    assert {gate.metric: gate.verdict for gate in report.gates}["perplexity"] == "PASS"
    assert report.environment["gpu"] == "NVIDIA H200"
    before = Report.model_validate_json((run / "report.json").read_text())
    assert report.final.samples["latency"] != before.final.samples["latency"]
    assert (copy / "final" / PROOF).is_file()
    again = finish_run(copy, model=gpt2)  # what came to nothing is taken again, what did not is there
    spoilt = any(one is not None and one.invalid for one in timed)
    assert (again.final.samples["latency"] != report.final.samples["latency"]) == spoilt
    assert again.session is not None
    monkeypatch.undo()
    assert judge_run(copy).report.final.samples == again.final.samples
    names = {name for row in again.rows for name in row.samples.values()}
    assert names <= {kept.name for kept in held(Store(copy / "artifacts")) if kept.runs}


def test_latencies_that_came_to_nothing_are_taken_again(
    run: Path, gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run", symlinks=True))
    play_a_gpu(monkeypatch)
    all_on_the_cpu(monkeypatch)
    monkeypatch.setattr(recipes.measure.latency, "run_trials", lambda session, *_, **__: session)  # none ran
    spoilt = finish_run(copy, model=gpt2)
    assert spoilt.exit_code == 4
    begun: list[int] = []
    monkeypatch.setattr(
        recipes.measure.latency, "run_trials", lambda session, *_, **__: begun.append(session.taken) or session
    )
    again = finish_run(copy, model=gpt2)
    assert begun
    assert again.final.samples["latency"] != spoilt.final.samples["latency"]


def test_pytorch_without_a_gpu_is_told_before_anything_is_timed(
    run: Path, gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this PyTorch has a GPU")
    copy = Path(shutil.copytree(run, tmp_path / "run", symlinks=True))
    play_a_gpu(monkeypatch)
    with pytest.raises(ProviderError, match="expected a PyTorch that can use the GPU"):
        finish_run(copy, model=gpt2)
    assert judge_run(copy).verdict == "INVALID"


def test_a_model_of_the_hub_is_known_by_the_hash_of_its_weights(gpt2: Path, tmp_path: Path) -> None:
    hub, revision = "org/model", "0" * 40
    key = digest_of({"hub": hub, "revision": revision})
    weights = digest_file(gpt2 / "model.safetensors")
    read = Source(role="model", name=f"{hub}@{revision}", digest=weights)
    assert _is_hub_model(gpt2, key, read)
    assert not _is_hub_model(gpt2, key, read.model_copy(update={"digest": "0" * 64}))
    assert not _is_hub_model(gpt2, key, read.model_copy(update={"name": f"{hub}@{'1' * 40}"}))
    assert not _is_hub_model(gpt2, key, None)
