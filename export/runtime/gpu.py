"""The NVIDIA GPUs of this machine, asked of the driver itself: neither PyTorch nor ONNX Runtime is opened for it.

The driver's library is libcuda.so.1 (nvcuda.dll on Windows); a machine without it has no GPU that CUDA could use. The
numbers of attributes are those of the CUDA driver API's reference.
"""

import ctypes
import sys
from dataclasses import dataclass
from functools import cache

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
MAJOR, MINOR = 75, 76
"""Attributes of a device: both parts of its compute capability."""
LONGEST_NAME = 256


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU."""

    name: str
    capability: int
    """Compute capability without the dot: 90 for 9.0."""


@cache
def gpus() -> tuple[Gpu, ...]:
    """Those that this process may use, in the driver's order; empty where there is none, or no driver."""
    try:
        driver = ctypes.CDLL(LIBRARY)
    except OSError:
        return ()
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return ()
    return tuple(_gpu(driver, ordinal) for ordinal in range(count.value))


def _gpu(driver: ctypes.CDLL, ordinal: int) -> Gpu:
    device, text = ctypes.c_int(0), ctypes.create_string_buffer(LONGEST_NAME)
    driver.cuDeviceGet(ctypes.byref(device), ordinal)
    driver.cuDeviceGetName(text, LONGEST_NAME, device)
    major, minor = (_attribute(driver, device, number) for number in (MAJOR, MINOR))
    return Gpu(name=text.value.decode("utf-8", "replace"), capability=10 * major + minor)


def _attribute(driver: ctypes.CDLL, device: ctypes.c_int, number: int) -> int:
    value = ctypes.c_int(0)
    driver.cuDeviceGetAttribute(ctypes.byref(value), number, device)
    return value.value
