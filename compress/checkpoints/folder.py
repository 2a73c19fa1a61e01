"""Checkpoint folders: what one must hold, what its headers tell, and how its model and tokenizer are opened.

  dense       a plain Hugging Face folder: config.json, *.safetensors, tokenizer files
  quantized   the same in bitsandbytes' 8-bit format (see `quantized_matrix.py`), or in compressed-tensors' (see
              `compressed_tensors.py`)

Only safetensors is ever read: a pickle runs code when it is opened. Code that a checkpoint brings along is never run.
What is opened is compared with what was read of the folder before (`layout.py`).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safetensors import SafetensorError

from compress.checkpoints.config import (
    CONFIG,
    CheckpointError,
    check_plain,
    in_one_line,
    open_config,
    read_config,
    read_generation,
    vocabulary_size,
)
from compress.checkpoints.json_file import JsonError, read_object
from compress.checkpoints.layout import OPENING, check_loading, count_weights, held_in, read_layout
from compress.checkpoints.one_at_a_time import one_at_a_time
from compress.checkpoints.quantized_matrix import EMBEDDINGS_FILE
from compress.checkpoints.weight_files import is_pointer, stored_tensors, weight_files

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DType = Literal["float32", "float16", "bfloat16"]
VOCABULARIES = ("tokenizer.json", "vocab.*", "*.model", "*.tiktoken", "tekken.json")
"""Names of files that hold a tokenizer's vocabulary."""
DESCRIPTIONS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
MOST_VOCABULARY = 2**28
"""Bytes of a file that holds a vocabulary."""
LARGEST = 64 * 2**20
"""Bytes of a file that may list every token."""


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


@dataclass(frozen=True, kw_only=True)
class Outline:
    """What a folder says that it holds; no library was loaded to look whether it fits together."""

    folder: Path
    format: Literal["dense", "quantized"]
    config: dict[str, Any]
    elements: int
    """Of all tensors in its weight files."""


def outline(folder: Path) -> Outline:
    """Read a checkpoint's config and the headers of its weight files.

    Raises:
        CheckpointError: no such folder, no or a broken config, not a causal language model, no safetensors or
            corrupt ones, no tokenizer.
    """
    config = read_config(folder)
    read_generation(folder)
    elements = sum(tensor.count for tensor in stored_tensors(folder))
    _check_vocabulary_file(folder)
    _check_descriptions(folder)
    return Outline(
        folder=folder,
        format="quantized" if "quantization_config" in config else "dense",
        config=config,
        elements=elements,
    )


def inspect_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint's headers.

    Raises:
        CheckpointError: no such folder, no or a broken config, not a causal language model, no safetensors or
            corrupt ones, weights that are not those of the config's model, no tokenizer or one that does not fit.
    """
    found = outline(folder)
    layout = read_layout(folder)
    load_tokenizer(folder)
    return Checkpoint(
        folder=folder,
        format=found.format,
        config=found.config,
        parameters=count_weights(layout),
        weight_bytes=sum(size for _, _, size in held_in(folder, layout)),
        disk_bytes=sum(file.stat().st_size for file in files_of_weights(folder)),
    )


def files_of_weights(folder: Path) -> list[Path]:
    """Every file that holds weights of the checkpoint, those of a quantized embedding too.

    Raises:
        CheckpointError: one is missing.
    """
    return [*weight_files(folder), *folder.glob(EMBEDDINGS_FILE)]


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The checkpoint's tokenizer.

    Raises:
        CheckpointError: transformers cannot open it, or its vocabulary is larger than the model's embedding.
    """
    from transformers import AutoTokenizer

    check_plain(folder)
    _check_vocabulary_file(folder)
    _check_descriptions(folder)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the tokenizers' own is no Exception
        if is_pointer(folder / "tokenizer.json"):
            raise CheckpointError(
                f"{folder / 'tokenizer.json'}: a pointer of git-lfs; fetch it: git lfs pull"
            ) from error
        raise CheckpointError(
            f"{folder}: its tokenizer cannot be loaded ({in_one_line(error)}); "
            "copy the files that the model was trained with"
        ) from error
    _check_vocabulary(folder, tokenizer)
    return tokenizer


def _check_descriptions(folder: Path) -> None:
    """The small files beside a vocabulary are JSON, and say how long a text may be in a number."""
    for name in DESCRIPTIONS:
        if not os.path.lexists(folder / name):
            continue
        try:
            longest = read_object(folder / name, limit=LARGEST).get("model_max_length")
        except JsonError as error:
            raise CheckpointError(f"{error}; copy the file that the model was trained with") from error
        if not isinstance(longest, int | float | None):
            raise CheckpointError(f"{folder / name}: `model_max_length`: expected a number, got {longest!r}")


def _check_vocabulary_file(folder: Path) -> None:
    files = [file for pattern in VOCABULARIES for file in folder.glob(pattern) if file.is_file()]
    if not files:
        raise CheckpointError(
            f"{folder}: the tokenizer is missing (tokenizer.json); copy the files the model was trained with"
        )
    for file in files:
        if file.stat().st_size > MOST_VOCABULARY:
            raise CheckpointError(f"{file}: expected a vocabulary of at most {MOST_VOCABULARY:,} bytes, got more")


def _check_vocabulary(folder: Path, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Every id of the vocabulary must have a row in the embedding. Tokens that were added to it may have none: where
    a text holds one, whoever reads the text says so.
    """
    added = tokenizer.get_added_vocab()
    ids = {token: index for token, index in tokenizer.get_vocab().items() if token not in added}
    if not ids and not added:
        raise CheckpointError(f"{folder}: the tokenizer has no vocabulary; copy the files the model was trained with")
    if not (folder / CONFIG).is_file():
        return  # a bundle, whose checkpoint was looked at before it was made
    rows = vocabulary_size(read_config(folder))
    token = max(ids, key=lambda token: ids[token], default=None)
    if token is not None and ids[token] >= rows:
        raise CheckpointError(
            f"{folder}: the tokenizer does not match the model: {token!r} is number {ids[token]}, "
            f"but the embedding has {rows} rows; use the tokenizer that the model was trained with"
        )


def end_of_text(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The id that ends a document: eos, else bos, else 0."""
    for candidate in (tokenizer.eos_token_id, tokenizer.bos_token_id):
        if isinstance(candidate, int):
            return candidate
    return 0


@one_at_a_time
def load_pretrained(folder: Path, *, dtype: DType, **settings: Any) -> "PreTrainedModel":
    """The model as transformers loads it, in evaluation mode on the CPU.

    Args:
        settings: further ones for transformers, such as a `quantization_config`.

    Raises:
        CheckpointError: the folder holds no checkpoint, or transformers takes another than its headers say.
    """
    import torch
    from transformers import AutoModelForCausalLM

    layout = read_layout(folder)
    config = open_config(folder)
    if hasattr(config, "quantization_config") or "quantization_config" in settings:
        settings["device_map"] = {"": "cpu"}  # else bitsandbytes takes a GPU where there is one
    try:
        with no_bars(), OPENING:
            answer: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=getattr(torch, dtype),
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                **settings,
            )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: the model cannot be loaded ({in_one_line(error)})") from error
    model: PreTrainedModel = answer[0]
    left = set(answer[1]["unexpected_keys"]) - set(layout.ignored.values())
    check_loading(folder, {**answer[1], "unexpected_keys": left})
    if set(model.all_tied_weights_keys) != set(layout.tied):
        raise CheckpointError(
            f"{folder}: expected transformers to tie {layout.tied}, got {model.all_tied_weights_keys}"
        )
    model.config.tie_word_embeddings = getattr(layout.model.config, "tie_word_embeddings", False)
    model.eval()
    return model


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
