"""The teacher that runs once: its samples are unbiased, and what is stored survives kills, ranks and students."""

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from math import floor
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch
from killing import KillAt, KilledError
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from compress import StageError
from compress.checkpoints.loading import load_model
from compress.distillation import teacher_cache, teacher_shards
from compress.distillation.logit_sampling import METHODS, SampledLogits, entropy, sampled, top_k
from compress.distillation.teacher_cache import INDEX, StoredTeacher, finish, produce
from compress.distillation.teacher_shards import Plan
from compress.stage import Silent
from compress.training.losses import DenseTarget, Head, Mix, SparseTarget, chunked_loss

ROOT = Path(__file__).resolve().parent.parent
DRAWS = 8
TOKENS = 150
SEEDS = 20_000
ROWS, LENGTH = 10, 12
DISTRIBUTIONS: dict[str, Tensor] = {
    "peaked": torch.cat([torch.tensor([0.9]), torch.full((TOKENS - 1,), 0.1 / (TOKENS - 1))]),
    "flat": torch.full((TOKENS,), 1 / TOKENS),
    "zipf": torch.softmax(-torch.arange(1.0, TOKENS + 1).log()[torch.arange(TOKENS) * 67 % TOKENS], -1),
}


def estimates(kept: SampledLogits, vocabulary: int) -> Tensor:
    """What is kept, as distributions p_NV with zeros for the others."""
    positions_J = torch.arange(len(kept.counts_N)).repeat_interleave(kept.counts_N)
    p_NV = torch.zeros(len(kept.counts_N), vocabulary, dtype=torch.float64)
    return p_NV.index_put_((positions_J, kept.ids_J), kept.p_J.double(), accumulate=True)


def many(name: str, method: str = "sampled", amount: int = DRAWS) -> Tensor:
    """The estimates of one distribution under many seeds."""
    log_p_NV = DISTRIBUTIONS[name].log().expand(SEEDS, TOKENS)
    offsets_N = torch.rand(SEEDS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return estimates(METHODS[method].keep(log_p_NV, amount, offsets_N), TOKENS)


def is_unbiased(p_NV: Tensor, p_V: Tensor, variance_V: Tensor) -> bool:
    """Whether every token's mean lies within 4 standard errors of its probability."""
    return bool(((p_NV.mean(0) - p_V).abs() <= 4 * (variance_V / len(p_NV)).sqrt() + 1e-7).all())


@pytest.mark.parametrize("name", sorted(DISTRIBUTIONS))
def test_samples_are_unbiased_and_a_raw_top_k_is_not(name: str) -> None:
    p_V = DISTRIBUTIONS[name].double()
    variance_V = torch.where(p_V < 1 / DRAWS, p_V * (1 / DRAWS - p_V), 0)
    assert is_unbiased(many(name), p_V, variance_V)
    assert not is_unbiased(many(name, "top_k"), p_V, variance_V)


@pytest.mark.parametrize("name", sorted(DISTRIBUTIONS))
def test_samples_vary_less_than_multinomial_draws(name: str) -> None:
    p_V = DISTRIBUTIONS[name].double()
    drawn_NM = torch.multinomial(
        p_V.expand(SEEDS, -1), DRAWS, replacement=True, generator=torch.Generator().manual_seed(2)
    )
    multinomial_NV = torch.zeros(SEEDS, TOKENS, dtype=torch.float64).scatter_add_(
        1, drawn_NM, torch.full(drawn_NM.shape, 1 / DRAWS, dtype=torch.float64)
    )
    assert is_unbiased(multinomial_NV, p_V, p_V * (1 - p_V) / DRAWS)
    ours, theirs = many(name).var(0), multinomial_NV.var(0)
    assert ours.sum() < theirs.sum()
    assert (ours[p_V >= 1 / DRAWS] < 1e-14).all()


@pytest.mark.parametrize("name", sorted(DISTRIBUTIONS))
def test_large_tokens_are_exact_the_mass_is_1_and_counts_are_bounded(name: str) -> None:
    p_V, p_NV = DISTRIBUTIONS[name], many(name)
    large_V = p_V >= 1 / DRAWS
    torch.testing.assert_close(p_NV[:, large_V], p_V[large_V].double().expand(SEEDS, -1))
    assert ((p_NV.sum(1) - 1).abs() <= 1 / DRAWS + 1e-6).all()
    assert (p_NV > 0).sum(1).max() <= DRAWS + 1
    tail_NV = p_NV[:, ~large_V]
    torch.testing.assert_close(tail_NV[tail_NV > 0], torch.tensor(1 / DRAWS).double().expand(int((tail_NV > 0).sum())))


def test_the_tail_is_hit_where_a_point_falls_into_a_tokens_span() -> None:
    """As said in words, token by token, in exact fractions."""
    generator = torch.Generator().manual_seed(4)
    log_p_NV = torch.log_softmax(torch.randn(6, 333, generator=generator) * 3, -1)
    offsets_N = torch.rand(6, generator=generator, dtype=torch.float64)
    expected = torch.zeros(6, 333, dtype=torch.float64)
    for position, p_V in enumerate(log_p_NV.exp().tolist()):
        reached = Fraction(offsets_N[position].item())
        for token, p in enumerate(p_V):
            span = DRAWS * Fraction(p)
            if span >= 1:
                expected[position, token] = p
            else:
                expected[position, token] = (floor(reached + span) > floor(reached)) / DRAWS
                reached += span
    assert torch.equal(estimates(sampled(log_p_NV, DRAWS, offsets_N), 333), expected)


def test_a_large_vocabulary_is_sampled_evenly() -> None:
    """Of 150,000 equal tokens every 3,000th is hit, at the very end too."""
    log_p_NV = torch.full((16, 150_000), 1 / 150_000).log()
    kept = sampled(log_p_NV, 50, torch.linspace(0, 0.99, 16, dtype=torch.float64))
    assert kept.counts_N.tolist() == [50] * 16
    gaps = kept.ids_J.reshape(16, 50).diff(dim=1)
    assert ((gaps - 3000).abs() <= 1).all()


def test_top_k_keeps_the_likeliest_and_the_rest() -> None:
    p_NV = torch.softmax(torch.randn(5, 30), -1)
    kept = top_k(p_NV.log(), 4, torch.zeros(5))
    expected = p_NV.sort(dim=-1, descending=True).values
    torch.testing.assert_close(kept.p_J.reshape(5, 4), expected[:, :4])
    torch.testing.assert_close(kept.aside_N, expected[:, 4:].sum(-1))


def test_entropy_is_that_of_the_whole_distribution_impossible_tokens_included() -> None:
    logits_NV = torch.randn(6, 30)
    torch.testing.assert_close(
        entropy(torch.log_softmax(logits_NV, -1)), torch.distributions.Categorical(logits=logits_NV).entropy()
    )
    logits_NV[:, 3] = -torch.inf
    possible_NV = logits_NV[:, [token for token in range(30) if token != 3]]
    torch.testing.assert_close(
        entropy(torch.log_softmax(logits_NV, -1)), torch.distributions.Categorical(logits=possible_NV).entropy()
    )


def test_the_gradient_over_many_seeds_is_that_of_the_full_kl() -> None:
    generator = torch.Generator().manual_seed(3)
    student_V, teacher_V = torch.randn(2, 12, generator=generator, dtype=torch.float64) * 2
    log_p_NV = torch.log_softmax(teacher_V, -1).expand(SEEDS, -1)
    kept = sampled(log_p_NV, 4, torch.rand(SEEDS, generator=generator, dtype=torch.float64))
    target = SparseTarget(torch.arange(12).expand(SEEDS, -1), estimates(kept, 12), entropy_N=kept.aside_N)
    found = []
    for each, count in ((target, SEEDS), (DenseTarget(teacher_V[None], Head(torch.eye(12).double())), 1)):
        logits_NV = student_V.repeat(count, 1).requires_grad_()
        head = Head(torch.eye(12, dtype=torch.float64))
        next_N, mix = torch.zeros(count, dtype=torch.int64), Mix(weights={"forward_kl": 1})
        loss, _ = chunked_loss(logits_NV, head, each, next_N, mix)
        (gradient_NV,) = torch.autograd.grad(loss, logits_NV)
        found.append((loss.item() / count, gradient_NV))
    (value, gradient_NV), (full, full_NV) = found
    p_V = log_p_NV[0].exp()
    closed_form_V = torch.softmax(student_V, -1) - p_V
    torch.testing.assert_close(full_NV[0], closed_form_V)
    error_V = 4 * (gradient_NV.var(0) / SEEDS).sqrt() + 1e-9
    assert ((gradient_NV.mean(0) - closed_form_V).abs() <= error_V).all()
    assert value == pytest.approx(full, rel=0.01)
    raw = estimates(top_k(log_p_NV[:1], 4, torch.zeros(1)), 12)[0]
    assert not ((torch.softmax(student_V, -1) * raw.sum() - raw - closed_form_V).abs() <= error_V).all()


@pytest.fixture(scope="module")
def teacher(make_checkpoint: Callable[..., Path]) -> PreTrainedModel:
    """Opinionated, so that there is a tail and a head to its distributions."""
    return load_model(make_checkpoint("gpt2", initializer_range=0.3))


@pytest.fixture
def several_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of a few rows each."""
    monkeypatch.setattr(teacher_shards, "SHARD_BYTES", 1500)


def rows(count: int = ROWS) -> NDArray[np.int64]:
    return np.random.default_rng(0).integers(0, 300, (count, LENGTH))


def wanted(teacher: PreTrainedModel, **changes: Any) -> Plan:
    asked: dict[str, Any] = {"teacher_digest": "t", "method": {"sampled": DRAWS}, "temperature": 1.0, "seed": 5}
    return Plan.of(teacher, rows(), **asked | changes)


def obtain(teacher: PreTrainedModel, root: Path, **changes: Any) -> StoredTeacher:
    asked: dict[str, Any] = {
        "teacher_digest": "t",
        "method": {"sampled": DRAWS},
        "temperature": 1.0,
        "seed": 5,
        "batch": 2,
        "progress": Silent(),
    }
    return StoredTeacher.obtain(teacher, rows(), root=root, **asked | changes)


class Counting:
    """Counts how many rows a model is run on."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.rows = 0
        self.hook = model.base_model.register_forward_pre_hook(self.count, with_kwargs=True)

    def count(self, module: object, arguments: object, named: dict[str, Tensor]) -> None:
        self.rows += len(named["input_ids"])

    def __enter__(self) -> "Counting":
        return self

    def __exit__(self, *raised: object) -> None:
        self.hook.remove()


@torch.no_grad()
def full(teacher: PreTrainedModel, rows_B: list[int], temperature: float) -> Tensor:
    """The teacher's own distributions p_NV at the positions of some rows."""
    logits_BTV = teacher(input_ids=torch.from_numpy(rows()[rows_B]), use_cache=False).logits
    return torch.softmax(logits_BTV[:, :-1].flatten(0, 1) / temperature, -1)


def spread(target: SparseTarget, vocabulary: int) -> Tensor:
    """A target as distributions p_NV."""
    return torch.zeros(len(target.ids_NK), vocabulary).scatter_add_(1, target.ids_NK, target.p_NK)


@pytest.mark.usefixtures("several_shards")
def test_what_is_read_is_what_the_teacher_said(teacher: PreTrainedModel, tmp_path: Path) -> None:
    """In any order of rows: large tokens to float16, the entropy exactly, ids of a tail that is there."""
    store = obtain(teacher, tmp_path, temperature=0.5)
    assert len(store.plan.shards) > 2
    order = [7, 0, 9, 0]
    target, p_NV = store.targets(torch.tensor(order)), full(teacher, order, 0.5)
    found_NV = spread(target, p_NV.shape[1])
    large_NV = p_NV >= 1 / DRAWS
    assert 0 < large_NV.sum() < (found_NV > 0).sum()
    torch.testing.assert_close(found_NV[large_NV], p_NV[large_NV], rtol=6e-4, atol=0)
    assert (found_NV[~large_NV & (found_NV > 0)] == 1 / DRAWS).all()
    assert ((found_NV.sum(1) - 1).abs() <= 1 / DRAWS + 1e-3).all()
    assert target.entropy_N is not None
    torch.testing.assert_close(target.entropy_N, torch.special.entr(p_NV).sum(-1), rtol=1e-5, atol=1e-5)
    assert target.rest_N is None
    assert (target.ids_NK.dtype, target.p_NK.dtype) == (torch.int64, torch.float32)
    assert target.ids_NK.shape[1] == (found_NV > 0).sum(1).max()


@pytest.mark.usefixtures("several_shards")
def test_a_stored_top_k_is_the_teachers(teacher: PreTrainedModel, tmp_path: Path) -> None:
    store = obtain(teacher, tmp_path, method={"top_k": 6})
    target, p_NV = store.targets(torch.tensor([3, 8])), full(teacher, [3, 8], 1.0)
    likeliest = p_NV.topk(6)
    torch.testing.assert_close(target.p_NK, likeliest.values, rtol=6e-4, atol=1e-7)
    torch.testing.assert_close(p_NV.gather(1, target.ids_NK), likeliest.values)
    assert target.rest_N is not None
    torch.testing.assert_close(target.rest_N, 1 - likeliest.values.sum(1), rtol=6e-4, atol=1e-6)
    assert target.entropy_N is None
    assert store.metadata()["bias"].startswith("biased")
    assert store.metadata()["kept_per_token"] == 6


@pytest.mark.usefixtures("several_shards")
def test_a_row_has_the_same_draws_whatever_is_asked_beside_it(teacher: PreTrainedModel, tmp_path: Path) -> None:
    store = obtain(teacher, tmp_path)
    together = spread(store.targets(torch.tensor([2, 6])), 320)
    alone = [spread(store.targets(torch.tensor([row])), 320) for row in (2, 6)]
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.usefixtures("several_shards")
def test_another_student_does_not_run_the_teacher_again(teacher: PreTrainedModel, tmp_path: Path) -> None:
    with Counting(teacher) as ran:
        first = obtain(teacher, tmp_path)
        assert ran.rows == ROWS
        second = obtain(teacher, tmp_path)
        assert ran.rows == ROWS
        for number, change in enumerate(({"temperature": 2.0}, {"seed": 6}, {"method": {"sampled": 9}}), start=2):
            assert not obtain(teacher, tmp_path, **change).reused
            assert ran.rows == ROWS * number
    assert (first.reused, second.reused) == (False, True)
    assert first.metadata() | {"reused": True} == second.metadata()
    sizes = sum(file.stat().st_size for file in (tmp_path / first.plan.key).glob("*.safetensors"))
    assert first.metadata()["bytes"] == sizes
    assert first.metadata()["bytes_per_token"] == sizes / (ROWS * (LENGTH - 1))
    assert 0 < first.metadata()["kept_per_token"] <= DRAWS + 1


def test_a_key_is_of_everything_the_content_depends_on(teacher: PreTrainedModel) -> None:
    plans = [
        wanted(teacher),
        wanted(teacher, teacher_digest="u"),
        wanted(teacher, temperature=2),
        wanted(teacher, seed=6),
        wanted(teacher, method={"sampled": 9}),
        wanted(teacher, method={"top_k": 8}),
        Plan.of(teacher, rows()[::-1], teacher_digest="t", method={"sampled": DRAWS}, temperature=1, seed=5),
    ]
    with torch.autocast("cpu", torch.bfloat16):
        plans.append(wanted(teacher))
    assert plans[-1].precision == "bfloat16 autocast"
    assert len({each.key for each in plans}) == len(plans)
    assert wanted(teacher, temperature=1).key == wanted(teacher).key
    assert wanted(teacher, method={"top_k": 8}).key == wanted(teacher, method={"top_k": 8}, seed=6).key


@pytest.mark.usefixtures("several_shards")
def test_a_killed_production_goes_on(
    teacher: PreTrainedModel, tmp_path: Path, folder_digest: Callable[[Path], dict[str, str]]
) -> None:
    """Killed between shards, within one, and just before the index: the same bytes, and no shard is made twice."""
    whole = folder_digest(obtain(teacher, tmp_path / "whole").folder)
    folder = tmp_path / "killed" / wanted(teacher).key
    with pytest.raises(KilledError):
        obtain(teacher, tmp_path / "killed", progress=KillAt(4))
    left = sorted(file.name for file in folder.iterdir())
    assert left
    assert INDEX not in left
    (folder / f"{len(left):05}.safetensors.0123.tmp").write_bytes(b"half a shard")
    with Counting(teacher) as ran:
        store = obtain(teacher, tmp_path / "killed")
    assert ran.rows == ROWS - sum(store.plan.shards[name].stop - store.plan.shards[name].start for name in left)
    assert folder_digest(folder) == whole
    (folder / INDEX).unlink()
    (folder / left[0]).unlink()
    obtain(teacher, tmp_path / "killed")
    assert folder_digest(folder) == whole


OTHER_RANK = """
import sys
import numpy as np, torch
from pathlib import Path
from compress.checkpoints.loading import load_model
from compress.distillation import teacher_shards
from compress.distillation.teacher_shards import Plan
from compress.distillation.teacher_cache import produce
from compress.stage import Silent
torch.set_num_threads(int(sys.argv[3]))
teacher_shards.SHARD_BYTES = 1500
checkpoint, root = Path(sys.argv[1]), Path(sys.argv[2])
teacher, rows_NT = load_model(checkpoint), np.load(root / "rows.npy")
plan = Plan.of(teacher, rows_NT, teacher_digest="t", method={"sampled": 8}, temperature=1.0, seed=5)
produce(teacher, rows_NT, plan, root / plan.key, batch=2, progress=Silent(), rank=1, world=2)
"""


@pytest.mark.usefixtures("several_shards")
@pytest.mark.thorough
def test_two_processes_write_the_bytes_of_one(
    make_checkpoint: Callable[..., Path], tmp_path: Path, folder_digest: Callable[[Path], dict[str, str]]
) -> None:
    checkpoint = make_checkpoint("gpt2", initializer_range=0.3)
    teacher, root = load_model(checkpoint), tmp_path / "shared"
    alone = obtain(teacher, tmp_path / "alone")
    root.mkdir()
    np.save(root / "rows.npy", rows())
    folder, threads = root / alone.plan.key, str(torch.get_num_threads())
    other = subprocess.Popen([sys.executable, "-c", OTHER_RANK, str(checkpoint), str(root), threads], cwd=ROOT)
    produce(teacher, rows(), alone.plan, folder, batch=2, progress=Silent(), rank=0, world=2)
    mine = set(list(alone.plan.shards)[::2])
    assert mine <= {file.name for file in folder.iterdir()}
    assert other.wait() == 0
    assert sorted(file.name for file in folder.iterdir()) == sorted(alone.plan.shards)
    finish(alone.plan, folder)
    assert folder_digest(folder) == folder_digest(alone.folder)


@pytest.mark.usefixtures("several_shards")
def test_each_rank_runs_its_share_and_all_get_the_same(teacher: PreTrainedModel, tmp_path: Path) -> None:
    barrier = Barrier(2)
    with Counting(teacher) as ran, ThreadPoolExecutor(2) as pool:
        ranks = [
            pool.submit(obtain, teacher, tmp_path, rank=rank, world=2, barrier=lambda: (barrier.wait(), None)[1])
            for rank in range(2)
        ]
        first, second = (rank.result() for rank in ranks)
    assert ran.rows == ROWS
    every = torch.arange(ROWS)
    assert torch.equal(spread(first.targets(every), 320), spread(second.targets(every), 320))
    with pytest.raises(ValueError, match="expected a barrier for 2 processes"):
        obtain(teacher, tmp_path, world=2)


def test_what_others_write_is_swept_only_once_all_is_there(
    teacher: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a producer whose index is swept would find none."""
    folder = obtain(teacher, tmp_path).folder
    (folder / "index.json").unlink()
    others = folder / f"index.json.of-another{teacher_cache.TEMPORARY}"
    others.touch()
    write, there = teacher_cache.write_once, list[bool]()

    def watched(file: Path, content: bytes) -> None:
        there.append(others.exists())
        write(file, content)

    monkeypatch.setattr(teacher_cache, "write_once", watched)
    obtain(teacher, tmp_path)
    assert there == [True]
    assert not others.exists()


@pytest.mark.usefixtures("several_shards")
def test_independent_producers_of_one_key_do_not_disturb_each_other(
    teacher: PreTrainedModel, tmp_path: Path, folder_digest: Callable[[Path], dict[str, str]]
) -> None:
    whole = folder_digest(obtain(teacher, tmp_path / "whole").folder)
    together = Barrier(3)

    def one() -> StoredTeacher:
        together.wait()
        return obtain(teacher, tmp_path / "shared")

    with ThreadPoolExecutor(3) as pool:
        stores = [future.result() for future in [pool.submit(one) for _ in range(3)]]
    assert [folder_digest(store.folder) for store in stores] == [whole] * 3


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


BREAK: dict[str, tuple[Callable[[Path], object], str]] = {
    "a changed byte": (lambda folder: flip(folder / "00001.safetensors"), "00001.safetensors: was changed"),
    "a cut shard": (
        lambda folder: (folder / "00001.safetensors").write_bytes((folder / "00001.safetensors").read_bytes()[:-1]),
        "00001.safetensors: expected [0-9]+ bytes, got [0-9]+",
    ),
    "a missing shard": (lambda folder: (folder / "00002.safetensors").unlink(), "00002.safetensors: is missing"),
    "half an index": (lambda folder: (folder / INDEX).write_text('{"plan": '), "index.json: cannot be read"),
    "another's index": (
        lambda folder: (folder / INDEX).write_text(
            json.dumps(json.loads((folder / INDEX).read_text()) | {"plan": {"seed": 1}})
        ),
        "index.json: says other than",
    ),
}


@pytest.mark.usefixtures("several_shards")
@pytest.mark.parametrize("name", sorted(BREAK))
def test_a_broken_store_is_refused_with_the_way_out(name: str, teacher: PreTrainedModel, tmp_path: Path) -> None:
    folder = obtain(teacher, tmp_path).folder
    damage, message = BREAK[name]
    damage(folder)
    with pytest.raises(StageError, match=f"{message}.*; delete the folder {folder} and run again"):
        obtain(teacher, tmp_path)


@pytest.mark.usefixtures("several_shards")
def test_a_shard_of_something_else_is_not_finished(teacher: PreTrainedModel, tmp_path: Path) -> None:
    plan, other = wanted(teacher), wanted(teacher, method={"top_k": 3})
    produce(teacher, rows(), plan, tmp_path / "a", batch=2, progress=Silent())
    with pytest.raises(StageError, match=r"00000\.safetensors: cannot be read"):
        finish(other, tmp_path / "a")
    (tmp_path / "a" / "00000.safetensors").unlink()
    with pytest.raises(StageError, match=r"00000\.safetensors: cannot be read"):
        finish(plan, tmp_path / "a")


@pytest.mark.parametrize("method", [{}, {"sampled": 0}, {"top_k": 70_000}, {"best": 5}, {"sampled": 5, "top_k": 5}])
def test_another_method_is_refused(method: dict[str, int], teacher: PreTrainedModel, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="expected one of sampled, top_k with a number of tokens from 1 to"):
        obtain(teacher, tmp_path, method=method)


@pytest.mark.parametrize("row", [-1, ROWS])
def test_a_row_that_was_not_stored_is_refused(row: int, teacher: PreTrainedModel, tmp_path: Path) -> None:
    with pytest.raises(IndexError, match=f"expected a row below {ROWS}, got {row}"):
        obtain(teacher, tmp_path).targets(torch.tensor([0, row]))


def test_a_teacher_with_dropout_or_without_numbers_is_refused(gpt2: Path, tmp_path: Path) -> None:
    model = load_model(gpt2)
    with pytest.raises(ValueError, match="evaluation mode"):
        obtain(model.train(), tmp_path)
    model.eval()
    torch.nn.init.constant_(model.get_output_embeddings().weight, torch.nan)
    for method in ({"sampled": 4}, {"top_k": 4}):
        with pytest.raises(StageError, match="expected finite logits of the teacher, got NaN or infinity in float32"):
            obtain(model, tmp_path, method=method)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_no_more_logits_are_held_than_allowed(
    teacher: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head is taken to a few positions at a time, and the result is the same."""
    whole = obtain(teacher, tmp_path / "whole", method={"top_k": 4}).targets(torch.arange(ROWS))
    most = 0
    keep = METHODS["top_k"].keep

    def watched(log_p_NV: Tensor, amount: int, offsets_N: Tensor) -> SampledLogits:
        nonlocal most
        most = max(most, log_p_NV.numel())
        return keep(log_p_NV, amount, offsets_N)

    monkeypatch.setitem(teacher_cache.CHUNK_BYTES, "cpu", 4 * 320 * 5)
    monkeypatch.setitem(METHODS, "top_k", teacher_cache.dataclasses.replace(METHODS["top_k"], keep=watched))
    pieces = obtain(teacher, tmp_path / "pieces", method={"top_k": 4}).targets(torch.arange(ROWS))
    assert most == 320 * 5
    torch.testing.assert_close(pieces.p_NK, whole.p_NK, rtol=1e-3, atol=1e-6)
