"""A checkpoint goes in, a verified ONNX bundle comes out, and the runtime that runs it."""

from typing import TYPE_CHECKING, Any

from export.bundle import BundleError, BundleIntegrityError, BundleSummary, verify_bundle
from export.stage import EXPORT, ExportConfig
from export.triton import bundle_folder

if TYPE_CHECKING:
    from export.runtime import OnnxCausalLM, PromptError
    from export.sampling import Sampling
    from export.session import ProviderError

__all__ = [
    "EXPORT",
    "BundleError",
    "BundleIntegrityError",
    "BundleSummary",
    "ExportConfig",
    "OnnxCausalLM",
    "PromptError",
    "ProviderError",
    "Sampling",
    "bundle_folder",
    "verify_bundle",
]

LATER = {
    "OnnxCausalLM": "export.runtime",
    "PromptError": "export.runtime",
    "ProviderError": "export.session",
    "Sampling": "export.sampling",
}


def __getattr__(name: str) -> Any:
    """What needs ONNX Runtime or takes long to import is imported on first use."""
    if name not in LATER:
        raise AttributeError(f"module 'export' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(LATER[name]), name)
