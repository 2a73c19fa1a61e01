"""Two processes do what one does: curves, weights, checkpoints, verdicts; and what happens when one of them fails.

A launch of two is seconds of imports, so one serves several tests, and what one process does is done in this one.
"""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import launch_two
import psutil
import pytest
import torch
from conftest import Demitasse
from failing_stages import FAIL, FailConfig
from safetensors.torch import load_file
from torch import nn

from compress.stage import StageInput, StageMetadata
from compress.text import TextSource
from compress.training import distributed
from compress.training.launch import Launch, adopt, launch, unfit
from recipes.config.stages import STAGES
from recipes.engine.launcher import Launcher, LauncherError, Size, _failure, _Reader
from recipes.engine.worker import FileProgress

ROOT = Path(__file__).resolve().parent.parent
TORCHRUN = f"{sys.executable} -m torch.distributed.run --standalone --nproc-per-node 2"
TWO = {way: f"{sys.executable} {launch_two.__file__} {way}" for way in ("torch", "slurm")} | {"ray": "ray --workers 2"}
SHORT: dict[str, Any] = {"tokens": 4096, "length": 32, "batch": 8, "checkpoints": 2, "report_to": [], "warmup": 0.2}
DISTILL: dict[str, Any] = {
    **SHORT,
    "layers": 2,
    "losses": {"forward_kl": 1.0, "hidden_states": 0.5},
    "held_out": True,
    "accumulate": 2,
}
TRAIN: dict[str, Any] = {**SHORT, "prune": {"sparsity": 0.5}}
WORK: list[tuple[str, dict[str, Any], str]] = [
    ("distill", {**DISTILL, "distributed": "fsdp"}, "torch"),
    ("train", {**TRAIN, "distributed": "ddp"}, "slurm"),
    ("distill", {**DISTILL, "distributed": "ddp"}, "slurm"),
    ("train", {**TRAIN, "distributed": "fsdp"}, "torch"),
    ("distill", {**DISTILL, "distributed": "ddp"}, "ray"),
]
AT_ONCE = 2
"""So many of these are run whenever tests run; the others are thorough."""
RECIPE = """\
model: {model}
data: {{train: train.txt, calibration: train.txt, test: test.txt}}
stages:
  - distill: {{layers: 2, tokens: 4096, length: 16, batch: 4, checkpoints: 15, distributed: fsdp}}
evaluate: {{window: 32, windows: 8}}
launcher: {launcher}
gate:
  perplexity: {{max_ratio: 0.1}}
"""


@dataclass
class Noted:
    """A `Progress` that is looked at afterwards."""

    labels: list[str] = field(default_factory=list)
    amounts: list[float] = field(default_factory=list)
    closed: int = 0

    def task(self, label: str, total: float, done: float = 0.0, *, steady: float = 0.0) -> "Noted":
        self.labels.append(label)
        return self

    def advance(self, amount: float = 1.0, note: str = "") -> None:
        self.amounts.append(amount)

    def __enter__(self) -> "Noted":
        return self

    def __exit__(self, *error: object) -> None:
        self.closed += 1


def given_in(folder: Path, model: Path, text: Path, **more: Any) -> StageInput:
    for place in ("out", "scratch"):
        (folder / place).mkdir(parents=True)
    source = TextSource(file=text)
    texts = {"train_text": source, "calibration_text": source}
    return StageInput(source=model, teacher=model, out=folder / "out", scratch=folder / "scratch", **texts, **more)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a stage left that was run by one process and by two."""

    one: Path
    two: Path
    metadata: tuple[StageMetadata, StageMetadata]
    progress: Noted


@pytest.fixture(scope="module")
def trained(
    make_checkpoint: Callable[..., Path], text_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], Trained]:
    """`trained(number)`: that work, of a model without dropout, which is drawn anew by every process."""
    model = make_checkpoint("gpt2", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)

    @cache
    def run(number: int) -> Trained:
        kind, knobs, way = WORK[number]
        if way == "ray":
            pytest.importorskip("ray", reason="Ray, the extra `ray`, is not installed")
        place, progress = tmp_path_factory.mktemp("trained"), Noted()
        stage, config = STAGES[kind], STAGES[kind].config(**knobs)
        alone = stage.run(config, given_in(place / "one", model, text_file))
        both = given_in(place / "two", model, text_file, progress=progress)
        shared = Launcher(command=TWO[way]).run(stage, config, both)
        return Trained(one=place / "one", two=place / "two", metadata=(alone, shared), progress=progress)

    return run


@pytest.mark.alone
@pytest.mark.parametrize(
    "number",
    [
        pytest.param(
            number,
            id=f"{kind}-{knobs['distributed']}-{way}",
            marks=() if number < AT_ONCE else pytest.mark.thorough,
        )
        for number, (kind, knobs, way) in enumerate(WORK)
    ],
)
def test_two_processes_train_as_one_does(trained: Callable[[int], Trained], number: int) -> None:
    made = trained(number)
    one, two = (json.loads(json.dumps(metadata)) for metadata in made.metadata)
    assert two["processes"] == 2
    assert len(one["history"]) == len(two["history"]) >= 10
    for alone, shared in zip(one["history"], two["history"], strict=True):
        assert shared == pytest.approx(alone, abs=1e-3)
    assert one["history"][0]["loss"] != pytest.approx(one["history"][-1]["loss"], abs=1e-3)
    weights = [load_file(folder / "out" / "model.safetensors") for folder in (made.one, made.two)]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, atol=1e-4, rtol=0)
    assert one["sparsity"] == two["sparsity"]
    if WORK[number][0] == "train":
        assert two["sparsity"] == pytest.approx(0.5, abs=0.01)


@pytest.mark.alone
def test_only_the_first_process_writes_and_tells_how_far_it_is(trained: Callable[[int], Trained]) -> None:
    made = trained(0)
    names = [
        {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
        for folder in (made.one, made.two)
    ]
    generators = {name for name in names[1] if "/rng_state_" in name}
    assert {Path(name).name for name in generators} == {"rng_state_0.pth", "rng_state_1.pth"}
    plain = {name for name in names[0] if not name.endswith("rng_state.pth")}
    assert {name for name in names[1] - generators if "tfevents" not in name} == {
        name for name in plain if "tfevents" not in name
    }
    assert any("/checkpoint-" in name for name in plain)
    assert made.progress.labels.count("distill") == 1
    assert made.progress.closed == len(made.progress.labels)
    assert sum(made.progress.amounts) > 0


@pytest.mark.alone
@pytest.mark.parametrize(
    ("early", "words"),
    [(False, "has lost heart"), pytest.param(True, "has never begun", marks=pytest.mark.thorough)],
)
def test_an_error_on_another_process_ends_all_with_one_message(
    early: bool, words: str, gpt2: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    launcher = Launcher(command=TWO["torch"], stages="failing_stages:STAGES")
    with pytest.raises(LauncherError, match=f"^process 1 of 2: this process {words}$") as caught:
        launcher.run(FAIL, FailConfig(rank=1, early=early), given_in(tmp_path, gpt2, text_file))
    assert caught.value.exit_code == 2
    assert not list((tmp_path / "scratch").iterdir())


@pytest.fixture
def recipe(gpt2: Path, text_file: Path, tmp_path: Path) -> Path:
    documents = text_file.read_text(encoding="utf-8").split("<|endoftext|>")
    for name, some in (("train.txt", documents[:8]), ("test.txt", documents[8:])):
        (tmp_path / name).write_text("<|endoftext|>".join(some), encoding="utf-8")
    file = tmp_path / "small.yaml"
    file.write_text(RECIPE.format(model=gpt2, launcher=TORCHRUN), encoding="utf-8")
    return file


@pytest.mark.alone
@pytest.mark.thorough
def test_a_killed_run_goes_on_and_ends_in_the_verdict_of_one_process(
    recipe: Path, tmp_path: Path, demitasse: Demitasse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    scratch = kill_second_process(recipe, tmp_path)
    checkpoint = max(scratch.glob("checkpoint-*"), key=lambda folder: int(folder.name.rpartition("-")[2]))
    mark_first_loss(checkpoint / "trainer_state.json", 99.0)
    code, _, errors = demitasse("run", recipe, "--out", "out")
    assert code == 1, errors
    artifact = next((tmp_path / "out" / "artifacts").glob("distill-*"))
    metadata = json.loads((artifact / "artifact.json").read_text(encoding="utf-8"))["metadata"]
    assert metadata["processes"] == 2
    assert metadata["history"][0]["loss"] == 99.0
    assert metadata["history"][-1]["step"] == 64
    code, said, _ = demitasse("run", recipe, "--out", "out")
    assert code == 1
    assert said.count("reused") == 2
    assert json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))["verdict"] == "FAIL"


def kill_second_process(recipe: Path, folder: Path) -> Path:
    """Start a run, end its second worker as soon as there is a checkpoint; where the checkpoints are."""
    command = [str(Path(sys.executable).with_name("demitasse")), "run", str(recipe), "--out", "out"]
    started = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    until = time.monotonic() + 600
    while not (states := list(folder.glob("out/artifacts/.work/distill-*/scratch/*/trainer_state.json"))):
        assert started.poll() is None, started.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)
    workers = {child.environ().get("RANK"): child for child in psutil.Process(started.pid).children(recursive=True)}
    workers["1"].send_signal(signal.SIGKILL)
    _, errors = started.communicate(timeout=300)
    assert started.returncode == 4
    assert b"run the same command again and it goes on from there" in errors
    return states[0].parent.parent


@pytest.mark.alone
@pytest.mark.thorough
def test_a_killed_command_takes_its_workers_with_it(recipe: Path, tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("demitasse")), "run", str(recipe), "--out", "out"]
    started = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 600
    while not list(tmp_path.glob("out/artifacts/.work/distill-*/scratch/*/trainer_state.json")):
        assert started.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)
    workers = psutil.Process(started.pid).children(recursive=True)
    assert len(workers) >= 3
    started.kill()
    started.wait()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive


def mark_first_loss(state: Path, loss: float) -> None:
    content = json.loads(state.read_text(encoding="utf-8"))
    next(entry for entry in content["log_history"] if "loss" in entry)["loss"] = loss
    state.write_text(json.dumps(content), encoding="utf-8")


UNFIT = "error: --set distill.batch=7: expected a multiple of 2, because 2 processes share it, got 7"


def test_a_batch_that_cannot_be_dealt_out_is_refused_before_anything_runs(
    recipe: Path, tmp_path: Path, demitasse: Demitasse
) -> None:
    out = tmp_path / "out"
    launcher = ("--launcher", TWO["slurm"])
    code, _, errors = demitasse("run", recipe, "--out", out, "--set", "distill.batch=7", *launcher)
    assert (code, errors.splitlines()) == (2, [UNFIT])
    assert not list(out.glob("artifacts/distill-*"))
    text = tmp_path / "train.txt"
    knobs = ("--layers", 2, "--batch", 7, "--train-text", text)
    code, _, errors = demitasse("distill", recipe, "--out", out, *knobs, *launcher)
    assert code == 2


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("no-such-launcher -n 2", "--launcher no-such-launcher: cannot be started (No such file or directory)"),
        (f"{sys.executable} -c 'print(\"no\"); exit(3)'", "ended with 3 (no)"),
        ("true", "ended with 0 (it said nothing)"),
    ],
)
def test_a_launcher_that_does_not_work_is_told_before_anything_runs(command: str, words: str) -> None:
    with pytest.raises(LauncherError) as caught:
        Launcher(command=command).size()
    assert words in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_launcher_that_waits_for_the_others_of_a_failed_worker_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recipes.engine.launcher.FAILED_SECONDS", 0.1)
    (tmp_path / "error-1.json").write_text('{"final": true, "code": 143, "text": "", "at": 1}', encoding="utf-8")
    with subprocess.Popen(["sleep", "1000"], start_new_session=True) as process:
        Launcher(command="srun")._wait(process, tmp_path, lambda: None)
        assert process.poll() == -signal.SIGTERM


def test_a_worker_that_was_asked_to_end_is_not_what_went_wrong(tmp_path: Path) -> None:
    def tell(rank: int, text: str, code: int) -> None:
        told = {"rank": rank, "world": 3, "text": text, "code": code, "at": rank}
        (tmp_path / f"error-{rank}.json").write_text(json.dumps(told), encoding="utf-8")

    tell(0, "terminated", 143)
    error = _failure(tmp_path, "rank 1: SIGKILL", 1)
    assert error.exit_code == 4
    assert "training broke off because a process ended or cannot be reached (rank 1: SIGKILL)" in str(error)
    tell(2, "no such text", 2)
    error = _failure(tmp_path, "", 1)
    assert (str(error), error.exit_code) == ("process 2 of 3: no such text", 2)


def test_a_launcher_is_asked_how_many_it_starts() -> None:
    assert Launcher(command=TWO["torch"]).size() == Size(world=2, local_world=2)
    assert Launcher(command="env A=1").size() == Size(world=1, local_world=1)


def test_a_launcher_that_shares_the_work_its_own_way_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(LauncherError, match=r"process 0 of 1: ACCELERATE_USE_FSDP.*distributed: fsdp"):
        Launcher(command="env A=2").size()


def test_a_command_that_was_launched_itself_says_how_it_is_done(
    demitasse: Demitasse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert demitasse("methods") == (0, "", "")
    monkeypatch.setenv("RANK", "0")
    code, _, errors = demitasse("methods")
    assert code == 2
    assert "expected one process, got one of 2" in errors
    assert "--launcher" in errors


def test_what_a_worker_tells_is_shown(tmp_path: Path) -> None:
    from contextlib import ExitStack

    told, shown = FileProgress(tmp_path / "progress"), Noted()
    with ExitStack() as stack:
        reader = _Reader(tmp_path / "progress", shown, stack)
        reader.read()
        with told.task("train", total=3) as task:
            reader.read()
            task.advance(1)
            task.advance(2, "loss 3")
            with (tmp_path / "progress").open("a", encoding="utf-8") as stream:
                stream.write('{"task": 0, "amo')
            reader.read()
            assert (shown.labels, shown.amounts, shown.closed) == (["train"], [1, 2], 0)
            with (tmp_path / "progress").open("a", encoding="utf-8") as stream:
                stream.write('unt": 5, "note": ""}\n')
        reader.read()
    assert (shown.amounts, shown.closed) == ([1, 2, 5], 1)


def test_workers_of_srun_and_mpirun_know_which_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_PROCID", "3")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_LOCALID", "1")
    assert launch() == Launch()  # a batch script has these too
    with monkeypatch.context() as patch:
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
            patch.setenv(name, "")  # put back at the end
            patch.delenv(name)
        adopt()
        assert launch() == Launch(rank=3, world=4, local_rank=1, local_world=4)


def test_a_process_on_its_own_is_the_first_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert launch() == Launch(rank=0, world=1, local_rank=0, local_world=1)
    with distributed.together("cpu") as here:
        assert (here.first, distributed.world(), distributed.of_all("word")) == (True, 1, ["word"])


def test_a_launch_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "RANK": "5",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "4",
        "TORCHELASTIC_RESTART_COUNT": "2",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert launch() == Launch(rank=5, world=8, local_rank=1, local_world=4, attempt=2)


@pytest.mark.parametrize(
    ("batch", "accumulate", "world", "part"),
    [(16, 2, 8, None), (16, 1, 3, "a multiple of 3, because 3 processes"), (8, 4, 4, "16, because 4 processes with 4")],
)
def test_which_batches_can_be_dealt_out(batch: int, accumulate: int, world: int, part: str | None) -> None:
    wrong = unfit(batch, accumulate, world)
    assert (wrong is None) if part is None else (wrong is not None and part in wrong)


def test_clipping_scales_to_the_common_norm() -> None:
    parameters = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(1))]
    parameters[0].grad, parameters[1].grad = torch.full((3,), 2.0), torch.full((2, 2), 1.0)
    norm = distributed.clip(parameters, 1.0)
    assert float(norm) == pytest.approx(4.0)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    assert float(torch.cat([gradient.flatten() for gradient in gradients]).norm()) == pytest.approx(1.0, abs=1e-4)


def test_parameters_and_moments_are_taken_over_whole(make_checkpoint: Callable[..., Path]) -> None:
    from compress.checkpoints.loading import load_model

    def stepped(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = load_model(folder)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1 * (seed + 1))
        sum((parameter * (seed + 2)).sum() for parameter in model.parameters()).backward()
        optimizer.step()
        return model, optimizer

    folder = make_checkpoint("gpt2", n_layer=1)
    (first, first_optimizer), (second, second_optimizer) = stepped(0), stepped(1)
    distributed.load_parameters(second, distributed.full_parameters(first))
    distributed.load_moments(second_optimizer, distributed.full_moments(first_optimizer))
    for mine, other in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=0)
        moments = first_optimizer.state[mine]["exp_avg"], second_optimizer.state[other]["exp_avg"]
        torch.testing.assert_close(*moments, rtol=0, atol=0)
