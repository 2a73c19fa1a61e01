"""What was proven of a bundle, where, and what is still pending.

    proof.json    beside a bundle for CUDA, once `demitasse verify` has run it on a GPU: which GPU, how many nodes ran
                  where by ONNX Runtime's profile, how far its figures are from the checkpoint's; sealed, and tied to
                  the manifest by the manifest's sha256

A bundle for CUDA can be made on a machine without a GPU. There its placement is proven by the kernels that the provider
registers (`export.placement`), and its arithmetic by running the same float16 file on the CPU. What CUDA's own kernels
compute is then pending: the manifest, which is sealed, says so, and the proof that comes later lies beside it.
"""

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from compress.digests import digest_file, read_sealed, sealed
from compress.errors import DemitasseError
from export.external_data import BundleIntegrityError, real_file
from export.manifest import MANIFEST, PROOF, read_manifest
from export.provider import prove_provider
from export.runtime.gpu import Gpu, gpus
from export.runtime.session import Provider, ProviderError, check_provider, is_here
from export.self_test import run_self_test

LATER = "run `demitasse verify` on a machine with such a GPU"


class PendingError(DemitasseError):
    """A part of a bundle's proof has not been taken yet."""

    exit_code = 4


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What was proven on a GPU after the export."""

    device: str
    """The GPU's name."""
    onnxruntime: str
    """Version."""
    created: str
    """UTC, as ISO 8601."""


def pending(bundle: Path) -> str:
    """What of a bundle's proof is pending, such as "cuda"; empty: nothing, or it was proven since.

    Raises:
        BundleIntegrityError: the proof beside it was changed, or is of another bundle.
    """
    stated = str(read_manifest(bundle)["arithmetic"].get("pending", ""))
    return "" if stated and read_proof(bundle) is not None else stated


def read_proof(bundle: Path) -> Proof | None:
    """The proof beside a bundle; None where there is none.

    Raises:
        BundleIntegrityError: it was changed, or is of another bundle.
    """
    file = bundle / PROOF
    if not os.path.lexists(file):
        return None
    try:
        content = read_sealed(real_file(file))
        told = {name: str(content[name]) for name in ("device", "onnxruntime", "created")}
        of = content["manifest"]
    except (ValueError, KeyError, TypeError) as error:
        raise BundleIntegrityError(
            f"{file}: expected a proof as it was written ({error}); remove it, and {LATER}"
        ) from error
    if of != digest_file(bundle / MANIFEST):
        raise BundleIntegrityError(f"{file}: proves another bundle than the one it lies beside; remove it, and {LATER}")
    return Proof(**told)


def prove_here(bundle: Path, provider: Provider, stated: float) -> dict[str, Any]:
    """Run a bundle's self-test where it belongs, or, where no GPU is, on the CPU; what was pending is proven and kept.

    Args:
        stated: the self-test's KL as the export found it.

    Returns:
        The self-test's figures, and where it ran: "provider".

    Raises:
        ParityError: it does not compute here what its checkpoint computed.
        ProviderError: there is a GPU, and ONNX Runtime does not use it, or its nodes ran elsewhere.
    """
    here = is_here(provider)
    if not here and gpus():
        check_provider(provider)  # which says why
    if here and provider == "cuda":
        _check_gpu(bundle, gpus()[0])
    figures = run_self_test(bundle, provider if here else "cpu", stated=stated)
    if here and pending(bundle):
        _keep(bundle, {"placement": prove_provider(bundle, provider), "self_test": figures})
    return figures | {"provider": provider if here else "cpu"}


def _check_gpu(bundle: Path, gpu: Gpu) -> None:
    """The kernels are compiled for this GPU, where ONNX Runtime is the one that the export knew them of."""
    import onnxruntime

    placement = read_manifest(bundle)["placement"]
    compiled = placement.get("sm", ()) if placement.get("onnxruntime") == onnxruntime.__version__ else ()
    if compiled and not any(_runs(architecture, gpu.capability) for architecture in compiled):
        raise ProviderError(
            f"{bundle}: expected a GPU that ONNX Runtime's kernels are compiled for ({', '.join(compiled)}), got "
            f"{gpu.name} (sm_{gpu.capability}); use another GPU, or a build of ONNX Runtime for this one"
        )


def _runs(architecture: str, capability: int) -> bool:
    """Machine code runs on later GPUs of the same major number, that of an "a" on its own only; text on all later."""
    kind, _, rest = architecture.partition("_")
    number = int(rest.removesuffix("a"))
    if rest.endswith("a"):
        return number == capability
    return number <= capability and (kind == "compute" or number // 10 == capability // 10)


def check_nothing_pending(bundle: Path) -> None:
    """Raise a PendingError where something of a bundle's proof was not taken yet."""
    left = pending(bundle)
    if left:
        raise PendingError(
            f"{bundle}: whole, and right on the CPU; what {left.upper()} computes is pending: {LATER}, or accept it "
            "with --allow-pending"
        )


def _keep(bundle: Path, proven: dict[str, Any]) -> None:
    import onnxruntime

    content = {
        "manifest": digest_file(bundle / MANIFEST),
        "device": gpus()[0].name,
        "onnxruntime": onnxruntime.__version__,
        "created": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        **proven,
    }
    unfinished = bundle / f".{PROOF}.{os.getpid()}"  # a name that no manifest looks at
    try:
        with unfinished.open("w", encoding="utf-8") as stream:
            stream.write(sealed(content))
            stream.flush()
            os.fsync(stream.fileno())
        unfinished.replace(bundle / PROOF)
    finally:
        unfinished.unlink(missing_ok=True)
