"""What is worth knowing of a graph that runs on CUDA: which of its nodes reach the fastest kernels, and why others do
not.

    XQA         decodes one token over a cache that is written in place: certain head sizes and groups, no soft cap
    fpA_intB    multiplies float16 by codes without unpacking them first; off unless a session asks for it
"""

from collections import Counter
from collections.abc import Iterator
from math import gcd

from export.placement.kernel_table import KernelTable, holds
from export.placement.read_nodes import Node

SIZES = ("N", "K")
"""Facts of which the table has some multiples of a number, which stand for all."""


def remarks(nodes: list[Node], table: KernelTable) -> tuple[str, ...]:
    """Sentences, in a fixed order."""
    return (*_attention(nodes, table), *_products(nodes, table))


def _attention(nodes: list[Node], table: KernelTable) -> Iterator[str]:
    attention = [node for node in nodes if node.operator == "GroupQueryAttention"]
    reasons = Counter(_why_no_xqa(node, table) for node in attention)
    if attention and table.xqa:
        yield f"{reasons.pop('', 0)} of {len(attention)} GroupQueryAttention can decode with the XQA kernels"
        yield from (f"{count} cannot: {reason}" for reason, count in sorted(reasons.items()))


def _why_no_xqa(node: Node, table: KernelTable) -> str:
    facts = node.facts
    sizes, groups = table.xqa.get("head_sizes", []), table.xqa.get("groups", [])
    if facts.get("cache") != "float":
        groups = table.xqa.get("quantized_groups", groups)
    if facts.get("head_size") not in sizes:
        return f"their heads are {facts.get('head_size')} wide, expected one of {_listed(sizes)}"
    if facts.get("groups") not in groups:
        return f"{facts.get('groups')} query heads share a key-value head, expected one of {_listed(groups)}"
    return "they have a soft cap" if facts.get("softcap") else ""


def _products(nodes: list[Node], table: KernelTable) -> Iterator[str]:
    products = [node for node in nodes if node.operator == "MatMulNBits"]
    fast = sum(any(_taken(node, when) for when in table.fast.values()) for node in products)
    if products:
        yield (
            f"{fast} of {len(products)} MatMulNBits can take the fpA_intB kernels, with the session's key "
            "ep.cuda.fpa_intb_gemm=1, and optimization.disable_specified_optimizers=MatMulNBitsFusion where a bias "
            "is added"
        )


def _taken(node: Node, when: dict[str, list[object]]) -> bool:
    rest = {name: values for name, values in when.items() if name not in SIZES}
    steps = {name: gcd(*(int(str(size)) for size in when[name])) for name in SIZES if name in when}
    fitting = all(node.facts.get(name, 1) % step == 0 for name, step in steps.items())
    return bool(when) and holds(rest, node.facts) and fitting


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
