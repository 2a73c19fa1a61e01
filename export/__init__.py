"""A checkpoint goes in, a verified ONNX bundle comes out, and the runtime that runs it."""

from typing import TYPE_CHECKING, Any

from export.bundle import BundleSummary, verify_bundle
from export.config import EXPORT, ExportConfig
from export.external_data import BundleError, BundleIntegrityError
from export.manifest import bundle_folder

if TYPE_CHECKING:
    from export.runtime.model import OnnxCausalLM, PromptError
    from export.runtime.sampling import Sampling
    from export.runtime.session import ProviderError

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
    "OnnxCausalLM": "export.runtime.model",
    "PromptError": "export.runtime.model",
    "ProviderError": "export.runtime.session",
    "Sampling": "export.runtime.sampling",
}


def __getattr__(name: str) -> Any:
    """What needs ONNX Runtime or takes long to import is imported on first use."""
    if name not in LATER:
        raise AttributeError(f"module 'export' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(LATER[name]), name)
