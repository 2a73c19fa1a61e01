"""The kernels that the CUDA provider registers, as ONNX Runtime lists them; a module to run over the stand-ins, since
without any CUDA libraries the listing ends the process.

    python -m export.placement.registered_kernels KERNELS.json      [[domain, operator, first, last, {name: [types]}]]
"""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from export.placement.element_types import shorter
from export.placement.stub_libraries import run_module

NO_END = 2**31 - 1
"""As the last version: none is known."""
CUDA = "CUDAExecutionProvider"
Kernel = tuple[str, str, int, int, dict[str, list[str]]]
"""Domain, operator, first and last version of the operator, and of each of its types which ones the kernel takes."""


def registered(libraries: Path) -> list[Kernel]:
    """The kernels, asked of a child that finds the CUDA libraries in the folder `libraries`."""
    with TemporaryDirectory() as scratch:
        file = Path(scratch) / "kernels.json"
        run_module(libraries, __name__, file)
        return [tuple(kernel) for kernel in json.loads(file.read_text(encoding="utf-8"))]


def is_for(first: int, last: int, since: int) -> bool:
    """Whether a kernel is for the version of its operator that holds since that opset: one without an end is for its
    first version only, since nobody knows yet what a later one changes.
    """
    return first == since or (last != NO_END and first <= since <= last)


def _list() -> list[Kernel]:
    from onnxruntime.capi.onnxruntime_pybind11_state import get_all_opkernel_def

    return [
        (kernel.domain, kernel.op_name, *kernel.version_range, _types(kernel.type_constraints))
        for kernel in get_all_opkernel_def()
        if kernel.provider == CUDA
    ]


def _types(constraints: dict[str, list[str]]) -> dict[str, list[str]]:
    return {name: sorted(map(shorter, kinds)) for name, kinds in sorted(constraints.items())}


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(_list()), encoding="utf-8")
