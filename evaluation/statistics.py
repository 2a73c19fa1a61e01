"""Intervals: how far a figure may be from the truth, and how many more samples would settle a question about it.

The sampling unit is the document, never the token or the window: tokens of one document are good or bad together, so a
bootstrap of tokens claims a precision that is not there. A unit u contributes a row of sums (tokens, their negative
log-likelihood, ...), a statistic is a function of the summed rows, and a resample draws U units with replacement:

    sums_RK = weights_RU @ sums_UK          weights_RU[r] ~ Multinomial(U, 1/U)
    perplexity ratio = exp((nll_model - nll_baseline) / tokens)      both from the same resample: paired

Intervals are BCa (bias-corrected and accelerated; Efron 1987), with the tails widened for small U as in Hesterberg's
"expanded percentile" (2015, arXiv 1411.5279, section 5): the plain bootstrap is too narrow by about sqrt((U - 1) / U)
and uses the normal where Student's t belongs. Medians of timed blocks use the percentile interval with the same
widening, because the jackknife, and with it BCa, is inconsistent for a median.

Fewer than `FEWEST_DOCUMENTS` documents cannot carry that. Contiguous blocks of about W^(1/3) of the W windows are then
the unit (Carlstein's blocks, which never cross a document): such an interval speaks of more text like this one, not of
other documents, and `Units.describe` says so.

Not covered: several models compared at once.

Legend: U units, K summed columns, R resamples, T scored tokens.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.measurement import JUDGED, SHOWN, Comparison, Interval

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
"""From sums [..., K] to values [...]."""

RESAMPLES = 2000
FEWEST_DOCUMENTS = 8
POWER = 0.9
_DRAWS_AT_ONCE = 4_000_000


@dataclass(frozen=True, eq=False)
class Units:
    """What is resampled: the unit of each scored token, unit_T int64 in [0, count)."""

    unit_T: NDArray[np.int64]
    count: int
    windows_per_block: int = 0
    """0 where the unit is the document."""

    def describe(self) -> str:
        """How the interval came about, for `Measurement.method`."""
        if self.windows_per_block == 0:
            return f"paired bootstrap of {self.count} documents"
        return (
            f"paired bootstrap of {self.count} contiguous blocks of {self.windows_per_block} windows, since there are "
            f"fewer than {FEWEST_DOCUMENTS} documents: it speaks of more text like this one, not of other documents"
        )

    def sums(self, *columns_T: NDArray[Any]) -> Floats:
        """The columns summed within each unit: float64 [U, K]."""
        return np.stack([np.bincount(self.unit_T, column_T, minlength=self.count) for column_T in columns_T], axis=1)


def units_of(document_T: NDArray[np.int64], window_T: NDArray[np.int64]) -> Units:
    """Documents where there are enough of them, contiguous blocks of windows otherwise; window_T ascends."""
    documents, document_of_T = np.unique(document_T, return_inverse=True)
    if len(documents) >= FEWEST_DOCUMENTS:
        return Units(document_of_T.astype(np.int64), len(documents))
    windows, first_W, window_of_T = np.unique(window_T, return_index=True, return_inverse=True)
    size = _block_size(len(windows))
    block_W = np.empty(len(windows), dtype=np.int64)
    count = 0
    for document in range(len(documents)):
        of_document = np.flatnonzero(document_of_T[first_W] == document)
        blocks = max(1, round(len(of_document) / size))
        block_W[of_document] = count + np.arange(len(of_document)) * blocks // len(of_document)
        count += blocks
    return Units(block_W[window_of_T], count, windows_per_block=size)


def _block_size(windows: int) -> int:
    """About the cube root of the number of windows, but so small that `FEWEST_DOCUMENTS` blocks are left."""
    return max(1, min(round(math.cbrt(windows)), windows // FEWEST_DOCUMENTS))


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """One set of resamples, shared by every statistic of the same sums, so that all are judged on the same draws."""

    sums_UK: Floats
    sums_RK: Floats

    @classmethod
    def draw(cls, sums_UK: Floats, *, resamples: int = RESAMPLES, seed: int = 0) -> "Bootstrap":
        """Resample the rows of sums_UK."""
        weights = _weights(len(sums_UK), resamples, seed)
        with np.errstate(invalid="ignore"):  # an infinite sum spoils its own column, which then has no interval
            return cls(sums_UK, np.concatenate([weights_RU @ sums_UK for weights_RU in weights]))

    def value(self, statistic: Statistic) -> float:
        """The statistic of all units, each once."""
        return float(statistic(self.sums_UK.sum(axis=0)))

    def compare(self, statistic: Statistic) -> Comparison:
        """The statistic with what is shown (95 %) and what is judged (one-sided 95 %)."""
        value, interval = self.value(statistic), self.interval(statistic)
        return Comparison(value=value, interval=interval, bounds=self.interval(statistic, confidence=JUDGED))

    def interval(self, statistic: Statistic, *, confidence: float = SHOWN, widen: bool = True) -> Interval | None:
        """The BCa interval; None where it does not exist (a single unit, or a resample whose statistic is not finite).

        `widen=False` gives the textbook interval, without the correction for few units.
        """
        if len(self.sums_UK) < 2:
            return None
        values_R = statistic(self.sums_RK)
        if not (np.isfinite(values_R).all() and math.isfinite(self.value(statistic))):
            return None
        jackknife_U = statistic(self.sums_UK.sum(axis=0) - self.sums_UK)
        tail = _tail(len(self.sums_UK), confidence, widen)
        low, high = np.quantile(values_R, _bca_levels(values_R, self.value(statistic), jackknife_U, tail))
        return Interval(low=float(low), high=float(high), confidence=confidence)


def median_interval(
    values_U: Floats, *, confidence: float = SHOWN, resamples: int = RESAMPLES, seed: int = 0, widen: bool = True
) -> Interval | None:
    """The percentile interval of the median of independent values; None for fewer than two or a value not finite."""
    if len(values_U) < 2 or not np.isfinite(values_U).all():
        return None
    chosen_RU = np.random.default_rng(seed).integers(len(values_U), size=(resamples, len(values_U)))
    tail = _tail(len(values_U), confidence, widen)
    low, high = np.quantile(np.median(values_U[chosen_RU], axis=1), [tail, 1 - tail])
    return Interval(low=float(low), high=float(high), confidence=confidence)


def samples_to_decide(
    value: float, interval: Interval, limit: float, samples: int, *, power: float = POWER
) -> int | None:
    """How many samples in all would probably bring the interval clear of the limit; None if the value is on the limit.

    An interval shrinks with the root of the sample count. With h its half that faces the limit and d the distance from
    value to limit, n * (h / d)^2 samples would touch the limit, which succeeds every other time only; `power` is the
    chance of a decision that is asked for: n * ((z_confidence + z_power) / z_confidence * h / d)^2.
    """
    from scipy.special import ndtri

    distance = abs(limit - value)
    half = interval.high - value if limit > value else value - interval.low
    if distance == 0 or not math.isfinite(half / distance):
        return None
    z = float(ndtri(0.5 + interval.confidence / 2))
    reach = (z + float(ndtri(power))) / z * max(half, 0.0) / distance
    return max(samples, math.ceil(samples * reach**2))


def widened(interval: Interval, value: float, looks: int) -> Interval:
    """The interval that still holds its promise when it is looked at `looks` times while samples are added.

    Bonferroni: each look may be wrong with an equal share of the whole chance, so each half is stretched by the ratio
    of the two normal quantiles. Conservative, because the looks share their samples.
    """
    from scipy.special import ndtri

    if looks <= 1:
        return interval
    tail = (1 - interval.confidence) / 2
    stretch = float(ndtri(1 - tail / looks) / ndtri(1 - tail))
    low, high = value - stretch * (value - interval.low), value + stretch * (interval.high - value)
    return Interval(low=low, high=high, confidence=1 - 2 * tail / looks)


def _weights(units: int, resamples: int, seed: int) -> list[NDArray[np.int64]]:
    """How often each unit is drawn, in pieces of at most `_DRAWS_AT_ONCE` numbers: [r, U] each, r summing to R."""
    generator = np.random.default_rng(seed)
    at_once = max(1, _DRAWS_AT_ONCE // units)
    pieces = []
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        drawn = generator.integers(units, size=(rows, units)) + units * np.arange(rows)[:, None]
        pieces.append(np.bincount(drawn.ravel(), minlength=rows * units).reshape(rows, units))
    return pieces


def _tail(units: int, confidence: float, widen: bool) -> float:
    """The probability left out on each side, made smaller for few units."""
    from scipy.special import ndtr, stdtrit

    tail = (1 - confidence) / 2
    if not widen:
        return tail
    return float(ndtr(math.sqrt(units / (units - 1)) * stdtrit(units - 1, tail)))


def _bca_levels(values_R: Floats, value: float, jackknife_U: Floats, tail: float) -> Floats:
    """The two quantile levels of the resampled values that bound the interval: [2]."""
    from scipy.special import ndtr, ndtri

    plain = np.array([tail, 1 - tail])
    below = (np.count_nonzero(values_R < value) + 0.5 * np.count_nonzero(values_R == value)) / len(values_R)
    deviation_U = jackknife_U.mean() - jackknife_U
    spread = float((deviation_U**2).sum())
    if not 0 < below < 1 or not math.isfinite(spread) or spread == 0:
        return plain
    acceleration = float((deviation_U**3).sum()) / (6 * spread**1.5)
    shifted = ndtri(below) + ndtri(plain)
    if (1 - acceleration * shifted <= 0).any():
        return plain
    return np.asarray(ndtr(ndtri(below) + shifted / (1 - acceleration * shifted)), dtype=np.float64)
