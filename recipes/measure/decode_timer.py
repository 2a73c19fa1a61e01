"""How fast a shape decodes where it will be served: seconds per token of its int8 bundle on ONNX Runtime's CPU.

    dense checkpoint --quantize, embeddings too--> int8 --build, unproven--> bundle --decode--> median seconds per token

Latency depends on the shape and not on the weights' values, so a checkpoint with random weights serves, and its bundle
needs no parity. Batch 1, greedy, a cache that holds about 128 tokens; each block is one untimed and one timed prompt
and then `STEPS` steps, whose median is the block's figure; the answer is the median of the blocks.

Not covered: CUDA, longer contexts, larger batches.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from evaluation.machine import available_cores

if TYPE_CHECKING:
    from evaluation.latency import Variant

STEPS = 32
PROMPT = 112
"""So that the cache holds 128 tokens in the middle of the steps."""
BLOCKS = 9
NO_SHAPE = frozenset({"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"})
"""Keys of a config that change nothing about the graph."""
TABLE = "decode_seconds.json"


class DecodeTimer:
    """`StageInput.decode_seconds`: each shape is timed once, and the table in `scratch` outlives a kill."""

    def __init__(self, scratch: Path, *, threads: int | None = None) -> None:
        self.scratch, self.threads = scratch, threads

    def __call__(self, folder: Path) -> float:
        """Seconds per decoded token of the dense checkpoint in `folder`.

        Raises:
            StageError: the shape cannot be quantized or exported.
        """
        table = self._table()
        shape = shape_of(folder)
        if shape not in table:
            table[shape] = decode_seconds(folder, self.scratch, threads=self.threads)
            unfinished = self.scratch / f".{TABLE}"
            unfinished.write_text(json.dumps(table, indent=2), encoding="utf-8")
            unfinished.replace(self.scratch / TABLE)
        return table[shape]

    def _table(self) -> dict[str, float]:
        file = self.scratch / TABLE
        table: dict[str, float] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        return table


def shape_of(folder: Path) -> str:
    """Everything of a checkpoint's config that its graph may depend on."""
    from compress.checkpoints.config import read_config

    config = {key: value for key, value in read_config(folder).items() if key not in NO_SHAPE}
    return json.dumps(config, sort_keys=True)


def decode_seconds(folder: Path, scratch: Path, *, threads: int | None = None) -> float:
    """Seconds per token, as the head of this file says; `scratch` holds the bundle for the while.

    Raises:
        StageError: the shape cannot be quantized or exported.
    """

    from evaluation.latency import steady_step

    with int8_bundle(folder, scratch) as bundle:
        variant, steps = _variant(bundle, threads or available_cores())
        return steady_step(variant, blocks=BLOCKS, steps=steps)


@contextmanager
def int8_bundle(folder: Path, scratch: Path) -> Iterator[Path]:
    """The bundle that export would write of a dense checkpoint once it is int8; gone when this is left.

    Raises:
        StageError: the shape cannot be quantized or exported.
    """
    from compress.checkpoints.folder import Checkpoint
    from compress.quantization.config import QUANTIZE
    from compress.stage import StageError, StageInput
    from export.config import ExportConfig
    from export.row_tracking import WeightError
    from export.stage import build_bundle

    with TemporaryDirectory(dir=scratch) as place:
        int8, bundle = Path(place, "int8"), Path(place, "bundle")
        int8.mkdir()
        bundle.mkdir()
        QUANTIZE.run(QUANTIZE.config(embeddings=True), StageInput(source=folder, out=int8, scratch=Path(place)))
        try:
            build_bundle(ExportConfig(), Checkpoint(int8), bundle)
        except WeightError as error:
            raise StageError(f"{folder}: cannot be exported, so its latency cannot be measured: {error}") from error
        yield bundle


def _variant(bundle: Path, threads: int) -> tuple["Variant", int]:
    """What is timed, and how many steps it has room for."""
    import numpy as np

    from recipes.formats.bundle import BundleFormat

    model = BundleFormat().open(bundle, threads=threads, device="cpu")  # no manifest says so: it is not proven
    steps = min(STEPS, model.context // 2)
    prompt = min(PROMPT, model.context - steps)
    ids_1T = np.random.default_rng(0).integers(BundleFormat().sizes(bundle).vocabulary, size=(1, prompt))
    return model.decoding(ids_1T, steps + 1), steps
