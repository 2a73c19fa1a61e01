"""Parity: the bundle computes what the checkpoint computes, on real text, or it is refused.

    prefill        each row at once
    decode         one row token by token on a warm cache, the text's own tokens fed
    batch          rows of unequal length, padded on the right, then decoded together
    left padding   the same rows, padded on the left, read at once
    independence   each of those rows alone gives what it gave among its batch-mates
    context        a row up to the last token that the context holds, its end decoded token by token

Two figures are compared with PyTorch in float32: the largest difference of any log-probability, and the mean
KL(checkpoint || bundle).

With accuracy_level 4, MatMulNBits rounds activations to 8 bits, and its result cannot be near PyTorch's to six
digits; nor can that of a cache of 8 bits. So such a bundle is checked more than once: the same graph over the same
weights, each MatMulNBits written out as what it stands for and the cache in float (`export.float_reference`), tightly,
against the dequantized checkpoint, which proves graph and weights; the same with the cache that ships; and the graph as
it ships, by KL, which bounds what the rounding costs. What it costs on a test text is the evaluation's to say.

A bundle in float16 whose GPU is not here runs on the CPU, which multiplies its codes out at every step: so the graph
with products written out is checked in full, and the file as it is stored on one row and a few steps.

    B rows    T tokens    V vocabulary    S steps
"""

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from compress.errors import DemitasseError
from export.float_reference import float_of, multiplies_codes, rounds_activations, rounds_cache, write_float_reference
from export.runtime.batch import Floats, Ids
from export.runtime.model import OnnxCausalLM, log_softmax
from export.runtime.session import Provider
from export.torch_reference import LIMIT_STEPS, Reference, lengths

if TYPE_CHECKING:
    from onnx import ModelProto
    from transformers import PreTrainedModel

Arithmetic = Literal["float32", "float16", "int8 cache", "int8 activations"]
ROWS = 4
AS_STORED = "float16 as stored"
BRIEF, BRIEF_STEPS = ("prefill", "decode"), 8
STEPS_ALONE = 16
"""Steps of the rows that are only compared with themselves."""


class ParityError(DemitasseError):
    """The bundle does not compute what the checkpoint computes; the message says where they part."""

    exit_code = 4


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
    "int8 cache": Figures(log_probability=math.inf, kl=1e-2),
    "int8 activations": Figures(log_probability=math.inf, kl=5e-2),
}
AT_ONCE = 32
"""Positions that are compared at once: a vocabulary is large."""
NOISE = 1 / 20
"""Figures below this share of a tolerance are the arithmetic's own noise, which differs from run to run, and are
stated as this bound.
"""


def check_parity(bundle: Path, graph: "ModelProto", reference: Reference, provider: Provider = "cpu") -> dict[str, Any]:
    """Compare the bundle of a graph with PyTorch's `reference`; the figures, as plain data for the manifest.

    Raises:
        ParityError: a figure is outside its tolerance.
    """
    rows, tokens = reference.ids_BT.shape
    figures: dict[str, Any] = {"rows": rows, "tokens": tokens, "context": len(reference.long_C)}
    *rehearsed, shipped = arithmetics(graph)
    slow = shipped == "float16" and provider == "cpu" and multiplies_codes(graph)
    for arithmetic in (*rehearsed, shipped) if slow else rehearsed:
        with TemporaryDirectory(dir=reference.folder) as scratch:
            write_float_reference(bundle, graph, Path(scratch), float_cache=arithmetic != "int8 cache")
            model = OnnxCausalLM.open(Path(scratch), provider=provider, prepack=False)
            figures[arithmetic] = _check_graph(Runs(model, reference), arithmetic)
            del model
    runs = Runs(OnnxCausalLM.open(bundle, provider=provider), reference)
    if slow:
        figures[AS_STORED] = _check_graph(runs.briefly(), shipped, BRIEF)
    else:
        figures[shipped] = _check_graph(runs, shipped)
    return figures


def arithmetics(graph: "ModelProto") -> list[Arithmetic]:
    """How a graph computes with nothing rounded but its floats, then with more of what it rounds, as it ships last."""
    found: list[Arithmetic] = [float_of(graph)]
    if rounds_cache(graph):
        found.append("int8 cache")
    if rounds_activations(graph):
        found.append("int8 activations")
    return found


def _check_graph(runs: "Runs", arithmetic: Arithmetic, names: Collection[str] = ()) -> dict[str, Any]:
    """Every check on a graph, or those that are named."""
    tolerance = TOLERANCES[arithmetic]
    found: dict[str, Any] = {
        "tolerance": {key: value for key, value in asdict(tolerance).items() if math.isfinite(value)}
    }
    for name in names or CHECKS:
        figures = CHECKS[name](runs)
        if not (figures.log_probability <= tolerance.log_probability and figures.kl <= tolerance.kl):
            raise ParityError(
                f"parity on {name} ({arithmetic}): expected log-probabilities within {tolerance.log_probability:g} and "
                f"a KL of at most {tolerance.kl:g}, got {figures.log_probability:.3g} and {figures.kl:.3g}; "
                + _where(runs)
            )
        found[name] = _stated(figures, tolerance)
    return found


def _where(runs: "Runs") -> str:
    """Where the two part; a cache of 8 bits does not tell, but has been found right in float by then."""
    if any(value.type == "tensor(int8)" for value in runs.model.session.get_inputs()):
        return "a cache of 8 bits costs this model too much: export it with `cache: float`"
    return first_divergent_layer(runs.model, runs.reference.load(), runs.reference.ids_BT)


def _stated(figures: Figures, tolerance: Figures) -> dict[str, float]:
    """Two digits; where the tolerance is for the arithmetic's own noise, no less than that noise."""
    exact = math.isfinite(tolerance.log_probability)
    limits = asdict(tolerance)
    return {
        name: float(f"{max(value, NOISE * limits[name]) if exact else value:.2g}")
        for name, value in asdict(figures).items()
    }


def compare(pairs: Iterable[tuple[Floats, Floats]]) -> Figures:
    """Figures over pairs of (reference, ours), each (N, V); NaN where anything is."""
    largest, kl, positions = [0.0], 0.0, 0
    for reference_NV, ours_NV in pairs:
        for start in range(0, len(reference_NV), AT_ONCE):
            expected_NV = reference_NV[start : start + AT_ONCE]
            difference_NV = expected_NV - ours_NV[start : start + AT_ONCE]
            largest.append(float(np.abs(difference_NV).max()))
            kl += float(np.einsum("nv,nv->", np.exp(expected_NV), difference_NV, dtype=np.float64))
        positions += len(reference_NV)
    kl /= positions
    return Figures(log_probability=float(np.max(largest)), kl=kl if math.isnan(kl) else max(kl, 0.0))


@dataclass(frozen=True, eq=False)
class Runs:
    """A graph's decoding of the reference's rows; each run is made once and serves several checks."""

    model: OnnxCausalLM
    reference: Reference
    most_steps: int | None = None

    def briefly(self) -> "Runs":
        """Of the first row, and few steps."""
        first = replace(self.reference, ids_BT=self.reference.ids_BT[:1])
        return Runs(self.model, first, BRIEF_STEPS)

    @cached_property
    def _lengths(self) -> tuple[Ids, int]:
        return lengths(self.reference.ids_BT)

    @property
    def count_B(self) -> Ids:
        """How much of each row is read at once."""
        return self._lengths[0]

    @property
    def steps(self) -> int:
        """How many more tokens of each row are decoded."""
        steps = self._lengths[1]
        return steps if self.most_steps is None else min(steps, self.most_steps)

    @cached_property
    def together_BSV(self) -> Floats:
        return run_forced(self.model, self.reference.ids_BT, self.count_B, self.steps)

    @cached_property
    def first_alone_SV(self) -> Floats:
        return self.alone(0, self.steps)

    def alone(self, row: int, steps: int) -> Floats:
        """One row without its batch-mates: (steps + 1, V)."""
        one = slice(row, row + 1)
        return np.squeeze(run_forced(self.model, self.reference.ids_BT[one], self.count_B[one], steps), axis=0)

    def expected(self, row: int) -> Floats:
        """PyTorch's log-probabilities where `together` has them: (S + 1, V)."""
        first = int(self.count_B[row]) - 1
        return self.reference.row(row)[first : first + self.steps + 1]


def check_prefill(runs: Runs) -> Figures:
    """Each row at once, every position."""
    ids_BT = runs.reference.ids_BT
    return compare((runs.reference.row(row), runs.model.score(ids_BT[row : row + 1])[0]) for row in range(len(ids_BT)))


def check_decode(runs: Runs) -> Figures:
    """The first row, token by token on a warm cache."""
    return compare([(runs.expected(0), runs.first_alone_SV)])


def check_batch(runs: Runs) -> Figures:
    """Rows of unequal length read together, then decoded together."""
    return compare((runs.expected(row), ours_SV) for row, ours_SV in enumerate(runs.together_BSV))


def check_left_padding(runs: Runs) -> Figures:
    """The same rows, padded on the left: each row's own tokens."""
    ids_BT, longest = runs.reference.ids_BT, int(runs.count_B.max())
    rows = [np.pad(row_T[:count], (longest - count, 0)) for row_T, count in zip(ids_BT, runs.count_B, strict=True)]
    logits_BTV = runs.model.new_batch(len(rows), longest).feed(np.stack(rows), runs.count_B, padding="left")
    for logits_TV in logits_BTV:
        log_softmax(logits_TV)
    return compare(
        (runs.reference.row(row)[:count], logits_BTV[row, longest - count :]) for row, count in enumerate(runs.count_B)
    )


def check_independence(runs: Runs) -> Figures:
    """The same rows, each alone, against themselves among batch-mates."""
    steps = min(STEPS_ALONE, runs.steps)
    others = range(1, len(runs.reference.ids_BT))
    return compare(
        [
            (runs.first_alone_SV, runs.together_BSV[0]),
            *((runs.alone(row, steps), runs.together_BSV[row, : steps + 1]) for row in others),
        ]
    )


def check_context(runs: Runs) -> Figures:
    """One row up to the context's last token."""
    long_C = runs.reference.long_C
    steps = min(LIMIT_STEPS, len(long_C) - 1)
    ours_BSV = run_forced(runs.model, long_C[None], np.asarray([len(long_C) - steps]), steps)
    return compare([(runs.reference.limit(), ours_BSV[0])])


CHECKS: dict[str, Callable[[Runs], Figures]] = {
    "prefill": check_prefill,
    "decode": check_decode,
    "batch": check_batch,
    "left padding": check_left_padding,
    "independence": check_independence,
    "context": check_context,
}


def run_forced(model: OnnxCausalLM, ids_BT: Ids, count_B: Ids, steps: int) -> Floats:
    """Read `count_B` tokens of each row, then feed `steps` more of its own: log-probabilities (B, steps + 1, V)."""
    rows = np.arange(len(ids_BT))
    longest, first = int(count_B.max()), int(count_B.min()) - 1
    batch = model.new_batch(len(rows), longest + steps)
    logits_BTV = batch.feed(ids_BT[:, :longest], count_B, logits_from=first)
    found = [logits_BTV[rows, count_B - 1 - first]]
    found.extend(batch.step(ids_BT[rows, count_B + step]).copy() for step in range(steps))
    ours_BSV = np.stack(found, axis=1)
    for row in ours_BSV:
        log_softmax(row)
    return ours_BSV


def first_divergent_layer(model: OnnxCausalLM, reference: "PreTrainedModel", ids_BT: Ids, limit: float = 1e-2) -> str:
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
            kept = theirs.shape[2]  # a sliding window keeps its last tokens only
            apart = float(np.abs(ours[:, :, tokens - kept :] - theirs).max() / max(float(np.abs(theirs).max()), 1e-9))
            if not apart <= limit:
                return f"they part first in layer {index}, at its attention's {side}s (relative difference {apart:.2g})"
    return (
        f"all {len(layers)} layers' attention agrees: they part in the last layer's output, the final norm or the head"
    )
