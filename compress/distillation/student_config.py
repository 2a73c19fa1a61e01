"""What a student's config says: of some of its teacher's layers, or of another shape altogether.

A shape of its own is given by keys of config.json. transformers passes over a key that it does not know, and keeps it:
here a key that the family's config class does not have is refused, and so is a vocabulary other than the teacher's.

    of_layers        the teacher's config with some layers, in what it says of single layers too
    student_config   what is given, and for the rest: the teacher's values, where both are of one model type; the
                     type's defaults, where they are not, save for the sizes, whose defaults are some other model's
    without_dropout  a student imitates a fixed function, and noise only slows it
"""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from compress.checkpoints.config import unknown_type
from compress.models.families import follow_layers
from compress.stage import StageError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

NOT_SHAPE = frozenset({"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"})
"""Keys of a config.json that describe the file, not the model; they are passed over."""
VOCABULARY = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")
"""Keys that a student has from its teacher."""
ROTATION = frozenset({"rope_theta", "rope_scaling", "partial_rotary_factor"})
"""What older files say instead of `rope_parameters`."""
SIZES = (
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "ffn_dim",
)
"""Sizes whose defaults are those of some published model, by their standard names."""


def evenly_spaced(depth: int, layers: int) -> list[int]:
    """`layers` of `depth` layers, evenly spaced with the first and the last kept: 12 -> 6 gives 0, 2, 4, 7, 9, 11."""
    if layers == 1:
        return [0]
    return [round(index * (depth - 1) / (layers - 1)) for index in range(layers)]


def of_layers(config: "PreTrainedConfig", kept: Sequence[int]) -> "PreTrainedConfig":
    """A copy of a config that says that these layers are all."""

    changed: Any = copy.deepcopy(config)
    follow_layers(changed, kept)
    changed.num_hidden_layers = len(kept)
    answer: PreTrainedConfig = changed
    return answer


def without_dropout(config: "PreTrainedConfig") -> None:
    """Set every dropout of a config to 0, and the share of layers that are left out at random."""
    for key, value in config.to_dict().items():
        if is_dropout(key) and isinstance(value, float):
            setattr(config, key, 0.0)


def is_dropout(key: str) -> bool:
    return key.endswith(("dropout", "pdrop", "layerdrop", "dropout_prob"))


def student_config(
    architecture: Mapping[str, Any], teacher: "PreTrainedConfig", tokenizer: "PreTrainedTokenizerBase"
) -> "PreTrainedConfig":
    """The config of a student with these keys of a config.json (`model_type`: default the teacher's), no dropout.

    Raises:
        StageError: keys are unknown (all in one message), contradict the teacher's vocabulary, miss sizes, or do not
            fit each other.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING

    model_type = str(architecture.get("model_type", teacher.model_type))
    if unknown := unknown_type(model_type):
        raise StageError(f"distill: architecture: {unknown}")
    kind: type[PreTrainedConfig] = CONFIG_MAPPING[model_type]
    own = _own_keys(architecture, kind)
    vocabulary = {key: _of_teacher(key, teacher, tokenizer) for key in VOCABULARY}
    _check_vocabulary(own, vocabulary)
    values = {**_base_values(own, kind, teacher), **own, **vocabulary}
    try:
        config = kind.from_dict(values)
    except (StrictDataclassError, ValueError, TypeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise StageError(
            f"distill: architecture: {model_type} refuses {dict(architecture)}: {reason}; change one of them"
        ) from error
    without_dropout(config)
    return config


def _of_teacher(key: str, teacher: "PreTrainedConfig", tokenizer: "PreTrainedTokenizerBase") -> Any:
    said = getattr(teacher, key, None)
    return getattr(tokenizer, key, None) if said is None else said


def _own_keys(architecture: Mapping[str, Any], kind: "type[PreTrainedConfig]") -> dict[str, Any]:
    """What is said of the shape, under the names that the family's own files use."""
    fields = {field.name for field in dataclasses.fields(kind)}
    known = fields | set(kind.attribute_map) | NOT_SHAPE | {"model_type"}
    if "rope_parameters" in fields:
        known |= ROTATION
    unknown = sorted(set(architecture) - known)
    if unknown:
        hints = [_hint(key, sorted(known - NOT_SHAPE)) for key in unknown]
        raise StageError(f"distill: architecture: {kind.model_type} has no key {', no key '.join(hints)}")
    own: dict[str, Any] = {}
    for key, value in architecture.items():
        name = kind.attribute_map.get(key, key)
        if name in own and own[name] != value:
            raise StageError(f"distill: architecture: {key} and {name} are one size: expected one of them, got both")
        if key not in NOT_SHAPE | {"model_type"}:
            own[name] = value
    return own


def _hint(key: str, known: Sequence[str]) -> str:
    near = get_close_matches(key, known, 1)
    return f"{key!r} (did you mean {near[0]!r}?)" if near else repr(key)


def _check_vocabulary(own: Mapping[str, Any], vocabulary: Mapping[str, Any]) -> None:
    for key in VOCABULARY:
        if key in own and own[key] != vocabulary[key]:
            raise StageError(
                f"distill: architecture: {key}: expected the teacher's, {vocabulary[key]}, got {own[key]}; leave it out"
            )


def _base_values(own: Mapping[str, Any], kind: "type[PreTrainedConfig]", teacher: "PreTrainedConfig") -> dict[str, Any]:
    """What the student's config says where `own` does not."""
    if kind.model_type == teacher.model_type:
        depth = kind.attribute_map.get("num_hidden_layers", "num_hidden_layers")
        layers = own.get(depth, teacher.num_hidden_layers)
        if not isinstance(layers, int) or layers < 1:
            raise StageError(f"distill: architecture: {depth}: expected a number of layers from 1, got {layers!r}")
        values = of_layers(teacher, evenly_spaced(teacher.num_hidden_layers, layers)).to_dict()
        if ROTATION & own.keys():
            values.pop("rope_parameters", None)
        return {key: value for key, value in values.items() if key not in NOT_SHAPE}
    fields = {field.name: field.default for field in dataclasses.fields(kind)}
    names = [kind.attribute_map.get(size, size) for size in SIZES]
    missing = [name for name in names if fields.get(name) is not None and name not in own]
    if missing:
        raise StageError(
            f"distill: architecture: a {kind.model_type} student of a {teacher.model_type} teacher has sizes of its "
            f"own: expected {', '.join(missing)} beside what is given"
        )
    length = kind.attribute_map.get("max_position_embeddings", "max_position_embeddings")
    return {length: getattr(teacher, "max_position_embeddings", None) or fields.get(length)} if length in fields else {}
