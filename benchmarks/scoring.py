"""What scoring costs beyond the forward passes it is made of, and whether it scores as lm-evaluation-harness does.

    python -m benchmarks.scoring BUNDLE TEXT                     perplexity against ONNX Runtime alone, all windows
    python -m benchmarks.scoring CHECKPOINT TEXT --check harness  log-likelihoods against the harness's own

Cost. Two variants take the same windows in the same batches, a few batches at a time, in an order drawn anew each time:

    alone     ONNX Runtime's forward passes: inputs, cache and logits are bound once, no logit is looked at
    scored    `evaluation.quality.score` on the bundle, as runs do it (`recipes.formats`)

The figure is a variant's seconds divided by those of `alone`: over all windows, and the median over such trials with
its interval. Reading and cutting the text is not timed; the statistics at the end are timed once, and are in "all
windows".

Check. `loglikelihood_rolling` of the harness puts its prefix token before each document and reads windows of L tokens,
each from the last token of the one before (context 1), the last one moved back to be full. Documents that begin with
that token, cut with length L + 1 and stride L, give the same windows; with `bos`, so do documents that fit into one.
What is left between the two is float32: torch's log_softmax over 49,152 scores is up to 7e-6 nat off, `score` 1e-7.

Not covered: GPUs, where ONNX Runtime alone would copy no logits to the host.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

if __name__ == "__main__" and not __package__:  # started by its path: imports begin at the repository
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import typer
from numpy.typing import NDArray

from compress.checkpoints.folder import load_tokenizer
from compress.training.malloc import kept_memory
from evaluation.quality import TokenScores, Windows, amounts_of, quality_measurements, score, windows_of
from evaluation.statistics import median_interval
from recipes.formats import FORMATS
from recipes.measure.text_windows import beginnings, windows_in

Ids = NDArray[np.int64]
AT_MOST = 1.1
"""How many times the time of ONNX Runtime alone perplexity may take."""
TRIAL = 4
"""Batches of a variant's trial."""
DOCUMENTS, LETTERS = 8, 6000


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Seconds of every trial of every variant, and the perplexity that came of it."""

    seconds: dict[str, list[float]]
    statistics: float
    """Seconds of the bootstrap at the end."""
    perplexity: float

    def ratio(self, variant: str) -> float:
        """To ONNX Runtime alone, over all windows."""
        return (sum(self.seconds[variant]) + self.statistics) / sum(self.seconds["alone"])

    def trials(self, variant: str) -> NDArray[np.float64]:
        """To ONNX Runtime alone, of each trial."""
        return np.array(self.seconds[variant]) / np.array(self.seconds["alone"])


def cost(bundle: Path, windows: Windows, *, batch: int, seed: int = 0) -> Cost:
    """Take all windows through every variant, a trial at a time."""
    alone, scorer = _alone(bundle), FORMATS["onnx"].open(bundle).logits
    scored: list[TokenScores] = []
    variants: dict[str, Callable[[Windows], Any]] = {
        "alone": lambda part: [alone(ids_BT) for ids_BT in _batches(part, batch)],
        "scored": lambda part: scored.append(score(scorer, part, batch=batch)),
    }
    for variant in variants.values():
        variant(_part(windows, slice(0, batch)))
    scored.clear()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    generator = np.random.default_rng(seed)
    with kept_memory():  # as runs do it
        for start in range(0, len(windows), batch * TRIAL):
            part = _part(windows, slice(start, start + batch * TRIAL))
            for name in generator.permutation(list(variants)):
                begun = time.perf_counter()
                variants[name](part)
                seconds[name].append(time.perf_counter() - begun)
    begun = time.perf_counter()
    perplexity = quality_measurements(_joined(scored, windows), method=windows.protocol)[0]
    return Cost(seconds=seconds, statistics=time.perf_counter() - begun, perplexity=perplexity.value)


def _batches(windows: Windows, batch: int) -> Iterator[Ids]:
    """What `score` feeds."""
    for start in range(0, len(windows), batch):
        longest = int(windows.length_W[start : start + batch].max())
        yield np.ascontiguousarray(windows.ids_WT[start : start + batch, : longest - 1])


def _part(windows: Windows, rows: slice) -> Windows:
    tokens_W = windows.scored_W.cumsum()
    first = int(tokens_W[rows.start] - windows.scored_W[rows.start])
    last = int(tokens_W[min(rows.stop, len(windows)) - 1])
    per_window = {name: getattr(windows, name)[rows] for name in ("ids_WT", "length_W", "first_W", "document_W")}
    return replace(windows, **per_window, bytes_N=windows.bytes_N[first:last], words_N=windows.words_N[first:last])


def _joined(parts: Sequence[TokenScores], windows: Windows) -> TokenScores:
    """The scores of all windows from those of its parts."""
    window = np.repeat(np.arange(len(windows)), windows.scored_W)
    columns = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("nll", "rank", "agree", "kl", "bytes", "words", "document")
    }
    return TokenScores(**columns, window=window, digest=windows.digest())


def _alone(bundle: Path) -> Callable[[Ids], object]:
    """ONNX Runtime and nothing else: all that a shape needs is bound before its first use."""
    from export.runtime.batch import Binding
    from export.runtime.model import OnnxCausalLM

    model = OnnxCausalLM.open(bundle)
    bound: dict[tuple[int, ...], tuple[Binding, Any]] = {}

    def forward(ids_BT: Ids) -> object:
        rows, tokens = ids_BT.shape
        if ids_BT.shape not in bound:
            inputs = {
                "input_ids": ids_BT.copy(),
                "attention_mask": np.ones_like(ids_BT),
                "position_ids": np.tile(np.arange(tokens), (rows, 1)),
            }
            batch = model.new_batch(rows, tokens)
            bound[ids_BT.shape] = Binding(batch, inputs), batch
        binding, _ = bound[ids_BT.shape]
        binding.inputs["input_ids"][:] = ids_BT
        return binding.run()

    return forward


@dataclass(frozen=True, kw_only=True)
class Rolled:
    """One text as the harness and as we score it."""

    tokens: int
    words: int
    harness: float
    """Log-likelihood in nats."""
    ours: float

    @property
    def per_token(self) -> float:
        """By how many nats a token's mean log-likelihood differs."""
        return abs(self.harness - self.ours) / self.tokens

    @property
    def per_word(self) -> float:
        """By how much the perplexity per word differs, relatively."""
        return abs(float(np.expm1((self.harness - self.ours) / self.words)))


def rolled(checkpoint: Path, texts: Sequence[str], *, length: int, harness: Any = None) -> list[Rolled]:
    """Every text by lm-evaluation-harness's Hugging Face model and by ours, in windows of `length` tokens.

    Args:
        harness: its model, opened with `max_length=length`; None: it is opened here.
    """
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    if harness is None:
        harness = HFLM(pretrained=str(checkpoint), dtype="float32", device="cpu", max_length=length)
    requests = [
        Instance(request_type="loglikelihood_rolling", doc={}, arguments=(text,), idx=index)
        for index, text in enumerate(texts)
    ]
    theirs = harness.loglikelihood_rolling(requests, disable_tqdm=True)
    windows = harness_windows(checkpoint, texts, length=length)
    scores = score(FORMATS["dense"].open(checkpoint).logits, windows, batch=4)
    return [
        Rolled(
            tokens=int((scores.document == document).sum()),
            words=int(scores.words[scores.document == document].sum()),
            harness=float(found),
            ours=-float(scores.nll[scores.document == document].sum()),
        )
        for document, found in enumerate(theirs)
    ]


def harness_windows(checkpoint: Path, texts: Sequence[str], *, length: int) -> Windows:
    """The windows in which the harness scores whole texts: see the head of this file."""
    tokenizer = load_tokenizer(checkpoint)
    encoded = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    (prefix,) = beginnings(tokenizer, True)
    ends = [np.array([end for _, end in spans]) for spans in encoded["offset_mapping"]]
    amounts = [amounts_of(text, end_T) for text, end_T in zip(texts, ends, strict=True)]
    return windows_of(
        [np.array([prefix, *ids]) for ids in encoded["input_ids"]],
        length=length + 1,
        stride=length,
        amounts=[np.concatenate([np.zeros((1, 2), dtype=np.int64), found]) for found in amounts],
    )


def documents_of(text: str, count: int = DOCUMENTS, letters: int = LETTERS) -> list[str]:
    """A few pieces of a text, of growing length, so that some fit into one window."""
    places = [index * (len(text) - letters) // count for index in range(count)]
    return [text[place : place + letters * (index + 1) // count] for index, place in enumerate(places)]


def print_cost(found: Cost, windows: Windows) -> bool:
    """The table; whether the target is met."""
    print(f"{windows.protocol}; perplexity {found.perplexity:.4f}\n")
    print(
        "| variant | seconds | to ONNX Runtime alone, all windows | median trial | 95 % interval |\n"
        "|---|---|---|---|---|"
    )
    for variant, seconds in found.seconds.items():
        trials = found.trials(variant)
        interval = median_interval(trials)
        spread = "none of one trial" if interval is None else f"{interval.low:.3f} to {interval.high:.3f}"
        whole = 1.0 if variant == "alone" else found.ratio(variant)
        print(f"| {variant} | {sum(seconds):.1f} | {whole:.3f} | {np.median(trials):.3f} | {spread} |")
    print(f"\nat most {AT_MOST}: {'PASS' if found.ratio('scored') <= AT_MOST else 'short'}")
    return found.ratio("scored") <= AT_MOST


def print_rolled(found: Sequence[Rolled]) -> None:
    """The table."""
    print("| tokens | log-likelihood, harness | ours | apart per token (nat) | word perplexity apart |")
    print("|---|---|---|---|---|")
    for one in found:
        print(f"| {one.tokens} | {one.harness:.5f} | {one.ours:.5f} | {one.per_token:.1e} | {one.per_word:.1e} |")


def main(
    model: Annotated[Path, typer.Argument(help="A bundle; for --check harness a checkpoint's folder.")],
    text: Annotated[Path, typer.Argument(help="A text file.")],
    check: Annotated[str, typer.Option(help="harness: hold log-likelihoods against lm-evaluation-harness's.")] = "",
    length: Annotated[int, typer.Option(help="Tokens of a window.")] = 512,
    windows: Annotated[int | None, typer.Option(help="How many windows; default: all.")] = None,
    batch: Annotated[int, typer.Option(help="Windows at a time.")] = 8,
) -> None:
    """What scoring costs, or whether it scores as lm-evaluation-harness does."""
    if check not in {"", "harness"}:
        raise typer.BadParameter(f"--check: expected harness, got {check}")
    read = text.read_text(encoding="utf-8")
    if check:
        return print_rolled(rolled(model, documents_of(read), length=length))
    cut = windows_in([read], load_tokenizer(model), length=length, count=windows, select="first", bos=False)
    raise typer.Exit(0 if print_cost(cost(model, cut, batch=batch), cut) else 1)


if __name__ == "__main__":
    typer.run(main)
