"""`demitasse generate BUNDLE PROMPT` and `demitasse verify BUNDLE`."""

from pathlib import Path
from typing import Any, Literal

from evaluation.escaping import visible
from export import verify_bundle
from export.proof import check_nothing_pending, prove_here
from recipes.cli.console import show_bundle, show_self_test
from recipes.cli.terminal import Terminal
from recipes.formats.text_generation import GenerationRequest, bundle_of, generate_text


def generate(
    terminal: Terminal,
    *,
    bundle: Path,
    prompt: str,
    tokens: int,
    sampling: dict[str, Any],
    speculate: Literal["ngram"] | None,
    provider: Literal["cpu", "cuda"] | None,
    threads: int | None,
) -> None:
    """Stream text from a bundle."""
    request = GenerationRequest(
        bundle=bundle_of(bundle),
        prompt=prompt,
        tokens=tokens,
        sampling=sampling,
        speculate=speculate,
        provider=provider,
        threads=threads,
    )
    shown = visible if terminal.console.is_terminal else str  # what the model wrote, but a terminal obeys none of it
    for piece in generate_text(request):
        terminal.library_output.out.write(shown(piece))
        terminal.library_output.out.flush()


def verify(terminal: Terminal, *, bundle: Path, again: bool, allow_pending: bool) -> None:
    """Check a bundle's files, and with `again` what it computes; what was pending is proven where that can be done.

    Raises:
        PendingError: a part of its proof is still pending, and nobody accepts that.
    """
    summary = verify_bundle(bundle_of(bundle))
    show_bundle(terminal.console, summary)
    if again:
        with terminal.progress.task("parity", 1):
            figures = prove_here(summary.folder, summary.provider, summary.parity["self_test"]["kl"])
        show_self_test(terminal.console, figures)
    if not allow_pending:
        check_nothing_pending(summary.folder)
