"""What drafts copied from the text are worth: greedy decoding of one bundle with and without them, taking turns.

    python -m benchmarks.speculation BUNDLE [--blocks 7] [--tokens 96] [--name NAME]

The prompts are those of speculation_prompts.json, written for this: answers that quote, JSON with repeated keys, edits
of code, and prose, which copies nothing. They go through the bundle's chat template where it has one. In each block
both variants answer every prompt, in random order, in one process with one model; a trial's time is that from the first
new token to the last, so that reading the prompt is not in it. Before the first block both answer once, untimed, which
opens the session that checks. Every answer must be the same tokens in both, or it ends with an error.

The figure is plain seconds over seconds with drafts, summed over the prompts of a kind, the median over blocks with its
95 % interval, and the lowest prompt's median. The targets: at least 1.5x where the answer copies, 0.97x on prose.

Not covered: the time until the second session is open, and its memory.
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

if __name__ == "__main__" and not __package__:  # started by its path: imports begin at the repository
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import typer

from benchmarks.page import finish
from benchmarks.results import RESULTS, teller
from compress.checkpoints.folder import load_tokenizer
from export.runtime.model import OnnxCausalLM
from export.runtime.speculation import Speculate

PROMPTS = Path(__file__).resolve().parent / "speculation_prompts.json"
PLAIN, NGRAM = "plain", "ngram"
VARIANTS: dict[str, Speculate | None] = {PLAIN: None, NGRAM: "ngram"}


class Passes:
    """A session that counts its runs."""

    def __init__(self, session: Any) -> None:
        self.session, self.count = session, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def run_with_iobinding(self, *arguments: Any) -> None:
        """As the session's own."""
        self.count += 1
        self.session.run_with_iobinding(*arguments)


@dataclass(kw_only=True)
class Answer:
    """What became of one prompt."""

    kind: str
    prompt: int
    """Tokens."""
    tokens: int
    passes: int
    """Of the variant with drafts, the prompt's own left out."""
    seconds: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in VARIANTS})
    """Of each variant, a block after the other."""


def answers(
    model: OnnxCausalLM, prompts: Sequence[tuple[str, list[int]]], *, tokens: int, blocks: int, seed: int = 0
) -> list[Answer]:
    """Have every prompt (its kind and ids) answered by both variants in every block.

    Raises:
        AssertionError: the variants' tokens differ.
    """
    counters = [Passes(model.session), Passes(model.checker)]
    model.session, model.checker = counters
    found = []
    for kind, ids in prompts:
        plain, _ = _timed(model, ids, tokens, PLAIN)
        before = sum(counter.count for counter in counters)
        drafted, _ = _timed(model, ids, tokens, NGRAM)
        assert drafted == plain, f"drafts changed the answer to a prompt of {kind}: {plain} became {drafted}"
        passes = sum(counter.count for counter in counters) - before - 1
        found.append(Answer(kind=kind, prompt=len(ids), tokens=len(plain), passes=passes))
    random = np.random.default_rng(seed)
    for _ in range(blocks):
        for index in random.permutation(len(found) * len(VARIANTS)):
            place, name = index // len(VARIANTS), list(VARIANTS)[index % len(VARIANTS)]
            written, seconds = _timed(model, prompts[place][1], tokens, name)
            found[place].seconds[name].append(seconds)
            assert len(written) == found[place].tokens, "an answer had another length than before"
    return found


def _timed(model: OnnxCausalLM, ids: list[int], tokens: int, variant: str) -> tuple[list[int], float]:
    """New tokens, and the seconds from the first to the last."""
    written, begun = [], 0.0
    for token in model.stream(ids, max_new_tokens=tokens, speculate=VARIANTS[variant]):
        begun = begun or time.perf_counter()
        written.append(token)
    return written, time.perf_counter() - begun


def prompts_of(bundle: Path) -> list[tuple[str, list[int]]]:
    """Kind and ids of every prompt."""
    tokenizer = load_tokenizer(bundle)
    found = []
    for kind, texts in json.loads(PROMPTS.read_text(encoding="utf-8")).items():
        for text in texts:
            if tokenizer.chat_template:
                message = [{"role": "user", "content": text}]
                text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
            found.append((kind, list(tokenizer(text, add_special_tokens=not tokenizer.chat_template)["input_ids"])))
    return found


def main(
    bundle: Annotated[Path, typer.Argument(help="A bundle's folder, best of a model that follows instructions.")],
    blocks: Annotated[int, typer.Option(help="Blocks of trials.")] = 7,
    tokens: Annotated[int, typer.Option(help="At most so many new tokens.")] = 96,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    name: Annotated[str, typer.Option(help="What the page calls the bundle; default: its folder.")] = "",
    out: Annotated[Path, typer.Option(help="Where the results go as JSON.")] = RESULTS / "speculation.json",
) -> None:
    """Answer every prompt with and without drafts."""
    from benchmarks.machine import machine

    teller("speculation")(f"{blocks} blocks")
    model = OnnxCausalLM.open(bundle, threads=threads)
    found = answers(model, prompts_of(bundle), tokens=tokens, blocks=blocks)
    run = {
        "kind": "speculation",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": machine("cpu"),
        "settings": {"bundle": name or bundle.name, "blocks": blocks, "tokens": tokens, "threads": threads},
        "answers": [asdict(answer) for answer in found],
    }
    finish(run, out)


if __name__ == "__main__":
    typer.run(main)
