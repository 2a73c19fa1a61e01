"""What transformers takes of a checkpoint's files: which tensor is which weight of its model, told without reading any.

The model is built without memory, and the names in the files are put through transformers' own renaming. So whoever
counts, reads or changes weights means those that a user's `from_pretrained` loads, under the same names:

    taken       tensors that the model has a place for
    ignored     constants that old versions stored along (causal masks, rotary frequencies): the model makes its own
    tied        further names of a weight: a head that is the embedding

A tensor that is missing, left over or of another shape is an error here, where transformers would warn and go on with
random numbers. A tie that config.json claims and the files contradict is none: both tensors are there and differ, so
transformers keeps them apart, and the config that comes from here says so.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any, Literal

from safetensors import safe_open

from compress.checkpoints.compressed_tensors import CODES, SCALES, SHAPE, ZEROS, width_of
from compress.checkpoints.config import (
    CONFIG,
    CheckpointError,
    in_one_line,
    open_config,
    quantization_method,
)
from compress.checkpoints.one_at_a_time import one_at_a_time
from compress.checkpoints.quantized_matrix import EMBEDDINGS_FILE, QuantizedMatrix, quantized_matrices
from compress.checkpoints.weight_files import Stored, headers
from compress.models.components import Held

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

Number = Literal["float", "int8", "int4", "scales", "storage"]
"""What a stored tensor holds: weights, codes of weights, scales and zero points, or only how to read those."""
WEIGHTS: dict[Number, int] = {"float": 32, "int8": 8, "int4": 4}
"""Bits of a weight as it is held to run."""
ENDS: dict[str, Number] = {
    ".SCB": "scales",
    ".weight_format": "storage",
    CODES: "int8",
    SCALES: "scales",
    ZEROS: "scales",
    SHAPE: "storage",
}
"""Ends of the names of what belongs to a quantized matrix, in either format."""
FLOATS = ("F64", "F32", "F16", "BF16")
BYTES_PER_FLOAT = 4
CONSTANTS = re.compile(
    r"(\.|^)((attn|attention|self_attn|crossattention)\.(bias|masked_bias|causal_mask)|rotary_emb\.(inv_freq|\w+_cached))$"
)
"""Names of what the model computes itself, where it has no parameter of that name."""
ROWS = 4096
"""Rows of a matrix that are compared at once."""
OPENING = RLock()
"""Held while transformers builds a model: it changes settings of the whole process meanwhile."""


@dataclass(frozen=True, kw_only=True)
class Weight:
    """A tensor of the files that the model takes."""

    name: str
    """The name of its parameter in the model."""
    stored: Stored
    number: Number
    written: str
    """The file's name of the weight, with the base model's prefix or without, as a saved model of this class has it."""
    merged: bool = False
    """Whether transformers makes its parameters of several tensors, or several of one."""
    also: tuple[str, ...] = ()
    """Further parameters that come of it."""
    packed: int | None = None
    """Weights that packed codes stand for; None: an element is one."""

    @property
    def count(self) -> int:
        """Number of weights, or of elements of whatever else it holds."""
        return self.stored.count if self.packed is None else self.packed

    @property
    def bytes(self) -> int:
        """Bytes as it is held to run."""
        if self.number == "scales":
            return self.stored.count * BYTES_PER_FLOAT
        return self.count * WEIGHTS.get(self.number, 0) // 8


@dataclass(frozen=True, eq=False, kw_only=True)
class Layout:
    """A checkpoint's files, as transformers takes them."""

    folder: Path
    config: Mapping[str, Any]
    """config.json as `read_config` gave it."""
    model: "PreTrainedModel"
    """The float model, without memory; its config makes no claim of a tie that the files contradict."""
    taken: tuple[Weight, ...]
    """In the order of the files; a tied weight that lies there twice is two of them."""
    ignored: dict[str, str]
    """Names in the files of what the model has no use for, and how transformers would call them."""
    tied: dict[str, str]
    """Further name -> name, of weights that are one in the model."""
    apart: frozenset[str] = frozenset()
    """Further names that config.json claims, of weights that the files hold with other values."""

    def weights(self) -> Iterator[Weight]:
        """Each weight once."""
        return (weight for weight in self.taken if weight.name not in self.tied)

    def in_memory(self) -> list[Held]:
        """Every weight as it is held to run: codes, their scales, and float32 for everything else.

        An embedding that was quantized too counts as int8, not as the float table that stands for it in the weight
        files.
        """
        embeddings = [tensor for file in self.folder.glob(EMBEDDINGS_FILE) for tensor in headers(file)]
        instead = {tensor.name for tensor in embeddings}
        found: list[Held] = [
            (weight.name, weight.number, weight.bytes)
            for weight in self.weights()
            if weight.number != "storage" and not (weight.number == "float" and weight.name in instead)
        ]
        for tensor in embeddings:
            codes = tensor.dtype == "I8"
            found.append((tensor.name, "int8" if codes else "scales", tensor.count * (1 if codes else BYTES_PER_FLOAT)))
        return found

    def count(self) -> int:
        """Number of weights, a tied one counted once; scales are none."""
        return sum(weight.count for weight in self.weights() if weight.number in WEIGHTS)

    def count_nonzero(self) -> int:
        """How many of the weights are not exactly zero, read one tensor at a time."""
        counted = [weight for weight in self.weights() if weight.number in WEIGHTS]
        plain = sum(int(read_tensor(weight.stored).count_nonzero()) for weight in counted if weight.packed is None)
        packed = {weight.stored.name.removesuffix(CODES) for weight in counted if weight.packed is not None}
        matrices = self.matrices() if packed else ()
        return plain + sum(matrix.count_nonzero() for name, matrix in matrices if name in packed)

    def matrices(self) -> Iterator[tuple[str, QuantizedMatrix]]:
        """Each quantized matrix, as `read_quantized_matrices` names them."""
        return quantized_matrices(self.folder, self.config)


@contextmanager
def without_memory() -> Iterator[None]:
    """Models that are built in here take no room and are not initialized."""
    import torch
    from transformers.initialization import no_init_weights

    with OPENING, torch.device("meta"), no_init_weights():
        yield


def find_layout(folder: Path, plain: Mapping[str, Any], stored: Sequence[Stored]) -> Layout:
    """Find the place of each tensor of a checkpoint's weight files in the model of its config.json, `plain`.

    Raises:
        CheckpointError: transformers does not take the config, or the two do not fit each other.
    """
    config = open_config(folder, plain)
    model = _empty(folder, config, len(stored))
    taken, left = _places(stored, model, quantization_method(plain))
    claimed = model.all_tied_weights_keys
    tied = {alias: name for alias, name in claimed.items() if not _differ(taken, alias, name)}
    taken = [_under_one_name(weight, taken, tied) for weight in taken]
    held = {name for weight in taken for name in (weight.name, *weight.also)}
    missing = {name for name in model.state_dict() if tied.get(name, name) not in held}
    missing, unexpected = _without_exceptions(model, missing, left)
    misfits = [weight.stored.name for weight in taken if not _fits(weight, model)]
    check_loading(folder, {"missing_keys": missing, "unexpected_keys": unexpected, "mismatched_keys": misfits})
    apart = frozenset(claimed) - frozenset(tied)
    if apart:
        for settings in (config, config.get_text_config()):
            settings.tie_word_embeddings = False
        model = _empty(folder, config, len(stored))
    return Layout(folder=folder, config=plain, model=model, taken=tuple(taken), ignored=left, tied=tied, apart=apart)


def check_loading(folder: Path, report: Mapping[str, Iterable[object]]) -> None:
    """Raise a CheckpointError where `report` (missing, unexpected and mismatched keys) names a tensor."""
    for key, what in (
        ("missing_keys", "missing"),
        ("unexpected_keys", "left over"),
        ("mismatched_keys", "of another shape"),
    ):
        names = sorted(str(name) for name in report.get(key) or [])
        if names:
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise CheckpointError(
                f"{folder}: the weights do not fit config.json: {what}: {shown}; get both files from one checkpoint"
            )


def read_tensor(stored: Stored) -> "torch.Tensor":
    """A tensor's values, in the type that they have in the file."""
    with safe_open(stored.file, framework="pt") as tensors:  # numpy has no bfloat16
        tensor: torch.Tensor = tensors.get_tensor(stored.name)
    return tensor


@one_at_a_time
def _empty(folder: Path, config: "PreTrainedConfig", tensors: int) -> "PreTrainedModel":
    """The float model of a config, without memory."""
    from transformers import AutoModelForCausalLM

    layers = getattr(config.get_text_config(), "num_hidden_layers", None) or 0
    if layers > tensors:  # before they are built
        raise CheckpointError(
            f"{folder}: the weights do not fit {CONFIG}: it says {layers} layers, but they hold {tensors} tensors; "
            "get both files from one checkpoint"
        )
    plain = deepcopy(config)
    if hasattr(plain, "quantization_config"):
        del plain.quantization_config
    try:
        with without_memory():
            model: PreTrainedModel = AutoModelForCausalLM.from_config(plain)
            model.tie_weights()
    except Exception as error:  # models trip over settings, each in its own way
        raise CheckpointError(
            f"{folder}: transformers cannot make a causal language model of {CONFIG} ({in_one_line(error)})"
        ) from error
    return model.eval()


def _places(
    stored: Sequence[Stored], model: "PreTrainedModel", method: str | None
) -> tuple[list[Weight], dict[str, str]]:
    """The tensors that have a place in the model, and the others: their names in the files and how transformers would
    call them.
    """
    names, find = {tensor.name for tensor in stored}, Renaming(model)
    taken, left = [], {}
    for tensor in stored:
        end = next((end for end in ENDS if method is not None and tensor.name.endswith(end)), "")
        base = f"{tensor.name.removesuffix(end)}.weight" if end else tensor.name
        coded = method is not None and f"{base.removesuffix('.weight')}.SCB" in names
        number: Number = ENDS[end] if end else "int8" if coded else "float"
        place, pattern = find(base)
        if place in find.held:
            shape, packed = tuple(find.held[place].shape), None
            if end == CODES:
                number = "int4" if width_of(tensor.shape, shape[-1]) == 4 else "int8"
                packed = math.prod(shape)
            taken.append(
                Weight(
                    name=place,
                    stored=tensor,
                    number=number,
                    written=find.written(base, place),
                    merged=pattern is not None,
                    also=find.also(place, pattern),
                    packed=packed,
                )
            )
        else:
            left[tensor.name] = place
    return taken, left


class Renaming:
    """A file's name of a tensor -> the name of its parameter in a model, as transformers finds it."""

    def __init__(self, model: "PreTrainedModel") -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        steps = get_model_conversion_mapping(model)
        self.renamings = [step for step in steps if isinstance(step, WeightRenaming)]
        self.converters = [step for step in steps if isinstance(step, WeightConverter)]
        self.held, self.prefix = model.state_dict(), model.base_model_prefix

    def __call__(self, name: str) -> tuple[str, str | None]:
        """The name in the model, and the pattern of the converter that takes the tensor, if one does."""
        from transformers.core_model_loading import rename_source_key

        place, pattern = rename_source_key(name, self.renamings, self.converters, self.prefix, self.held)
        if place not in self.held and name in self.held:
            return name, None
        return place, pattern

    def written(self, name: str, place: str) -> str:
        """The file's name, with the base model's prefix where the model has it."""
        from transformers.core_model_loading import rename_source_key

        alone, _ = rename_source_key(name, self.renamings, self.converters)
        if place == f"{self.prefix}.{alone}":
            return f"{self.prefix}.{name}"
        return name.removeprefix(f"{self.prefix}.") if alone == f"{self.prefix}.{place}" else name

    def also(self, place: str, pattern: str | None) -> tuple[str, ...]:
        """Further parameters that a converter makes beside `place`."""
        targets = next((step.target_patterns for step in self.converters if pattern in step.source_patterns), [place])
        return tuple(place.replace(targets[0], target) for target in targets[1:])


def _differ(taken: Iterable[Weight], alias: str, name: str) -> bool:
    """Whether the files hold a weight under two names with two values."""
    found = {weight.name: weight for weight in taken if weight.number in WEIGHTS}
    if alias not in found or name not in found:
        return False
    one, other = found[alias], found[name]
    if one.number != other.number or one.stored.shape != other.stored.shape:
        return True
    with safe_open(one.stored.file, "pt") as first, safe_open(other.stored.file, "pt") as second:
        ones, others = first.get_slice(one.stored.name), second.get_slice(other.stored.name)
        starts = range(0, one.stored.shape[0], ROWS)
        return any(bool((ones[at : at + ROWS] != others[at : at + ROWS]).any()) for at in starts)


def _under_one_name(weight: Weight, taken: Iterable[Weight], tied: Mapping[str, str]) -> Weight:
    """A tied weight that the files hold under its further name alone has its first one."""
    name = tied.get(weight.name)
    if name is None or any(other.name == name for other in taken):
        return weight
    return replace(weight, name=name, written=name)


def _without_exceptions(
    model: "PreTrainedModel", missing: set[str], left: Mapping[str, str]
) -> tuple[set[str], set[str]]:
    """(missing, left over) names without those that transformers does without, and those that the model computes."""
    from transformers.utils.loading_report import LoadStateDictInfo

    report = LoadStateDictInfo(
        missing_keys=set(missing),
        unexpected_keys=set(left.values()),
        mismatched_keys=set(),
        error_msgs=[],
        conversion_errors={},
        skipped_pp_keys=set(),
    )
    model._adjust_missing_and_unexpected_keys(report)
    own = {name for name, _ in model.named_buffers()}
    computed = {place for place in left.values() if {place, f"{model.base_model_prefix}.{place}"} & own}
    computed |= {place for place in left.values() if CONSTANTS.search(place)}
    return report.missing_keys, {name for name, place in left.items() if place in report.unexpected_keys - computed}


def _fits(weight: Weight, model: "PreTrainedModel") -> bool:
    """Whether a tensor has its parameter's shape; quantized matrices are [out, in], also where the model's are not."""
    if weight.merged or weight.number in ("scales", "storage") or weight.packed is not None:
        return True
    shape = tuple(model.state_dict()[weight.name].shape)
    return weight.stored.shape == shape or (weight.number == "int8" and weight.stored.shape == shape[::-1])
