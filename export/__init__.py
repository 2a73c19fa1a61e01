"""A checkpoint goes in, a verified ONNX bundle comes out, and the runtime that runs it."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from export.bundle import BundleSummary, verify_bundle
    from export.config import EXPORT, ExportConfig
    from export.external_data import BundleError, BundleIntegrityError
    from export.manifest import bundle_folder
    from export.runtime.batch import PromptError
    from export.runtime.model import OnnxCausalLM
    from export.runtime.sampling import Sampling
    from export.runtime.session import ProviderError
else:
    from compress.names import face

    __getattr__, __dir__ = face(
        __name__,
        {
            "EXPORT": "export.config",
            "BundleError": "export.external_data",
            "BundleIntegrityError": "export.external_data",
            "BundleSummary": "export.bundle",
            "ExportConfig": "export.config",
            "OnnxCausalLM": "export.runtime.model",
            "PromptError": "export.runtime.batch",
            "ProviderError": "export.runtime.session",
            "Sampling": "export.runtime.sampling",
            "bundle_folder": "export.manifest",
            "verify_bundle": "export.bundle",
        },
    )

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
