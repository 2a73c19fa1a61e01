"""Text as people type it: what a model loses when its input is not clean, and whether compression made that worse.

    typos        a share of the letters is mistyped: a neighbor on a QWERTY keyboard, two letters swapped, one left out,
                 or one doubled, each as often (Belinkov and Bisk 2018, arXiv 1711.02173, whose "key" and "swap" noise
                 these extend); letters that no such keyboard has are swapped, left out or doubled
    case         a share of the letters that have a case is flipped
    truncation   a share of each document's characters is cut away at its beginning, up to where a word begins, so that
                 what follows has lost its context

Which letters are hit depends on the document, the kind and the seed alone: a document is noised alike wherever it
stands, and at a greater share the same letters are hit and more.

A noised text has other tokens than the clean one, so only models under the same noise are paired token by token.
Whether compression made a model more sensitive is a ratio of two paired perplexity ratios, noised and clean,

    noise cost = exp((nll' - baseline nll') / tokens' - (nll - baseline nll) / tokens)        ' noised

with an interval over documents, of which it takes all four sums together.

Not covered: noise that a spelling checker would not see (wrong words, missing words), and other keyboards.

Legend: C characters, K columns.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from evaluation.measurement import SEPARATOR, Measurement
from evaluation.quality.scoring import TokenScores
from evaluation.quality.token_metrics import invalid, no_interval, problem_of, quality_measurements
from evaluation.statistics import FEWEST_DOCUMENTS, Bootstrap, Units

ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
TOKENS, EXTRA, NOISED_TOKENS, NOISED_EXTRA = range(4)
"""Columns of the sums that the noise cost is computed from: tokens, and nll less the baseline's."""


def noised(texts: Iterable[str], kind: str, share: float, seed: int = 0) -> list[str]:
    """The texts with noise.

    Args:
        kind: one of NOISES.
        share: of letters, letters that have a case, or characters; in [0, 1).

    Raises:
        ValueError: there is no such noise, or the share is none.
    """
    if kind not in NOISES:
        raise ValueError(f"expected a noise out of {', '.join(NOISES)}, got {kind!r}")
    if not 0 <= share < 1:
        raise ValueError(f"{kind}: expected a share of at least 0 and less than 1, got {share}")
    return [NOISES[kind](text, share, _generator(text, kind, seed)) for text in texts]


def _generator(text: str, kind: str, seed: int) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}:{kind}:{text}".encode("utf-8", "surrogatepass")).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))


def _hit(text: str, can_be: Callable[[str], bool], share: float, generator: np.random.Generator) -> NDArray[np.int64]:
    """The places of the letters that are hit."""
    places = np.array([place for place, letter in enumerate(text) if can_be(letter)], dtype=np.int64)
    return places[generator.random(len(places)) < share]


def _typos(text: str, share: float, generator: np.random.Generator) -> str:
    letters = list(text)
    drawn_C = generator.random((2, len(text)))  # of every character, so that they do not depend on the share
    for place in _hit(text, str.isalpha, share, generator):
        edit = TYPOS[int(drawn_C[0, place] * len(TYPOS))]
        edit(letters, int(place), float(drawn_C[1, place]))
    return "".join(letters)


def _neighbor(letters: list[str], place: int, drawn: float) -> None:
    letter = letters[place]
    near = NEIGHBORS.get(letter.lower(), "")
    if not near:
        return _swap(letters, place, drawn)
    typed = near[int(drawn * len(near))]
    letters[place] = typed.upper() if letter.isupper() else typed


def _swap(letters: list[str], place: int, drawn: float) -> None:
    after = letters[place + 1] if place + 1 < len(letters) else ""
    if not after.isalpha() or after == letters[place]:
        return _double(letters, place, drawn)
    letters[place : place + 2] = after, letters[place]


def _drop(letters: list[str], place: int, drawn: float) -> None:
    letters[place] = ""


def _double(letters: list[str], place: int, drawn: float) -> None:
    letters[place] *= 2


TYPOS = (_neighbor, _swap, _drop, _double)


def _neighbors() -> dict[str, str]:
    """Letter -> the letters whose keys touch its own; each row is shifted by half a key against the one above."""
    keys = {
        letter: (column + row / 2, row) for row, letters in enumerate(ROWS) for column, letter in enumerate(letters)
    }
    return {
        letter: "".join(
            other for other, (x, y) in keys.items() if other != letter and abs(x - at) <= 1 and abs(y - row) <= 1
        )
        for letter, (at, row) in keys.items()
    }


NEIGHBORS = _neighbors()


def _case(text: str, share: float, generator: np.random.Generator) -> str:
    letters = list(text)
    for place in _hit(text, lambda letter: letter.swapcase() != letter, share, generator):
        letters[place] = letters[place].swapcase()
    return "".join(letters)


def _truncation(text: str, share: float, generator: np.random.Generator) -> str:
    cut = int(len(text) * share)
    if cut == 0:
        return text
    while cut < len(text) and not (text[cut - 1].isspace() and not text[cut].isspace()):
        cut += 1
    return text[cut:]


NOISES: dict[str, Callable[[str, float, np.random.Generator], str]] = {
    "typos": _typos,
    "case": _case,
    "truncation": _truncation,
}
NOISE_WORDS: dict[str, str] = {
    "typos": "{share:.3g} of the letters mistyped",
    "case": "{share:.3g} of the letters in the other case",
    "truncation": "the first {share:.3g} of every document cut away",
}


def describe_noise(kind: str, share: float, seed: int = 0) -> str:
    """The noise in words, for `Measurement.method`."""
    return f"{NOISE_WORDS[kind].format(share=share)} (seed {seed})"


def noise_measurements(
    kind: str,
    scores: TokenScores,
    baseline: TokenScores | None = None,
    clean: TokenScores | None = None,
    clean_baseline: TokenScores | None = None,
    *,
    method: str,
    seed: int = 0,
) -> list[Measurement]:
    """What `quality_measurements` gives under noise, such as "typos/perplexity", and the noise cost.

    Args:
        scores: of the model on the noised text.
        baseline: the baseline's own on the same; None if `scores` are the baseline's. The noise cost needs it, and
            `clean` and `clean_baseline`, which are the same on the clean text.
    """
    measured = quality_measurements(scores, baseline, method=method, seed=seed, name=kind)
    if baseline is None or clean is None or clean_baseline is None:
        return measured
    return [*measured, _noise_cost(kind, (clean, clean_baseline), (scores, baseline), method, seed)]


def _noise_cost(
    kind: str, clean: tuple[TokenScores, TokenScores], under: tuple[TokenScores, TokenScores], method: str, seed: int
) -> Measurement:
    metric = f"{kind}{SEPARATOR}noise_cost"
    shared = np.intersect1d(clean[0].document, under[0].document)
    problem = problem_of(*clean) or problem_of(*under)
    if not problem and len(shared) < FEWEST_DOCUMENTS:
        problem = (
            f"clean and noised text are compared by documents, and {len(shared)} of them are too few: give at least "
            f"{FEWEST_DOCUMENTS}, and leave `join` out"
        )
    if problem:
        return invalid(metric, under[0], method, problem)
    columns = [_by_document(*pair, shared) for pair in (clean, under)]
    bootstrap = Bootstrap.draw(np.concatenate(columns, axis=1), seed=seed)
    with np.errstate(all="ignore"):  # what is not finite comes back as "no interval"
        found = bootstrap.compare(noise_cost, "log")
    units = Units(shared, len(shared))
    return Measurement(
        metric=metric,
        value=found.value,
        samples=units.count,
        method=f"{method}; against the clean text; 95 % interval by {units.describe()}",
        interval=found.interval,
        bounds=found.bounds,
        invalid="" if found.interval is not None else no_interval(found.value, units),
    )


def noise_cost(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """The noise cost from sums [..., K]."""
    extra = sums[..., NOISED_EXTRA] / sums[..., NOISED_TOKENS] - sums[..., EXTRA] / sums[..., TOKENS]
    return np.asarray(np.exp(extra))


def _by_document(
    scores: TokenScores, baseline: TokenScores, documents: Sequence[int] | NDArray[np.int64]
) -> NDArray[np.float64]:
    """Tokens and extra nll of each of the documents: [U, 2]."""
    of_N = np.searchsorted(documents, scores.document)
    kept_N = np.isin(scores.document, documents)
    units = Units(of_N[kept_N], len(documents))
    return units.sums(np.ones(int(kept_N.sum())), (scores.nll - baseline.nll)[kept_N])
