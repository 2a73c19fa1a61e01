"""Text from a bundle, as it comes: its own tokenizer on both sides of the graph, no transformers and no PyTorch."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export import bundle_folder

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from export.runtime.session import Provider

TOKENIZER = "tokenizer.json"
FINAL = "final"
"""The link in a run's folder to its last artifact."""


class PromptError(Exception):
    """The bundle cannot go on from this prompt; the message says why."""

    exit_code = 2


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What is to be generated."""

    bundle: Path
    prompt: str
    tokens: int
    sampling: dict[str, Any]
    """The fields of export.runtime.sampling.Sampling."""
    provider: "Provider | None"
    """None: where the bundle was exported for."""
    threads: int | None


def generate_text(wish: Wish) -> Iterator[str]:
    """The prompt, then piece by piece what the model adds, then a line break.

    Raises:
        BundleError: the folder is no bundle.
        PromptError: the prompt or the sampling is not usable.
    """
    from tokenizers.decoders import DecodeStream

    from export.runtime.model import OnnxCausalLM
    from export.runtime.sampling import Sampling

    tokenizer = open_tokenizer(wish.bundle)
    ids = tokenizer.encode(wish.prompt).ids
    if not ids:
        raise PromptError("the prompt: expected some text, got none")
    try:
        sampling = Sampling(**wish.sampling)
    except ValueError as error:
        raise PromptError(str(error)) from error
    model = OnnxCausalLM.open(wish.bundle, provider=wish.provider, threads=wish.threads)
    yield wish.prompt
    pieces = DecodeStream(skip_special_tokens=True)
    for token in model.stream(ids, max_new_tokens=wish.tokens, sampling=sampling):
        yield pieces.step(tokenizer, token) or ""
    yield "\n"


def bundle_of(folder: Path) -> Path:
    """The bundle that is meant: in the folder itself, or in what a run's folder holds as its last artifact."""
    final = folder / FINAL
    return bundle_folder(final if final.is_dir() and not (folder / TOKENIZER).exists() else folder)


def open_tokenizer(bundle: Path) -> "Tokenizer":
    """The bundle's tokenizer.

    Raises:
        PromptError: there is none, or it is corrupt.
    """
    from tokenizers import Tokenizer

    file = bundle / TOKENIZER
    if not file.is_file():
        raise PromptError(f"{bundle}: expected a bundle that export left, but it has no {TOKENIZER}")
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exceptions
        raise PromptError(f"{file}: corrupt tokenizer ({error}); export the bundle again") from error
