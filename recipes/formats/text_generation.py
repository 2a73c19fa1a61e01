"""Text from a bundle, as it comes: its own tokenizer on both sides of the graph, no transformers and no PyTorch."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.machine import available_cores
from export import bundle_folder
from export.runtime.batch import PromptError
from export.runtime.prompts import TOKENIZER, open_tokenizer, read_prompt, stream_text

if TYPE_CHECKING:
    from export.runtime.session import Provider
    from export.runtime.speculation import Speculate

FINAL = "final"
"""The link in a run's folder to its last artifact."""


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """What is to be generated."""

    bundle: Path
    prompt: str
    tokens: int
    sampling: dict[str, Any]
    """The fields of export.runtime.sampling.Sampling."""
    provider: "Provider | None"
    """None: where the bundle was exported for."""
    threads: int | None
    speculate: "Speculate | None" = None
    """As `OnnxCausalLM.stream` has it."""


def generate_text(request: GenerationRequest) -> Iterator[str]:
    """The prompt, then piece by piece what the model adds, then a line break.

    Raises:
        BundleError: the folder is no bundle.
        PromptError: the prompt, the sampling or the number of threads is not usable.
    """
    from export.runtime.model import OnnxCausalLM
    from export.runtime.sampling import Sampling

    cores = available_cores()
    if request.threads is not None and request.threads > cores:
        raise PromptError(f"--threads: expected at most {cores}, the cores there are, got {request.threads}")
    tokenizer = open_tokenizer(request.bundle)
    ids = read_prompt(tokenizer, request.prompt)
    try:
        sampling = Sampling(**request.sampling)
    except ValueError as error:
        raise PromptError(str(error)) from error
    model = OnnxCausalLM.open(request.bundle, provider=request.provider, threads=request.threads)
    tokens = model.stream(ids, max_new_tokens=request.tokens, sampling=sampling, speculate=request.speculate)
    yield request.prompt
    yield from stream_text(tokenizer, ids, tokens)
    yield "\n"


def bundle_of(folder: Path) -> Path:
    """The bundle that is meant: in the folder itself, or in what a run's folder holds as its last artifact."""
    final = folder / FINAL
    return bundle_folder(final if final.is_dir() and not (folder / TOKENIZER).exists() else folder)
