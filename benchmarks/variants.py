"""The variants on the CPU: who is compared, what each runs, and what it is to be called.

Adding one is a class with `read`, `step` and `rewind` (see worker.py), a kind of files (see prepare.py) and an entry
here. Those on a GPU are in gpu_variants.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.prepare import SCHEMES, installed

GENAI = ("onnxruntime-genai-cuda", "onnxruntime-genai")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One contender."""

    title: str
    runner: str
    """"module:class" of its runner."""
    files: str
    """The kind of files that it runs."""
    knobs: Mapping[str, Any] = field(default_factory=dict)
    """What its runner is told beside them."""
    families: frozenset[str] = frozenset()
    """Model types that it can run; empty for all."""
    distributions: tuple[str, ...] = ()
    """One of these must be installed."""
    way_out: str = ""
    slow_start: bool = False
    """Whether it compiles when it is first run, so that starting it often would take long."""

    def reason_against(self, family: str) -> str:
        """Why this variant cannot take part, or empty."""
        if self.families and family not in self.families:
            return f"has no {family}"
        if self.distributions and not any(installed(name) for name in self.distributions):
            return f"not installed: {self.way_out}"
        return ""


def llama_cpp(kind: str, files: str) -> Variant:
    return Variant(
        title=f"llama.cpp {kind}",
        runner="benchmarks.llama_variant:LlamaCpp",
        files=files,
        distributions=("llama-cpp-python",),
        way_out="pip install llama-cpp-python gguf (builds llama.cpp: needs a C++ compiler and CMake)",
    )


def title_of(scheme: str, cache: str) -> str:
    """What a variant of ours is called."""
    knobs = SCHEMES[scheme]
    bits = f", {knobs['average_bits']} bits" if knobs.get("average_bits", 4) > 4 else ""
    group = f", groups of {knobs['group']}" if "group" in knobs else ""
    return f"demitasse {scheme.partition('_')[0]}{bits}{group}{', int8 cache' if cache else ''}"


GENAI_INT8 = Variant(
    title="onnxruntime-genai, its own int8 model",
    runner="benchmarks.onnx_variants:Genai",
    files="genai_int8",
    families=frozenset({"llama"}),
    distributions=GENAI,
    way_out="pip install onnxruntime-genai",
)
VARIANTS: dict[str, Variant] = {
    "eager": Variant(title="PyTorch eager", runner="benchmarks.torch_variants:Eager", files="checkpoint"),
    "compile": Variant(
        title="torch.compile", runner="benchmarks.torch_variants:Compiled", files="checkpoint", slow_start=True
    ),
    "ort-fp32": Variant(
        title="torch.onnx + ORT fp32",
        runner="benchmarks.onnx_variants:TorchExport",
        files="torch_export",
    ),
    "ort-dynamic": Variant(
        title="ORT quantize_dynamic",
        runner="benchmarks.onnx_variants:TorchExport",
        files="quantize_dynamic",
    ),
    "genai": GENAI_INT8,
    "genai-bundle": Variant(
        title="onnxruntime-genai, our bundle",
        runner="benchmarks.onnx_variants:Genai",
        files="bundle_int8",
        distributions=GENAI,
        way_out="pip install onnxruntime-genai",
    ),
    "llama.cpp": llama_cpp("Q8_0", "gguf"),
    "demitasse": Variant(title="demitasse int8", runner="benchmarks.onnx_variants:Demitasse", files="bundle_int8"),
    "genai-int4": replace(GENAI_INT8, title="onnxruntime-genai, its own int4 model", files="genai_int4"),
    **{f"llama.cpp-{kind}": llama_cpp(kind, f"gguf_{kind}") for kind in ("Q4_0", "Q4_K_S", "Q4_K_M")},
    **{
        scheme + cache: Variant(
            title=title_of(scheme, cache),
            runner="benchmarks.onnx_variants:Demitasse",
            files=f"bundle_{scheme}{cache}",
        )
        for scheme in SCHEMES
        for cache in ("", "_cache8")
        if scheme + cache != "int8"
    },
}
OURS, REFERENCE = "demitasse", "eager"
PEERS = (
    "eager",
    "compile",
    "ort-fp32",
    "ort-dynamic",
    "genai",
    "genai-bundle",
    "llama.cpp",
    OURS,
)
"""Who is compared in speed alone, at 8 bits or more."""
FRONT = (
    "ort-dynamic",
    "genai",
    "genai-int4",
    "llama.cpp",
    "llama.cpp-Q4_0",
    "llama.cpp-Q4_K_S",
    "llama.cpp-Q4_K_M",
    OURS,
    *(scheme + cache for scheme in SCHEMES for cache in ("", "_cache8") if scheme + cache != "int8"),
)
"""Who is compared in quality, speed and bytes at once: see front.py."""
