"""Peak memory of a process that loads one artifact and decodes with it.

    python -m recipes.timing.probe FOLDER FORM PROMPT THREADS

It is a process of its own because peak memory belongs to a process: inside a longer one, earlier work would be
counted in. The last line of its output is JSON: {"peak_memory": bytes}. A bundle's process never imports PyTorch.
"""

import json
import resource
import sys
from pathlib import Path

import numpy as np

DECODED = 8
KIBIBYTE = 1024


def main() -> None:
    """Print the answer for the arguments given."""
    folder, form, prompt, threads = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    run = _run_bundle if form == "onnx" else _run_checkpoint
    run(folder, prompt, threads)
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


def _run_bundle(folder: Path, prompt: int, threads: int) -> None:
    from export.runtime import OnnxCausalLM

    model = OnnxCausalLM.open(folder, threads=threads)
    model.prefill(np.ones((1, prompt), dtype=np.int64))
    for _ in range(DECODED):
        model.step()


def _run_checkpoint(folder: Path, prompt: int, threads: int) -> None:
    import torch

    from compress.checkpoint import load_model

    torch.set_num_threads(threads)
    model = load_model(folder)
    with torch.inference_mode():
        answer = model(input_ids=torch.ones((1, prompt), dtype=torch.int64), use_cache=True)
        for _ in range(DECODED):
            following = answer.logits[:, -1:].argmax(dim=-1)
            answer = model(input_ids=following, past_key_values=answer.past_key_values, use_cache=True)


if __name__ == "__main__":
    main()
