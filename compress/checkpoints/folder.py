"""Checkpoint folders: what one must hold, what its headers tell, and how its model and tokenizer are opened.

  dense       a plain Hugging Face folder: config.json, *.safetensors, tokenizer files
  quantized   the same in one of the formats of `quantized_formats.py`

Only safetensors is ever read: a pickle runs code when it is opened. Code that a checkpoint brings along is never run.
What is opened is compared with what was read of the folder before (`layout.py`).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safetensors import SafetensorError

from compress.checkpoints.config import (
    CONFIG,
    CheckpointError,
    check_plain,
    check_tokenizer_files,
    context_length,
    in_one_line,
    open_config,
    read_config,
    read_generation,
    vocabulary_size,
)
from compress.checkpoints.int8_rows import EMBEDDINGS_FILE
from compress.checkpoints.layout import OPENING, Layout, check_loading, find_layout
from compress.checkpoints.matrix_format import MatrixFormat
from compress.checkpoints.one_at_a_time import one_at_a_time
from compress.checkpoints.quantized_formats import quantized_format
from compress.checkpoints.weight_files import is_pointer, stored_tensors, weight_files
from compress.digests import digest_file, digest_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DType = Literal["float32", "float16", "bfloat16"]
LOADED = (".json", ".txt", ".model", ".jinja")
"""Endings of the files that a model's shape and its tokenizer are read from."""


class Checkpoint:
    """What a folder holds, told by config.json and the headers of its weight files; each part is read once.

    Raises:
        CheckpointError: no such folder, no or a broken config, not a causal language model, no safetensors or
            corrupt ones.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = read_config(folder)
        self.generation = read_generation(folder)
        weights = weight_files(folder)
        self.tensors = stored_tensors(weights)
        self.files = [*weights, *folder.glob(EMBEDDINGS_FILE)]
        """Those that hold weights, a quantized embedding's among them."""

    @property
    def format(self) -> Literal["dense", "quantized"]:
        return "dense" if self.quantization is None else "quantized"

    @property
    def quantization(self) -> MatrixFormat | None:
        """How its quantized matrices are read; None: it holds floats."""
        return quantized_format(self.config)

    @property
    def model_type(self) -> str:
        return str(self.config["model_type"])

    @property
    def context(self) -> int | None:
        """The longest sequence that the model reads, in tokens, or None where its config does not say."""
        return context_length(self.config)

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding."""
        return vocabulary_size(self.config)

    @property
    def elements(self) -> int:
        """Of all tensors in its weight files."""
        return sum(tensor.count for tensor in self.tensors)

    @cached_property
    def layout(self) -> Layout:
        """Which tensor is which weight of the config's model.

        Raises:
            CheckpointError: transformers has no such model, or the weights are another's.
        """
        return find_layout(self.folder, self.config, self.tensors)

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The tokenizer, as `load_tokenizer` gives it."""
        return _open_tokenizer(self.folder, self.config)

    @property
    def parameters(self) -> int:
        """Number of weights, a tied one counted once."""
        return self.layout.count()

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights as they are held to run: codes 1 or a half each, everything else float32."""
        return sum(size for _, _, size in self.layout.in_memory())

    @property
    def disk_bytes(self) -> int:
        """Bytes of the weight files as they lie there."""
        return sum(file.stat().st_size for file in self.files)

    def digest(self) -> str:
        """sha256 (hex) over names and contents of the files that it is loaded from."""
        about = [file for file in self.folder.iterdir() if file.is_file() and file.suffix in LOADED]
        return digest_of({file.name: digest_file(file) for file in sorted({*about, *self.files})})

    def whole(self) -> "Checkpoint":
        """This one, once its weights and its tokenizer were looked at as transformers takes them.

        Raises:
            CheckpointError: the weights are not those of the config's model, or the tokenizer does not fit.
        """
        _ = self.layout, self.tokenizer
        return self


def outline(folder: Path) -> Checkpoint:
    """A checkpoint, its descriptions read; no library is loaded to look whether they fit together.

    Raises:
        CheckpointError: as `Checkpoint`; or there is no tokenizer, or its settings are broken.
    """
    checkpoint = Checkpoint(folder)
    check_tokenizer_files(folder)
    return checkpoint


def inspect_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint's headers.

    Raises:
        CheckpointError: no such folder, no or a broken config, not a causal language model, no safetensors or
            corrupt ones, weights that are not those of the config's model, no tokenizer or one that does not fit.
    """
    return outline(folder).whole()


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The checkpoint's tokenizer.

    Raises:
        CheckpointError: transformers cannot open it, or its vocabulary is larger than the model's embedding.
    """
    in_bundle = not (folder / CONFIG).is_file()  # whose checkpoint was looked at before it was made
    return _open_tokenizer(folder, None if in_bundle else read_config(folder))


def _open_tokenizer(folder: Path, plain: Mapping[str, Any] | None) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model with this config, where that is known; its class may follow from it."""
    from transformers import AutoTokenizer

    check_plain(folder)
    check_tokenizer_files(folder)
    known: dict[str, Any] = {} if plain is None else {"config": open_config(folder, plain)}
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **known
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
    _check_vocabulary(folder, tokenizer, None if plain is None else vocabulary_size(plain))
    return tokenizer


def _check_vocabulary(folder: Path, tokenizer: "PreTrainedTokenizerBase", rows: int | None) -> None:
    """Every id of the vocabulary must have a row in the embedding. Tokens that were added to it may have none: where
    a text holds one, whoever reads the text says so.
    """
    added = tokenizer.get_added_vocab()
    ids = {token: index for token, index in tokenizer.get_vocab().items() if token not in added}
    if not ids and not added:
        raise CheckpointError(f"{folder}: the tokenizer has no vocabulary; copy the files the model was trained with")
    token = max(ids, key=lambda token: ids[token], default=None)
    if rows is not None and token is not None and ids[token] >= rows:
        raise CheckpointError(
            f"{folder}: the tokenizer does not match the model: {token!r} is number {ids[token]}, "
            f"but the embedding has {rows} rows; use the tokenizer that the model was trained with"
        )


@one_at_a_time
def load_pretrained(checkpoint: Checkpoint, *, dtype: DType, **settings: Any) -> "PreTrainedModel":
    """The model as transformers loads it, in evaluation mode on the CPU.

    Args:
        settings: further ones for transformers, such as a `quantization_config`.

    Raises:
        CheckpointError: transformers takes another than its headers say.
    """
    import torch
    from transformers import AutoModelForCausalLM

    folder, layout = checkpoint.folder, checkpoint.layout
    config = open_config(folder, checkpoint.config)
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
