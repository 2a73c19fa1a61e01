"""config.json and generation_config.json: what optimum and transformers.js read of a model beside its graph.

They are the checkpoint's own, without what told how its weights were stored or who opened it. transformers.js looks
for a graph's weights under the graph's name and `_data`, and is told so where they lie there; else ONNX Runtime finds
them itself, which in Node it does.
"""

import shutil
from pathlib import Path

from compress.checkpoints.folder import Checkpoint
from export.external_data import GRAPH
from export.genai import write_json
from export.runtime.prompts import TOKENIZER
from export.tokenizer_files import OTHERS

CONFIG, GENERATION = "config.json", "generation_config.json"
LEFT_OUT = {"quantization_config", "auto_map", "_name_or_path", "_attn_implementation"}
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")
HUB_DATA = f"{GRAPH}_data"
"""The weights' name for transformers.js."""


def write_configs(checkpoint: Checkpoint, out: Path, data: str) -> None:
    """Write both files for a checkpoint; `data` is the name of the weights' file. What the checkpoint does not say of
    how text is to be generated, its config's special tokens do.
    """
    config = {key: value for key, value in checkpoint.config.items() if key not in LEFT_OUT}
    web = {"dtype": "fp32", "use_external_data_format": data == HUB_DATA}
    write_json(out / CONFIG, config | {"transformers.js_config": web})
    told = (checkpoint.folder / GENERATION).is_file()
    special = {key: config[key] for key in SPECIAL if config.get(key) is not None}
    write_json(out / GENERATION, checkpoint.generation if told else special)


def copy_for_hub(bundle: Path, out: Path) -> None:
    """Put what transformers.js reads beside a bundle in `onnx/` into the folder above it."""
    for name in (CONFIG, GENERATION, TOKENIZER, *OTHERS):
        if (bundle / name).is_file():
            shutil.copyfile(bundle / name, out / name)
