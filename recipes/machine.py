"""The machine and the versions that a result was made with: what a reader needs to judge an absolute figure."""

import platform
from contextlib import suppress
from pathlib import Path

from compress import Form
from recipes.schema import BenchmarkConfig, available_cores
from recipes.store import versions

LIBRARIES: dict[Form, tuple[str, ...]] = {
    "dense": ("torch", "transformers", "tokenizers", "numpy", "scipy"),
    "int8": ("torch", "transformers", "tokenizers", "numpy", "scipy", "bitsandbytes"),
    "onnx": ("transformers", "tokenizers", "numpy", "scipy", "onnxruntime", "onnxruntime-gpu"),
}
"""What computes a measurement of an artifact of each form."""


def environment(benchmark: BenchmarkConfig | None) -> dict[str, str]:
    """The machine and the versions that a report was made with."""
    import psutil

    everything = {library for libraries in LIBRARIES.values() for library in libraries}
    found = {name: version for name, version in versions(tuple(everything)).items() if version != "absent"}
    return {
        "processor": processor(),
        "cores": str(available_cores()),
        "threads": str(benchmark.threads) if benchmark else "library default",
        "memory": f"{psutil.virtual_memory().total / 2**30:.1f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    } | found


def processor() -> str:
    """The processor's model name, as well as it can be told."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()} ({platform.machine()})"
    return f"{platform.processor() or 'unknown'} ({platform.machine()})"
