"""Two threads of one process that load models, or make results, do not damage each other's."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from compress.checkpoints.loading import empty_model, load_model
from compress.checkpoints.one_at_a_time import one_at_a_time
from recipes.engine.steps import Engine, Step
from recipes.runs.store import Store


def meeting(function: Any, patience: float = 0.1) -> int:
    """How many threads were in a function at once, of three that call it and each wait there for another."""
    inside, most, together, pause = 0, 0, threading.Barrier(3), threading.Event()

    def body() -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        if inside > 1:
            pause.set()
        pause.wait(patience)
        inside -= 1

    def call(number: int) -> None:
        together.wait()
        function(body, number)

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(call, range(3)))
    return most


def test_one_thread_loads_at_a_time() -> None:
    assert meeting(lambda body, number: body(), patience=60) > 1
    assert meeting(lambda body, number: one_at_a_time(body)()) == 1


def test_one_result_is_made_at_a_time(tmp_path: Path) -> None:
    """Random numbers belong to the process: the figures of a training must not depend on what another thread draws."""
    engine = Engine(store=Store(tmp_path))

    def obtain(body: Any, number: int) -> None:
        engine.obtain(Step(kind="copy", identity={"number": number}, make=lambda files, scratch: body() or {}))

    assert meeting(obtain) == 1


def test_models_loaded_by_threads_at_once_are_whole(gpt2: Path, llama: Path) -> None:
    functions = {name: getattr(torch.nn.init, name) for name in dir(torch.nn.init) if name.endswith("_")}
    with ThreadPoolExecutor(4) as threads:
        loads = [load_model, empty_model, load_model, empty_model]
        models = list(threads.map(lambda pair: pair[0](pair[1]), zip(loads * 3, [gpt2, llama] * 6, strict=True)))
    assert len(models) == 12
    expected = {type(load_model(folder)): load_model(folder).state_dict() for folder in (gpt2, llama)}
    for model in models[::2]:
        for name, tensor in expected[type(model)].items():
            torch.testing.assert_close(model.state_dict()[name], tensor, rtol=0, atol=0)
    assert {name: getattr(torch.nn.init, name) for name in functions} == functions
    assert torch.get_default_dtype() == torch.float32
