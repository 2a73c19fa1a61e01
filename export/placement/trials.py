"""What kernels of CUDA refuse though they are registered: tried out with models of one node each.

    python -m export.placement.trials OUTCOMES.json       a module to run over the stand-ins for the CUDA libraries

A grid crosses a few facts of a node, such as bits and block_size; of each crossing a session is opened and run, once
with one token and once with several. The stand-ins compute nothing, but a kernel looks at its attributes and shapes
before it launches anything, and refuses with its real message. `Refusal` is the shortest account of a grid's outcomes:

    {"bits": 3} and everything else is refused             ->  Refusal({"bits": [3]}, "... supports bits = 2, 4 or 8")
    {"bits": 4, "block_size": 256} is, neither alone is    ->  Refusal({"bits": [4], "block_size": [256]}, ...)
"""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from export.placement.one_node import MODELS, Facts, Model
from export.placement.stub_libraries import run_module

GRIDS: list[tuple[str, dict[str, list[Any]]]] = [
    (
        "MatMulNBits",
        {
            "type": ["float", "float16", "bfloat16"],
            "bits": [2, 3, 4, 5, 6, 8],
            "block_size": [16, 32, 64, 128, 256],
            "zero_points": ["none", "uint8", "float"],
            "bias": [0, 1],
        },
    ),
    ("MatMulNBits", {"type": ["float16", "bfloat16"], "bits": [4, 8], "accuracy_level": [0, 1, 2, 3, 4]}),
    ("GroupQueryAttention", {"head_size": [*range(4, 132, 4), 160, 192, 224, 256, 264, 320, 512], "do_rotary": [0, 1]}),
    (
        "GroupQueryAttention",
        {
            "type": ["float16", "bfloat16"],
            "cache": ["float", "PER_TENSOR", "PER_CHANNEL"],
            "groups": [1, 2, 3, 4, 5, 7, 8, 16, 32],
            "local_window_size": [-1, 4],
            "softcap": [0.0, 5.0],
        },
    ),
    (
        "GroupQueryAttention",
        {
            "cache": ["float", "PER_TENSOR", "PER_CHANNEL"],
            "head_size": [16, 32, 64, 80, 96, 128, 256],
            "do_rotary": [0, 1],
            "rotary_interleaved": [0, 1],
            "smooth_softmax": [0, 1],
        },
    ),
    (
        "GatherBlockQuantized",
        {
            "type": ["float", "float16", "bfloat16"],
            "bits": [2, 4, 8],
            "block_size": [16, 32, 64, 128, 256],
            "zero_points": ["none", "uint8"],
        },
    ),
    (
        "RotaryEmbedding",
        {
            "type": ["float", "float16", "bfloat16"],
            "head_size": [16, 24, 32, 64, 80, 128, 256],
            "rotary_embedding_dim": [0, 8, 16],
            "interleaved": [0, 1],
        },
    ),
    ("SkipLayerNormalization", {"type": ["float", "float16"], "width": [8, 20, 64, 72, 576, 1600, 8192, 16384]}),
    (
        "SkipSimplifiedLayerNormalization",
        {"type": ["float", "float16", "bfloat16"], "width": [8, 20, 64, 72, 576, 1600, 8192, 16384]},
    ),
]
FAST: dict[str, tuple[str, list[dict[str, list[Any]]]]] = {
    f"fpA_intB of {bits} bits": (
        "MatMulNBits",
        [
            {
                "type": ["float", "float16", "bfloat16"],
                "bits": [bits],
                "block_size": [16, 32, 64, 128, 256],
                "zero_points": ["none", "uint8", "float"],
                "bias": [0, 1],
                "N": [16, 32, 48, 64, 96, 128],
            },
            {"bits": [bits], "block_size": [block], "N": [128], "K": [64, 72, 80, 96, 128, 160, 192, 256, 512]},
        ],
    )
    for bits, block in ((2, 64), (4, 32), (8, 32))
}
"""Kernels that are taken where they can be: the grids in which that is tried out, the second one with a block that the
first one finds.
"""
FAST_KEY = "ep.cuda.fpa_intb_gemm"
TAKEN = "To use fpA_intB_gemm"
"""In the message with which the fast kernels refuse weights that are no constants: so they were chosen."""
TOKENS = (1, 8)
MOST_FACTS = 3
"""In the account of a refusal."""
BEFORE = re.compile(r"Status Message: |was false\. |\[with [^]]*\] |\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ")
LONGEST = 200
FATAL_ONLY = 4


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Nodes that a kernel refuses: all of these facts hold, each with one of its values."""

    operator: str
    when: dict[str, list[Any]]
    says: str


Outcome = tuple[Facts, str]
"""Of one crossing: its facts, and the message where it was refused."""


def try_all(libraries: Path) -> tuple[list[Refusal], dict[str, dict[str, Any]]]:
    """What is refused, and of the fast kernels of FAST what they take, tried by a child over the stand-ins."""
    with TemporaryDirectory() as scratch:
        file = Path(scratch) / "outcomes.json"
        run_module(libraries, __name__, file)
        refused, taken = json.loads(file.read_text(encoding="utf-8"))
    found = [refusal for operator, outcomes in refused for refusal in account(operator, outcomes)]
    unique = {json.dumps([refusal.operator, refusal.when]): refusal for refusal in found}
    return list(unique.values()), {name: _products(grids) for name, grids in taken.items()}


def account(operator: str, outcomes: list[Outcome]) -> list[Refusal]:
    """The fewest facts that tell which outcomes were refused."""
    found: dict[tuple[tuple[str, Any], ...], str] = {}
    facts = list(outcomes[0][0])
    for size in range(1, MOST_FACTS + 1):
        for names in combinations(facts, size):
            found |= dict(_refused_alike(names, outcomes, set(found)))
    return [
        Refusal(operator=operator, when=when, says=says)
        for when, says in _joined([({name: [value] for name, value in key}, says) for key, says in found.items()])
    ]


def _refused_alike(
    names: tuple[str, ...], outcomes: list[Outcome], known: set[tuple[tuple[str, Any], ...]]
) -> Iterator[tuple[tuple[tuple[str, Any], ...], str]]:
    groups: dict[tuple[tuple[str, Any], ...], list[str]] = {}
    for facts, message in outcomes:
        groups.setdefault(tuple((name, facts[name]) for name in names), []).append(message)
    for key, messages in groups.items():
        if all(messages) and not any(set(smaller) <= set(key) for smaller in known):
            yield key, messages[0]


Account = tuple[dict[str, list[Any]], str]


def _joined(accounts: list[Account]) -> list[Account]:
    """Accounts that differ in one fact's values are one, with all of its values."""
    for (first, says), (second, _) in combinations(accounts, 2):
        if first.keys() == second.keys():
            differing = [name for name in first if first[name] != second[name]]
            if len(differing) == 1:
                (name,) = differing
                both = first | {name: sorted({*first[name], *second[name]})}
                rest = [account for account in accounts if account[0] is not first and account[0] is not second]
                return _joined([(both, says), *rest])
    return accounts


def _products(grids: list[list[tuple[Facts, bool]]]) -> dict[str, list[Any]]:
    """The same of several grids; of a fact in several the first one counts."""
    found: dict[str, list[Any]] = {}
    for outcomes in grids:
        found = _product(outcomes) | found
    return found


def _product(outcomes: list[tuple[Facts, bool]]) -> dict[str, list[Any]]:
    """The values of each fact with which a fast kernel was taken, if it was taken in each of their crossings."""
    taken = [facts for facts, yes in outcomes if yes]
    values = {name: sorted({facts[name] for facts in taken}) for name in outcomes[0][0]}
    crossed = [facts for facts, _ in outcomes if all(facts[name] in values[name] for name in values)]
    return values if len(crossed) == len(taken) else {}


def crossings(grid: dict[str, list[Any]]) -> list[Facts]:
    """Every choice of one value for each fact."""
    return [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]


def refusal(model: Model, keys: dict[str, str]) -> str:
    """What a session says that does not open, or does not run; empty where it does both."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = FATAL_ONLY
    options.intra_op_num_threads = 1
    for key, value in {"session.disable_cpu_ep_fallback": "1", **keys}.items():
        options.add_session_config_entry(key, value)
    try:
        session = onnxruntime.InferenceSession(model.write(), options, providers=["CUDAExecutionProvider"])
        for tokens in TOKENS:
            session.run_with_ort_values(model.outputs, model.feeds(tokens))
    except Exception as error:  # of a dozen classes, without a base of their own
        return shortened(str(error))
    return ""


def shortened(message: str) -> str:
    """What a message says at its end, without where in ONNX Runtime it was said."""
    line = " ".join(message.split())
    return BEFORE.split(line)[-1].strip() or line[-LONGEST:]


def _outcomes(operator: str, grid: dict[str, list[Any]]) -> list[Outcome]:
    return [(facts, refusal(MODELS[operator](facts), {})) for facts in crossings(grid)]


def _taken(operator: str, grid: dict[str, list[Any]]) -> list[tuple[Facts, bool]]:
    keys = {FAST_KEY: "1"}
    return [(facts, TAKEN in refusal(MODELS[operator](facts), keys)) for facts in crossings(grid)]


if __name__ == "__main__":
    tried = [(operator, _outcomes(operator, grid)) for operator, grid in GRIDS]
    fast = {name: [_taken(operator, grid) for grid in grids] for name, (operator, grids) in FAST.items()}
    Path(sys.argv[1]).write_text(json.dumps([tried, fast]), encoding="utf-8")
