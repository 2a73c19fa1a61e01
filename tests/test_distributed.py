"""Two processes do what one does: curves, weights, checkpoints, verdicts; and what happens when one of them fails.

A launch of two is seconds of imports, so one serves several tests, and what one process does is done in this one.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest
import spread
import torch
from conftest import Demitasse
from safetensors.torch import load_file
from torch import nn
from torch.distributed import HashStore

from compress.stage import StageError, StageInput
from compress.training import distributed
from compress.training.launch import Launch, launch, unfit
from recipes import processes
from recipes.processes import Alone, First, Other, ProcessError

DEMITASSE = str(Path(sys.executable).with_name("demitasse"))
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
SHORT: dict[str, Any] = {"tokens": 4096, "length": 32, "batch": 8, "checkpoints": 2, "report_to": [], "warmup": 0.2}
DISTILL: dict[str, Any] = {
    **SHORT,
    "layers": 2,
    "losses": {"forward_kl": 1.0, "hidden_states": 0.5},
    "held_out": True,
    "accumulate": 2,
}
TRAIN: dict[str, Any] = {**SHORT, "prune": {"sparsity": 0.5}}
ORDERS = [
    {"kind": kind, "knobs": {**knobs, "distributed": way}}
    for kind, knobs, way in (
        ("distill", DISTILL, "fsdp"),
        ("train", TRAIN, "ddp"),
        ("distill", DISTILL, "ddp"),
        ("train", TRAIN, "fsdp"),
    )
]
AT_ONCE = 2
"""So many of these are run whenever tests run; the others are thorough."""
FAIL: dict[str, Any] = {"kind": "fail", "knobs": {"rank": 1, "early": False}}
RECIPE = """\
model: {model}
data: {{train: train.txt, calibration: train.txt, test: test.txt}}
stages:
  - distill: {{layers: 2, tokens: 4096, length: 16, batch: 4, checkpoints: 15, distributed: fsdp}}
evaluate: {{window: 32, windows: 8}}
gate:
  perplexity: {{max_ratio: 0.1}}
"""


def run_command(command: list[str], folder: Path, *more: object) -> subprocess.CompletedProcess[str]:
    temporary = folder / "tmp"
    temporary.mkdir(exist_ok=True)
    return subprocess.run(
        [*command, *map(str, more)],
        cwd=folder,
        env=environment(temporary),
        capture_output=True,
        text=True,
        timeout=900,
    )


def environment(temporary: Path) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(temporary)}


def ordered(folder: Path, model: Path, text: Path, orders: list[dict[str, Any]]) -> Path:
    task = {"model": str(model), "text": str(text), "orders": orders}
    folder.mkdir()
    (folder / "orders.json").write_text(json.dumps(task), encoding="utf-8")
    return folder


@dataclass(frozen=True, kw_only=True)
class Curves:
    """What stages left that were run by one process and by two, and how the launch of two ended."""

    one: Path
    two: Path
    ended: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def curves(
    make_checkpoint: Callable[..., Path], text_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], Curves]:
    """`curves(number)`: those with this order, of a model without dropout, which is drawn anew by every process."""
    model = make_checkpoint("gpt2", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)

    @cache
    def run(of_first: bool) -> Curves:
        place = tmp_path_factory.mktemp("curves")
        orders = ORDERS[:AT_ONCE] if of_first else ORDERS[AT_ONCE:]
        one, two = ordered(place / "one", model, text_file, orders), place / "two"
        spread.main(one)
        ended = run_command(TWO, place, spread.__file__, ordered(two, model, text_file, [*orders, FAIL]))
        return Curves(one=one, two=two, ended=ended)

    return lambda number: run(number < AT_ONCE)


@pytest.mark.alone
@pytest.mark.parametrize(
    "number",
    [
        pytest.param(
            number,
            id=f"{order['kind']}-{order['knobs']['distributed']}",
            marks=() if number < AT_ONCE else pytest.mark.thorough,
        )
        for number, order in enumerate(ORDERS)
    ],
)
def test_two_processes_train_as_one_does(curves: Callable[[int], Curves], number: int) -> None:
    made, place = curves(number), number % AT_ONCE
    facts = [json.loads((folder / f"{place}.json").read_text(encoding="utf-8")) for folder in (made.one, made.two)]
    histories = [fact["history"] for fact in facts]
    assert len(histories[0]) == len(histories[1]) >= 10
    for alone, shared in zip(*histories, strict=True):
        assert shared == pytest.approx(alone, abs=1e-3)
    assert histories[0][0]["loss"] != pytest.approx(histories[0][-1]["loss"], abs=1e-3)
    weights = [load_file(folder / str(place) / "out" / "model.safetensors") for folder in (made.one, made.two)]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, atol=1e-4, rtol=0)
    assert facts[0]["sparsity"] == facts[1]["sparsity"]
    if ORDERS[number]["kind"] == "train":
        assert facts[1]["sparsity"] == pytest.approx(0.5, abs=0.01)


@pytest.mark.alone
def test_only_the_first_process_writes(curves: Callable[[int], Curves]) -> None:
    made = curves(0)
    names = [
        {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
        for folder in (made.one, made.two)
    ]
    generators = {name for name in names[1] if "/rng_state_" in name}
    assert {Path(name).name for name in generators} == {"rng_state_0.pth", "rng_state_1.pth"}
    plain = {name for name in names[0] if not name.endswith("rng_state.pth")}
    assert names[1] - generators == plain
    assert any("/checkpoint-" in name for name in plain)
    assert list((made.two.parent / "tmp").glob("demitasse-*")) == []


def check_failed(done: subprocess.CompletedProcess[str], words: str) -> None:
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert said == [f"error: process 1 of 2: this process {words}"]
    assert "exitcode  : 2" in done.stderr
    _, listed, other = done.stderr.partition("rank      : 1")
    assert not listed or "(SIGTERM)" in other, (
        "expected that the other ends without a word, or is ended by the launcher"
    )


@pytest.mark.alone
def test_an_error_on_another_process_ends_all_with_one_message(curves: Callable[[int], Curves]) -> None:
    """The last order of the launch that ran the others."""
    check_failed(curves(0).ended, "has lost heart")


@pytest.mark.alone
@pytest.mark.thorough
def test_an_error_before_anything_is_shared_does_so_too(gpt2: Path, text_file: Path, tmp_path: Path) -> None:
    folder = ordered(tmp_path / "failing", gpt2, text_file, [{"kind": "fail", "knobs": {"rank": 1, "early": True}}])
    check_failed(run_command(TWO, tmp_path, spread.__file__, folder), "has never begun")


@pytest.fixture
def recipe(gpt2: Path, text_file: Path, tmp_path: Path) -> Path:
    documents = text_file.read_text(encoding="utf-8").split("<|endoftext|>")
    for name, some in (("train.txt", documents[:8]), ("test.txt", documents[8:])):
        (tmp_path / name).write_text("<|endoftext|>".join(some), encoding="utf-8")
    file = tmp_path / "small.yaml"
    file.write_text(RECIPE.format(model=gpt2), encoding="utf-8")
    return file


@pytest.mark.alone
@pytest.mark.thorough
def test_a_killed_run_goes_on_and_ends_in_the_verdict_of_one_process(
    recipe: Path, tmp_path: Path, demitasse: Demitasse, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*TWO, "--no-python", DEMITASSE, "run", str(recipe), "--out", "out"]
    scratch = kill_second_process(command, tmp_path)
    checkpoint = max(scratch.glob("checkpoint-*"), key=lambda folder: int(folder.name.rpartition("-")[2]))
    mark_first_loss(checkpoint / "trainer_state.json", 99.0)
    again = run_command(command, tmp_path)
    assert again.returncode == 1, again.stderr
    assert "exitcode  : 1" in again.stderr
    artifact = next((tmp_path / "out" / "artifacts").glob("distill-*"))
    facts = json.loads((artifact / "artifact.json").read_text(encoding="utf-8"))["facts"]
    assert facts["processes"] == 2
    assert facts["history"][0]["loss"] == 99.0
    assert facts["history"][-1]["step"] == 64
    monkeypatch.chdir(tmp_path)
    code, said, _ = demitasse("run", recipe, "--out", "out")
    assert code == 1
    assert said.count("reused") == 2
    assert json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))["verdict"] == "FAIL"
    assert not list((tmp_path / "out").glob(".processes-*"))


def kill_second_process(command: list[str], folder: Path) -> Path:
    """Start a run, end its second process as soon as there is a checkpoint; where the checkpoints are."""
    (folder / "tmp").mkdir()
    started = subprocess.Popen(
        command, cwd=folder, env=environment(folder / "tmp"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    until = time.monotonic() + 900
    while not (states := list(folder.glob("out/artifacts/.work/distill-*/scratch/*/trainer_state.json"))):
        assert started.poll() is None, started.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)
    workers = {child.environ().get("RANK"): child for child in psutil.Process(started.pid).children(recursive=True)}
    workers["1"].send_signal(signal.SIGKILL)
    _, errors = started.communicate(timeout=300)
    assert started.returncode == 1
    assert b"run the same command again and it goes on from there" in errors
    return states[0].parent.parent


def mark_first_loss(state: Path, loss: float) -> None:
    content = json.loads(state.read_text(encoding="utf-8"))
    next(entry for entry in content["log_history"] if "loss" in entry)["loss"] = loss
    state.write_text(json.dumps(content), encoding="utf-8")


UNFIT = "error: --set distill.batch=7: expected a multiple of 2, because 2 processes share it, got 7"


@pytest.mark.alone
@pytest.mark.thorough
def test_a_launch_refuses_a_batch_that_cannot_be_dealt_out_before_anything_runs(recipe: Path, tmp_path: Path) -> None:
    command = [*TWO, "--no-python", DEMITASSE]
    done = run_command(command, tmp_path, "run", recipe, "--out", "out", "--set", "distill.batch=7")
    assert done.returncode == 1
    assert [line for line in done.stderr.splitlines() if line.startswith("error:")] == [UNFIT]
    assert "exitcode  : 2" in done.stderr
    assert not list(tmp_path.glob("out/artifacts/distill-*"))


def test_the_first_of_a_launch_refuses_such_a_batch_and_the_other_is_quiet(
    recipe: Path, tmp_path: Path, demitasse: Demitasse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other in this process: the other one is there when the first looks for it."""
    store = HashStore()
    store.set("here/1", "")
    monkeypatch.setattr(processes, "MEET_SECONDS", 5.0)
    monkeypatch.setattr(processes, "_meeting_place", lambda here: store)
    monkeypatch.setattr(processes, "GONE_SECONDS", 0.0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    command = ("run", recipe, "--out", tmp_path / "out", "--set", "distill.batch=7")
    monkeypatch.setenv("RANK", "0")
    code, _, errors = demitasse(*command)
    assert (code, errors.splitlines()) == (2, [UNFIT])
    monkeypatch.setenv("RANK", "1")
    assert demitasse(*command) == (0, "", "")
    assert not list(tmp_path.glob("out/artifacts/distill-*"))


def test_a_process_on_its_own_is_the_first_of_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert launch() == Launch(rank=0, world=1, local_rank=0, local_world=1)
    with distributed.together("cpu") as here:
        assert (here.first, distributed.world(), distributed.of_all("word")) == (True, 1, ["word"])
    alone = Alone()
    alone.meet(tmp_path / "nowhere")
    with alone.share(0, StageInput(source=None, out=tmp_path, scratch=tmp_path)):
        assert list(tmp_path.iterdir()) == []


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
    from compress.checkpoint import load_model

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


def pair() -> tuple[First, Other]:
    """Both sides of a launch of two, which meet inside of this process."""
    store = HashStore()
    here = [Launch(rank=rank, world=2, local_rank=rank, local_world=2) for rank in range(2)]
    return First(here[0], store), Other(here[1], store)


def test_machines_that_share_no_folder_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(processes, "SEEN_SECONDS", 0.0)
    first, other = pair()
    assert first.store is not None
    first.store.set("meet", json.dumps({"token": str(tmp_path / "elsewhere" / "token")}))
    with pytest.raises(ProcessError, match=r"cannot see .*elsewhere.* must share the run's folder") as refused:
        other.follow(lambda number, given: None)
    assert refused.value.exit_code == 2


def test_processes_that_do_not_come_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(processes, "MEET_SECONDS", 0.1)
    first, _ = pair()
    with pytest.raises(ProcessError, match="processes 1 of 2 have not started within 0 s"):
        first.meet(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_others_help_until_the_end(tmp_path: Path) -> None:
    first, other = pair()
    helped: list[tuple[int, StageInput]] = []
    following = threading.Thread(target=other.follow, args=(lambda number, given: helped.append((number, given)),))
    following.start()
    first.meet(tmp_path)
    given = StageInput(source=tmp_path, out=tmp_path / "out", scratch=tmp_path / "scratch")
    for number in (3, 1):
        with first.share(number, given):
            pass
    assert [number for number, _ in helped] == [3, 1]
    asked = helped[0][1]
    assert (asked.source, asked.teacher, asked.scratch) == (tmp_path, None, tmp_path / "scratch")
    assert asked.out not in (given.out, tmp_path)
    assert not asked.out.exists()
    other.gone()
    first.end()
    following.join(10)
    assert not following.is_alive()


def test_what_another_process_reports_is_raised_by_the_first(tmp_path: Path) -> None:
    first, other = pair()
    reporting = threading.Thread(target=other.report, args=(StageError("no more disk"),))
    reporting.start()
    with pytest.raises(ProcessError, match="process 1 of 2: no more disk") as raised:
        first.meet(tmp_path)
    reporting.join(10)
    assert (raised.value.exit_code, reporting.is_alive()) == (2, False)


def hang(reporting: threading.Thread) -> None:
    """As in a call to others that never comes back, one of whom reports an error."""
    reporting.start()
    time.sleep(60)
    pytest.fail("expected to be interrupted")


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A worker of the tests ignores what interrupts; a command does not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_what_the_first_runs_is_interrupted_by_what_another_process_reports(tmp_path: Path) -> None:
    first, other = pair()
    reporting = threading.Thread(target=other.report, args=(StageError("no more disk"),))
    given = StageInput(source=tmp_path, out=tmp_path / "out", scratch=tmp_path / "scratch")
    with pytest.raises(ProcessError, match="process 1 of 2: no more disk"), first.share(0, given):
        hang(reporting)
    reporting.join(10)
    assert not reporting.is_alive()


def test_a_launcher_that_shares_the_work_its_own_way_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    processes.check_launcher()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ProcessError, match=r"ACCELERATE_USE_FSDP.*distributed: fsdp"):
        processes.check_launcher()


def test_a_launched_process_is_not_taken_for_one_on_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert processes.alone().launch.world == 1
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ProcessError, match="launch the command `demitasse run` itself"):
        processes.alone()
