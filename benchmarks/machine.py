"""What a reader needs to judge the figures of a run: processor, its vector extensions, versions of every contender."""

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


def machine(device: str) -> dict[str, str]:
    """Name -> value, as text, in the order of reading."""
    about = environment((), None)
    found = {key: about[key] for key in ("processor", "cores", "memory", "system", "python")}
    found["extensions"] = ", ".join(extensions()) or "unknown"
    if device == "cuda":
        found["gpu"] = _gpu()
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
