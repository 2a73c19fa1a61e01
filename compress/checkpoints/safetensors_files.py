"""The tensors of a checkpoint's files, by the names that its model gives them, read one by one and replaced in a copy.

A safetensors file is a header that gives each tensor's type, shape and place, and then the bytes. A stage that changes
some values and no shape copies the files and writes those bytes anew: every other tensor, name and type stays as it is,
and no more than one tensor is in memory.
Source of the format: https://github.com/huggingface/safetensors#format

Not covered: checkpoints whose tensors transformers merges or splits as it loads them (mixtures of experts).
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from torch import Tensor

from compress.checkpoints.folder import CheckpointError, load_tokenizer, weight_files

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONFIGS = ("config.json", "generation_config.json")
INDEX = "model.safetensors.index.json"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Place:
    """Where a tensor lies."""

    file: str
    """Name of the file within the folder."""
    name: str
    """The name that the file gives it."""
    dtype: str
    shape: tuple[int, ...]
    offset: int
    """Bytes from the start of the file."""


class TensorFiles:
    """A dense checkpoint's tensors by their names in `model`.

    Raises:
        CheckpointError: a parameter of the model is in no file, or has another shape there.
    """

    def __init__(self, folder: Path, model: "PreTrainedModel") -> None:
        self.folder = folder
        self.places = _places(folder, model)
        self.tied = {alias: name for alias, name in model.all_tied_weights_keys.items() if alias in self.places}
        """Further names under which the files hold a tensor once more."""
        for name, parameter in model.named_parameters():
            place = self.places.get(name)
            if place is None or place.shape != tuple(parameter.shape) or place.dtype not in DTYPES:
                found = "nothing" if place is None else f"{place.dtype} {list(place.shape)}"
                raise CheckpointError(
                    f"{folder}: expected {name} as floats {list(parameter.shape)} in its weight files, got {found}"
                )

    def read(self, name: str) -> Tensor:
        """A tensor in float32."""
        place = self.places[name]
        with safe_open(self.folder / place.file, framework="pt") as tensors:
            tensor: Tensor = tensors.get_tensor(place.name)
        return tensor.float()

    @torch.no_grad()
    def fill(self, module: torch.nn.Module, prefix: str) -> None:
        """Read every parameter of `module`, whose name in the model is `prefix`, into its place."""
        for name, parameter in module.named_parameters():
            parameter.copy_(self.read(f"{prefix}.{name}" if prefix else name))

    def copy_to(self, out: Path) -> None:
        """The whole checkpoint, to be changed by `write`."""
        for name in (*CONFIGS, INDEX):
            if (self.folder / name).is_file():
                shutil.copyfile(self.folder / name, out / name)
        for file in weight_files(self.folder):
            shutil.copyfile(file, out / file.name)
        load_tokenizer(self.folder).save_pretrained(out)

    def write(self, out: Path, name: str, tensor: Tensor) -> None:
        """Replace a tensor's values in the copy that lies in `out`, in the type that it has there."""
        for same in (name, *(alias for alias, tied in self.tied.items() if tied == name)):
            place = self.places[same]
            if tuple(tensor.shape) != place.shape:
                raise ValueError(f"{same}: expected {list(place.shape)}, got {list(tensor.shape)}")
            values = tensor.detach().to(DTYPES[place.dtype]).contiguous().cpu()
            with (out / place.file).open("r+b") as stream:
                stream.seek(place.offset)
                stream.write(values.flatten().view(torch.uint8).numpy().data)

    def nonzero(self, out: Path, name: str) -> int:
        """How many of a tensor's values are not exactly zero in the copy that lies in `out`."""
        place = self.places[name]
        with safe_open(out / place.file, framework="pt") as tensors:
            return int(tensors.get_tensor(place.name).count_nonzero())


def _places(folder: Path, model: "PreTrainedModel") -> dict[str, Place]:
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    renamings = [step for step in get_model_conversion_mapping(model) if isinstance(step, WeightRenaming)]
    wanted = model.state_dict()
    found = {}
    for file in weight_files(folder):
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(size))
        for name, entry in header.items():
            if name != "__metadata__":
                renamed, _ = rename_source_key(name, renamings, [], model.base_model_prefix, wanted)
                start = 8 + size + entry["data_offsets"][0]
                found[renamed] = Place(file.name, name, entry["dtype"], tuple(entry["shape"]), start)
    return found
