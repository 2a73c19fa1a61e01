"""config.json: what it must look like before anything believes it, and how transformers reads it.

What demitasse reads itself is checked here, key by key. null is absent there, as it is for transformers. Everything
else is transformers' own affair: `open_config` gives its reading, or one line on what it does not take.

Code that a checkpoint names is never run, neither as a model (`auto_map`, where transformers has no class of its own)
nor as a kernel (`_attn_implementation: org/repo`).
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.checkpoints.json_file import LIMIT, JsonError, kind_of, read_object
from compress.checkpoints.quantized_formats import quantization_faults
from compress.errors import DemitasseError
from compress.names import did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

CONFIG = "config.json"
GENERATION = "generation_config.json"
VOCABULARIES = ("tokenizer.json", "vocab.*", "*.model", "*.tiktoken", "tekken.json")
"""Names of files that hold a tokenizer's vocabulary."""
TOKENIZER = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
MOST_VOCABULARY = 2**28
"""Bytes of a file that holds a vocabulary."""
LARGEST = 64 * 2**20
"""Bytes of a file that may list every token."""
ADAPTER = "adapter_config.json"
MERGE = "merge it into its base first: PeftModel.from_pretrained(base, folder).merge_and_unload().save_pretrained(...)"
KINDS: dict[str, type] = {
    "architectures": list,
    "auto_map": dict,
    "quantization_config": dict,
    "text_config": dict,
}
"""Keys and what they hold where they are no null."""
ABSENT_WHERE_EMPTY = ("auto_map", "quantization_config")
MOST_LAYERS, MOST_TOKENS, WIDEST = 10_000, 2**24, 2**20
"""More than any model has; a config that says more would take memory before anything could look at it."""
SIZES: dict[str, int] = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers"), MOST_LAYERS),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "num_attention_heads", "n_head", "num_heads"), WIDEST),
    "head_dim": WIDEST,
    **dict.fromkeys(("vocab_size", "max_position_embeddings", "n_positions", "n_ctx"), MOST_TOKENS),
}
"""Keys that hold a whole number above zero, and the most that it may be."""
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "num_experts_per_tok")
"""Keys that hold the same, or zero in a model that is no mixture."""
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
ELSEWHERE = {
    "transformers_weights": "another name for its weight files; call them model.safetensors and take the key out",
    "configuration_files": "other files for other versions; keep the one that is meant, as config.json",
    "fusion_config": "a change of the model's modules; take the key out",
}
"""Keys that make transformers load something else."""
KERNELS = frozenset(
    {"attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation"}
)


class CheckpointError(DemitasseError):
    """A folder is not a checkpoint that can be used; the message names the file, what was expected and the way out."""


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a causal language model; of the keys that are read here, none is null.

    Raises:
        CheckpointError: it is missing, broken, or describes another kind of model.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; give a folder with config.json and *.safetensors")
    check_plain(folder)
    _check_adapter(folder)
    file = folder / CONFIG
    if not os.path.lexists(file):
        raise CheckpointError(
            f"{folder}: expected a Hugging Face checkpoint, but it has no config.json{_instead(folder)}"
        )
    config = read_description(file, "download the checkpoint again")
    config = {key: value for key, value in config.items() if not (value is None and (key in KINDS or key in SIZES))}
    config = {key: value for key, value in config.items() if value != {} or key not in ABSENT_WHERE_EMPTY}
    faults = [*_shape_faults(config)]
    if faults:
        raise CheckpointError(f"{file}: {'; '.join(faults)}")
    _check_architecture(folder, config)
    _check_code(folder, config)
    _check_quantization(folder, config)
    return config


def is_beside(key: str, value: object) -> bool:
    """Whether an entry of config.json is no part of the model: a kernel that not everybody has, or one that counts as
    absent and is trouble for transformers.
    """
    return key in KERNELS or (key in ABSENT_WHERE_EMPTY and not value)


def check_plain(folder: Path) -> None:
    """Raise a CheckpointError where a name is that of a pipe or a device, which a library would read without end."""
    for file in folder.iterdir():
        if not (file.name.startswith(".") or file.is_file() or file.is_dir()) and file.exists():
            raise CheckpointError(f"{file}: expected a plain file, got a pipe or a device; take it out")


def read_generation(folder: Path) -> dict[str, Any]:
    """generation_config.json, where tokens that end a text may stand alone; nothing where there is none.

    Raises:
        CheckpointError: it is broken.
    """
    settings = read_description(folder / GENERATION, "download the checkpoint again, or take the file out")
    faults = [*_token_faults(settings)]
    if faults:
        raise CheckpointError(f"{folder / GENERATION}: {'; '.join(faults)}")
    return settings


def check_tokenizer_files(folder: Path) -> None:
    """Raise a CheckpointError where there is no vocabulary or too large a one, or a small file beside it is no JSON or
    says in something else than a number how long a text may be.
    """
    files = [file for pattern in VOCABULARIES for file in folder.glob(pattern) if file.is_file()]
    if not files:
        raise CheckpointError(
            f"{folder}: the tokenizer is missing (tokenizer.json); copy the files the model was trained with"
        )
    for file in files:
        if file.stat().st_size > MOST_VOCABULARY:
            raise CheckpointError(f"{file}: expected a vocabulary of at most {MOST_VOCABULARY:,} bytes, got more")
    for file in (folder / name for name in TOKENIZER):
        settings = read_description(file, "copy the file that the model was trained with", LARGEST)
        longest = settings.get("model_max_length")
        if not isinstance(longest, int | float | None):
            raise CheckpointError(f"{file}: `model_max_length`: expected a number, got {longest!r}")


def read_description(file: Path, way_out: str, limit: int = LIMIT) -> dict[str, Any]:
    """The object in a file that describes a part of a checkpoint; an empty one where there is no such file.

    Raises:
        CheckpointError: it is broken; the message ends in the way out.
    """
    if not os.path.lexists(file):
        return {}
    try:
        return read_object(file, limit=limit)
    except JsonError as error:
        raise CheckpointError(f"{error}; {way_out}") from error


def open_config(folder: Path, plain: Mapping[str, Any]) -> "PreTrainedConfig":
    """transformers' reading of config.json, which `read_config` gave, free of what would make it look for code.

    Raises:
        CheckpointError: transformers has no such type, or does not take a value.
    """
    from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

    if plain["model_type"] not in CONFIG_MAPPING:
        code = " of its own code (auto_map), which demitasse never runs" if "auto_map" in plain else ""
        raise CheckpointError(
            f"{folder}: the model type {plain['model_type']!r}{code} is none that transformers has; "
            "use an architecture that transformers has"
        )
    try:
        told, _ = PreTrainedConfig.get_config_dict(folder, local_files_only=True)
        if told.get("auto_map", {}) is None:  # which AutoConfig trips over
            config = CONFIG_MAPPING[plain["model_type"]].from_dict({**told, "auto_map": {}})
        else:
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # config classes check themselves, each with errors of its own
        raise CheckpointError(f"{folder / CONFIG}: transformers does not take it ({in_one_line(error)})") from error
    for key in ABSENT_WHERE_EMPTY[:1] if "quantization_config" in plain else ABSENT_WHERE_EMPTY:
        if hasattr(config, key):
            delattr(config, key)
    config._attn_implementation = None  # what is best here, whatever it was on the machine that wrote the file
    return config


def in_one_line(error: BaseException) -> str:
    """What an error says, whole, in one line of at most 300 characters."""
    told = " ".join(str(error).split()) or type(error).__name__
    return told if len(told) <= 300 else f"{told[:297]}..."


def sound_architecture(architecture: dict[str, Any]) -> dict[str, Any]:
    """Keys of a config.json that a recipe gives, where they name no code and their sizes are some that a model has.

    Raises:
        ValueError: they do not; all that is wrong.
    """
    remote = [f"`{key}: {value}` names code in a repository" for key, value in _named_kernels(architecture)]
    faults = [*remote, *_key_faults(architecture)]
    if faults:
        raise ValueError("; ".join(faults))
    return architecture


def unknown_type(model_type: object) -> str:
    """Why transformers has no such model type; empty where it has one."""
    from transformers import CONFIG_MAPPING

    if isinstance(model_type, str) and model_type in CONFIG_MAPPING:
        return ""
    meant = did_you_mean(model_type, list(CONFIG_MAPPING))
    return f"model_type: expected one that transformers knows, such as gpt2, got {_shown(model_type)}{meant}"


def context_length(config: Mapping[str, Any]) -> int | None:
    """The longest sequence of a model, in tokens, or None where its config does not say."""
    keys = ("max_position_embeddings", "n_positions", "n_ctx")
    return next((int(config[key]) for key in keys if config.get(key)), None)


def vocabulary_size(config: Mapping[str, Any]) -> int:
    """Rows of the embedding.

    Raises:
        CheckpointError: the config does not say.
    """
    rows = config.get("vocab_size") or config.get("text_config", {}).get("vocab_size")
    if rows is None:
        raise CheckpointError(f"{CONFIG}: expected the key `vocab_size`, the rows of the embedding")
    return int(rows)


def _shape_faults(config: Mapping[str, Any]) -> Iterator[str]:
    if not isinstance(config.get("model_type"), str) or not config["model_type"]:
        yield "expected the key `model_type`, which names the architecture"
    yield from _key_faults(config)


def _key_faults(config: Mapping[str, Any], place: str = "") -> Iterator[str]:
    for key, kind in KINDS.items():
        if key in config and not isinstance(config[key], kind):
            yield f"`{place}{key}`: expected {kind_of(kind())}, got {_shown(config[key])}"
    names = config.get("architectures")
    if isinstance(names, list) and not all(name is None or isinstance(name, str) for name in names):
        yield f"`{place}architectures`: expected names, got {_shown(names)}"
    for key, most in {**SIZES, **dict.fromkeys(EXPERTS, WIDEST)}.items():
        value, least = config.get(key), 0 if key in EXPERTS else 1
        if value is not None and (type(value) is not int or not least <= value <= most):
            yield f"`{place}{key}`: expected a whole number from {least} to {most:,}, got {_shown(value)}"
    yield from _token_faults(config, place)
    if not place and isinstance(config.get("text_config"), dict):
        yield from _key_faults(config["text_config"], "text_config.")


def _token_faults(settings: Mapping[str, Any], place: str = "") -> Iterator[str]:
    for key in TOKENS:
        value = settings.get(key)
        ids = value if isinstance(value, list) else [value]
        if not all(token is None or type(token) is int for token in ids):
            yield f"`{place}{key}`: expected a token's number, or a list of them, got {_shown(value)}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else kind_of(value)


def _check_architecture(folder: Path, config: Mapping[str, Any]) -> None:
    architectures = [name for name in config.get("architectures", []) if name]
    if architectures and not any("CausalLM" in name or "LMHead" in name for name in architectures):
        raise CheckpointError(
            f"{folder}: expected a causal language model (such as GPT2LMHeadModel), got {', '.join(architectures)}; "
            "demitasse compresses decoder-only models"
        )


def _check_code(folder: Path, config: Mapping[str, Any]) -> None:
    remote = [f"`{key}: {value}`" for key, value in _named_kernels(config)]
    if remote:
        raise CheckpointError(
            f"{folder / CONFIG}: {remote[0]} names code in a repository, which demitasse never runs; take the key out"
        )
    for key, what in ELSEWHERE.items():
        if config.get(key):
            raise CheckpointError(f"{folder / CONFIG}: `{key}`: expected none, got {what}")


def _named_kernels(value: object, key: str = "") -> Iterator[tuple[str, str]]:
    """(key, value) wherever a choice of kernels names a repository."""
    if isinstance(value, str) and key in KERNELS and "/" in value:
        yield key, value
    if isinstance(value, dict):
        for inner, part in value.items():
            yield from _named_kernels(part, key if key in KERNELS else inner)
    if isinstance(value, list):
        for part in value:
            yield from _named_kernels(part, key)


def _check_quantization(folder: Path, config: Mapping[str, Any]) -> None:
    faults = quantization_faults(config)
    if faults:
        raise CheckpointError(
            f"{folder}: quantized in a way that is not covered: {'; '.join(faults)}; start from the float checkpoint, "
            "which `quantize` takes to 8 or 4 bits"
        )


def _check_adapter(folder: Path) -> None:
    if not os.path.lexists(folder / ADAPTER):
        return
    about = read_description(folder / ADAPTER, "download the checkpoint again")
    kind, base = about.get("peft_type") or "an adapter", about.get("base_model_name_or_path")
    if os.path.lexists(folder / "model.safetensors") or os.path.lexists(folder / "model.safetensors.index.json"):
        raise CheckpointError(
            f"{folder}: expected a model by itself, got an adapter ({kind}) beside its base model, which transformers "
            f"adds where peft is installed; {MERGE}; or, to compress the base alone, take {ADAPTER} out"
        )
    raise CheckpointError(f"{folder}: expected a model, got an adapter ({kind}) of {base}; {MERGE}")


def _instead(folder: Path) -> str:
    """What is there in place of a Hugging Face checkpoint, and the way out."""
    names = sorted(file.name for file in folder.iterdir())
    ggufs = [name for name in names if name.endswith(".gguf")]
    if ggufs:
        return f"; it has {ggufs[0]}, which is another format: get the safetensors that it was made of"
    if "params.json" in names:
        return "; it has params.json, its maker's own format: get the files for transformers"
    return ""
