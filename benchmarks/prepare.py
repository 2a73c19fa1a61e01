"""The files that a variant runs, made from one dense checkpoint, each in a process of its own whose time and memory
count.

    python -m benchmarks.prepare KIND CHECKPOINT OUT DEVICE NEEDED CALIBRATION

prints as its last line {"parts": {name: {"seconds", "peak"}}} (marks.py). `prepared` runs it once and keeps the result
for as long as the checkpoint, the text, the sources that make it and the libraries' versions stay the same.
"""

import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.marks import Marks, Parts

ROOT = Path(__file__).resolve().parent.parent
CALIBRATION = ROOT / "recipes" / "data" / "novels" / "valid.txt"
LIBRARIES = ("torch", "transformers", "onnx", "onnxruntime-gpu", "onnxruntime", "onnxruntime-genai-cuda", "gguf")


class PrepareError(Exception):
    """A variant's files could not be made; the message is its reason in the table."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to make files of, and where."""

    checkpoint: Path
    out: Path
    device: str
    needed: Path
    """The files of the kind that this one needs; the checkpoint where it needs none."""
    calibration: Path


def make_quantized(request: Request, marks: Marks, **knobs: Any) -> None:
    """`demitasse quantize --embeddings`, with these knobs."""
    marks.imports("torch", "transformers", *(() if "scheme" in knobs else ("bitsandbytes",)))
    from compress.quantization.config import QUANTIZE
    from compress.stage import StageInput
    from compress.text import TextSource

    text = TextSource(file=request.calibration)
    given = StageInput(source=request.checkpoint, out=request.out, scratch=request.out, calibration_text=text)
    QUANTIZE.run(QUANTIZE.config(embeddings=True, **knobs), given)
    marks.done("quantized")


def make_bundle(request: Request, marks: Marks, **knobs: Any) -> None:
    """`demitasse export` of a quantized checkpoint."""
    marks.imports("torch", "transformers", "onnxruntime", "onnx_ir", "mobius")
    from compress.stage import StageInput
    from compress.text import TextSource
    from export import EXPORT

    text = TextSource(file=request.calibration)
    given = StageInput(
        source=request.needed, out=request.out, scratch=request.out, calibration_text=text, progress=marks
    )
    EXPORT.run(EXPORT.config(**knobs), given)
    marks.done("exported")


def make_built(request: Request, marks: Marks, **knobs: Any) -> None:
    """The files that `demitasse export` writes for CUDA, before its proofs: these need a GPU, the files do not."""
    marks.imports("torch", "transformers", "onnxruntime", "onnx_ir", "mobius")
    from compress.checkpoints.folder import Checkpoint
    from export.config import ExportConfig
    from export.stage import build_bundle

    build_bundle(ExportConfig(provider="cuda", **knobs), Checkpoint(request.needed), request.out)
    marks.done("built")


def make_torch_export(request: Request, marks: Marks) -> None:
    """torch.onnx.export of transformers' model with its cache as inputs and outputs; logits of the last position."""
    marks.imports("torch", "transformers", "onnxscript", "onnx_ir", "benchmarks.torch_export")
    from benchmarks.torch_export import export_with_cache

    export_with_cache(request.checkpoint, request.out / "model.onnx", marks)


def make_quantize_dynamic(request: Request, marks: Marks) -> None:
    """onnxruntime.quantization.quantize_dynamic of that graph, with its defaults."""
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(request.needed / "model.onnx", request.out / "model.onnx")
    marks.done("quantized")


def make_genai(request: Request, marks: Marks, precision: str) -> None:
    """onnxruntime-genai's own builder with its defaults, but with the last position's logits only."""
    cache = request.out / "cache"
    paths = ["-i", str(request.checkpoint), "-o", str(request.out), "-c", str(cache)]
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", *paths, "-p", precision, "-e", request.device]
    subprocess.run([*command, "--extra_options", "prune_lm_head=true"], check=True, stdout=sys.stderr)
    shutil.rmtree(cache, ignore_errors=True)
    marks.done("built")


def make_gguf(request: Request, marks: Marks) -> None:
    """The checkpoint as GGUF, Q8_0."""
    marks.imports("torch", "transformers", "benchmarks.gguf_file")
    from benchmarks.gguf_file import write_gguf

    write_gguf(request.checkpoint, request.out / "model.gguf")
    marks.done("written")


def make_gguf_float(request: Request, marks: Marks) -> None:
    """The checkpoint as GGUF, float32, which llama.cpp's quantizer starts from."""
    marks.imports("torch", "transformers", "benchmarks.gguf_file")
    from benchmarks.gguf_file import write_gguf

    write_gguf(request.checkpoint, request.out / "model.gguf", kind="F32")
    marks.done("written")


def make_gguf_4_bits(request: Request, marks: Marks, kind: str) -> None:
    """llama.cpp's own quantizer with its defaults, without an importance matrix."""
    marks.imports("benchmarks.llama_variant")
    from benchmarks.llama_variant import quantize_gguf

    quantize_gguf(request.needed / "model.gguf", request.out / "model.gguf", kind)
    marks.done("quantized")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of files: how they are made, from what other kind, and by which sources of ours."""

    make: Callable[[Request, Marks], None]
    needs: str = ""
    sources: tuple[str, ...] = ()


OUR_SOURCES = ("compress", "export")
SCHEMES: dict[str, dict[str, Any]] = {
    "int8": {},
    "int8_group32": {"scheme": "int8_group", "group": 32},
    "int4_group32": {"scheme": "int4", "group": 32, "method": "gptq", "average_bits": 4},
    "int4_475_group64": {"scheme": "int4", "group": 64, "method": "gptq", "average_bits": 4.75},
    "int4_540_group64": {"scheme": "int4", "group": 64, "method": "gptq", "average_bits": 5.4},
}
"""Kind of a quantized checkpoint -> the knobs of `quantize`."""
CUDA_SCHEMES: dict[str, dict[str, Any]] = {
    "int8": {},
    "int8_group32": SCHEMES["int8_group32"],
    "int8_group64": {"scheme": "int8_group", "group": 64},
    "int4_group32_rtn": {"scheme": "int4", "group": 32},
}
"""The same for the GPU, where random weights are timed: none that reads a text."""
PROVEN = 1024
"""Tokens up to which parity is checked: a release checks four times as many, which takes minutes."""


def _bundles(scheme: str) -> dict[str, Kind]:
    """A quantized checkpoint and its bundles, activations rounded in the groups of the scheme, the cache float and of 8
    bits.
    """
    make = partial(make_bundle, block_size=SCHEMES[scheme].get("group", 64), parity_context=PROVEN)
    return {
        scheme: Kind(make=partial(make_quantized, **SCHEMES[scheme]), sources=("compress",)),
        f"bundle_{scheme}": Kind(make=make, needs=scheme, sources=OUR_SOURCES),
        f"bundle_{scheme}_cache8": Kind(make=partial(make, cache="int8"), needs=scheme, sources=OUR_SOURCES),
    }


def _built(scheme: str) -> dict[str, Kind]:
    """A quantized checkpoint, and the files of its bundle for CUDA."""
    knobs = CUDA_SCHEMES[scheme]
    make = partial(make_built, block_size=knobs.get("group", 64))
    return {
        scheme: Kind(make=partial(make_quantized, **knobs), sources=("compress",)),
        f"built_{scheme}": Kind(make=make, needs=scheme, sources=OUR_SOURCES),
    }


KINDS: dict[str, Kind] = {
    **{name: kind for scheme in CUDA_SCHEMES for name, kind in _built(scheme).items()},
    "built_float": Kind(make=make_built, sources=OUR_SOURCES),
    **{name: kind for scheme in SCHEMES for name, kind in _bundles(scheme).items()},
    "torch_export": Kind(make=make_torch_export, sources=("benchmarks/torch_export.py",)),
    "quantize_dynamic": Kind(make=make_quantize_dynamic, needs="torch_export"),
    **{
        f"genai_{precision}": Kind(make=partial(make_genai, precision=precision))
        for precision in ("int8", "int4", "fp16")
    },
    "gguf": Kind(make=make_gguf, sources=("benchmarks/gguf_file.py",)),
    "gguf_float": Kind(make=make_gguf_float, sources=("benchmarks/gguf_file.py",)),
    **{
        f"gguf_{kind}": Kind(make=partial(make_gguf_4_bits, kind=kind), needs="gguf_float")
        for kind in ("Q4_0", "Q4_K_S", "Q4_K_M")
    },
}


@dataclass(frozen=True, kw_only=True)
class Files:
    """What was made."""

    folder: Path
    parts: Parts = field(default_factory=dict)


def prepared(kind: str, checkpoint: Path, work: Path, device: str, calibration: Path = CALIBRATION) -> Files:
    """The files of a kind, made now or earlier; "checkpoint" is the checkpoint itself.

    Raises:
        PrepareError: they cannot be made.
    """
    if kind == "checkpoint":
        return Files(folder=checkpoint)
    needs = KINDS[kind].needs
    needed = prepared(needs, checkpoint, work, device, calibration).folder if needs else checkpoint
    out = work / f"{kind}-{device}-{_identity(kind, needed, calibration)}"
    metadata = out.with_suffix(".json")
    if not metadata.is_file():
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        metadata.write_text(_make(kind, checkpoint, out, device, needed, calibration) + "\n", encoding="utf-8")
    return Files(folder=out, parts=json.loads(metadata.read_text(encoding="utf-8"))["parts"])


def _make(kind: str, checkpoint: Path, out: Path, device: str, needed: Path, calibration: Path) -> str:
    """Run this file in a process of its own; the last line that it prints."""
    given = (kind, checkpoint, out, device, needed, calibration)
    command = [sys.executable, "-m", "benchmarks.prepare", *map(str, given)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    out.with_suffix(".log").write_text(ran.stdout + ran.stderr, encoding="utf-8")
    if ran.returncode != 0:
        words = _last_line(ran.stderr) or f"exit code {ran.returncode}"
        raise PrepareError(words.replace(f"{out.parent}/", "").replace(f"{checkpoint.parent}/", ""))
    return _last_line(ran.stdout)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _identity(kind: str, needed: Path, calibration: Path) -> str:
    """Changes with what the files are made of, the sources that make them, and the libraries."""
    paths = [ROOT / source for source in ("benchmarks/prepare.py", *KINDS[kind].sources)]
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(needed.iterdir())]
    digest = hashlib.sha256(repr(stats).encode() + calibration.read_bytes())
    for file in sorted(file for path in paths for file in ([path] if path.is_file() else path.rglob("*.py"))):
        digest.update(file.read_bytes())
    for library in LIBRARIES:
        digest.update(f"{library}={installed(library)}".encode())
    return digest.hexdigest()[:12]


def installed(library: str) -> str:
    """The installed version of a distribution, or "" where there is none."""
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return ""


def main() -> None:
    """Make one kind of files."""
    kind, checkpoint, out, device, needed, calibration = sys.argv[1:]
    marks = Marks()
    folders = {"checkpoint": Path(checkpoint), "out": Path(out), "needed": Path(needed)}
    request = Request(device=device, calibration=Path(calibration), **folders)
    KINDS[kind].make(request, marks)
    print(json.dumps({"parts": marks.parts}))


if __name__ == "__main__":
    main()
