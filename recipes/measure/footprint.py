"""How an artifact of any format is measured: the link from its adapter (`formats/`) to `evaluation`.

    quality     what the test text and the named evaluations say (`quality/`), through the runtime of its format
    footprint   parameters, bytes and multiply-accumulates, counted; bytes compressed; where nothing is timed peak
                memory too, of a fresh process (`peak_memory.py`)
    latency     the PyTorch baseline and the last artifact in interleaved blocks (`latency.py`)

Everything heavy is imported when it is needed.
"""

import json
import math
import subprocess
from pathlib import Path

from compress import FormatName
from evaluation.measurement import Measurement, Ratio
from evaluation.report import Row
from export.runtime.session import is_here
from recipes.formats import FORMATS
from recipes.formats.base import MeasureError
from recipes.formats.compressed_bytes import METHOD, compressed_bytes
from recipes.measure.peak_memory import DECODED
from recipes.runs.processes import environment, python_module

MEASURE_VERSION = 12


def measure_footprint(artifact: Path, format: FormatName, *, prompt: int) -> list[Measurement]:
    """Parameters, bytes and multiply-accumulates (on a cache of `prompt` tokens), counted."""
    adapter = FORMATS[format]
    return [
        *(
            Measurement(metric=metric, value=n, samples=1, method="counted")
            for metric, n in adapter.counts(artifact).items()
        ),
        Measurement(
            metric="compressed_bytes", value=compressed_bytes(adapter.weight_files(artifact)), samples=1, method=METHOD
        ),
        Measurement(
            metric="macs",
            value=adapter.macs(artifact, context=prompt),
            samples=1,
            method=f"counted from the shapes, on a cache of {prompt} tokens",
        ),
    ]


ELSEWHERE = "it runs on CUDA, and this machine has no GPU for that; measure it where one is"


def measure_memory(artifact: Path, format: FormatName, *, prompt: int, threads: int) -> Measurement:
    """The peak memory of a fresh process that loads the artifact and decodes.

    Raises:
        MeasureError: the process failed.
    """
    method = (
        f"fresh process, libraries included, {FORMATS[format].runtime(artifact)}, {threads} threads, "
        f"prompt of {prompt} tokens and {DECODED} decoded"
    )
    if not is_here(FORMATS[format].device(artifact)):
        return Measurement(metric="peak_memory", value=math.nan, samples=0, method=method, invalid=ELSEWHERE)
    peak = probe(artifact, format, prompt=prompt, threads=threads)
    return Measurement(metric="peak_memory", value=peak, samples=1, method=method)


def compared(measurement: Measurement, baseline: Row) -> Measurement:
    """A counted figure with its ratio to the baseline's."""
    other = baseline.measurement(measurement.metric)
    if measurement.ratio is not None or other is None or not other.value:
        return measurement
    return measurement.model_copy(update={"ratio": Ratio(value=measurement.value / other.value)})


def probe(artifact: Path, format: FormatName, *, prompt: int, threads: int) -> int:
    """Bytes of peak memory, as `peak_memory.py` finds them in a process of its own."""
    command = python_module("recipes.measure.peak_memory", str(artifact), format, str(prompt), str(threads))
    variables = environment(OMP_NUM_THREADS=str(threads))
    finished = subprocess.run(command, capture_output=True, text=True, env=variables, check=False)
    if finished.returncode != 0:
        last = (finished.stderr.strip().splitlines() or ["no message"])[-1]
        raise MeasureError(
            f"{artifact}: peak memory could not be measured: the process ended with {finished.returncode} ({last})"
        )
    return int(json.loads(finished.stdout.strip().splitlines()[-1])["peak_memory"])
