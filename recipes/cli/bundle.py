"""`demitasse generate BUNDLE PROMPT` and `demitasse verify BUNDLE`."""

from pathlib import Path
from typing import Any, Literal

from export import verify_bundle
from export.self_test import replay
from recipes.cli.console import show_bundle, show_replay
from recipes.cli.terminal import Terminal
from recipes.formats.text_generation import Wish, bundle_of, generate_text


def generate(
    terminal: Terminal,
    *,
    bundle: Path,
    prompt: str,
    tokens: int,
    sampling: dict[str, Any],
    provider: Literal["cpu", "cuda"] | None,
    threads: int | None,
) -> None:
    """Stream text from a bundle."""
    wish = Wish(
        bundle=bundle_of(bundle), prompt=prompt, tokens=tokens, sampling=sampling, provider=provider, threads=threads
    )
    for piece in generate_text(wish):
        terminal.chatter.out.write(piece)
        terminal.chatter.out.flush()


def verify(terminal: Terminal, *, bundle: Path, again: bool) -> None:
    """Check a bundle's files, and with `again` what it computes."""
    summary = verify_bundle(bundle_of(bundle))
    show_bundle(terminal.console, summary)
    if again:
        with terminal.progress.task("parity", 1):
            figures = replay(summary.folder, summary.provider, stated=summary.parity["replay"]["kl"])
        show_replay(terminal.console, figures)
