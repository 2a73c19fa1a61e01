"""Bytes of weight files as they would travel or be kept: compressed by zstd, level 3, each file by itself.

Raw bytes do not show what zeros are worth, because a dense file spends as much on a zero as on any number; a general
compressor finds them. SparsityLevel 3 is zstd's own default, which costs seconds per gigabyte.
"""

from collections.abc import Iterable
from pathlib import Path

LEVEL = 3
METHOD = f"zstd level {LEVEL}, one thread, each file by itself"


def compressed_bytes(files: Iterable[Path]) -> int:
    """What the files take together once compressed; a few megabytes of memory, nothing is written."""
    import zstandard

    total = 0
    for file in files:
        compressor = zstandard.ZstdCompressor(level=LEVEL)
        with file.open("rb") as stream:
            total += sum(len(part) for part in compressor.read_to_iter(stream, size=file.stat().st_size))
    return total
