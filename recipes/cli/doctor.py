"""Is this machine ready? What was looked at, what was found, and what to do where it is not as it should be.

A provider of ONNX Runtime counts only when a session really loaded it and computed with it: the list of "available"
providers names what the package was built with, not what this machine can run.
"""

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from evaluation.machine import available_cores

Status = Literal["ok", "note", "missing"]

DISTRIBUTION = "demitasse"
NEEDED_MEMORY, NEEDED_DISK = 4 << 30, 5 << 30
INT8_FEATURES = ("avx512_vnni", "avx_vnni", "amx_int8", "i8mm", "asimddp")
"""CPU instructions that multiply 8-bit integers; one of them makes int8 arithmetic fast."""
FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "bf16", *INT8_FEATURES)
CPU = "CPUExecutionProvider"
WANTED = (CPU, "CUDAExecutionProvider")
"""Providers that a recipe can ask for; the CPU's is always needed, the other where there is a GPU."""


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report."""

    subject: str
    status: Status
    found: str
    advice: str = ""
    """What to do; empty where nothing is to be done."""


def examine() -> Iterator[Finding]:
    """Every finding, as soon as it is known."""
    for check in CHECKS.values():
        yield from check()


def _python() -> Iterator[Finding]:
    found = f"{platform.python_version()} at {sys.executable}, {platform.platform()}"
    old = sys.version_info < (3, 11)
    yield Finding("Python", "missing" if old else "ok", found, "install Python 3.11 or newer" if old else "")


def _libraries() -> Iterator[Finding]:
    from packaging.requirements import Requirement

    try:
        requirements = [Requirement(line) for line in importlib.metadata.requires(DISTRIBUTION) or []]
    except importlib.metadata.PackageNotFoundError:
        yield Finding(DISTRIBUTION, "missing", "not installed", "pip install -e . -c constraints.txt")
        return
    for requirement in requirements:
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield _library(requirement.name, str(requirement.specifier), requirement.specifier.contains)


def _library(name: str, wanted: str, fits: Callable[[str], bool]) -> Finding:
    advice = f'pip install "{name}{wanted}" -c constraints.txt'
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, "missing", "not installed", advice)
    return (
        Finding(name, "ok", version)
        if fits(version)
        else Finding(name, "missing", f"{version}, outside {wanted}", advice)
    )


def _cpu() -> Iterator[Finding]:
    flags = _cpu_flags()
    known = [name for name in FEATURES if name in flags]
    found = f"{platform.machine()}, {available_cores()} cores, {' '.join(known) or 'features unknown'}"
    slow = bool(flags) and flags.isdisjoint(INT8_FEATURES)
    advice = "no 8-bit integer instructions: int8 bundles run here, but slower than they will elsewhere" if slow else ""
    yield Finding("CPU", "note" if slow else "ok", found, advice)


def _cpu_flags() -> set[str]:
    """The CPU's instruction sets as Linux names them; empty where nobody says."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith(("flags", "features")):
                return set(line.partition(":")[2].split())
    if sys.platform == "darwin":
        names = {
            "hw.optional.variant.FEAT_I8MM": "i8mm",
            "hw.optional.variant.FEAT_DotProd": "asimddp",
            "hw.optional.avx2_0": "avx2",
        }
        return {name for key, name in names.items() if _answer("sysctl", "-n", key) == "1"}
    return set()


def _answer(*command: str) -> str:
    """What a program prints; empty if it is not there or fails."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (subprocess.SubprocessError, OSError):
        return ""


def _room() -> Iterator[Finding]:
    import psutil

    memory, disk = psutil.virtual_memory(), shutil.disk_usage(Path.cwd())
    low = memory.available < NEEDED_MEMORY
    found = f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free"
    yield Finding(
        "memory",
        "note" if low else "ok",
        found,
        "close other programs; 4 GiB are enough for small models" if low else "",
    )
    low = disk.free < NEEDED_DISK
    found = f"{disk.free / 2**30:.1f} GiB free in {Path.cwd()}"
    yield Finding(
        "disk", "note" if low else "ok", found, "free some space, or write elsewhere with --out" if low else ""
    )


def _cards() -> list[str]:
    """The NVIDIA GPUs of this machine: name, memory, driver."""
    return _answer("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader").splitlines()


def _gpus() -> Iterator[Finding]:
    import torch

    cards = _cards()
    for card in cards:
        yield Finding("GPU", "ok", card)
    if not cards:
        yield Finding("GPU", "note", "no NVIDIA GPU found", "recipes run on the CPU; " + BUILDS_FOR_CUDA)
    if torch.cuda.is_available():
        yield Finding("torch on CUDA", "ok", f"CUDA {torch.version.cuda}, {torch.cuda.device_count()} devices")
    elif cards and torch.version.cuda is None:
        yield Finding(
            "torch on CUDA", "missing", "torch is a CPU build", "install torch's CUDA build to train on the GPU"
        )
    elif cards:
        yield Finding(
            "torch on CUDA", "missing", "torch finds no CUDA device", "update the GPU's driver, then try nvidia-smi"
        )


def _providers() -> Iterator[Finding]:
    import onnxruntime

    available = onnxruntime.get_available_providers()
    model = tiny_model()
    for provider in WANTED:
        wanted = provider == CPU or bool(_cards())
        if provider in available:
            yield _provider(provider, why_not(provider, model), wanted=wanted)
        else:
            advice = "pip install onnxruntime-gpu -c constraints.txt" if wanted else ""
            status: Status = "missing" if wanted else "note"
            yield Finding(provider, status, "not in this build of ONNX Runtime", advice)
    others = [name for name in available if name not in WANTED]
    if others:
        yield Finding("other providers", "note", f"{', '.join(others)}: built in, not used by demitasse")


def _provider(provider: str, reason: str, *, wanted: bool) -> Finding:
    if not reason:
        return Finding(provider, "ok", "loads and computes")
    if not wanted:
        return Finding(provider, "note", reason, BUILDS_FOR_CUDA)
    return Finding(provider, "missing", reason, advice_for(reason))


def tiny_model() -> bytes:
    """An ONNX model that adds x float32 [2] to itself."""
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "y"))
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "twice", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def why_not(provider: str, model: bytes) -> str:
    """Why a provider does not run `model`, in ONNX Runtime's words; empty if it does."""
    import numpy as np
    import onnxruntime

    with captured_stderr() as said:
        try:
            session = onnxruntime.InferenceSession(model, providers=[provider])
            loaded = session.get_providers()
            (result,) = session.run(None, {"x": np.ones(2, np.float32)})
        except Exception as error:  # ONNX Runtime raises many kinds, and all of them are the answer
            return _first_line(str(error))
    if provider not in loaded:
        return _first_line(said[0]) or f"ONNX Runtime took {', '.join(loaded)} instead"
    return "" if result.tolist() == [2.0, 2.0] else f"it computed 1 + 1 = {result[0]}"


def advice_for(reason: str) -> str:
    """The way out of a provider's failure."""
    for sign, advice in ADVICE.items():
        if sign in reason:
            return advice
    return "use `provider: cpu`, or look the message up in ONNX Runtime's documentation"


BUILDS_FOR_CUDA = (
    "bundles for CUDA can be made here: where each node runs is proven, and the file's arithmetic on the CPU; what "
    "CUDA computes, and its latency, is pending until `demitasse verify` and `demitasse gate --measure` run on a GPU"
)
NO_GPU = "this machine has no CUDA GPU, or it is hidden (CUDA_VISIBLE_DEVICES); use `provider: cpu`"
ADVICE: dict[str, str] = {
    "cannot open shared object": "a library of CUDA or cuDNN is not installed or not on LD_LIBRARY_PATH: install "
    "those that your onnxruntime-gpu was built for (pip install 'onnxruntime-gpu[cuda,cudnn]'), or use `provider: cpu`",
    "CUDA driver version is insufficient": "update the GPU's driver",
    "no CUDA-capable device": NO_GPU,
    "CUDA failure 100": NO_GPU,
    "CUDA failure 35": "update the GPU's driver, or use `provider: cpu` on a machine without a GPU",
}


@contextmanager
def captured_stderr() -> Iterator[list[str]]:
    """What is written to descriptor 2, also by C++; the list has one item once the context is left."""
    said: list[str] = []
    sys.stderr.flush()
    before = os.dup(2)
    with tempfile.TemporaryFile("w+b") as file:
        os.dup2(file.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(before, 2)
            os.close(before)
            file.seek(0)
            said.append(file.read().decode("utf-8", "replace"))


def _first_line(text: str) -> str:
    """The first line that says something, without colors and without where in the library it was said."""
    import re

    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    lines = [re.sub(r"^.* with error: |^.*(FAIL|EXCEPTION) : ", "", line).strip() for line in plain.splitlines()]
    return next((line for line in lines if line), "")


def _bitsandbytes() -> Iterator[Finding]:
    try:
        import bitsandbytes as bnb
        import torch

        torch.manual_seed(0)
        matrix = torch.randn(4, 8, dtype=torch.float16)
        codes, _, _ = bnb.functional.int8_vectorwise_quant(matrix)
        works = bool(codes.abs().max() == 127)
    except Exception as error:  # a missing symbol, a missing kernel, a broken install: all of them are the answer
        yield Finding(
            "8-bit quantizer", "missing", _first_line(str(error)), "pip install --force-reinstall bitsandbytes"
        )
        return
    advice = "" if works else "pip install --force-reinstall bitsandbytes"
    yield Finding("8-bit quantizer", "ok" if works else "missing", "bitsandbytes quantizes on the CPU", advice)


def _generation() -> Iterator[Finding]:
    try:
        import onnxruntime_genai

        yield Finding("onnxruntime-genai", "ok", f"{onnxruntime_genai.__version__} loads")
    except Exception as error:  # its native library may miss any of its own dependencies
        advice = "only needed to run a bundle in onnxruntime-genai; `demitasse generate` works without"
        yield Finding("onnxruntime-genai", "note", _first_line(str(error)), advice)


CHECKS: dict[str, Callable[[], Iterator[Finding]]] = {
    "python": _python,
    "libraries": _libraries,
    "cpu": _cpu,
    "room": _room,
    "gpus": _gpus,
    "providers": _providers,
    "bitsandbytes": _bitsandbytes,
    "generation": _generation,
}
"""What the doctor looks at, in this order."""
