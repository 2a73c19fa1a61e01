"""Stand-ins for the CUDA libraries, so that ONNX Runtime's CUDA provider loads on a machine that has none.

A provider library says which other libraries it needs, and which functions of theirs it calls. For each of NVIDIA's
libraries among them one of the same name is made with those functions: the few that must give something back from
`stubs.c`, all others returning 0.

    libonnxruntime_providers_cuda.so  --nm-->  cudaMalloc@libcudart.so.13, ...  --cc-->  libcudart.so.13

Over them a session loads, optimizes, places its nodes and refuses attributes as over the real ones, and with the real
messages. Only a run computes nothing. A process finds them only if it knows of them as it starts, so whatever is to
run over them runs in a child: `run_module`. Needs a C compiler, and nm and readelf of binutils.
"""

import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from compress.errors import DemitasseError

SOURCE = Path(__file__).with_name("stubs.c")
PROVIDERS = ("cuda", "tensorrt")
"""Those that `get_all_opkernel_def` loads."""
NVIDIA = re.compile(r"lib(cu|nv)")
UNVERSIONED = {
    "libcuda.so": re.compile(r"cu[A-Z]"),
    "libnvinfer.so": re.compile(r"createInfer|getInfer|getPlugin"),
    "libnvonnxparser.so": re.compile(r"createNvOnnx"),
}
"""Beginning of a library's name -> which functions without a version in their names are its."""
TOOLS = ("cc", "nm", "readelf")
ARCHITECTURE = 90
"""Of the device that the stand-ins tell of: sm_90."""


class StubError(DemitasseError):
    """The stand-ins cannot be built, or what ran over them failed."""


def missing() -> list[str]:
    """What building needs and this machine has not."""
    tools = [tool for tool in TOOLS if shutil.which(tool) is None]
    return tools + [f"{path.name} of onnxruntime-gpu" for path in map(library, PROVIDERS) if not path.is_file()]


def library(provider: str) -> Path:
    """Where ONNX Runtime's library of a provider lies."""
    import onnxruntime

    return Path(onnxruntime.__file__).parent / "capi" / f"libonnxruntime_providers_{provider}.so"


def build(folder: Path) -> None:
    """Make the libraries in `folder`, which exists.

    Raises:
        StubError: something is missing here, or a tool failed.
    """
    if lacking := missing():
        raise StubError(f"expected {', '.join(lacking)}, to build stand-ins for the CUDA libraries; install it")
    written = folder / "stubs.o"
    run_tool("cc", "-c", "-O1", "-fPIC", SOURCE, "-o", written)
    special = {line.split()[-1] for line in run_tool("nm", "--defined-only", "--extern-only", written).splitlines()}
    for name, functions in needed().items():
        asked = {function for function in special if _owner(function, {name: functions}) == name}
        _build_one(folder, name, functions | asked, special)


def needed() -> dict[str, set[str]]:
    """Name of each library of NVIDIA's that the providers need -> the functions of it that they call."""
    calls: dict[str, set[str]] = defaultdict(set)
    for path in map(library, PROVIDERS):
        names = re.findall(r"\(NEEDED\).*\[(.+)\]", run_tool("readelf", "-dW", path))
        calls |= {name: calls[name] for name in names if NVIDIA.match(name)}
    for path in map(library, PROVIDERS):
        for line in run_tool("nm", "-D", "--undefined-only", path).splitlines():
            function, _, version = line.split()[-1].partition("@")
            owner = version or _owner(function, calls)
            if owner in calls:
                calls[owner].add(function)
    return calls


def _owner(function: str, libraries: dict[str, set[str]]) -> str:
    found = (beginning for beginning, pattern in UNVERSIONED.items() if pattern.match(function))
    beginning = next(found, None)
    return next((name for name in libraries if beginning and name.startswith(beginning)), "")


def _build_one(folder: Path, name: str, functions: set[str], special: set[str]) -> None:
    plain = "".join(f"int {function}(void) {{ return 0; }}\n" for function in sorted(functions - special))
    listed = "".join(f" {function};" for function in sorted(functions))
    script, source = folder / f"{name}.map", folder / f"{name}.c"
    version = "" if any(name.startswith(beginning) for beginning in UNVERSIONED) else name
    shown = f" global:{listed}" if functions else ""
    script.write_text(f"{version} {{{shown} local: *; }};\n", encoding="utf-8")
    source.write_text(plain, encoding="utf-8")
    options = ["-shared", "-fPIC", f"-Wl,-soname,{name}", f"-Wl,--version-script,{script}"]
    run_tool("cc", *options, source, folder / "stubs.o", "-o", folder / name)


def environment_with(libraries: Path, architecture: int = ARCHITECTURE) -> dict[str, str]:
    """The environment in which a process finds them."""
    path = os.pathsep.join([str(libraries), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])])
    return os.environ | {"LD_LIBRARY_PATH": path, "STUB_SM": str(architecture)}


def run_module(libraries: Path, module: str, *arguments: object, architecture: int = ARCHITECTURE) -> None:
    """Run a module of ours in a child that finds the stand-ins.

    Raises:
        StubError: it failed; the message ends as its standard error does.
    """
    environment = environment_with(libraries, architecture)
    command = [sys.executable, "-m", module, *map(str, arguments)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise StubError(f"{module}: ended with {ended.returncode}: {ended.stderr[-2000:]}")


def run_tool(*command: object) -> str:
    """What a tool prints.

    Raises:
        StubError: it failed.
    """
    try:
        return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout
    except subprocess.CalledProcessError as error:
        raise StubError(f"{command[0]}: failed: {error.stderr[-2000:]}") from error
