"""The variants: who is compared, what each runs, and what it is to be called.

Adding one is a class with `read`, `step` and `rewind` (see worker.py), a kind of files (see prepare.py) and an entry
here.
"""

from dataclasses import dataclass

from benchmarks.prepare import installed

GENAI = ("onnxruntime-genai-cuda", "onnxruntime-genai")
EVERYWHERE = frozenset({"cpu", "cuda"})


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One contender."""

    title: str
    runner: str
    """"module:class" of its runner."""
    files: str
    """The kind of files that it runs."""
    devices: frozenset[str] = EVERYWHERE
    families: frozenset[str] = frozenset()
    """Model types that it can run; empty for all."""
    distributions: tuple[str, ...] = ()
    """One of these must be installed."""
    way_out: str = ""
    slow_start: bool = False
    """Whether it compiles when it is first run, so that starting it often would take long."""

    def reason_against(self, family: str, device: str) -> str:
        """Why this variant cannot take part, or empty."""
        if device not in self.devices:
            return f"not on {device}"
        if self.families and family not in self.families:
            return f"has no {family}"
        if self.distributions and not any(installed(name) for name in self.distributions):
            return f"not installed: {self.way_out}"
        return ""


VARIANTS: dict[str, Variant] = {
    "eager": Variant(title="PyTorch eager", runner="benchmarks.torch_variants:Eager", files="checkpoint"),
    "compile": Variant(
        title="torch.compile", runner="benchmarks.torch_variants:Compiled", files="checkpoint", slow_start=True
    ),
    "ort-fp32": Variant(
        title="torch.onnx + ORT fp32",
        runner="benchmarks.onnx_variants:TorchExport",
        files="torch_export",
        devices=frozenset({"cpu"}),
    ),
    "ort-dynamic": Variant(
        title="ORT quantize_dynamic",
        runner="benchmarks.onnx_variants:TorchExport",
        files="quantize_dynamic",
        devices=frozenset({"cpu"}),
    ),
    "genai": Variant(
        title="onnxruntime-genai, its own int8 model",
        runner="benchmarks.onnx_variants:Genai",
        files="genai_int8",
        families=frozenset({"llama"}),
        distributions=GENAI,
        way_out="pip install onnxruntime-genai",
    ),
    "genai-fp16": Variant(
        title="onnxruntime-genai, its own fp16 model",
        runner="benchmarks.onnx_variants:Genai",
        files="genai_fp16",
        devices=frozenset({"cuda"}),
        families=frozenset({"llama"}),
        distributions=GENAI,
        way_out="pip install onnxruntime-genai-cuda",
    ),
    "genai-bundle": Variant(
        title="onnxruntime-genai, our bundle",
        runner="benchmarks.onnx_variants:Genai",
        files="bundle",
        distributions=GENAI,
        way_out="pip install onnxruntime-genai",
    ),
    "genai-graph": Variant(
        title="onnxruntime-genai, our bundle, CUDA graphs",
        runner="benchmarks.onnx_variants:GenaiGraph",
        files="bundle",
        devices=frozenset({"cuda"}),
        distributions=GENAI,
        way_out="pip install onnxruntime-genai-cuda",
    ),
    "llama.cpp": Variant(
        title="llama.cpp Q8_0",
        runner="benchmarks.llama_variant:LlamaCpp",
        files="gguf",
        devices=frozenset({"cpu"}),
        distributions=("llama-cpp-python",),
        way_out="pip install llama-cpp-python gguf (builds llama.cpp: needs a C++ compiler and CMake)",
    ),
    "float": Variant(
        title="demitasse fp16",
        runner="benchmarks.onnx_variants:Demitasse",
        files="float_bundle",
        devices=frozenset({"cuda"}),
    ),
    "demitasse": Variant(title="demitasse int8", runner="benchmarks.onnx_variants:Demitasse", files="bundle"),
}
OURS, REFERENCE = "demitasse", "eager"
