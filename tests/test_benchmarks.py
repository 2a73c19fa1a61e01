"""The benchmarks measure what they say: the same tokens in every variant, the same context in every block, honest
verdicts.

One comparison and one scaling run over tiny models are made once and looked at from several sides; they and whatever
else runs models are thorough. What reads results and arguments is quick.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from conftest import Share
from exported import sharpened
from typer.testing import CliRunner

from benchmarks import peers
from benchmarks.bandwidth import read_bandwidth
from benchmarks.grid import Prompts, Settings, workloads_of
from benchmarks.marks import peak_until, seconds_until
from benchmarks.page import PAGE, print_results, write_page
from benchmarks.peers import compare, joined
from benchmarks.prepare import KINDS, installed
from benchmarks.process import VariantError, VariantProcess
from benchmarks.scaling import scale
from benchmarks.scaling_tables import WRITTEN, scaling_outcomes
from benchmarks.shapes import SHAPES, write_checkpoint
from benchmarks.targets import Outcome, floor_seconds, paired_ratio, seconds_of
from benchmarks.variants import OURS, REFERENCE, VARIANTS
from evaluation.measurement import Interval

ROOT = Path(__file__).resolve().parent.parent
LLAMA_CPP = "llama-cpp-python"
BLOCKS = 3
QUICK_VARIANTS = (REFERENCE, "ort-fp32", "ort-dynamic", "genai-bundle", "llama.cpp", OURS)
"""All but torch.compile and onnxruntime-genai's builder, which take a minute for the smallest model."""


@pytest.fixture(scope="session")
def run(shared: Share, shared_checkpoint: Callable[..., Path]) -> dict[str, Any]:
    """A comparison of a tiny GPT-2, as it would be stored."""

    def make(folder: Path) -> None:
        folder.mkdir()
        checkpoint = sharpened(shared_checkpoint("gpt2", n_layer=2), folder / "tiny")
        settings = Settings(
            workloads=workloads_of((24,), (24,), (1, 3)),
            blocks=BLOCKS,
            steps=3,
            loads=1,
            threads=2,
            settle=0.0,
            load_prompt=16,
        )
        compare((str(checkpoint),), QUICK_VARIANTS, settings, folder / "work", folder / "peers.json")

    stored: dict[str, Any] = json.loads((shared("benchmark-peers", make) / "peers.json").read_text(encoding="utf-8"))
    return stored


@pytest.fixture(scope="session")
def scaled(shared: Share) -> dict[str, Any]:
    def make(folder: Path) -> None:
        folder.mkdir()
        changes = {"n_layer": 2, "n_embd": 64, "n_head": 2, "vocab_size": 512, "n_positions": 160}
        found = scale(["gpt2-124m"], threads=2, work=folder / "work", **changes)
        (folder / "scaling.json").write_text(json.dumps(found), encoding="utf-8")

    stored: dict[str, Any] = json.loads((shared("benchmark-scaling", make) / "scaling.json").read_text("utf-8"))
    return stored


def workloads_that_ran(run: dict[str, Any], variant: str) -> dict[str, Any]:
    return {
        key: workload
        for key, workload in run["models"]["tiny"]["variants"][variant]["workloads"].items()
        if not workload["reason"]
    }


def tokens_of(run: dict[str, Any], variant: str) -> np.ndarray[Any, Any]:
    """Every greedy token of the decode workloads."""
    workloads = [workload for key, workload in workloads_that_ran(run, variant).items() if key.startswith("decode")]
    return np.concatenate([np.asarray(workload["tokens"]).ravel() for workload in workloads])


@pytest.mark.thorough
def test_every_variant_ran_every_workload_or_says_why(run: dict[str, Any]) -> None:
    variants = run["models"]["tiny"]["variants"]
    assert set(variants) == set(QUICK_VARIANTS)
    for name, variant in variants.items():
        if name == "llama.cpp" and not installed(LLAMA_CPP):
            assert "pip install llama-cpp-python" in variant["reason"]
            continue
        assert not variant["reason"], f"{name}: {variant['reason']}"
        assert len(variant["workloads"]) == 4
        for key, workload in variant["workloads"].items():
            assert not workload["reason"], f"{name} {key}: {workload['reason']}"
            assert len(workload["seconds"]) == BLOCKS
            assert min(workload["seconds"]) > 0
        assert variant["load"][0]["open"] > 0
        assert variant["load"][0]["peak"] > 2**20
        assert variant["weight_bytes"] > 1000


@pytest.mark.thorough
def test_exact_variants_give_pytorchs_tokens_and_int8_variants_nearly_do(run: dict[str, Any]) -> None:
    expected = tokens_of(run, REFERENCE)
    assert len(expected) == (1 + 2 + 3) * (1 + 3)
    assert len(set(expected.tolist())) > 4
    assert (tokens_of(run, "ort-fp32") == expected).all()
    for name in (OURS, "genai-bundle"):
        assert (tokens_of(run, name) == expected).mean() > 0.7
    assert (tokens_of(run, OURS) == tokens_of(run, "genai-bundle")).all()


@pytest.mark.thorough
def test_every_block_starts_at_the_same_context(run: dict[str, Any]) -> None:
    for name in QUICK_VARIANTS:
        for key, workload in workloads_that_ran(run, name).items():
            rewinds = not (name == "genai-bundle" and key.endswith("-3"))
            if key.startswith("decode") and rewinds:
                assert workload["same"] == BLOCKS, f"{name} {key}"


@pytest.mark.thorough
def test_the_weights_of_the_bundle_are_the_smallest(run: dict[str, Any]) -> None:
    variants = run["models"]["tiny"]["variants"]
    assert variants[OURS]["weight_bytes"] < 0.5 * variants[REFERENCE]["weight_bytes"]
    assert variants[OURS]["weight_bytes"] < variants["ort-dynamic"]["weight_bytes"]


@pytest.mark.thorough
def test_the_floor_is_taken_in_the_same_blocks(run: dict[str, Any]) -> None:
    model = run["models"]["tiny"]
    seconds = floor_seconds(model, "decode-24-1")
    assert len(seconds) == BLOCKS
    per_byte = np.array(seconds) / model["variants"][OURS]["weight_bytes"]
    assert (per_byte > 1e-13).all()
    assert (per_byte < 1e-8).all()
    assert floor_seconds(model, "prefill-24-1") == []


@pytest.mark.thorough
def test_scaling_reports_export_memory_and_decoding(scaled: dict[str, Any]) -> None:
    shape = scaled["shapes"]["gpt2-124m"]
    assert shape["parameters"] == 512 * 64 + 160 * 64 + 2 * (12 * 64 * 64 + 13 * 64) + 2 * 64
    assert 0 < seconds_until(shape["export"], WRITTEN) < seconds_until(shape["export"])
    assert 0 < peak_until(shape["export"], WRITTEN) <= peak_until(shape["export"])
    assert seconds_until(shape["torch_export"]) > 0
    decoded = seconds_of(shape["variants"], OURS, "decode-128-1")
    assert len(decoded) == len(floor_seconds(shape, "decode-128-1")) > 1
    assert min(decoded) > 0


@pytest.mark.thorough
def test_growth_is_per_byte_of_weights(scaled: dict[str, Any]) -> None:
    small = scaled["shapes"]["gpt2-124m"]
    parts = {name: {key: 3 * value for key, value in part.items()} for name, part in small["export"].items()}
    large = small | {"export": parts, "float32_bytes": 2 * small["float32_bytes"]}
    del large["torch_export"]
    found = scaling_outcomes({"shapes": {"a": small, "b": large, "c": {"reason": "no memory"}}})
    assert {outcome.what: round(outcome.value or 0, 9) for outcome in found if "per byte" in outcome.what} == {
        "b / a: export's time per byte": 1.5,
        "b / a: export's peak memory per byte": 1.5,
    }
    assert [outcome.verdict for outcome in found[-3:]] == ["short", "short", "PASS"]


@pytest.mark.thorough
def test_the_page_is_written_from_stored_results(
    run: dict[str, Any], scaled: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "peers.json").write_text(json.dumps(run))
    failed = {"shapes": scaled["shapes"] | {"gpt2-355m": {"reason": "no memory"}}}
    (tmp_path / "scaling.json").write_text(json.dumps(scaled | failed))
    write_page(tmp_path, tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    for name in QUICK_VARIANTS:
        assert f"| {VARIANTS[name].title} |" in page
    assert "| floor: our weights read once |" in page
    assert "## Growing shapes" in page
    assert "| gpt2-355m | n/a (no memory) |" in page
    assert "## On a GPU" not in page
    assert any(f"| {verdict} |" in page for verdict in ("PASS", "close", "short"))
    assert "| decode at 128 tokens, against llama.cpp Q8_0 | at least 1.4x | n/a (" in page
    assert run["machine"]["processor"] in page
    print_results(run)
    assert "demitasse int8" in capsys.readouterr().out


@pytest.mark.thorough
def test_models_of_an_earlier_run_stay_if_it_was_taken_alike(run: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "peers.json"
    out.write_text(json.dumps(run))
    other = run | {"models": {"other": {}}}
    assert set(joined(other, out)["models"]) == {"tiny", "other"}
    elsewhere = other | {"machine": run["machine"] | {"processor": "another one"}}
    assert set(joined(elsewhere, out)["models"]) == {"other"}


def test_the_page_is_what_the_stored_results_say(tmp_path: Path) -> None:
    write_page(page=tmp_path / "page.md")
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == PAGE.read_text(encoding="utf-8")


def test_a_page_without_results_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"benchmarks\.peers"):
        write_page(tmp_path, tmp_path / "page.md")


def test_ratios_are_paired_within_blocks() -> None:
    drift = np.array([1.0, 4.0, 2.0, 8.0, 3.0])
    workloads = {"decode-128-1": {"reason": "", "seconds": []}}
    ours = {"reason": "", "workloads": {"decode-128-1": {"reason": "", "seconds": list(drift)}}}
    theirs = {"reason": "", "workloads": {"decode-128-1": {"reason": "", "seconds": list(2 * drift[:])}}}
    ratio, interval, reason = paired_ratio({"a": theirs, "b": ours}, "a", "b", "decode-128-1")
    assert (ratio, reason) == (2.0, "")
    assert interval is not None
    assert (interval.low, interval.high) == (2.0, 2.0)
    dead = {"reason": "died", "workloads": workloads}
    assert paired_ratio({"eager": dead, "b": ours}, "eager", "b", "decode-128-1")[2] == "PyTorch eager: died"


@pytest.mark.parametrize(
    ("value", "low", "high", "at_least", "verdict"),
    [
        (1.5, 1.41, 1.6, True, "PASS"),
        (1.5, 1.39, 1.6, True, "close"),
        (1.39, 1.3, 1.6, True, "short"),
        (0.2, 0.1, 1.3, False, "PASS"),
        (1.3, 1.2, 1.5, False, "close"),
        (1.5, 1.2, 1.6, False, "short"),
        (None, 0.0, 0.0, True, "n/a"),
    ],
)
def test_a_verdict_needs_the_whole_interval(
    value: float | None, low: float, high: float, at_least: bool, verdict: str
) -> None:
    interval = Interval(low=low, high=high, confidence=0.95)
    assert Outcome(what="", limit=1.4, value=value, interval=interval, at_least=at_least).verdict == verdict


@pytest.mark.thorough
def test_a_variant_that_fails_or_dies_leaves_a_reason(tmp_path: Path) -> None:
    with VariantProcess(
        VARIANTS[REFERENCE].runner, tmp_path, threads=1, device="cpu", scratch=tmp_path / "s"
    ) as process:
        with pytest.raises(VariantError, match="Error"):
            process.order("open")
        assert process.alive
        process._process.kill()
        with pytest.raises(VariantError, match="died with -9"):
            process.order("memory")


def test_variants_name_files_and_runners_that_exist() -> None:
    assert len(VARIANTS) >= 8
    for variant in VARIANTS.values():
        assert variant.files == "checkpoint" or variant.files in KINDS
        assert KINDS.get(KINDS[variant.files].needs or "int8" if variant.files in KINDS else "int8")
        module, _, name = variant.runner.partition(":")
        assert f"class {name}" in (ROOT / f"{module.replace('.', '/')}.py").read_text()
    assert VARIANTS["genai"].reason_against("gpt2") == "has no gpt2"


FAMILIES = ("gpt2-124m", "smollm2-135m")
"""A shape of each architecture; the others differ in size, which the test makes small."""


@pytest.mark.parametrize(
    "shape", [shape if shape in FAMILIES else pytest.param(shape, marks=pytest.mark.thorough) for shape in SHAPES]
)
def test_a_shape_loads_as_its_model(shape: str, tokenizer_files: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    small = {"gpt2": {"n_layer": 1, "n_embd": 40, "n_head": 2}, "llama": {"num_hidden_layers": 1, "hidden_size": 36}}
    changes = small[SHAPES[shape]["model_type"]] | {"vocab_size": 400}
    write_checkpoint(shape, tmp_path, tokenizer=tokenizer_files, **changes)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    table = model.get_input_embeddings().weight
    assert 0.09 < float(table.detach().std()) < 0.11
    assert Prompts.read(tmp_path, 64).rows(2, 32)[1] == Prompts.read(tmp_path, 64).ids_T[32:64]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_gguf_holds_the_checkpoints_weights(family: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="the GGUF writer is optional: pip install gguf")
    from safetensors.numpy import load_file

    from benchmarks.gguf_file import write_gguf

    source: Path = request.getfixturevalue(family)
    write_gguf(source, tmp_path / "model.gguf")
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    found = {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    tensors = load_file(source / "model.safetensors")
    for name, expected in gguf_expects(family, tensors).items():
        largest = np.abs(expected).reshape(len(expected), -1, 32).max(axis=2).repeat(32, axis=1)
        step = largest / 127
        half_and_what_rounding_the_scale_adds = 0.5 + 127 * 2.0**-11
        assert (np.abs(found[name] - expected) <= half_and_what_rounding_the_scale_adds * step).all(), name
    assert ("token_embd.weight" in found, "output.weight" in found) == (True, False)


def gguf_expects(family: str, tensors: dict[str, Any]) -> dict[str, Any]:
    """Some of a file's matrices, float32 [out, in], made from the checkpoint in another way than the writer's.

    Row 2j of a rotated head is its row j, and row 2j + 1 its row j + width / 2.
    """
    if family == "gpt2":
        names = {"blk.1.ffn_up.weight": "h.1.mlp.c_fc.weight", "blk.2.attn_qkv.weight": "h.2.attn.c_attn.weight"}
        return {ours: tensors[f"transformer.{theirs}"].T for ours, theirs in names.items()}
    key_OI, width = tensors["model.layers.1.self_attn.k_proj.weight"], 16
    request = [
        head + (row % 2) * (width // 2) + row // 2 for head in range(0, len(key_OI), width) for row in range(width)
    ]
    return {"blk.1.ffn_up.weight": tensors["model.layers.1.mlp.up_proj.weight"], "blk.1.attn_k.weight": key_OI[request]}


@pytest.mark.thorough
@pytest.mark.skipif(not installed(LLAMA_CPP), reason="llama.cpp is an optional peer: pip install llama-cpp-python")
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_llama_cpp_gives_pytorchs_tokens(family: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    import torch

    from benchmarks.gguf_file import write_gguf
    from compress.checkpoints.folder import Checkpoint
    from compress.checkpoints.loading import load_float_model

    source = sharpened(request.getfixturevalue(family), tmp_path / "sharp")
    write_gguf(source, tmp_path / "model.gguf")
    ids_BT = np.random.default_rng(0).integers(0, 300, size=(24, 40))
    with torch.inference_mode():
        logits_BTV = load_float_model(Checkpoint(source))(torch.from_numpy(ids_BT)).logits
    expected_B = logits_BTV[:, -1].argmax(dim=-1).numpy()
    runner = VARIANTS["llama.cpp"].runner
    with VariantProcess(runner, tmp_path, threads=2, device="cpu", scratch=tmp_path / "scratch") as process:
        process.order("open")
        found_B = process.order("read", ids=ids_BT.tolist(), room=8)["next"]
    assert (np.array(found_B) == expected_B).mean() > 0.85


@pytest.mark.parametrize("wrong", [["--model", "gpt2-12m"], ["--variant", "llama"]])
def test_what_cannot_be_found_is_refused_before_anything_runs(wrong: list[str]) -> None:
    command = typer.Typer(pretty_exceptions_enable=False)
    command.command()(peers.main)
    answer = CliRunner().invoke(command, ["--quick", *wrong], env={"COLUMNS": "200"})
    assert answer.exit_code == 2
    assert f"{wrong[0]} {wrong[1]}: expected" in " ".join(answer.output.split())


@pytest.mark.thorough
def test_gpu_says_that_there_is_none() -> None:
    from benchmarks.gpu import NO_GPU, reason_against

    if not reason_against():
        pytest.skip("this machine has a GPU that ONNX Runtime can use")
    command = [sys.executable, "-m", "benchmarks.gpu"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == NO_GPU == 3
    assert answer.stdout.startswith("no GPU here: ")
    assert "Traceback" not in answer.stderr


@pytest.mark.thorough
def test_bandwidth_is_measured() -> None:
    assert 1e8 < read_bandwidth(2, size=64 << 20, repeats=2) < 1e13
