"""What a reader needs to judge the figures of a run: processor, its vector extensions, versions of every contender; of
a GPU its name, memory, driver and clocks.
"""

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from benchmarks.prepare import installed
from recipes.runs.environment import environment

EXTENSIONS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16")
"""Those that change how fast 8-bit and float products are."""
CONTENDERS = (
    "torch",
    "transformers",
    "onnx",
    "onnxruntime-gpu",
    "onnxruntime",
    "onnxruntime-genai-cuda",
    "onnxruntime-genai",
    "llama-cpp-python",
    "gguf",
    "mobius-onnx",
)


ASKED_OF_GPU = {
    "driver_version": "driver",
    "clocks.max.sm": "at most",
    "clocks.max.mem": "memory at most",
    "power.limit": "power limit",
}
"""What nvidia-smi is asked for -> what it is called."""


def machine(device: str) -> dict[str, str]:
    """Name -> value, as text, in the order of reading."""
    about = environment((), None)
    found = {key: about[key] for key in ("processor", "cores", "memory", "system", "python")}
    found["extensions"] = ", ".join(extensions()) or "unknown"
    if device == "cuda":
        found["gpu"] = ", ".join(filter(None, (_gpu(), _told_by_driver())))
    return found | {name: installed(name) for name in CONTENDERS if installed(name)}


def extensions() -> list[str]:
    """The vector extensions that this processor has, as Linux tells them."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("flags"):
                return [name for name in EXTENSIONS if name in line.split()]
    return []


def _gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        return "not visible to torch"
    about = torch.cuda.get_device_properties(0)
    return f"{about.name}, {about.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"


def _told_by_driver() -> str:
    """Driver and clocks, as nvidia-smi tells them; empty where it does not run."""
    command = ["nvidia-smi", f"--query-gpu={','.join(ASKED_OF_GPU)}", "--format=csv,noheader", "--id=0"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    values = (value.strip() for value in told.strip().split(","))
    return ", ".join(f"{name} {value}" for name, value in zip(ASKED_OF_GPU.values(), values, strict=False))


def cuda_libraries() -> list[str]:
    """Folders of the CUDA libraries that came with Python packages, such as PyTorch's: ONNX Runtime alone does not look
    there.
    """
    roots = [Path(entry) for entry in sys.path if entry and Path(entry).is_dir()]
    found = [folder for root in roots for folder in (*sorted(root.glob("nvidia/*/lib")), root / "torch" / "lib")]
    return [str(folder) for folder in found if folder.is_dir()]
