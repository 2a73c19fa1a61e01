"""Checkpoint folders: what one must hold, what its headers tell, and how its model and tokenizer are opened.

  dense   a plain Hugging Face folder: config.json, *.safetensors, tokenizer files
  int8    the same in bitsandbytes' 8-bit format (see `quantized_matrix.py`), or in compressed-tensors' (see
          `compressed_tensors.py`)

Only safetensors is ever read: a pickle runs code when it is opened. Code that a checkpoint brings along is never run.
A tensor that is missing or left over is an error here, where transformers would warn and go on with random numbers.
"""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safetensors import SafetensorError, safe_open

from compress.checkpoints.compressed_tensors import CODES, SCALES, SHAPE, ZERO, packed_faults
from compress.checkpoints.quantized_matrix import EMBEDDINGS_FILE
from compress.checkpoints.quantized_matrix import (
    CheckpointError as CheckpointError,  # everything else about checkpoints is here
)
from compress.models.components import Held
from compress.stage import first_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DType = Literal["float32", "float16", "bfloat16"]
BYTES_PER_FLOAT = 4
SCALE_NAMES = (".SCB", SCALES)
"""Ends of the names of the scales of int8 matrices, in either format."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a folder holds, read from its headers alone."""

    folder: Path
    format: Literal["dense", "quantized"]
    config: dict[str, Any]
    parameters: int
    """Number of weights, a tied one counted once."""
    weight_bytes: int
    """Bytes of the weights as they are held to run: int8 codes 1, everything else float32."""
    disk_bytes: int
    """Bytes of the weight files as they lie there."""

    @property
    def model_type(self) -> str:
        return str(self.config["model_type"])


def inspect_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint's headers.

    Raises:
        CheckpointError: no such folder, no or a broken config, not a causal language model, no safetensors or
            corrupt ones, no tokenizer or one that does not fit.
    """
    config = read_config(folder)
    files = weight_files(folder)
    tensors = [tensor for file in files for tensor in _headers(file)]
    if not tensors:
        raise CheckpointError(f"{folder}: its weight files hold no tensor; save the model again")
    _check_tokenizer(folder, config)
    return Checkpoint(
        folder=folder,
        format="quantized" if "quantization_config" in config else "dense",
        config=config,
        parameters=sum(count for name, _, count in tensors if _counts(name)),
        weight_bytes=sum(size for _, _, size in held_weights(folder)),
        disk_bytes=sum(file.stat().st_size for file in {*files, *folder.glob(EMBEDDINGS_FILE)}),
    )


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a causal language model.

    Raises:
        CheckpointError: it is missing, broken, or describes another kind of model.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; give a folder with config.json and *.safetensors")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: expected a Hugging Face checkpoint, but it has no config.json") from None
    except (ValueError, OSError) as error:
        raise CheckpointError(
            f"{folder / 'config.json'}: expected JSON ({error}); download the checkpoint again"
        ) from error
    if not isinstance(config, dict) or "model_type" not in config:
        raise CheckpointError(f"{folder / 'config.json'}: expected the key `model_type`, which names the architecture")
    _check_architecture(folder, config)
    _check_quantization(folder, config)
    return config


def _check_quantization(folder: Path, config: dict[str, Any]) -> None:
    settings = config.get("quantization_config")
    if settings is None:
        return
    method = settings.get("quant_method") if isinstance(settings, dict) else settings
    if method == "compressed-tensors":
        faults = packed_faults(settings)
    elif method == "bitsandbytes":
        faults = [] if settings.get("load_in_8bit") else ["`load_in_8bit`: expected true"]
    else:
        faults = [f"`quant_method`: expected 'bitsandbytes' or 'compressed-tensors', got {method!r}"]
    if faults:
        raise CheckpointError(
            f"{folder}: quantized in a way that is not covered: {'; '.join(faults)}; start from the float checkpoint"
        )


def _check_architecture(folder: Path, config: dict[str, Any]) -> None:
    architectures = config.get("architectures") or []
    if architectures and not any("CausalLM" in name or "LMHead" in name for name in architectures):
        raise CheckpointError(
            f"{folder}: expected a causal language model (such as GPT2LMHeadModel), got {', '.join(architectures)}; "
            "demitasse compresses decoder-only models"
        )
    if "auto_map" in config:
        raise CheckpointError(
            f"{folder}: the model needs code of its own (auto_map), which demitasse never runs; "
            "use an architecture that transformers has"
        )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers would load, in order.

    Raises:
        CheckpointError: there are none, or a shard is missing.
    """
    index = folder / "model.safetensors.index.json"
    names = _shards(index) if index.is_file() else ["model.safetensors"]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        pickles = sorted(file.name for file in (*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")))
        hint = (
            f"; it has {', '.join(pickles)}, but only safetensors is loaded: save it again with safe_serialization"
            if pickles
            else ""
        )
        raise CheckpointError(f"{folder}: weights are missing: {', '.join(missing)}{hint}")
    return [folder / name for name in names]


def _shards(index: Path) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: expected a weight map ({error!r}); download the checkpoint again") from error


def _headers(file: Path) -> Iterator[tuple[str, str, int]]:
    """(name, dtype, number of elements) of each tensor in a file; of packed codes, what is packed."""
    try:
        with safe_open(file, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (a safetensors handle is not iterable)
                header = tensors.get_slice(name)
                dtype, count = header.get_dtype(), math.prod(header.get_shape())
                yield (name, "I8", 4 * count) if name.endswith(CODES) else (name, dtype, count)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: corrupt weights ({error}); download or save the checkpoint again") from error


def _is_parameter(name: str) -> bool:
    buffers = (".weight_format", SHAPE, ".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
    return not name.endswith(buffers)


def count_nonzero(folder: Path) -> int:
    """How many of a checkpoint's parameters are not exactly zero, read one tensor at a time."""
    return sum(_nonzero(file, name) for file in weight_files(folder) for name, _, _ in _headers(file) if _counts(name))


def _counts(name: str) -> bool:
    return _is_parameter(name) and not name.endswith(SCALE_NAMES)


def _nonzero(file: Path, name: str) -> int:
    with safe_open(file, framework="pt") as tensors:  # numpy has no bfloat16
        tensor = tensors.get_tensor(name)
        return int((tensor.numpy().view("u1") != ZERO).sum() if name.endswith(CODES) else tensor.count_nonzero())


def held_weights(folder: Path) -> Iterator[Held]:
    """Every weight as it is held to run: int8 codes, their scales, and float32 for everything else.

    An embedding that was quantized too counts as int8, not as the float table that stands for it in the weight files.
    """
    embeddings = [tensor for file in folder.glob(EMBEDDINGS_FILE) for tensor in _headers(file)]
    instead = {name for name, _, _ in embeddings}
    tensors = [tensor for file in weight_files(folder) for tensor in _headers(file) if tensor[0] not in instead]
    for name, dtype, count in [*tensors, *embeddings]:
        if dtype == "I8":
            yield name, "int8", count
        elif _is_parameter(name):
            yield name, "scales" if name.endswith(SCALE_NAMES) else "float", BYTES_PER_FLOAT * count


def _check_tokenizer(folder: Path, config: dict[str, Any]) -> None:
    """Every id the tokenizer can give must have a row in the embedding."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        if any((folder / name).is_file() for name in ("vocab.json", "tokenizer.model", "spiece.model")):
            return
        raise CheckpointError(
            f"{folder}: the tokenizer is missing (tokenizer.json); copy the files the model was trained with"
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        vocabulary = content["model"]["vocab"]
        ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
        largest = max([*ids, *(token["id"] for token in content.get("added_tokens", []))])
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise CheckpointError(
            f"{file}: corrupt tokenizer ({error!r}); copy the file the model was trained with"
        ) from error
    rows = config.get("vocab_size") or config.get("text_config", {}).get("vocab_size")
    if rows is not None and largest >= rows:
        raise CheckpointError(
            f"{folder}: the tokenizer does not match the model: it gives ids up to {largest}, "
            f"but the embedding has {rows} rows; use the tokenizer that the model was trained with"
        )


def context_length(config: dict[str, Any]) -> int | None:
    """The longest sequence of a model, in tokens, or None where its config does not say."""
    keys = ("max_position_embeddings", "n_positions", "n_ctx")
    return next((int(config[key]) for key in keys if config.get(key)), None)


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The checkpoint's tokenizer.

    Raises:
        CheckpointError: transformers cannot open it.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: its tokenizer cannot be loaded ({first_line(error)})") from error
    return tokenizer


def end_of_text(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The id that ends a document: eos, else bos, else 0."""
    for candidate in (tokenizer.eos_token_id, tokenizer.bos_token_id):
        if isinstance(candidate, int):
            return candidate
    return 0


def load_pretrained(folder: Path, *, dtype: DType, **settings: Any) -> "PreTrainedModel":
    """The model as transformers loads it, in evaluation mode on the CPU.

    Args:
        settings: further ones for transformers, such as a `quantization_config`.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config = read_config(folder)
    weight_files(folder)
    if "quantization_config" in config or "quantization_config" in settings:
        settings["device_map"] = {"": "cpu"}  # else bitsandbytes takes a GPU where there is one
    try:
        with no_bars():
            answer: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=getattr(torch, dtype),
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                **settings,
            )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: the model cannot be loaded ({first_line(error)})") from error
    model: PreTrainedModel = answer[0]
    check_loading(folder, answer[1])
    model.eval()
    return model


def check_loading(folder: Path, report: dict[str, Any]) -> None:
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


def save_checkpoint(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", out: Path, *, dtype: DType = "float32"
) -> None:
    """Write a dense checkpoint that plain transformers loads; `model` is converted to `dtype`."""
    import torch

    model.to(getattr(torch, dtype))
    model.config.dtype = getattr(torch, dtype)
    with no_bars():
        model.save_pretrained(out, safe_serialization=True)
    tokenizer.save_pretrained(out)


@contextmanager
def no_bars() -> Iterator[None]:
    """Without the progress bars that transformers draws around every file: ours say more."""
    from transformers.utils import logging

    drawn = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if drawn:
            logging.enable_progress_bar()
