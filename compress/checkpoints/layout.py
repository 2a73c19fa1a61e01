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
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any, Literal

from safetensors import safe_open

from compress.checkpoints.config import (
    CONFIG,
    CheckpointError,
    in_one_line,
    open_config,
)
from compress.checkpoints.int8_rows import EMBEDDINGS_FILE
from compress.checkpoints.matrix_format import MatrixFormat, Part
from compress.checkpoints.one_at_a_time import one_at_a_time
from compress.checkpoints.quantized_files import modules_with_zeros, quantized_matrices
from compress.checkpoints.quantized_formats import quantized_format
from compress.checkpoints.quantized_matrix import QuantizedMatrix
from compress.checkpoints.weight_files import Stored, headers
from compress.models.components import Held

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

Number = Literal["float", "int8", "int4", "scales", "storage"]
"""What a stored tensor holds: weights, codes of weights, scales and zero points, or only how to read those."""
WEIGHTS: dict[Number, int] = {"float": 32, "int8": 8, "int4": 4}
"""Bits of a weight as it is held to run."""
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
    matrix: str | None = None
    """Module, as the files name it, of the quantized matrix whose codes these are."""
    coded: int | None = None
    """Weights that codes stand for; None: they are none, or do not fit the model's shape."""

    @property
    def count(self) -> int:
        """Number of weights, or of elements of whatever else it holds."""
        return self.stored.count if self.coded is None else self.coded

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
        plain = sum(int(read_tensor(weight.stored).count_nonzero()) for weight in counted if weight.matrix is None)
        coded = {weight.matrix for weight in counted if weight.matrix is not None}
        matrices = self.matrices() if coded else ()
        return plain + sum(matrix.count_nonzero() for name, matrix in matrices if name in coded)

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
    format = quantized_format(plain)
    taken, left = _places(stored, model, format, modules_with_zeros(folder, format))
    claimed = model.all_tied_weights_keys
    tied = {alias: name for alias, name in claimed.items() if not _differ(taken, alias, name)}
    taken = [_under_one_name(weight, taken, tied) for weight in taken]
    held = {name for weight in taken for name in (weight.name, *weight.also)}
    missing = {name for name in model.state_dict() if tied.get(name, name) not in held}
    missing, unexpected = _without_exceptions(model, missing, left)
    unexpected -= _empty_biases(stored, format)
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
    stored: Sequence[Stored], model: "PreTrainedModel", format: MatrixFormat | None, with_zeros: Collection[str]
) -> tuple[list[Weight], dict[str, str]]:
    """The tensors that have a place in the model, and the others: their names in the files and how transformers would
    call them.
    """
    find = Renaming(model)
    parts = {} if format is None else format.parts([tensor.name for tensor in stored])
    taken, left = [], {}
    for tensor in stored:
        part = parts.get(tensor.name)
        base = tensor.name if part is None else f"{part.module}.weight"
        place, pattern = find(base)
        if place not in find.held:
            left[tensor.name] = place
            continue
        weight = Weight(
            name=place,
            stored=tensor,
            number="float",
            written=find.written(base, place),
            merged=pattern is not None,
            also=find.also(place, pattern),
        )
        if part is not None and format is not None:
            weight = _coded(weight, part, format, tuple(find.held[place].shape), with_zeros)
        taken.append(weight)
    return taken, left


def _coded(
    weight: Weight, part: Part, format: MatrixFormat, shape: tuple[int, ...], with_zeros: Collection[str]
) -> Weight:
    """A tensor that is part of a quantized matrix; `shape` is its parameter's, which may be [in, out]."""
    if part.role == "codes":
        fits = [format.bits(weight.stored.shape, *sides) for sides in (shape, shape[::-1]) if len(sides) == 2]
        bits = next((bits for bits in fits if bits is not None), None)
        number: Number = "int4" if bits == 4 else "int8"
        return replace(weight, number=number, matrix=part.module, coded=None if bits is None else math.prod(shape))
    held = part.role == "scales" or (part.role == "zeros" and part.module in with_zeros)
    return replace(weight, number="scales" if held else "storage")


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


def _empty_biases(stored: Sequence[Stored], format: MatrixFormat | None) -> set[str]:
    """Biases of zeros beside quantized matrices, which AutoGPTQ once stored for linears that have none."""
    parts = {} if format is None else format.parts([tensor.name for tensor in stored])
    names = {f"{part.module}.bias" for part in parts.values()}
    return {tensor.name for tensor in stored if tensor.name in names and not read_tensor(tensor).any()}


def _fits(weight: Weight, model: "PreTrainedModel") -> bool:
    """Whether a tensor has its parameter's shape, or codes stand for a matrix of it, [out, in] or [in, out]."""
    if weight.merged or weight.number in ("scales", "storage"):
        return True
    if weight.matrix is not None:
        return weight.coded is not None
    return weight.stored.shape == tuple(model.state_dict()[weight.name].shape)
