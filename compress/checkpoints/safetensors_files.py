"""The tensors of a checkpoint's files, by the names that its model gives them, read one by one and replaced in a copy.

A safetensors file is a header that gives each tensor's type, shape and place, and then the bytes. A stage that changes
some values and no shape copies the files and writes those bytes anew: every other tensor, name and type stays as it is,
and no more than one tensor is in memory.

Not covered: checkpoints whose tensors transformers merges or splits as it loads them (mixtures of experts).
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from compress.checkpoints.config import CONFIG, GENERATION, CheckpointError, is_beside
from compress.checkpoints.folder import Checkpoint, load_tokenizer
from compress.checkpoints.json_file import read_object
from compress.checkpoints.layout import Weight, read_tensor
from compress.checkpoints.weight_files import INDEX, SINGLE, weight_files

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class TensorFiles:
    """A dense checkpoint's tensors by their names in `model`.

    Raises:
        CheckpointError: a parameter of the model is in no file, or has another shape there.
    """

    def __init__(self, folder: Path, model: "PreTrainedModel") -> None:
        layout = Checkpoint(folder).layout
        self.folder = folder
        self._apart = layout.apart
        self.tied = layout.tied
        """Further names of a weight, under which the files may hold it once more."""
        self.places: dict[str, Weight] = {weight.name: weight for weight in layout.taken if not weight.merged}
        for name, parameter in model.named_parameters():
            place = self.places.get(name)
            shape, dtype = (None, None) if place is None else (place.stored.shape, place.stored.dtype)
            if shape != tuple(parameter.shape) or dtype not in DTYPES:
                found = "nothing" if shape is None else f"{dtype} {list(shape)}"
                raise CheckpointError(
                    f"{folder}: expected {name} as floats {list(parameter.shape)} in its weight files, got {found}"
                )

    def read(self, name: str) -> Tensor:
        """A tensor in float32."""
        return read_tensor(self.places[name].stored).float()

    @torch.no_grad()
    def fill(self, module: torch.nn.Module, prefix: str) -> None:
        """Read every parameter of `module`, whose name in the model is `prefix`, into its place."""
        for name, parameter in module.named_parameters():
            parameter.copy_(self.read(f"{prefix}.{name}" if prefix else name))

    def copy_to(self, out: Path) -> None:
        """The whole checkpoint, to be changed by `write`."""
        files = weight_files(self.folder)
        others = [GENERATION] if [file.name for file in files] == [SINGLE] else [GENERATION, INDEX]
        for file in (*files, *(self.folder / name for name in others)):
            if file.is_file():
                shutil.copyfile(file, out / file.name)
        self.write_config(out / CONFIG)
        load_tokenizer(self.folder).save_pretrained(out)

    def write(self, out: Path, name: str, tensor: Tensor) -> None:
        """Replace a tensor's values in the copy that lies in `out`, in the type that it has there."""
        for same in (name, *(alias for alias, tied in self.tied.items() if tied == name)):
            if same not in self.places:
                continue
            place = self.places[same].stored
            if tuple(tensor.shape) != place.shape:
                raise ValueError(f"{same}: expected {list(place.shape)}, got {list(tensor.shape)}")
            values = tensor.detach().to(DTYPES[place.dtype]).contiguous().cpu()
            with (out / place.file.name).open("r+b") as stream:
                stream.seek(place.offset)
                stream.write(values.flatten().view(torch.uint8).numpy().data)

    def nonzero(self, out: Path, name: str) -> int:
        """How many of a tensor's values are not exactly zero in the copy that lies in `out`."""
        place = self.places[name].stored
        return int(read_tensor(replace(place, file=out / place.file.name)).count_nonzero())

    def write_config(self, file: Path, **more: Any) -> None:
        """The source's config.json, but for what names code or is no part of the model, and a tie that its files
        contradict; and `more` keys.
        """
        kept = {key: value for key, value in read_object(self.folder / CONFIG).items() if not is_beside(key, value)}
        config = {key: value for key, value in kept.items() if key != "auto_map"}
        if self._apart:
            config["tie_word_embeddings"] = False
        file.write_text(json.dumps(config | more, indent=2) + "\n", encoding="utf-8")
