"""Variants in processes of their own, and `demitasse benchmark` over real folders."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from clocked_variants import OPENER, make_variant, not_numbers
from conftest import Demitasse
from forging import edit_sealed

from benchmarks.slowdown import table as slowdown_table
from benchmarks.slowdown import take as take_slowdown
from compress import Silent
from compress.text import TextSource
from evaluation.gate import EXIT_CODES, Limit, judge
from evaluation.latency import Protocol, Session, Trial, Workload, latency_measurements, workload_measurements
from evaluation.latency.figures import kept_blocks, single_steps
from evaluation.measurement import Measurement
from recipes.config.recipe import BenchmarkConfig
from recipes.engine.benchmark import BenchmarkError, BenchmarkRequest, Result, benchmark, targets_of
from recipes.formats import FORMATS
from recipes.formats.base import NOT_NUMBERS, MeasureError
from recipes.measure.interleaving import BenchmarkTarget, new_session, pinned_cpus, resumed, run_trials
from recipes.measure.latency import LATENCY_FILE, measure_latency, read_session, target_of
from recipes.measure.variant_client import run_together
from recipes.measure.variant_process import TrialRequest as TrialRequest

WORKLOAD = Workload(prompt=4, tokens=9)


@pytest.fixture(scope="module")
def bundle(int8_bundle: Path) -> Path:
    return int8_bundle


def targets(root: Path, **variants: dict[str, object]) -> list[BenchmarkTarget]:
    return [
        BenchmarkTarget(name=name, folder=make_variant(root / name, **told), format="dense", opener=OPENER)
        for name, told in variants.items()
    ]


def protocol(*workloads: Workload, threads: int = 1) -> Protocol:
    return Protocol(workloads=workloads or (WORKLOAD,), threads=threads, cpus=pinned_cpus(threads), settle=0.0, seed=3)


def take(given: list[BenchmarkTarget], blocks: int, session: Session | None = None) -> Session:
    begun = resumed(session, given) if session else new_session(given, protocol())
    return run_trials(begun, given, (0,) * 64, blocks=blocks)


def undisturbed(session: Session) -> Session:
    """The session as if nothing else had run: what is tested is the variants, on a machine that may be busy with
    tests."""
    trials = tuple(trial.model_copy(update={"timed": None, "opening": None}) for trial in session.trials)
    return session.model_copy(update={"trials": trials})


def figure(measured: dict[str, list[Measurement]], variant: str, metric: str) -> Measurement:
    return next(one for one in measured[variant] if one.metric == metric)


# ---- processes


def test_variants_alternate_within_a_block(tmp_path: Path) -> None:
    session = take(targets(tmp_path, slow={"prefill": 0.02}, quick={}), blocks=1)
    (quick,) = session.of("quick").values()
    assert quick.timed is not None
    assert quick.timed.seconds > 12 * 0.02  # it waited for the other one's prompts
    assert quick.wall_seconds is not None
    assert "alternating slices" in kept_blocks(session, "quick").describe()


def test_variants_that_memory_does_not_hold_together_run_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once: list[int] = []

    def noted(orders: Sequence[TrialRequest], random: np.random.Generator) -> list[Trial]:
        at_once.append(len(orders))
        return run_together(orders, random)

    monkeypatch.setattr("recipes.measure.interleaving.run_together", noted)
    monkeypatch.setattr("recipes.measure.interleaving.TIMES_ITS_FILES", 10**15)
    session = take(targets(tmp_path, slow={"prefill": 0.02}, quick={}), blocks=1)
    assert at_once == [1, 1]
    assert "slices" not in kept_blocks(session, "quick").describe()


def test_every_trial_is_a_fresh_process_in_a_random_order_with_the_same_threads(tmp_path: Path) -> None:
    given = targets(tmp_path, one={}, two={})
    session = take(given, blocks=3)
    assert not any(trial.error for trial in session.trials)
    assert len({trial.process for trial in session.trials}) == 6
    opened = [line.split() for variant in given for line in (variant.folder / "opened.txt").read_text().splitlines()]
    assert {int(process) for process, _ in opened} == {trial.process for trial in session.trials}
    assert {threads for _, threads in opened} == {"1"}
    assert [trial.variant for trial in session.trials] == [
        trial.variant for trial in take(given, blocks=3).trials
    ]  # the seed says
    assert all(sorted(trial.place for trial in session.trials if trial.block == block) == [0, 1] for block in range(3))
    for trial in session.trials:
        assert trial.timed is not None
        assert trial.timed.cpus == 1
        times = trial.times(WORKLOAD)
        assert times is not None
        assert (len(times.prefill), len(times.steps)) == (12, WORKLOAD.tokens - 1 - 2)  # two slices
        assert trial.sliced
        assert min(times.steps) >= 0.0002  # what the variant is known to take
        assert trial.peak_memory is not None
        assert trial.peak_memory > 1e7


def test_known_durations_are_found(tmp_path: Path) -> None:
    session = take(targets(tmp_path, fast={"decode": 0.0005}, slow={"decode": 0.001}), blocks=2)
    least = {
        variant: min(single_steps(undisturbed(session), variant, WORKLOAD)) for variant in session.variants
    }  # other load only adds
    assert least == pytest.approx({"fast": 0.0005, "slow": 0.001}, rel=0.1)


@pytest.mark.parametrize(
    ("fails", "words"),
    [
        ("raise", "RuntimeError: the weights are of another planet"),
        ("killed", "its process was ended by SIGKILL"),
        ("nan", "its logits are not numbers"),
    ],
)
def test_a_variant_that_fails_is_invalid_and_the_others_go_on(tmp_path: Path, fails: str, words: str) -> None:
    given = targets(tmp_path, good={}, bad={"fails": fails, "fails_from": 2})
    session = take(given, blocks=4)
    assert words in session.error("bad")
    assert sorted(session.of("good")) == [0, 1, 2, 3]
    assert len([trial for trial in session.trials if trial.variant == "bad"]) == 2  # it takes no further turns
    measured = latency_measurements(undisturbed(session))
    assert words in figure(measured, "bad", "decode_latency").invalid
    assert figure(measured, "good", "decode_latency").invalid == ""
    result = judge({"decode_latency": Limit(max_ratio=1.1)}, {m.metric: m for m in measured["bad"]})[0]
    assert (result.verdict, EXIT_CODES[result.verdict]) == ("INVALID", 4)


def test_a_session_goes_on_where_it_was_cut_off_and_retakes_a_block_that_was_cut(tmp_path: Path) -> None:
    given = targets(tmp_path, one={}, two={})
    whole = take(given, blocks=2)
    cut = whole.model_copy(update={"trials": whole.trials[:3]})
    assert resumed(cut, given).trials == whole.trials[:2]
    again = take(given, blocks=3, session=cut)
    assert again.trials[:2] == whole.trials[:2]
    assert [trial.block for trial in again.trials] == [0, 0, 1, 1, 2, 2]
    assert again.trials[2].process != whole.trials[2].process
    assert take(given, blocks=3, session=again) == again


def test_threads_get_processors_of_their_own() -> None:
    usable = os.sched_getaffinity(0)
    assert set(pinned_cpus(1)) <= usable
    assert len(pinned_cpus(1)) == 1
    assert set(pinned_cpus(1000)) == usable


# ---- counts


def test_multiply_accumulates_are_counted_alike_in_every_form(gpt2: Path, llama: Path, bundle: Path) -> None:
    width, layers, vocabulary = 64, 3, json.loads((gpt2 / "config.json").read_text())["vocab_size"]
    expected = layers * 12 * width**2 + vocabulary * width + 2 * layers * width * 100
    assert FORMATS["dense"].macs(gpt2, context=100) == expected
    assert FORMATS["onnx"].macs(bundle, context=100) == expected
    kv, ffn = 32, 128
    expected = layers * (2 * width**2 + 2 * width * kv + 3 * width * ffn) + vocabulary * width + 2 * layers * width * 10
    assert FORMATS["dense"].macs(llama, context=10) == expected


# ---- a recipe's benchmark


@pytest.mark.thorough
def test_a_recipes_latency_keeps_its_raw_times_and_goes_on_from_them(
    gpt2: Path, bundle: Path, text_file: Path, tmp_path: Path
) -> None:
    for name in ("files", "scratch"):
        (tmp_path / name).mkdir()

    def measure(blocks: int) -> dict[str, list[Measurement]]:
        return measure_latency(
            [target_of(name, bundle, "onnx") for name in ("baseline", "export")],
            config=BenchmarkConfig(prompt=8, tokens=4, blocks=blocks, threads=1),
            test=TextSource(file=text_file),
            seed=0,
            progress=Silent(),
            out=tmp_path / "files",
            scratch=tmp_path / "scratch",
        )

    found = measure(3)
    kept = read_session(tmp_path / "files" / LATENCY_FILE)
    assert str(latency_measurements(kept)) == str(found)
    assert [len(times.steps) for trial in kept.trials for times in trial.workloads] == [3] * 6
    measure(4)
    assert read_session(tmp_path / "files" / LATENCY_FILE).trials[:6] == kept.trials
    (tmp_path / "files" / LATENCY_FILE).write_text("{}")
    with pytest.raises(MeasureError, match="expected the raw times"):
        read_session(tmp_path / "files" / LATENCY_FILE)


# ---- the command


BRIEFLY = ("--prompt", "4", "--tokens", "3", "--blocks", "3", "--threads", "1")


def order(*folders: Path, out: Path | None = None, blocks: int = 3, margin: float | None = None) -> BenchmarkRequest:
    workloads = (Workload(prompt=8, tokens=4), Workload(prompt=4, tokens=1, batch=2))
    return BenchmarkRequest(folders=folders, workloads=workloads, blocks=blocks, threads=1, out=out, margin=margin)


@pytest.mark.thorough
def test_every_form_is_timed_and_written(gpt2: Path, bundle: Path, tmp_path: Path, demitasse: Demitasse) -> None:
    out = tmp_path / "latency.json"
    common = ("--prompt", "8,4", "--tokens", "5", "--threads", "1", "--out", out)
    code, said, err = demitasse("benchmark", gpt2, bundle, *common, "--blocks", "3")
    result = Result.model_validate_json(out.read_text())
    assert "error" not in err
    assert code == (EXIT_CODES["INVALID"] if result.invalid else 0)
    assert all("busy" in reason or "undisturbed" in reason for reason in result.invalid.values())
    assert not any(trial.error for trial in result.session.trials)
    assert len(result.session.trials) == 6
    assert [str(workload) for workload in result.session.protocol.workloads] == [
        f"prompt of {prompt} tokens, 5 new tokens, batch 1" for prompt in (8, 4)
    ]
    runtimes = {trial.variant: trial.runtime for trial in result.session.trials}
    assert "PyTorch float32" in runtimes[gpt2.name]
    assert "ONNX Runtime" in runtimes["bundle"]
    assert "IO binding" in runtimes["bundle"]
    steps = result.steps[0]["bundle"]
    assert steps.samples == 3 * len(kept_blocks(result.session, "bundle").blocks)
    assert (steps.percentiles["p99"], steps.needs["p99"]) == (None, 662)
    assert (steps.percentiles["p50"] is None) == (steps.samples == 0)
    smaller = figure(result.processes, "bundle", "weight_bytes").ratio
    assert smaller is not None
    assert smaller.value < 0.6
    memory = {variant: figure(result.processes, variant, "peak_memory").value for variant in (gpt2.name, "bundle")}
    assert memory["bundle"] < memory[gpt2.name]  # its process never loads PyTorch
    for heading in (
        "Time to first token",
        "Time per token",
        "Throughput",
        "Opening",
        "Peak memory",
        "p50",
        "n/a (needs 662)",
    ):
        assert heading in said
    code, _, err = demitasse("benchmark", bundle, gpt2, *common)
    assert code == 2
    assert "holds a benchmark with other folders" in err
    code, _, err = demitasse("benchmark", gpt2, bundle, *common, "--seed", "7")
    assert code == 2
    assert "holds a benchmark with other seed" in err


@pytest.mark.thorough
def test_the_same_bundle_twice_has_two_names_and_is_judged(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "same.json"
    result = benchmark(order(bundle, bundle, out=out, margin=50.0), Silent())
    assert result.session.variants == ("bundle", "bundle #2")
    assert [gate.metric for of in result.gates for gate in of.gates] == [
        "prefill_latency",
        "decode_latency",
        "prefill_latency",  # the second workload has a single new token
    ]
    assert result.verdict == ("INVALID" if result.invalid else "PASS")
    assert Result.model_validate_json(out.read_text()).session == result.session
    before = result.session.trials
    more = benchmark(order(bundle, bundle, out=out, blocks=4), Silent())
    assert more.session.trials[: len(before)] == before
    assert len(more.session.trials) == len(before) + 2
    assert more.gates == ()


def test_a_runs_folder_means_its_last_artifact(bundle: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "final").symlink_to(bundle)
    (target,) = targets_of((run,))
    assert (target.name, target.format, target.on_gpu) == ("run", "onnx", False)


def test_folders_of_one_name_are_told_apart(gpt2: Path, tmp_path: Path) -> None:
    for version in ("old", "new"):
        shutil.copytree(gpt2, tmp_path / version / "model")
    folders = (tmp_path / "old" / "model", tmp_path / "new" / "model", tmp_path / "old" / "model", gpt2)
    assert [target.name for target in targets_of(folders)] == ["old/model", "new/model", "old/model #2", gpt2.name]


def test_what_cannot_be_timed_is_refused_all_at_once(gpt2: Path, tmp_path: Path) -> None:
    wanted = BenchmarkRequest(
        folders=(gpt2,),
        workloads=(Workload(prompt=120, tokens=64), Workload(prompt=8, tokens=4)),
        blocks=3,
        threads=1,
        out=tmp_path / "nowhere" / "x.json",
        margin=1.1,
    )
    with pytest.raises(BenchmarkError) as refused:
        benchmark(wanted, Silent())
    lines = str(refused.value).splitlines()
    assert len(lines) == 3
    assert "its context holds 128 tokens, but the prompt of 120 tokens, 64 new tokens, batch 1 needs 183" in lines[0]
    assert "expected a file in an existing folder" in lines[1]
    assert "--max-ratio: expected a second folder" in lines[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--prompt", "8,x"), "--prompt: expected whole numbers above 0 such as 128 or 128,512, got '8,x'"),
        (("--batch", "0"), "--batch: expected whole numbers above 0"),
        (("--quick", "--release"), "expected one of --quick, --release and --blocks, got --quick and --release"),
        (("--max-ratio", "-1"), "--max-ratio: expected a number above 0"),
    ],
)
def test_options_that_make_no_sense_are_usage_errors(
    gpt2: Path, demitasse: Demitasse, options: tuple[str, ...], message: str
) -> None:
    code, _, err = demitasse("benchmark", gpt2, *options)
    assert code == 2
    assert message in err


def test_a_folder_that_holds_nothing_is_a_usage_error(tmp_path: Path, demitasse: Demitasse) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "model.onnx").touch()
    folders = [tmp_path / name for name in ("", "nowhere", "file", "half")]
    code, _, err = demitasse("benchmark", *folders)
    assert code == 2
    lines = err.strip().splitlines()
    assert len(lines) == len(folders)
    assert "expected a checkpoint (config.json), a bundle (manifest.json) or the folder of a finished run" in lines[0]
    assert "no such folder" in lines[1]
    assert "expected a folder, got a file" in lines[2]
    assert "has a model.onnx but no manifest.json" in lines[3]


@pytest.mark.parametrize(
    ("file", "size", "code", "message"),
    [
        ("manifest.json", 1, 4, "manifest.json: expected a bundle's manifest"),
        ("model.onnx", 1000, 5, "model.onnx: expected an ONNX graph"),
        ("model.onnx.data", 1000, 5, "the file was cut short or swapped"),
    ],
)
def test_a_broken_bundle_is_refused_before_anything_is_timed(
    gpt2: Path, bundle: Path, tmp_path: Path, demitasse: Demitasse, file: str, size: int, code: int, message: str
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(bundle, broken)
    with (broken / file).open("r+b") as stream:
        stream.truncate(size)
    ended, _, err = demitasse("benchmark", gpt2, broken, *BRIEFLY, "--out", tmp_path / "out.json")
    assert (ended, message in err) == (code, True), err
    assert not (tmp_path / "out.json").exists()


# ---- what was not measured as asked, in real processes: exit code 4


@pytest.mark.thorough
def test_a_model_whose_logits_are_not_numbers_is_invalid(
    gpt2: Path, bundle: Path, tmp_path: Path, demitasse: Demitasse
) -> None:
    code, said, _ = demitasse("benchmark", bundle, not_numbers(gpt2, tmp_path / "nan"), *BRIEFLY)
    assert code == 4
    assert "INVALID  nan: the variant 'nan' did not run: ValueError: its logits are not numbers" in said


def test_a_provider_that_is_not_there_is_invalid_and_no_fallback_is_timed(
    bundle: Path, tmp_path: Path, demitasse: Demitasse
) -> None:
    elsewhere = tmp_path / "cuda"
    shutil.copytree(bundle, elsewhere)
    edit_sealed(elsewhere / "manifest.json", lambda manifest: manifest.update(provider="cuda"))
    (target,) = targets_of((elsewhere,))
    assert target.on_gpu
    if shutil.which("nvidia-smi"):
        pytest.skip("there is a GPU, where such a bundle runs")
    code, said, _ = demitasse("benchmark", bundle, elsewhere, *BRIEFLY, "--out", tmp_path / "out.json")
    assert code == 4
    assert "INVALID  cuda: the variant 'cuda' did not run: ProviderError: cuda: " in said
    result = Result.model_validate_json((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert result.session.of("cuda") == {}
    assert "gpu_memory" not in [one.metric for one in result.processes["cuda"]]
    assert sorted(result.session.of("bundle")) == [0, 1, 2]


def test_a_sealed_bundle_that_onnx_runtime_refuses_is_exit_code_5(
    bundle: Path, tmp_path: Path, demitasse: Demitasse
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(bundle, broken)
    model = onnx.load(broken / "model.onnx", load_external_data=False)
    model.graph.node[3].op_type = "NoSuch"
    (broken / "model.onnx").write_bytes(model.SerializeToString())
    code, said, _ = demitasse("benchmark", broken, *BRIEFLY, "--out", tmp_path / "out.json")
    assert code == 5
    assert "INVALID  broken: the variant 'broken' did not run: BundleIntegrityError: " in said
    assert Result.model_validate_json((tmp_path / "out.json").read_text(encoding="utf-8")).exit_code == 5


def test_something_else_in_the_file_is_not_overwritten(gpt2: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine.json"
    out.write_text('{"my": "notes"}')
    with pytest.raises(BenchmarkError, match="expected what a benchmark wrote"):
        benchmark(order(gpt2, out=out), Silent())
    assert out.read_text() == '{"my": "notes"}'


@pytest.mark.thorough
def test_a_bundle_that_is_slowed_is_found_slower_than_itself(bundle: Path) -> None:
    session = take_slowdown(bundle, Workload(prompt=16, tokens=33), blocks=4, threads=1)
    assert [trial.error for trial in session.trials] == [""] * 12
    assert "slowed by 5%" in next(trial.runtime for trial in session.trials if trial.variant == "slowed")
    measured = workload_measurements(undisturbed(session), session.protocol.workloads[0])
    same, slowed = (figure(measured, variant, "decode_latency").ratio for variant in ("same", "slowed"))
    said, _ = slowdown_table(undisturbed(session), session.protocol.workloads[0])
    assert said.count("| same | 1.000 | time ") == said.count("| slowed | 1.050 | time ") == 2
    assert same is not None
    assert slowed is not None
    assert same.interval is not None
    assert slowed.interval is not None
    assert same.interval.low < 1.05  # how close, a machine that runs tests cannot say: `python -m benchmarks.slowdown`
    assert slowed.interval.high > 1.02


def test_logits_that_are_not_numbers_are_told_of_in_pytorch(gpt2: Path, tmp_path: Path) -> None:
    ids_BT = np.arange(8)[None]
    for folder, problem in ((gpt2, ""), (not_numbers(gpt2, tmp_path / "nan"), NOT_NUMBERS)):
        variant = FORMATS["dense"].open(folder).decoding(ids_BT, tokens=2)
        variant.prefill()
        assert variant.problem() == problem
        variant.decode()
        assert variant.problem() == problem
