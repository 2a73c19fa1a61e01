"""What the library of ONNX Runtime's CUDA provider says by its bytes: the GPUs it was compiled for, and which attention
its fastest decoding kernels (XQA) take.

Kernels lie in the ELF section .nv_fatbin, one container after another, each filled with entries:

    container   magic 0xba55ed50, version, size of this header, size of what follows        <IHHQ
    entry       kind (1 text, 2 machine code), version, size of this header, size           <HHIQ, then
                architecture at byte 28 (75 is sm_75), flags at byte 40

Machine code whose flags have the bit 0x100000 runs on exactly that architecture (sm_90a); any other runs on later ones
of the same major number too. XQA's limits stand in the messages by which the library refuses all else.
"""

import mmap
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from export.placement.stub_libraries import StubError, run_tool

CONTAINER, ENTRY = struct.Struct("<IHHQ"), struct.Struct("<HHIQ")
MAGIC = 0xBA55ED50
ARCHITECTURE, FLAGS = 28, 40
EXACT = 1 << 20
TEXT = 1
XQA = {
    "head_sizes": rb"GQA XQA[\w -]* requires head size ([\d, or]+)",
    "groups": rb"GQA XQA[\w -]* requires group size ([\d, or]+) \(",
    "quantized_groups": rb"GQA XQA[\w -]* requires group size [\d, or]+ \(([\d, or]+) when quantized",
}


def architectures(library: Path) -> list[str]:
    """Those with machine code, such as sm_80 and sm_90a, and those with text that a driver compiles, as compute_90."""
    start, size = _sections(library)[".nv_fatbin"]
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        found = {_name(*entry) for entry in _entries(content, start, start + size)}
    return sorted(found, key=lambda name: (int(re.sub(r"\D", "", name)), name))


def xqa(library: Path) -> dict[str, list[int]]:
    """Head sizes, and numbers of query heads to a key-value head, that XQA takes; of each what the library tells."""
    start, size = _sections(library)[".rodata"]
    with library.open("rb") as file:
        file.seek(start)
        text = file.read(size)
    found = {key: re.search(pattern, text) for key, pattern in XQA.items()}
    return {key: [int(number) for number in re.findall(rb"\d+", match[1])] for key, match in found.items() if match}


def _sections(library: Path) -> dict[str, tuple[int, int]]:
    """Name of each section of an ELF file -> where it starts in the file, and its size."""
    lines = re.findall(r"\] (\S+)\s+\S+\s+[0-9a-f]+ ([0-9a-f]+) ([0-9a-f]+)", run_tool("readelf", "-SW", library))
    return {name: (int(start, 16), int(size, 16)) for name, start, size in lines}


def _entries(content: Any, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Kind, architecture and flags of each entry between two places of the file."""
    while position < end:
        magic, _, header, size = CONTAINER.unpack_from(content, position)
        if magic != MAGIC:  # what fills up to a multiple of 8
            position += 8
            continue
        entry, position = position + header, position + header + size
        while entry < position:
            kind, _, entry_header, entry_size = ENTRY.unpack_from(content, entry)
            if not entry_header:
                raise StubError("expected entries of known shape in .nv_fatbin; this library is newer than this code")
            (architecture,) = struct.unpack_from("<I", content, entry + ARCHITECTURE)
            (flags,) = struct.unpack_from("<Q", content, entry + FLAGS)
            yield kind, architecture, flags
            entry += entry_header + entry_size


def _name(kind: int, architecture: int, flags: int) -> str:
    beginning = "compute" if kind == TEXT else "sm"
    return f"{beginning}_{architecture}{'a' if flags & EXACT else ''}"
