"""How an artifact of any form is measured: the link from checkpoints and bundles to `evaluation`.

    quality     what the test text and the named evaluations say (`quality/`), through the runtime that the form is
                for: PyTorch (float32), bitsandbytes, or ONNX Runtime
    footprint   parameters, bytes and multiply-accumulates, counted; bytes compressed (`stored.py`); where nothing is
                timed peak memory too, of a fresh process (`timing/probe.py`)
    latency     the PyTorch baseline and the last artifact in interleaved blocks (`timing/latency.py`)

Everything heavy is imported when it is needed.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from compress import Form
from compress.checkpoint import count_nonzero, inspect_checkpoint, weight_files
from compress.int8 import EMBEDDINGS_FILE
from evaluation.measurement import Measurement, Ratio
from evaluation.report import Row
from export import bundle_folder
from recipes.quality.measuring import TOKENS_FILE as TOKENS_FILE
from recipes.quality.measuring import measure_quality as measure_quality
from recipes.stored import METHOD, compressed_bytes
from recipes.subject import RUNTIMES, MeasureError
from recipes.subject import Baseline as Baseline
from recipes.timing.latency import measure_latency as measure_latency  # a run's meter finds all of its functions here
from recipes.timing.macs import macs_per_token
from recipes.timing.probe import DECODED

MEASURE_VERSION = 9


def measure_footprint(artifact: Path, form: Form, *, prompt: int) -> list[Measurement]:
    """Parameters, bytes and multiply-accumulates (on a cache of `prompt` tokens), counted."""
    return [
        *(
            Measurement(metric=metric, value=n, samples=1, method="counted")
            for metric, n in _counts(artifact, form).items()
        ),
        Measurement(
            metric="compressed_bytes", value=compressed_bytes(_stored(artifact, form)), samples=1, method=METHOD
        ),
        Measurement(
            metric="macs",
            value=macs_per_token(artifact, form, context=prompt),
            samples=1,
            method=f"counted from the shapes, on a cache of {prompt} tokens",
        ),
    ]


def measure_memory(artifact: Path, form: Form, *, prompt: int, threads: int) -> Measurement:
    """The peak memory of a fresh process that loads the artifact and decodes.

    Raises:
        MeasureError: the process failed.
    """
    peak = probe(artifact, form, prompt=prompt, threads=threads)
    method = (
        f"fresh process, libraries included, {RUNTIMES[form]}, {threads} threads, "
        f"prompt of {prompt} tokens and {DECODED} decoded"
    )
    return Measurement(metric="peak_memory", value=peak, samples=1, method=method)


def compared(measurement: Measurement, baseline: Row) -> Measurement:
    """A counted figure with its ratio to the baseline's."""
    other = baseline.measurement(measurement.metric)
    if measurement.ratio is not None or other is None or not other.value:
        return measurement
    return measurement.model_copy(update={"ratio": Ratio(value=measurement.value / other.value)})


def _counts(artifact: Path, form: Form) -> dict[str, float]:
    if form != "onnx":
        checkpoint = inspect_checkpoint(artifact)
        return {
            "parameters": checkpoint.parameters,
            "nonzero_parameters": count_nonzero(artifact),
            "weight_bytes": checkpoint.weight_bytes,
            "disk_bytes": checkpoint.disk_bytes,
        }
    manifest = _manifest(bundle_folder(artifact))
    size = sum(file.stat().st_size for file in _stored(artifact, form))
    stated = {metric: manifest[metric] for metric in ("parameters", "nonzero_parameters")}
    return stated | {"weight_bytes": size, "disk_bytes": size}


def _stored(artifact: Path, form: Form) -> list[Path]:
    """The files that hold an artifact's weights; of a bundle, the graph too."""
    if form == "onnx":
        return sorted(bundle_folder(artifact).glob("model.onnx*"))
    return sorted({*weight_files(artifact), *artifact.glob(EMBEDDINGS_FILE)})


def probe(artifact: Path, form: Form, *, prompt: int, threads: int) -> int:
    """Bytes of peak memory, as `probe.py` finds them in a process of its own."""
    command = [sys.executable, "-m", "recipes.timing.probe", str(artifact), form, str(prompt), str(threads)]
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    finished = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if finished.returncode != 0:
        last = (finished.stderr.strip().splitlines() or ["no message"])[-1]
        raise MeasureError(
            f"{artifact}: peak memory could not be measured: the process ended with {finished.returncode} ({last})"
        )
    return int(json.loads(finished.stdout.strip().splitlines()[-1])["peak_memory"])


def _manifest(bundle: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    return manifest
