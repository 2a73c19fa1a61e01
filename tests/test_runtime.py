"""The runtime: PyTorch's tokens, rows that do not see each other, and errors instead of nonsense."""

import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exported import exported, genai_greedy, quantized, sharpened

from compress.checkpoints.folder import Checkpoint
from compress.checkpoints.loading import load_float_model
from export.provider import judge_profile, prove_provider
from export.runtime.model import OnnxCausalLM, PromptError
from export.runtime.sampling import Sampling, choose, nucleus, penalize
from export.runtime.session import ProviderError

FAMILIES = ["gpt2", "llama"]
PROMPTS = [list(range(5, 25)), list(range(40, 47)), [9, 8, 7, 6, 5, 4, 3, 2, 1, 60, 61, 62, 63]]
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def checkpoints(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("runtime")
    dense = {family: sharpened(make_checkpoint(family), root / family) for family in FAMILIES}
    return {family: quantized(path, root / f"{family}-int8", embeddings=True) for family, path in dense.items()}


@pytest.fixture(scope="module")
def bundles(checkpoints: dict[str, Path], text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bundles")
    return {name: exported(path, root / name, text_file, accuracy_level=0) for name, path in checkpoints.items()}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(family: str, bundles: dict[str, Path]) -> OnnxCausalLM:
    return OnnxCausalLM.open(bundles[family], threads=2)


def torch_greedy(checkpoint: Path, prompt: list[int], tokens: int) -> list[int]:
    import torch

    model = load_float_model(Checkpoint(checkpoint))
    ids = torch.tensor([prompt])
    for _ in range(tokens):
        with torch.no_grad():
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    return ids[0, len(prompt) :].tolist()


def test_scores_are_pytorchs(family: str, model: OnnxCausalLM, checkpoints: dict[str, Path]) -> None:
    import torch

    ids_BT = np.random.default_rng(0).integers(0, model.config.vocabulary, (3, 40))
    with torch.no_grad():
        logits = load_float_model(Checkpoint(checkpoints[family]))(torch.from_numpy(ids_BT)).logits
    expected = torch.log_softmax(logits, dim=-1).numpy()
    assert np.abs(model.score(ids_BT) - expected).max() < 1e-4


def test_greedy_tokens_are_pytorchs(family: str, model: OnnxCausalLM, checkpoints: dict[str, Path]) -> None:
    ours = model.generate(PROMPTS, max_new_tokens=12, stop_ids=[])
    assert ours == [torch_greedy(checkpoints[family], prompt, 12) for prompt in PROMPTS]


def test_rows_do_not_depend_on_batch_mates(model: OnnxCausalLM) -> None:
    for sampling in (Sampling(), Sampling(temperature=1.0, seed=3)):
        together = model.generate(PROMPTS, max_new_tokens=10, stop_ids=[], sampling=sampling)
        assert together[0] == model.generate(PROMPTS[:1], max_new_tokens=10, stop_ids=[], sampling=sampling)[0]
    alone = [model.generate([prompt], max_new_tokens=10, stop_ids=[])[0] for prompt in PROMPTS]
    assert model.generate(PROMPTS, max_new_tokens=10, stop_ids=[]) == alone


def test_generate_stream_and_steps_agree(model: OnnxCausalLM) -> None:
    expected = model.generate(PROMPTS[:1], max_new_tokens=10, stop_ids=[])[0]
    assert list(model.stream(PROMPTS[0], max_new_tokens=10, stop_ids=[])) == expected
    cursor = model.cursor()
    for _ in range(2):  # the second prefill finds the first one's cache
        first = cursor.prefill(np.asarray(PROMPTS[:1]))
        assert [first, *(cursor.step() for _ in range(9))] == expected


def test_callers_that_share_a_model_do_not_meet(model: OnnxCausalLM) -> None:
    """Each in a place of its own, and in threads at once."""
    alone = [model.generate([prompt], max_new_tokens=8, stop_ids=[])[0] for prompt in PROMPTS]
    cursors = [model.cursor() for _ in PROMPTS]
    found = [[cursor.prefill(np.asarray([prompt]))] for cursor, prompt in zip(cursors, PROMPTS, strict=True)]
    for _ in range(7):
        for text, cursor in zip(found, cursors, strict=True):
            text.append(cursor.step())
    assert found == alone
    with ThreadPoolExecutor(4) as threads:
        each = threads.map(
            lambda index: model.generate([PROMPTS[index % 3]], max_new_tokens=8, stop_ids=[])[0], range(24)
        )
        assert list(each) == alone[:3] * 8


def test_padding_on_the_right_does_no_harm(model: OnnxCausalLM) -> None:
    ids_BT = np.asarray([PROMPTS[0] + [0] * 12])
    assert np.array_equal(model.score(ids_BT)[:, :20], model.score(ids_BT[:, :20])) or np.allclose(
        model.score(ids_BT)[:, :20], model.score(ids_BT[:, :20]), atol=1e-5
    )


def test_cache_is_written_in_place(model: OnnxCausalLM) -> None:
    batch = model.new_batch(1, 16)
    before = {name: value.data_ptr() for name, value in batch.cache.items()}
    batch.feed(np.asarray([[5, 6, 7]]), np.asarray([3]))
    batch.step(np.asarray([8]))
    assert len(before) == 2 * 3
    assert {name: value.data_ptr() for name, value in batch.cache.items()} == before
    for value in batch.cache.values():
        filled = np.abs(value.numpy()).sum(axis=(0, 1, 3)) > 0
        assert filled.tolist() == [True] * 4 + [False] * 12


def test_prefill_computes_the_logits_that_are_asked_for(model: OnnxCausalLM) -> None:
    ids_BT = np.random.default_rng(3).integers(1, 300, (3, 20))
    counts = np.asarray([20, 15, 11])
    every = model.new_batch(3, 24).feed(ids_BT, counts)
    later = model.new_batch(3, 24).feed(ids_BT, counts, logits_from=10)
    assert every.shape[1] == 20
    assert later.shape[1] == 10
    for row, count in enumerate(counts):
        assert np.allclose(later[row, : count - 10], every[row, 10:count], atol=1e-5)
    assert [value.name for value in model.session.get_overridable_initializers()] == ["logits_from"]


def test_rewound_batch_says_the_same_again(model: OnnxCausalLM) -> None:
    batch = model.new_batch(2, 24)
    batch.feed(np.asarray([[5, 6, 7, 8], [9, 10, 11, 0]]), np.asarray([4, 3]))
    tokens = np.random.default_rng(4).integers(1, 300, (6, 2))
    first = [batch.step(token_B).copy() for token_B in tokens]
    batch.rewind(np.asarray([4, 3]))
    assert all(np.array_equal(batch.step(token_B), before) for token_B, before in zip(tokens, first, strict=True))
    assert batch.length_B.tolist() == [10, 9]


def test_calls_share_memory_but_not_tokens(model: OnnxCausalLM) -> None:
    alone = [model.generate([prompt], max_new_tokens=8, stop_ids=[])[0] for prompt in PROMPTS]
    streams = [model.stream(prompt, max_new_tokens=8, stop_ids=[]) for prompt in PROMPTS]
    taken = [list(column) for column in zip(*streams, strict=True)]
    assert [list(row) for row in zip(*taken, strict=True)] == alone
    model.generate(PROMPTS[:1], max_new_tokens=8, stop_ids=[])
    kept = model._idle
    assert kept is not None
    model.generate(PROMPTS[:1], max_new_tokens=8, stop_ids=[])
    assert model._idle is kept, "the same shape again allocates nothing"


def test_python_work_of_a_step_does_not_grow_with_the_context(model: OnnxCausalLM) -> None:
    import tracemalloc

    batch = model.new_batch(1, model.config.context)
    taken = []
    for length in (4, 100):
        batch.feed(np.full((1, length), 3), np.asarray([length]))
        tracemalloc.start()
        batch.step(np.asarray([5]))
        taken.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert taken[1] < taken[0] + 256


def test_stop_token_ends_a_row_alone(model: OnnxCausalLM) -> None:
    free = model.generate(PROMPTS, max_new_tokens=10, stop_ids=[])
    stop = free[0][3]
    stopped = model.generate(PROMPTS, max_new_tokens=10, stop_ids=[stop])
    assert stopped == [row[: row.index(stop)] if stop in row else row for row in free]
    assert list(model.stream(PROMPTS[0], max_new_tokens=10, stop_ids=[stop])) == stopped[0]


def test_context_can_be_filled_but_not_exceeded(model: OnnxCausalLM) -> None:
    context = model.config.context
    prompt = [3] * (context - 4)
    assert len(model.generate([prompt], max_new_tokens=50, stop_ids=[])[0]) == 5
    assert len(list(model.stream(prompt, max_new_tokens=50, stop_ids=[]))) == 5
    with pytest.raises(PromptError, match=f"{context + 1} tokens.*context holds {context}"):
        model.generate([[3] * (context + 1)], max_new_tokens=1)
    with pytest.raises(PromptError, match="context holds"):
        model.score(np.zeros((1, context + 1), dtype=np.int64))
    cursor = model.cursor()
    cursor.prefill(np.asarray([[3, 4]]), reserve=1)
    cursor.step()
    with pytest.raises(PromptError, match="cache is full"):
        cursor.step()


def test_prompts_that_make_no_sense_are_refused(model: OnnxCausalLM) -> None:
    with pytest.raises(PromptError, match="empty"):
        model.generate([[1], []], max_new_tokens=1)
    with pytest.raises(PromptError, match=r"token ids below \d+, got 999999"):
        model.generate([[999999]], max_new_tokens=1)
    with pytest.raises(PromptError, match="prefill"):
        model.cursor().step()


def test_onnxruntime_genai_runs_the_folder_as_it_is(family: str, bundles: dict[str, Path], model: OnnxCausalLM) -> None:
    ids, theirs = genai_greedy(bundles[family], "It was a dark night", 12)
    ours = model.generate([ids], max_new_tokens=12)[0]
    assert ours
    assert theirs[: len(ours)] == ours


def test_runtime_needs_no_torch(bundles: dict[str, Path]) -> None:
    program = (
        "import sys; from pathlib import Path; from export.runtime.model import OnnxCausalLM; "
        "model = OnnxCausalLM.open(Path(sys.argv[1])); print(model.generate([[1, 2]], max_new_tokens=2)); "
        "assert not {'torch', 'transformers', 'mobius'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(bundles["gpt2"])], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_threads_do_not_spin_between_runs(model: OnnxCausalLM) -> None:
    model.score(np.zeros((4, 64), dtype=np.int64))
    before = time.process_time()
    time.sleep(0.1)
    assert time.process_time() - before < 0.05


def test_provider_that_is_not_there_is_an_error(bundles: dict[str, Path]) -> None:
    try:
        model = OnnxCausalLM.open(bundles["gpt2"], provider="cuda")
    except ProviderError as error:
        assert "cuda" in str(error)  # noqa: PT017 (on a machine with CUDA nothing is raised)
    else:
        assert model.session.get_providers()[0] == "CUDAExecutionProvider"


def test_every_node_runs_on_the_cpu(bundles: dict[str, Path]) -> None:
    proof = prove_provider(bundles["gpt2"], "cpu")
    assert proof["provider"] == "cpu"
    assert proof["nodes"] > 50


def event(operator: str, provider: str, kind: str) -> dict[str, Any]:
    args = {"op_name": operator, "provider": f"{provider}ExecutionProvider", "input_type_shape": [{kind: [1, 2]}]}
    return {"cat": "Node", "name": f"{operator}_kernel_time", "args": args}


def test_profile_with_a_node_elsewhere_proves_nothing() -> None:
    good = [event("MatMulNBits", "CUDA", "float16"), event("Gather", "CPU", "int64")]
    assert judge_profile(good, "cuda") == {"provider": "cuda", "nodes": 1, "shape_arithmetic": 1}
    with pytest.raises(ProviderError, match="1 x Gelu on CPUExecutionProvider"):
        judge_profile([*good, event("Gelu", "CPU", "float")], "cuda")
    with pytest.raises(ProviderError, match="copied between devices"):
        judge_profile([*good, event("MemcpyToHost", "CUDA", "float16")], "cuda")
    with pytest.raises(ProviderError, match="names no node"):
        judge_profile([], "cuda")


def test_sampling_draws_from_what_it_says() -> None:
    scaled = np.log(np.asarray([0.1, 0.5, 0.15, 0.25]))
    assert nucleus(scaled, 0, 1.0).tolist() == [0, 1, 2, 3]
    assert nucleus(scaled, 3, 1.0).tolist() == [1, 3, 2]
    assert nucleus(scaled, 2, 1.0).tolist() == [1, 3]
    assert nucleus(scaled, 0, 0.7).tolist() == [1, 3]
    assert nucleus(scaled, 0, 0.5).tolist() == [1]
    logits = np.asarray([2.0, -2.0, 1.0], dtype=np.float32)
    assert penalize(logits, np.asarray([True, True, False]), 2.0).tolist() == [1.0, -4.0, 1.0]
    random, unseen = np.random.default_rng(0), np.zeros(4, dtype=np.bool_)
    draws = [choose(scaled.astype(np.float32), unseen, Sampling(temperature=1.0), random) for _ in range(4000)]
    assert np.allclose(np.bincount(draws) / 4000, np.exp(scaled), atol=0.03)
    assert choose(scaled.astype(np.float32), unseen, Sampling(temperature=5.0, top_k=1), random) == 1
    with pytest.raises(ValueError, match="top_p"):
        Sampling(top_p=0.0)


def test_same_seed_gives_the_same_tokens(model: OnnxCausalLM) -> None:
    how = Sampling(temperature=1.5, top_k=50, top_p=0.95, repetition_penalty=1.1, seed=5)
    first = model.generate(PROMPTS, max_new_tokens=8, stop_ids=[], sampling=how)
    assert model.generate(PROMPTS, max_new_tokens=8, stop_ids=[], sampling=how) == first
    assert list(model.stream(PROMPTS[0], max_new_tokens=8, stop_ids=[], sampling=how)) == first[0]
    other = Sampling(temperature=1.5, top_k=50, top_p=0.95, repetition_penalty=1.1, seed=6)
    assert model.generate(PROMPTS, max_new_tokens=8, stop_ids=[], sampling=other) != first
