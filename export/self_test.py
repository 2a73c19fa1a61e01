"""Parity once more, anywhere: the bundle carries a little of what the checkpoint said, and is held to it.

    parity.safetensors    ids (B, T), how many of each row are read at once (B,), and for the S + 1 positions from
                          there on the K likeliest next tokens with their log-probabilities (B, S + 1, K)

`run_self_test` reads the rows together, decodes them, and compares. A machine, a driver or a release of ONNX Runtime
that computes something else is found where the bundle is to run, without the checkpoint and without PyTorch. The figure
is the mean KL(checkpoint || bundle) over K + 1 outcomes: the K likeliest tokens and "any other", which is never more
than the KL over the whole vocabulary.

    B rows    T tokens    S steps    K tokens that are kept
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from compress.checkpoints.config import in_one_line
from export.external_data import BundleIntegrityError, read_graph
from export.parity import TOLERANCES, ParityError, arithmetics, run_forced
from export.runtime.batch import Floats, Ids
from export.runtime.model import OnnxCausalLM
from export.runtime.session import Provider
from export.torch_reference import Reference, lengths

if TYPE_CHECKING:
    from numpy.typing import NDArray

GOLDEN_OUTPUTS = "parity.safetensors"
KEPT = 16
CHOICES = 8
"""Steps in which the choice of the likeliest token is looked at."""
SLACK, FLOOR = 4.0, 1e-4
"""A run_self_test's KL may be so many times what the export found, and a little more."""


def write_golden_outputs(bundle: Path, reference: Reference) -> None:
    """Keep the likeliest tokens of the reference's rows in the bundle."""
    count_B, steps = lengths(reference.ids_BT)
    rows = [reference.row(row)[count - 1 : count + steps] for row, count in enumerate(count_B)]
    likeliest_BSK = np.stack([np.argsort(-row_SV, axis=-1, kind="stable")[:, :KEPT] for row_SV in rows])
    kept = (np.take_along_axis(row_SV, top_SK, axis=-1) for row_SV, top_SK in zip(rows, likeliest_BSK, strict=True))
    tensors = {
        "ids": reference.ids_BT.astype(np.int32),
        "count": count_B.astype(np.int32),
        "likeliest": likeliest_BSK.astype(np.int32),
        "log_probability": np.stack(list(kept)).astype(np.float32),
    }
    save_file(tensors, bundle / GOLDEN_OUTPUTS)


def run_self_test(
    bundle: Path, provider: Provider, *, stated: float | None = None, threads: int | None = None
) -> dict[str, float]:
    """Run the bundle on the rows that it carries; {"kl": nats, "tolerance": nats, "positions": count}.

    Args:
        stated: the KL that the export found; ours may be a few times that, as other processors round in another order.

    Raises:
        ParityError: it does not say what the checkpoint said.
        ProviderError: `provider` is not there or did not load.
        BundleIntegrityError: the rows cannot be read.
    """
    golden = _read_golden_outputs(bundle)
    model = OnnxCausalLM.open(bundle, provider=provider, threads=threads)
    ids_BT, count_B = golden["ids"].astype(np.int64), golden["count"].astype(np.int64)
    steps = golden["likeliest"].shape[1] - 1
    ours_BSV = run_forced(model, ids_BT, count_B, steps)
    _check_choice(bundle, model, ids_BT, count_B, min(steps, CHOICES))
    ours_BSK = np.take_along_axis(ours_BSV, golden["likeliest"].astype(np.int64), axis=-1)
    kl = coarse_kl(golden["log_probability"], ours_BSK)
    tolerance = TOLERANCES[arithmetics(read_graph(bundle))[-1]].kl
    if stated is not None:
        tolerance = min(tolerance, SLACK * stated + FLOOR)
    if not kl <= tolerance:
        raise ParityError(
            f"{bundle}: on this machine the bundle does not say what its checkpoint said: expected a KL of at most "
            f"{tolerance:g} on the rows that it carries, got {kl:.3g}; run `demitasse doctor`, and compare the "
            "versions with those in its manifest"
        )
    return {"kl": float(f"{kl:.2g}"), "tolerance": float(f"{tolerance:.2g}"), "positions": ours_BSK[..., 0].size}


def _check_choice(bundle: Path, model: OnnxCausalLM, ids_BT: Ids, count_B: Ids, steps: int) -> None:
    """The token that the runtime chooses, on a GPU in the graph itself, is one with the largest logit."""
    rows, longest = np.arange(len(ids_BT)), int(count_B.max())
    batch = model.new_batch(len(rows), longest + steps)
    batch.read(ids_BT[:, :longest], count_B)
    for _ in range(steps):
        chosen_B, logits_BV = batch.likeliest(), batch.logits()
        if not np.array_equal(logits_BV[rows, chosen_B], logits_BV.max(axis=-1)):
            raise ParityError(f"{bundle}: on this machine the token that is chosen is not the likeliest one")
        batch.append(chosen_B)


def coarse_kl(reference_NK: Floats, ours_NK: Floats) -> float:
    """Mean KL(reference || ours) in nats over K tokens and the rest of the vocabulary, from log-probabilities."""
    total = 0.0
    for reference, ours in _with_rest(reference_NK.astype(np.float64), ours_NK.astype(np.float64)):
        total += float((np.exp(reference) * (reference - ours)).sum())
    return total / reference_NK[..., 0].size


def _with_rest(*scores: "NDArray[np.float64]") -> "Iterator[tuple[NDArray[np.float64], ...]]":
    """The tokens' log-probabilities, then those of the rest; a rest of nothing is kept just above it."""
    yield scores
    yield tuple(np.log(np.maximum(1 - np.exp(score).sum(axis=-1), 1e-9)) for score in scores)


def _read_golden_outputs(bundle: Path) -> dict[str, Any]:
    try:
        golden: dict[str, Any] = load_file(bundle / GOLDEN_OUTPUTS)
        missing = {"ids", "count", "likeliest", "log_probability"} - set(golden)
    except (OSError, SafetensorError) as error:
        raise BundleIntegrityError(
            f"{bundle / GOLDEN_OUTPUTS}: cannot be read ({in_one_line(error)}); export the bundle again"
        ) from error
    if missing:
        raise BundleIntegrityError(
            f"{bundle / GOLDEN_OUTPUTS}: {', '.join(sorted(missing))} missing; export the bundle again"
        )
    return golden
