"""llm-compressor on the same text and protocol, in an environment of its own: this file imports nothing of ours.

    PYTHON benchmarks/llm_compressor.py CHECKPOINT OUT TEXT ROWS LENGTH THREADS METHOD AMOUNT

METHOD is wanda or sparsegpt, AMOUNT a share such as 0.5 or a pattern such as 2:4. The calibration rows are the text's
first ROWS * LENGTH tokens, as ours are. Prints as its last line {"seconds", "peak"}: of pruning and saving, and bytes.
"""

import json
import sys
import time
from pathlib import Path


def main() -> None:
    """Prune and save."""
    checkpoint, out, text, rows, length, threads, method, amount = sys.argv[1:]
    import torch

    torch.set_num_threads(int(threads))
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
    from transformers import AutoModelForCausalLM, AutoTokenizer

    modifiers = {"wanda": WandaPruningModifier, "sparsegpt": SparseGPTModifier}
    mask = {"sparsity": 0.5, "mask_structure": amount} if ":" in amount else {"sparsity": float(amount)}
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    started = time.perf_counter()
    ids = tokenizer(Path(text).read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"]
    size = int(length)
    parts = [ids[row * size : (row + 1) * size] for row in range(int(rows))]
    data = Dataset.from_dict({"input_ids": parts, "attention_mask": [[1] * size] * len(parts)})
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    oneshot(
        model=model,
        processor=tokenizer,
        dataset=data,
        recipe=modifiers[method](targets=["Linear"], ignore=["lm_head"], **mask),
        max_seq_length=size,
        num_calibration_samples=int(rows),
        shuffle_calibration_samples=False,
    )
    model.save_pretrained(out, save_compressed=False)
    tokenizer.save_pretrained(out)
    print(json.dumps({"seconds": time.perf_counter() - started, "peak": peak_memory()}))


def peak_memory() -> int:
    """Bytes of this process's peak resident memory."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1]) * 1024


if __name__ == "__main__":
    main()
