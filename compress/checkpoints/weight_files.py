"""Which files hold a checkpoint's weights, and which tensors lie in them, told by their headers alone.

    model.safetensors               taken where it is there
    model.safetensors.index.json    else: the shards that it names, each a plain name in the same folder

That is what transformers takes, so that every stage reads what a user of the checkpoint runs, and a key that is taken
over these files is a key of what is read. Other weights in the folder are no part of the model.
Source of the file format: https://github.com/huggingface/safetensors#format
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from compress.checkpoints.config import CheckpointError, in_one_line, read_description
from compress.checkpoints.json_file import LFS_POINTER

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ONE_PROCESS = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
"""What a process of a distributed save leaves: transformers takes such files before any other."""
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
VARIANT = re.compile(r"model\.(\w+)(-\d{5}-of-\d{5})?\.safetensors")
PICKLES = ("*.bin", "*.pt", "*.pth")


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A tensor where it lies."""

    file: Path
    name: str
    """The name that the file gives it."""
    dtype: str
    """As safetensors calls it: F32, BF16, I8."""
    shape: tuple[int, ...]
    offset: int
    """Bytes from the start of the file."""

    @property
    def count(self) -> int:
        """Number of its elements."""
        return math.prod(self.shape)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers loads, in order.

    Raises:
        CheckpointError: there are none, one is missing, or the index names something that is no plain file here.
    """
    apart = sorted(file.name for file in folder.glob("*.safetensors") if ONE_PROCESS.fullmatch(file.name))
    if apart:
        raise CheckpointError(
            f"{folder}: expected {SINGLE} or shards with {INDEX}, got parts of a distributed save ({apart[0]} ...); "
            "load it with transformers and save it again with save_pretrained"
        )
    index = folder / INDEX
    names = [SINGLE] if (folder / SINGLE).exists() or not index.exists() else _shards(index)
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"{folder}: weights are missing: {', '.join(missing[:3])}{_instead(folder)}")
    return [folder / name for name in names]


def passed_over(folder: Path) -> str | None:
    """One line on weights in the folder that are no part of the model, where somebody could think that they are."""
    if not ((folder / SINGLE).is_file() and (folder / INDEX).exists()):
        return None
    return f"{folder}: {SINGLE} is taken, as transformers does; {INDEX} beside it, and its shards, are passed over"


def stored_tensors(files: Sequence[Path]) -> list[Stored]:
    """Every tensor of a checkpoint's weight files.

    Raises:
        CheckpointError: a file is corrupt, holds nothing, or a name stands in two of them.
    """
    found: dict[str, Stored] = {}
    folder = files[0].parent
    for file in files:
        for tensor in headers(file):
            if tensor.name in found:
                both = f"{found[tensor.name].file.name} and {file.name}"
                raise CheckpointError(f"{folder}: expected {tensor.name} in one file, got it in {both}; save it again")
            found[tensor.name] = tensor
    if not found:
        raise CheckpointError(f"{folder}: its weight files hold no tensor; save the model again")
    return list(found.values())


def open_weights(file: Path, framework: str) -> Any:
    """A safetensors file, its header checked, and that every tensor lies where it says.

    Raises:
        CheckpointError: it is none, or a corrupt one.
    """
    try:
        return safe_open(file, framework=framework)
    except (SafetensorError, OSError) as error:
        raise _corrupt(file, error) from error


def _corrupt(file: Path, error: Exception) -> CheckpointError:
    if is_pointer(file):
        return CheckpointError(f"{file}: a pointer of git-lfs, not the weights; fetch them: git lfs pull")
    return CheckpointError(f"{file}: corrupt weights ({in_one_line(error)}); download or save the checkpoint again")


def headers(file: Path) -> Iterator[Stored]:
    """The tensors of one file.

    Raises:
        CheckpointError: it is no safetensors file, or a corrupt one.
    """
    open_weights(file, "numpy")
    try:
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(size))
    except (OSError, ValueError) as error:
        raise _corrupt(file, error) from error
    for name, entry in header.items():
        if name != "__metadata__":
            start = 8 + size + entry["data_offsets"][0]
            yield Stored(file=file, name=name, dtype=entry["dtype"], shape=tuple(entry["shape"]), offset=start)


def _shards(index: Path) -> list[str]:
    names = read_description(index, "download the checkpoint again").get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise CheckpointError(f"{index}: expected `weight_map`, a file's name for each tensor; download it again")
    odd = sorted({name for name in names.values() if name != Path(name).name or not name.endswith(".safetensors")})
    if odd:
        raise CheckpointError(
            f"{index}: expected names of safetensors files in the same folder, got {odd[0]!r}; put the shards there"
        )
    return sorted(set(names.values()))


def _instead(folder: Path) -> str:
    """What is there in place of the weights, and the way out."""
    names = sorted(file.name for file in folder.iterdir() if file.is_file())
    shards = [name for name in names if SHARD.fullmatch(name)]
    variants = [name for name in names if VARIANT.fullmatch(name)]
    pickles = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
    if shards and not (folder / INDEX).exists():
        return f"; it has {shards[0]}, but not {INDEX}, which says what lies in which shard: download that too"
    if variants:
        kind = VARIANT.fullmatch(variants[0])
        told = kind[1] if kind else ""
        return f"; it has the variant {told!r} alone ({variants[0]}): load it with variant={told!r} and save it again"
    for ending in (".gguf", ".h5", ".msgpack"):
        others = [name for name in names if name.endswith(ending)]
        if others:
            return f"; it has {others[0]}, which is another format: get the safetensors that it was made of"
    if "consolidated.safetensors" in names:
        return "; it has consolidated.safetensors, under its maker's names: get the files for transformers"
    if pickles:
        return (
            f"; it has {', '.join(pickles[:3])}, but only safetensors is loaded: save it again with safe_serialization"
        )
    return ""


def is_pointer(file: Path) -> bool:
    """Whether a file is what git-lfs leaves in place of another."""
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        return stream.read(len(LFS_POINTER)) == LFS_POINTER
