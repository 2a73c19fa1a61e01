"""Section `speed`: demitasse and its peers on the GPU, in the blocks that grid.py describes.

Every variant has a process of its own, and all of them hold their model while the others take their turns. They import
their libraries at the same time, and then open one after the other, so that what the GPU's memory lost meanwhile is
what that process took: weights, cache, workspaces, and the library's own context.

A step is timed from the ids going in to the next ids being on the host; all choose them on the GPU. torch.compile
compiles in the trial that is not timed.

The first workloads are those at batch 1; where the time ends, the others are left out and the results say so.
"""

import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.distillation_order import Part
from benchmarks.gpu_order import Json, Request
from benchmarks.gpu_variants import GPU_VARIANTS
from benchmarks.grid import Prompts, Settings, Workload, check_next, measure_load, time_workload, workloads_of
from benchmarks.prepare import Files, PrepareError, prepared
from benchmarks.process import VariantError, VariantProcess
from benchmarks.results import sizes_of
from benchmarks.shapes import SHAPES, write_checkpoint

TINY: dict[str, Json] = {
    "gpt2": {"n_layer": 1, "n_embd": 64, "n_head": 1, "vocab_size": 512, "n_positions": 192},
    "llama": {
        "vocab_size": 512,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 192,
    },
}
"""What a dry run changes of a shape."""
PATIENCE = 150.0
"""Seconds that an order may take: torch.compile's first step takes the longest."""
ABREAST = 6
CLOSING = 10.0
"""Seconds that are kept for ending the processes."""


def settings_of(request: Request) -> Settings:
    """The workloads and how they are timed."""
    if request.dry:
        workloads = workloads_of((24,), (24,), (1,))
        return Settings(
            workloads=workloads, blocks=1, steps=2, loads=1, threads=1, settle=0.0, load_prompt=16, checked=2
        )
    return Settings(
        workloads=workloads_of((128, 900), (128, 512), (1, 4, 8, 16)),
        blocks=request.blocks,
        steps=request.steps,
        loads=1,
        threads=request.threads,
        device="cuda",
        settle=0.01,
    )


def in_order(settings: Settings) -> list[Workload]:
    """Batch 1 first, decode before prefill."""
    return sorted(settings.workloads, key=lambda workload: workload.batch)


def speed(request: Request, part: Part) -> None:
    """Every model, each with its share of the time that is left."""
    settings = settings_of(request)
    about = {"blocks": settings.blocks, "steps": settings.steps, "threads": settings.threads, "chosen": "on the GPU"}
    part.about(settings=about)
    for place, model in enumerate(request.models):
        share = request.left() / (len(request.models) - place)
        part.rows.pop(model, None)
        part.rows[model] = {"weights": "random", "variants": {}, "left_out": [], "error": ""}
        _speed_of(request, part, model, settings, time.monotonic() + share - CLOSING)


def _speed_of(request: Request, part: Part, model: str, settings: Settings, until: float) -> None:
    from compress.checkpoints.folder import inspect_checkpoint

    found = part.rows[model]
    checkpoint = shape_of(request.work, model, dry=request.dry)
    parameters = inspect_checkpoint(checkpoint).parameters
    found |= {"family": SHAPES[model]["model_type"], "parameters": parameters, "float32_bytes": 4 * parameters}
    files = {}
    for name in request.variants or GPU_VARIANTS:
        found["variants"][name], made = _files_of(request, name, model, checkpoint)
        if made is not None:
            files[name] = made
    part.about()
    with ExitStack() as stack:
        running = _opened(stack, request, found["variants"], files, checkpoint, settings)
        part.about()
        _time_all(request, part, found, running, Prompts.read(checkpoint, settings.longest), settings, until)


def shape_of(work: Path, model: str, *, dry: bool) -> Path:
    """The checkpoint of a shape, written where it is not there yet."""
    checkpoint = work / model / "checkpoint"
    if not (checkpoint / "model.safetensors").is_file():
        write_checkpoint(model, checkpoint, **(TINY[SHAPES[model]["model_type"]] if dry else {}))
    return checkpoint


def kinds_of(model: str, variants: Iterable[str] = ()) -> list[str]:
    """The kinds of files that a model's variants run, or these of them, each once."""
    family = SHAPES[model]["model_type"]
    asked = [GPU_VARIANTS[name] for name in tuple(variants) or GPU_VARIANTS]
    fit = [variant for variant in asked if not variant.reason_against(family)]
    return list(dict.fromkeys(variant.files for variant in fit if variant.files != "checkpoint"))


def _files_of(request: Request, name: str, model: str, checkpoint: Path) -> tuple[Json, Files | None]:
    """A variant's result to be filled, and its files if it can take part."""
    variant, made = GPU_VARIANTS[name], None
    reason = variant.reason_against(SHAPES[model]["model_type"])
    if not reason:
        try:
            made = prepared(variant.files, checkpoint, request.work / model, "cuda")
        except PrepareError as error:
            reason = f"its files could not be made: {error}"
    result: Json = {"title": variant.title, "reason": reason, "load": [], "check": [], "workloads": {}, "gpu_memory": 0}
    return result | (sizes_of(made.folder) if made is not None else {"weight_bytes": 0, "bytes": 0}), made


def _opened(
    stack: ExitStack,
    request: Request,
    results: Json,
    files: Mapping[str, Files],
    checkpoint: Path,
    settings: Settings,
) -> dict[str, VariantProcess]:
    """A process for each variant, its model open; those that did not come so far have a reason."""
    started = {
        name: stack.enter_context(
            VariantProcess(
                GPU_VARIANTS[name].runner,
                made.folder,
                knobs=GPU_VARIANTS[name].knobs,
                threads=settings.threads,
                device=settings.device,
                scratch=request.work / "scratch",
                patience=PATIENCE,
            )
        )
        for name, made in files.items()
    }
    request.tell(f"{len(started)} processes import their libraries")
    with ThreadPoolExecutor(ABREAST) as pool:
        list(pool.map(partial(_imports, results), started.items()))
    running = {}
    rows = Prompts.read(checkpoint, settings.longest).rows(1, settings.load_prompt)
    for name, process in started.items():
        request.tell(f"opening {name}")
        before = used_memory(request.dry)
        if not results[name]["reason"]:
            _open(results[name], process, rows, settings, dry=request.dry and GPU_VARIANTS[name].slow_start)
        results[name]["gpu_memory"] = used_memory(request.dry) - before
        if results[name]["reason"]:
            process.close()
        else:
            running[name] = process
    return running


def _imports(results: Json, started: tuple[str, VariantProcess]) -> None:
    name, process = started
    try:
        process.order("imports")
    except VariantError as error:
        results[name]["reason"] = str(error)


def _open(result: Json, process: VariantProcess, rows: list[list[int]], settings: Settings, *, dry: bool) -> None:
    """Open, read, decode a little; where compiling would take long in a dry run, open alone."""
    if not dry:
        measure_load(result, process, rows, settings.room)
        return
    try:
        process.order("open")
        result["reason"] = "opened; a dry run does not compile"
    except VariantError as error:
        result["reason"] = str(error)


def used_memory(dry: bool) -> int:
    """Bytes of the GPU's memory that all processes together hold."""
    if dry:
        return 0
    import torch

    free, total = torch.cuda.mem_get_info()
    return int(total - free)


def _time_all(
    request: Request,
    part: Part,
    found: Json,
    running: Mapping[str, VariantProcess],
    prompts: Prompts,
    settings: Settings,
    until: float,
) -> None:
    """Every workload for which there is time; each is written down when it is done."""
    random: Any = np.random.default_rng(settings.seed)
    ids = prompts.rows(settings.checked, settings.load_prompt)
    for name, process in running.items():
        check_next(found["variants"][name], process, ids, settings.room)
    part.about()
    for workload in in_order(settings):
        if time.monotonic() > until:
            found["left_out"].append(workload.key)
            continue
        request.tell(workload.key)
        rows = prompts.rows(workload.batch, workload.tokens)
        time_workload(found["variants"], running, workload, rows, settings, random, lambda what: None)
        part.about()
