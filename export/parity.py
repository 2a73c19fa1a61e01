"""Parity: the bundle computes what the checkpoint computes, on real text, or it is refused.

    prefill        whole rows at once
    decode         one row token by token on a warm cache, the text's own tokens fed
    batch          rows of unequal length, padded on the right, then decoded together
    independence   each of those rows alone gives what it gave among its batch-mates

Two figures are compared with PyTorch in float32: the largest difference of any log-probability, and the mean
KL(checkpoint || bundle).

With accuracy_level 4, MatMulNBits rounds activations to 8 bits, and its result cannot be near PyTorch's to six
digits. So an int8 bundle is checked twice: the same graph over the same weights with accuracy_level 0, tightly,
against the dequantized checkpoint, which proves graph and weights; and the graph as it ships, by KL, which bounds
what the rounding costs. What it costs on a test text is the evaluation's to say.

    B rows    T tokens    V vocabulary
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from export.external_data import read_graph
from export.runtime import OnnxCausalLM, log_softmax
from export.session import Provider

if TYPE_CHECKING:
    from onnx import ModelProto
    from transformers import PreTrainedModel

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]
Arithmetic = Literal["float32", "float16", "int8 activations"]
ROWS = 4
STEPS = 64
"""Tokens decoded on a warm cache, where the rows are that long."""
EXACT_STEPS = 8
"""The same for accuracy_level 0 in place of 4: it multiplies the whole matrix out at every step, 80 times slower."""


class ParityError(Exception):
    """The bundle does not compute what the checkpoint computes; the message says where they part."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """How far apart two sets of log-probabilities are, or may be."""

    log_probability: float
    """Largest absolute difference, over every token of the vocabulary at every position."""
    kl: float
    """Mean KL(checkpoint || bundle) per position, in nats."""


TOLERANCES: dict[Arithmetic, Figures] = {
    "float32": Figures(log_probability=2e-3, kl=1e-5),
    "float16": Figures(log_probability=0.25, kl=2e-3),
    "int8 activations": Figures(log_probability=math.inf, kl=5e-2),
}
NOISE = 1 / 20
"""Figures below this share of a tolerance are the arithmetic's own noise, which differs from run to run, and are
stated as this bound.
"""


def check_parity(bundle: Path, reference: "PreTrainedModel", ids_BT: Ids, provider: Provider = "cpu") -> dict[str, Any]:
    """Compare the bundle with `reference` on rows of real text; the figures, as plain data for the manifest.

    Raises:
        ParityError: a figure is outside its tolerance.
    """
    reference_BTV = reference_scores(reference, ids_BT)
    figures: dict[str, Any] = {"rows": ids_BT.shape[0], "tokens": ids_BT.shape[1]}
    graph = read_graph(bundle)
    exact = with_accuracy_level(graph, 0)
    base: Arithmetic = "float32" if provider == "cpu" else "float16"
    for arithmetic, variant in ((base, exact), ("int8 activations", graph)) if _rounds(graph) else ((base, graph),):
        model = OnnxCausalLM.open(bundle, provider=provider, graph=variant)
        steps = EXACT_STEPS if variant is exact and _rounds(graph) else STEPS
        figures[arithmetic] = _check_graph(model, reference, (ids_BT, reference_BTV), arithmetic, steps)
    return figures


def _check_graph(
    model: OnnxCausalLM,
    reference: "PreTrainedModel",
    rows: tuple[Ids, Floats],
    arithmetic: Arithmetic,
    steps: int,
) -> dict[str, Any]:
    ids_BT, reference_BTV = rows
    tolerance = TOLERANCES[arithmetic]
    found: dict[str, Any] = {
        "tolerance": {key: value for key, value in asdict(tolerance).items() if math.isfinite(value)}
    }
    for name, check in CHECKS.items():
        figures = check(model, ids_BT, reference_BTV, steps)
        if not (figures.log_probability <= tolerance.log_probability and figures.kl <= tolerance.kl):
            raise ParityError(
                f"parity on {name} ({arithmetic}): expected log-probabilities within {tolerance.log_probability:g} and "
                f"a KL of at most {tolerance.kl:g}, got {figures.log_probability:.3g} and {figures.kl:.3g}; "
                + first_parting_layer(model, reference, ids_BT)
            )
        found[name] = _stated(figures, tolerance)
    return found


def _stated(figures: Figures, tolerance: Figures) -> dict[str, float]:
    """Two digits; where the tolerance is for the arithmetic's own noise, no less than that noise."""
    exact = math.isfinite(tolerance.log_probability)
    limits = asdict(tolerance)
    return {
        name: float(f"{max(value, NOISE * limits[name]) if exact else value:.2g}")
        for name, value in asdict(figures).items()
    }


def reference_scores(reference: "PreTrainedModel", ids_BT: Ids) -> Floats:
    """PyTorch's log-probabilities, float32 (B, T, V), row by row."""
    import torch

    with torch.no_grad():
        rows = [reference(torch.from_numpy(row[None])).logits[0].float().numpy() for row in ids_BT]
    scores = np.stack(rows)
    for row in scores:
        log_softmax(row)
    return scores


def compare(reference_NV: Floats, ours_NV: Floats) -> Figures:
    """Figures over positions N of any shape; NaN where anything is."""
    difference = reference_NV - ours_NV
    kl = float((np.exp(reference_NV) * difference).sum(axis=-1, dtype=np.float64).mean())
    return Figures(log_probability=float(np.abs(difference).max()), kl=max(kl, 0.0) if not math.isnan(kl) else math.nan)


def check_prefill(model: OnnxCausalLM, ids_BT: Ids, reference_BTV: Floats, steps: int) -> Figures:
    """All rows at once."""
    return compare(reference_BTV, model.score(ids_BT))


def check_decode(model: OnnxCausalLM, ids_BT: Ids, reference_BTV: Floats, steps: int) -> Figures:
    """The first row: half of it read, up to `steps` more tokens fed one by one."""
    half = max(1, ids_BT.shape[1] // 2)
    steps = min(steps, ids_BT.shape[1] - half)
    ours_SV = run_forced(model, ids_BT[:1], np.asarray([half]), steps)[0]
    return compare(reference_BTV[0, half - 1 : half + steps], ours_SV)


def check_batch(model: OnnxCausalLM, ids_BT: Ids, reference_BTV: Floats, steps: int) -> Figures:
    """Rows of unequal length read together, then decoded together."""
    count_B, room = _unequal(ids_BT)
    steps = min(steps, room)
    ours_BSV = run_forced(model, ids_BT, count_B, steps)
    return compare(
        np.stack([row[count - 1 : count + steps] for row, count in zip(reference_BTV, count_B, strict=True)]), ours_BSV
    )


def check_independence(model: OnnxCausalLM, ids_BT: Ids, reference_BTV: Floats, steps: int) -> Figures:
    """The same rows, each alone, against themselves among batch-mates."""
    count_B, room = _unequal(ids_BT)
    steps = min(steps, room)
    together_BSV = run_forced(model, ids_BT, count_B, steps)
    alone = [run_forced(model, ids_BT[row : row + 1], count_B[row : row + 1], steps)[0] for row in range(len(ids_BT))]
    return compare(np.stack(alone), together_BSV)


CHECKS: dict[str, Callable[[OnnxCausalLM, Ids, Floats, int], Figures]] = {
    "prefill": check_prefill,
    "decode": check_decode,
    "batch": check_batch,
    "independence": check_independence,
}


def _unequal(ids_BT: Ids) -> tuple[Ids, int]:
    """A length for each row, all different where there is room, and the steps that fit after the longest."""
    rows, tokens = ids_BT.shape
    longest = max(1, tokens * 3 // 4)
    return np.maximum(1, longest - np.arange(rows) * max(1, longest // (rows + 1))), tokens - longest


def run_forced(model: OnnxCausalLM, ids_BT: Ids, count_B: Ids, steps: int) -> Floats:
    """Read `count_B` tokens of each row, then feed `steps` more of its own: log-probabilities (B, steps + 1, V)."""
    rows = np.arange(len(ids_BT))
    longest = int(count_B.max())
    batch = model.new_batch(len(rows), longest + steps)
    found = [batch.feed(ids_BT[:, :longest], count_B)[rows, count_B - 1]]
    found.extend(batch.step(ids_BT[rows, count_B + step]).copy() for step in range(steps))
    ours_BSV = np.stack(found, axis=1)
    for row in ours_BSV:
        log_softmax(row)
    return ours_BSV


def with_accuracy_level(graph: "ModelProto", level: int) -> "ModelProto":
    """The same graph over the same weights, its MatMulNBits at another accuracy level."""
    from onnx import ModelProto

    copy = ModelProto()
    copy.CopyFrom(graph)
    for node in copy.graph.node:
        for attribute in node.attribute:
            if node.op_type == "MatMulNBits" and attribute.name == "accuracy_level":
                attribute.i = level
    return copy


def _rounds(graph: "ModelProto") -> bool:
    return any(
        attribute.i == 4
        for node in graph.graph.node
        for attribute in node.attribute
        if attribute.name == "accuracy_level"
    )


def first_parting_layer(model: OnnxCausalLM, reference: "PreTrainedModel", ids_BT: Ids, limit: float = 1e-2) -> str:
    """Where the two part, told from what each layer puts into its cache, relative to the largest value there."""
    import torch

    row_1T = ids_BT[:1]
    tokens = row_1T.shape[1]
    batch = model.new_batch(1, tokens)
    batch.feed(row_1T, np.asarray([tokens]))
    with torch.no_grad():
        layers = reference(torch.from_numpy(row_1T), use_cache=True).past_key_values.layers
    for index, layer in enumerate(layers):
        for side, expected in (("key", layer.keys), ("value", layer.values)):
            ours, theirs = batch.cache[f"present.{index}.{side}"].numpy().astype(np.float32), expected.float().numpy()
            apart = float(np.abs(ours - theirs).max() / max(float(np.abs(theirs).max()), 1e-9))
            if not apart <= limit:
                return f"they part first in layer {index}, at its attention's {side}s (relative difference {apart:.2g})"
    return (
        f"all {len(layers)} layers' attention agrees: they part in the last layer's output, the final norm or the head"
    )
