"""Bundles in ONNX Runtime, on the provider they were exported for; cache, inputs and logits are bound once. The float16
file of a bundle for CUDA computes on the CPU too, where its quality can be measured without a GPU.

Rows of unequal length are padded on the right, where padding does no harm.
"""

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from compress.models.components import bytes_by_part
from evaluation.latency import Variant
from export.external_data import BundleError
from export.manifest import bundle_folder, read_manifest
from export.runtime.gpu import gpus
from recipes.formats.base import NOT_NUMBERS, Device, Ids, MeasureError, Sizes
from recipes.formats.macs import macs_of_bundle

if TYPE_CHECKING:
    from export.runtime.model import OnnxCausalLM
    from recipes.formats.hidden_states import HiddenStates

RUNTIME = "ONNX Runtime"


@dataclass(frozen=True, kw_only=True)
class BundleFormat:
    """A folder that export left."""

    libraries: tuple[str, ...] = ("transformers", "tokenizers", "numpy", "scipy", "onnxruntime", "onnxruntime-gpu")
    bytes_per_weight: int | None = None
    released: bool = True

    def open(
        self,
        folder: Path,
        *,
        threads: int | None = None,
        hidden: "HiddenStates | None" = None,
        device: Device | None = None,
    ) -> "OnnxModel":
        """Open it; see `Format.open`. A bundle that is not proven has no manifest to say where it runs: `device`."""
        from export.runtime.model import OnnxCausalLM
        from export.runtime.session import nearest

        provider = device or nearest(self.device(folder))
        return OnnxModel(OnnxCausalLM.open(folder, provider=provider, threads=threads))

    def runtime(self, folder: Path) -> str:
        """ONNX Runtime."""
        return RUNTIME

    def sizes(self, folder: Path) -> Sizes:
        """Context and vocabulary, as genai_config.json has them."""
        from export.runtime.model import BundleConfig

        config = BundleConfig.read(bundle_folder(folder))
        return Sizes(context=config.context, vocabulary=config.vocabulary)

    def device(self, folder: Path) -> Device:
        """Where it was exported for."""
        try:
            return cast(Device, read_manifest(folder)["provider"])
        except BundleError as error:
            raise MeasureError(str(error)) from error

    def weight_files(self, folder: Path) -> list[Path]:
        """The graph and its data."""
        return sorted(bundle_folder(folder).glob("model.onnx*"))

    def weight_bytes(self, folder: Path) -> int:
        """Of the graph and its data."""
        return sum(file.stat().st_size for file in self.weight_files(folder))

    def counts(self, folder: Path) -> dict[str, float]:
        """What the manifest states of the weights, and the files' bytes."""
        manifest, size = read_manifest(folder), self.weight_bytes(folder)
        stated = {metric: manifest[metric] for metric in ("parameters", "nonzero_parameters")}
        return stated | {"weight_bytes": size, "disk_bytes": size}

    def components(self, folder: Path) -> dict[str, dict[str, int]]:
        """The tensors that the graph stores."""
        from export.coverage import weights_in_memory
        from export.external_data import read_graph

        return bytes_by_part(weights_in_memory(read_graph(bundle_folder(folder))))

    def macs(self, folder: Path, *, context: int) -> int:
        """Counted from the graph."""
        return macs_of_bundle(folder, context)


class OnnxModel:
    """A bundle that is open."""

    def __init__(self, model: "OnnxCausalLM") -> None:
        distribution = next(name for name in ("onnxruntime-gpu", "onnxruntime") if _installed(name))
        device = f"CUDA on {gpus()[0].name}" if model.provider == "cuda" else "CPU"
        self.runtime = f"{RUNTIME} {importlib.metadata.version(distribution)}, {device}, IO binding"
        self.context = model.config.context
        self._model = model

    def logits(self, ids_BT: Ids) -> NDArray[np.float32]:
        """See `LoadedModel.logits`."""
        return self._model.logits(ids_BT)

    def text_logits(self, ids_BT: Ids) -> NDArray[np.float32]:
        """See `LoadedModel.text_logits`."""
        return self._model.logits(ids_BT)

    def generate(self, prompts: Sequence[Ids], tokens: int) -> list[Ids]:
        """See `LoadedModel.generate`."""
        texts = self._model.generate([prompt.tolist() for prompt in prompts], max_new_tokens=tokens)
        return [np.array(text, dtype=np.int64) for text in texts]

    def decoding(self, ids_BT: Ids, tokens: int) -> Variant:
        """See `LoadedModel.decoding`."""
        rows, length = ids_BT.shape
        batch = self._model.new_batch(rows, length + tokens - 1)
        count_B = np.full(rows, length, dtype=np.int64)
        chosen: list[Ids] = [count_B]

        def prefill() -> Ids:
            batch.read(ids_BT, count_B)
            chosen[0] = batch.likeliest()
            return chosen[0]

        def decode() -> Ids:
            batch.append(chosen[0])
            chosen[0] = batch.likeliest()
            return chosen[0]

        return Variant(
            prefill=prefill,
            decode=decode,
            problem=lambda: "" if bool(np.isfinite(batch.logits()).all()) else NOT_NUMBERS,
        )


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
