"""Section `parity`: the embedded teacher and its quantized versions, exported for CUDA and proven on this GPU.

Each version is exported as `demitasse export` does with `provider: cuda`: it is accepted, with the figures that its
manifest holds, or refused. Of one that is refused every check's figures are taken all the same, so that one run shows
all that is wrong. The same figures are taken without ONNX Runtime's fast weight-only kernels.

Without a GPU (`--dry-run`) the same files, float16, are checked on the CPU in place of the export's proof.
"""

import shutil
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.distillation_order import NOVELS, Part, rows_of
from benchmarks.gpu_order import Json, Request, attempt
from benchmarks.gpu_variants import PLAIN_KERNELS
from benchmarks.prepare import CUDA_SCHEMES, prepared

VERSIONS = {"float16": "built_float", **{scheme: f"built_{scheme}" for scheme in CUDA_SCHEMES}}
"""Version -> the kind of its files."""
FAST = tuple(scheme for scheme, knobs in CUDA_SCHEMES.items() if knobs.get("group") == 32)
TOKENS = 192


def parity(request: Request, part: Part) -> None:
    """Every version, a row each."""
    part.about(model=request.embedded.name)
    for version in VERSIONS:
        request.tell(version)
        part.row(version, partial(attempt, partial(_proven, request, version)))
    for version in FAST:
        request.tell(f"{version}, without fpA_intB")
        part.row(f"{version}, without fpA_intB", partial(attempt, partial(_figures, request, version, PLAIN_KERNELS)))


def _proven(request: Request, version: str) -> Json:
    """The export's own verdict and figures."""
    if request.dry:
        return _figures(request, version)
    from compress.stage import StageError, StageInput
    from compress.text import TextSource
    from export import EXPORT

    source = _checkpoint(request, version)
    out = request.work / "exported" / version
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    text = TextSource(file=NOVELS / "valid.txt")
    config = EXPORT.config(provider="cuda", block_size=CUDA_SCHEMES.get(version, {}).get("group", 64))
    try:
        told = EXPORT.run(config, StageInput(source=source, out=out, scratch=request.work, calibration_text=text))
    except StageError as refusal:
        return {"verdict": f"refused: {' '.join(str(refusal).split())}"} | _figures(request, version)
    figures = {name: figure for name, figure in told["parity"]["float16"].items() if name != "tolerance"}
    return {"verdict": "accepted", "figures": figures, "proof": told["placement"]}


def _checkpoint(request: Request, version: str) -> Path:
    """What a version's files are made of."""
    if version not in CUDA_SCHEMES:
        return request.embedded
    return prepared(version, request.embedded, request.work / "embedded", "cuda").folder


def _figures(request: Request, version: str, keys: Mapping[str, str] | None = None) -> Json:
    """Every check of the export's parity on a version's files, no verdict; what a check raises stands in its place."""
    from compress.checkpoints.folder import Checkpoint
    from compress.checkpoints.loading import load_float_model
    from export.parity import CHECKS, ROWS, Runs
    from export.runtime.model import BundleConfig, OnnxCausalLM
    from export.runtime.session import open_session
    from export.torch_reference import take_reference

    bundle = prepared(VERSIONS[version], request.embedded, request.work / "embedded", "cuda").folder
    checkpoint = Checkpoint(_checkpoint(request, version))
    about = BundleConfig.read(bundle)
    tokens, context = (32, 64) if request.dry else (min(TOKENS, about.context), about.context)
    ids_BT = rows_of(request.embedded, NOVELS / "valid.txt", ROWS, tokens, evenly=False)
    long_C = rows_of(request.embedded, NOVELS / "valid.txt", 2, context, evenly=True)[-1]
    with TemporaryDirectory(dir=request.work) as scratch:
        reference = take_reference(lambda: load_float_model(checkpoint), ids_BT, long_C, Path(scratch))
        session = open_session(bundle, provider=request.device, keys=keys)
        runs = Runs(OnnxCausalLM(session, about, provider=request.device), reference)
        figures = {name: attempt(lambda check=check: asdict(check(runs))) for name, check in CHECKS.items()}  # type: ignore[misc]  # mypy cannot infer such a lambda
    return {"verdict": "not asked", "figures": figures} if keys is not None or request.dry else {"figures": figures}
