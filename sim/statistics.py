"""What a few random runs say about all of them: estimates with intervals, and how many runs are enough.

Turns of one run depend on each other (they stand in the same queues), so an interval over them would be far too
narrow. Independent are whole runs with different seeds (`mean`, `until`), the differences of two policies on the same
seeds (`paired`), and, nearly, long stretches of one long run after its warm-up (`batch_means`, `mser5`).

References
----------
A. M. Law, Simulation Modeling and Analysis, 5th ed., McGraw-Hill 2015: chapters 9 (output data), 10 (comparing two
systems) and 11.2 (common random numbers). Each function names what it takes from where.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

CONFIDENCE = 0.95
BATCHES = 20
MSER_BATCH = 5
MSER_IGNORED = 5
"""Cuts that leave so few batches are not looked at: their errors are small by chance alone."""

RUNS_MIN = 10
RUNS_MAX = 1_000


class Estimate(NamedTuple):
    """A number that was estimated, and between what its true value lies with the stated confidence.

    Parameters
    ----------
    value : float
        In the unit of what was measured; NaN of nothing.
    low, high : float
        Infinite where there is too little to tell.
    confidence : float
        Share of such intervals that hold the true value, 0 to 1.
    observations : int
        Independent ones behind it.
    """

    value: float
    low: float
    high: float
    confidence: float
    observations: int

    @property
    def half_width(self) -> float:
        """Half of the interval's length."""
        return (self.high - self.low) / 2


def mean(values: ArrayLike, confidence: float = CONFIDENCE) -> Estimate:
    """Estimate a mean from independent observations, such as one number a run; NaN is left out.

    Parameters
    ----------
    values : array_like, shape (n,)
    confidence : float

    Returns
    -------
    Estimate
        With Student's t interval on n - 1 degrees of freedom (Law, eq. 4.12): exact for normal observations, close
        to it for means over many turns. Unbounded for a single one.
    """
    kept = _numbers(values)
    if kept.size == 0:
        return Estimate(math.nan, -math.inf, math.inf, confidence, 0)
    centre = float(kept.mean())
    if kept.size == 1:
        return Estimate(centre, -math.inf, math.inf, confidence, 1)
    half = _t(confidence, kept.size - 1) * _deviation(kept) / math.sqrt(kept.size)
    return Estimate(centre, centre - half, centre + half, confidence, int(kept.size))


def quantile(values: ArrayLike, q: float, confidence: float = CONFIDENCE) -> Estimate:
    """Estimate a quantile from independent observations, whatever their distribution.

    Parameters
    ----------
    values : array_like, shape (n,)
    q : float
        Between 0 and 1, such as 0.95.
    confidence : float

    Returns
    -------
    Estimate
        Its bounds are order statistics: the true quantile has Binomial(n, q) observations below it (Hahn and Meeker,
        Statistical Intervals, 1991, section 5.2). A bound that no observation can give is infinite: a 99th percentile
        needs 368 observations for an upper one.
    """
    ordered = np.sort(_numbers(values))
    count = int(ordered.size)
    if count == 0:
        return Estimate(math.nan, -math.inf, math.inf, confidence, 0)
    from scipy import stats  # noqa: PLC0415 - takes most of a second to import

    tail = (1 - confidence) / 2
    below = int(stats.binom.ppf(tail, count, q))  # P(B < below) <= tail
    above = int(stats.binom.ppf(1 - tail, count, q)) + 1  # P(B >= above) <= tail
    low = float(ordered[below - 1]) if below >= 1 else -math.inf
    high = float(ordered[above - 1]) if above <= count else math.inf
    return Estimate(float(np.quantile(ordered, q)), low, high, confidence, count)


class BatchMeans(NamedTuple):
    """The mean of one long run, from the means of its batches.

    Parameters
    ----------
    estimate : Estimate
        Its observations are the batches.
    correlation : float
        Between neighbouring batches (lag 1): near 0 where batches are long enough; above about 0.4 with 20 batches
        they are too short, and the interval too narrow.
    """

    estimate: Estimate
    correlation: float


def batch_means(series: ArrayLike, batches: int = BATCHES, confidence: float = CONFIDENCE) -> BatchMeans:
    """Estimate the mean of one long stationary run, whose observations depend on each other.

    Parameters
    ----------
    series : array_like, shape (n,)
        In order of time, its warm-up removed; what does not fill a batch is left out at its start.
    batches : int
        10 to 30 serve best, however long the run (Schmeiser, "Batch size effects in the analysis of simulation
        output", Operations Research 30, 1982).

    Raises
    ------
    ValueError
        There are fewer than two observations a batch.
    """
    kept = _numbers(series)
    size = kept.size // batches
    if batches < 2 or size < 2:
        raise ValueError(f"{kept.size} observations are too few for {batches} batches: make the run longer")
    means = kept[kept.size - size * batches :].reshape(batches, size).mean(axis=1)
    return BatchMeans(mean(means, confidence), _lag_one(means))


def mser5(series: ArrayLike) -> int | None:
    """Return how many observations to cut off at a run's start, where it still remembers that it began empty.

    Parameters
    ----------
    series : array_like, shape (n,)
        In order of time.

    Returns
    -------
    int or None
        A multiple of 5: the cut that makes the standard error of what is left smallest, over batches of 5 (MSER-5;
        White, "An effective truncation heuristic for bias reduction in simulation output", Simulation 69, 1997). None
        where that cut lies in the later half, or of under 50 observations: the run is too short to tell (Hoad, Robinson
        and Davies, "Automating warm-up length estimation", Journal of the Operational Research Society 61, 2010).
    """
    kept = _numbers(series)
    count = kept.size // MSER_BATCH
    if count < 2 * MSER_IGNORED:
        return None
    means = kept[: count * MSER_BATCH].reshape(count, MSER_BATCH).mean(axis=1)
    # sums of what is left after each cut, from the end backwards; centred first, for the sake of the last digits
    tail = (means - means.mean())[::-1]
    left = np.arange(1, count + 1)
    sums, squares = np.cumsum(tail), np.cumsum(tail**2)
    errors = ((squares - sums**2 / left) / left**2)[::-1]
    cut = int(np.argmin(errors[:-MSER_IGNORED]))
    return cut * MSER_BATCH if cut <= count // 2 else None


class Paired(NamedTuple):
    """Two policies on the same seeds.

    Parameters
    ----------
    difference : Estimate
        Of the second less the first.
    correlation : float
        Between the two, over seeds.
    variance_ratio : float
        How many times more runs independent seeds would have needed for an interval of the same length; above 1 the
        common random numbers have helped.
    """

    difference: Estimate
    correlation: float
    variance_ratio: float


def paired(first: ArrayLike, second: ArrayLike, confidence: float = CONFIDENCE) -> Paired:
    """Compare two policies run by run under common random numbers, with a paired t interval (Law, section 10.2.1).

    Parameters
    ----------
    first, second : array_like, shape (n,)
        Of each seed, in the same order; pairs with a NaN are left out.

    Raises
    ------
    ValueError
        They are of different lengths.
    """
    one, two = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if one.shape != two.shape:
        raise ValueError(f"{one.size} and {two.size} runs are no pairs: run both policies on the same seeds")
    both = np.isfinite(one) & np.isfinite(two)
    one, two = one[both], two[both]
    difference = mean(two - one, confidence)
    if one.size < 2:
        return Paired(difference, math.nan, math.nan)
    apart, together = float(one.var(ddof=1) + two.var(ddof=1)), float((two - one).var(ddof=1))
    ratio = apart / together if together > 0 else math.inf if apart > 0 else math.nan
    spread = float(one.std() * two.std())
    related = float(((one - one.mean()) * (two - two.mean())).mean()) / spread if spread > 0 else math.nan
    return Paired(difference, related, ratio)


class Precision(NamedTuple):
    """How narrow an interval has to be: at most `half_width` to each side.

    Parameters
    ----------
    half_width : float
        In the measure's unit; where `relative`, a share of the estimate.
    relative : bool
    """

    half_width: float
    relative: bool

    def reached(self, estimate: Estimate) -> bool:
        """Tell whether `estimate` is as narrow as that.

        The relative error is that against the *true* mean, so it is kept below g / (1 + g) of the estimate (Law,
        section 9.4.1).
        """
        if not self.relative:
            return estimate.half_width <= self.half_width
        return estimate.half_width <= self.half_width / (1 + self.half_width) * abs(estimate.value)


def until(
    observe: Callable[[range], Sequence[float]],
    wanted: Precision,
    *,
    runs_min: int = RUNS_MIN,
    runs_max: int = RUNS_MAX,
    confidence: float = CONFIDENCE,
) -> tuple[Estimate, NDArray[np.float64]]:
    """Go on observing until the mean's interval is as narrow as wanted, or `runs_max` is reached.

    Parameters
    ----------
    observe : callable
        Takes the numbers of some runs, counted from 0, and returns an independent observation of each; NaN where there
        was none. They come in rounds, each a fifth of all before, so that runs may be done side by side.
    wanted : Precision
    runs_min : int
        Looked at first after this many: from fewer, intervals are short by chance alone, and stopping then would
        pick just those.
    runs_max : int
        Gives up here; the estimate's `half_width` tells.

    Returns
    -------
    estimate : Estimate
    observations : ndarray, shape (runs,)

    References
    ----------
    Chow and Robbins, "On the asymptotic theory of fixed-width sequential confidence intervals for the mean", Annals of
    Mathematical Statistics 36, 1965; Law, section 9.4.1. Coverage tends to `confidence` as the half-width gets small.
    """
    seen: list[float] = []
    while True:
        size = max(1, len(seen) // 5) if seen else runs_min
        seen += observe(range(len(seen), min(len(seen) + size, runs_max)))
        estimate = mean(seen, confidence)
        if len(seen) >= runs_max or (estimate.observations >= runs_min and wanted.reached(estimate)):
            return estimate, np.asarray(seen)


def _numbers(values: ArrayLike) -> NDArray[np.float64]:
    numbers = np.asarray(values, dtype=np.float64).ravel()
    return numbers[~np.isnan(numbers)]


def _deviation(values: NDArray[np.float64]) -> float:
    return float(values.std(ddof=1))


def _t(confidence: float, freedom: int) -> float:
    from scipy import special  # noqa: PLC0415 - takes half a second to import

    return float(special.stdtrit(freedom, (1 + confidence) / 2))


def _lag_one(values: NDArray[np.float64]) -> float:
    centred = values - values.mean()
    total = float((centred**2).sum())
    return float((centred[1:] * centred[:-1]).sum()) / total if total > 0 else math.nan
