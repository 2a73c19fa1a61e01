"""How an artifact of any form is measured: the link from checkpoints and bundles to `evaluation`.

    quality     log-probabilities on the test text, through the runtime that the form is for: PyTorch (float32),
                bitsandbytes, or ONNX Runtime
    footprint   parameters, bytes and multiply-accumulates, counted; bytes compressed (`stored.py`); peak memory, of a
                fresh process (`probe.py`)
    latency     the PyTorch baseline and the last artifact in interleaved blocks (`latency.py`)

Everything heavy is imported when it is needed.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compress import Form, Progress, TextSource
from compress.checkpoint import count_nonzero, inspect_checkpoint, load_model, load_tokenizer, weight_files
from compress.int8 import EMBEDDINGS_FILE
from compress.text import read_documents, tokenize
from evaluation.measurement import Measurement
from evaluation.quality import Scorer, TokenScores, Windows, quality_measurements, score, windows_of
from export import bundle_folder
from recipes.latency import measure_latency as measure_latency  # a run's meter finds all of its functions here
from recipes.macs import macs_per_token
from recipes.probe import DECODED
from recipes.schema import EvaluateConfig
from recipes.stored import METHOD, compressed_bytes
from recipes.subject import RUNTIMES, MeasureError
from recipes.subject import Baseline as Baseline

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MEASURE_VERSION = 4
TOKENS_FILE = "tokens.npz"


def measure_quality(
    artifact: Path,
    form: Form,
    *,
    baseline: Baseline | None,
    config: EvaluateConfig,
    test: TextSource,
    out: Path,
    progress: Progress,
    label: str = "measure",
    seed: int = 0,
) -> list[Measurement]:
    """Score the test text: perplexity, accuracy, agreement and KL divergence; per-token scores go to out/tokens.npz.

    Args:
        baseline: None where the artifact is the baseline itself.
    """
    windows = test_windows(artifact if baseline is None else baseline.folder, config, test)
    with progress.task(label, total=len(windows)) as task:
        scores = score(
            open_scorer(artifact, form),
            windows,
            None if baseline is None else open_scorer(baseline.folder, baseline.form),
            batch=config.batch,
            on_batch=task.advance,
        )
    scores.save(out / TOKENS_FILE)
    against = None if baseline is None else TokenScores.load(baseline.scores)
    joined = "documents joined" if config.join else "windows within documents"
    method = (
        f"{RUNTIMES[form]}; {len(windows)} windows of {config.window} tokens, stride {config.window}, "
        f"{config.select}, {joined}, no BOS, per token"
    )
    return quality_measurements(scores, against, method=method, seed=seed)


def test_windows(folder: Path, config: EvaluateConfig, test: TextSource) -> Windows:
    """The windows of the test text, as this checkpoint's tokenizer cuts it."""
    texts = read_documents(test)
    documents = tokenize(["\n\n".join(texts)] if config.join else texts, load_tokenizer(folder))
    try:
        return windows_of(documents, length=config.window, count=config.windows, select=config.select, join=config.join)
    except ValueError as error:
        raise MeasureError(f"{test}: {error}") from error


def open_scorer(folder: Path, form: Form) -> Scorer:
    """A callable from token ids [B, T] to next-token scores [B, T, V]."""
    if form == "onnx":
        from export.runtime import OnnxCausalLM

        return OnnxCausalLM.open(folder).score
    return _torch_scorer(load_model(folder))


def _torch_scorer(model: "PreTrainedModel") -> Scorer:
    import torch

    def scorer(ids_BT: NDArray[np.int64]) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits_BTV = model(input_ids=torch.from_numpy(ids_BT), use_cache=False).logits
        return np.asarray(logits_BTV.float().numpy())

    return scorer


def measure_footprint(artifact: Path, form: Form, *, prompt: int, threads: int) -> list[Measurement]:
    """Parameters and bytes, counted, and the peak memory of a fresh process that loads the artifact and decodes.

    Raises:
        MeasureError: the fresh process failed.
    """
    peak = probe(artifact, form, prompt=prompt, threads=threads)
    memory_method = (
        f"fresh process, libraries included, {RUNTIMES[form]}, {threads} threads, "
        f"prompt of {prompt} tokens and {DECODED} decoded"
    )
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
        Measurement(metric="peak_memory", value=peak, samples=1, method=memory_method),
    ]


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
    command = [sys.executable, "-m", "recipes.probe", str(artifact), form, str(prompt), str(threads)]
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
