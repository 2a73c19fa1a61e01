"""Peak memory of a process that loads one artifact and decodes with it.

    python -m recipes.measure.peak_memory FOLDER FORMAT PROMPT THREADS

It is a process of its own because peak memory belongs to a process: inside a longer one, earlier work would be
counted in. The last line of its output is JSON: {"peak_memory": bytes}. A bundle's process never imports PyTorch.
"""

import json
import resource
import sys
from pathlib import Path
from typing import cast

import numpy as np

from compress.stage import FormatName
from recipes.formats import FORMATS

DECODED = 8
KIBIBYTE = 1024


def main() -> None:
    """Print the answer for the arguments given."""
    folder, format, prompt, threads = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    model = FORMATS[cast(FormatName, format)].open(folder, threads=threads)
    variant = model.decoding(np.ones((1, prompt), dtype=np.int64), DECODED + 1)
    variant.prefill()
    for _ in range(DECODED):
        variant.decode()
    print(json.dumps({"peak_memory": peak_memory()}))


def peak_memory() -> int:
    """Bytes of this process's peak resident memory.

    On Linux getrusage carries the parent's peak across exec, so there the address space's own mark is read.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * KIBIBYTE
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
