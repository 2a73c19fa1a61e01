"""The variants on a GPU: float16 activations everywhere, a step captured as a CUDA graph or not.

    demitasse            float16, int8 in groups of 32 and of 64, int4 in groups of 32, with CUDA graphs and without
    without fpA_intB     the same without ONNX Runtime's fast weight-only kernels, which take groups of 32 only
    PyTorch              eager, and torch.compile in the mode that captures CUDA graphs, over a StaticCache
    onnxruntime-genai    over our folder, and over what its own builder makes (it has no GPT-2)

Adding one is an entry here, and a kind of files in prepare.py where it runs files that no other does.
"""

from collections.abc import Iterator
from dataclasses import replace

from benchmarks.variants import GENAI, VARIANTS, Variant

PLAIN_KERNELS = {"ep.cuda.fpa_intb_gemm": "0"}
SCHEMES = {
    "float": "fp16",
    "int8_group32": "int8, groups of 32",
    "int8_group64": "int8, groups of 64",
    "int4_group32_rtn": "int4, groups of 32",
}
"""Kind of files without its "built_" -> what it is called."""
FAST = ("int8_group32", "int4_group32_rtn")
OWN = {"fp16": "fp16", "int8": "int8", "int4": "int4"}
"""Precision of onnxruntime-genai's own builder -> what it is called."""
GRAPH = "-graph"


def _ours() -> Iterator[tuple[str, Variant]]:
    for scheme, title in SCHEMES.items():
        plain = Variant(
            title=f"demitasse {title}",
            runner="benchmarks.onnx_variants:Demitasse",
            files=f"built_{scheme}",
            knobs={"cuda_graph": False},
        )
        graph = replace(plain, title=f"{plain.title}, CUDA graphs", knobs={})
        yield from ((scheme, plain), (scheme + GRAPH, graph))
        if scheme in FAST:
            yield (
                f"{scheme}-plain{GRAPH}",
                replace(graph, title=f"{plain.title}, without fpA_intB, CUDA graphs", knobs={"keys": PLAIN_KERNELS}),
            )


def _genai() -> Iterator[tuple[str, Variant]]:
    files = {"genai-bundle": ("our int8 folder, groups of 32", "built_int8_group32", frozenset[str]())}
    files |= {f"genai-{kind}": (f"its own {OWN[kind]} model", f"genai_{kind}", frozenset({"llama"})) for kind in OWN}
    for name, (what, kind, families) in files.items():
        plain = Variant(
            title=f"onnxruntime-genai, {what}",
            runner="benchmarks.onnx_variants:Genai",
            files=kind,
            families=families,
            distributions=GENAI,
            way_out="pip install onnxruntime-genai-cuda",
        )
        graph = replace(plain, title=f"{plain.title}, CUDA graphs", knobs={"cuda_graph": True})
        yield from ((name, plain), (name + GRAPH, graph))


GPU_VARIANTS: dict[str, Variant] = {
    "eager": replace(VARIANTS["eager"], title="PyTorch eager, fp16"),
    "compile": replace(VARIANTS["compile"], title="torch.compile, fp16, CUDA graphs"),
    **dict(_genai()),
    **dict(_ours()),
}
OURS = tuple(name for name, variant in GPU_VARIANTS.items() if variant.runner.endswith(":Demitasse"))
REFERENCES = ("compile", "genai-bundle-graph", "genai-int8-graph")
"""Against whom ours is held."""
