"""From recorded calls to a model of their provider: maximum likelihood over a few families, with how well they fit.

A call's time to first token is modelled as a draw plus a time for each token that it reads, and the rest as a draw for
each token that it writes (`sim.provider`). The time for each token read is the one under which the draws that remain
are likeliest (a profile likelihood). Of the families the one with the least AIC is taken, unless even that one is off
by more than `DISTANCE_MAX`: then the records themselves are drawn from.

Goodness of fit is the Kolmogorov-Smirnov distance: the most by which the share of calls below any value differs. Its
p-value comes from a parametric bootstrap, since the tables assume parameters that were not fitted to the same records
(Lilliefors 1967; Clauset, Shalizi and Newman 2009, section 4.1). With very many records any family is refuted: the
distance then tells whether that matters.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import optimize, special, stats

from sim.distributions import Constant, Distribution, Empirical, Exponential, Gamma, Lognormal, Weibull
from sim.provider import ProviderModel
from sim.records import Call

Values = npt.NDArray[np.float64]

DISTANCE_MAX = 0.05
QUANTILES = 101
SHOWN = (0.5, 0.9, 0.95, 0.99)
CALLS_MIN = 30
SHAPE_MAX = 1e4  # all but constant
BOOTSTRAPS = 99
BOOTSTRAP_SIZE_MAX = 2_000
SEED = 1
PROFILE_XATOL = 1e-4
_Z95 = float(special.ndtri(0.95))


class CannotFit(Exception):
    """The records do not say enough; the message names what is missing."""


class Family(NamedTuple):
    """One kind of distribution: how it is fitted, and its log-density, cumulative shares and quantiles.

    Parameters
    ----------
    fit : callable
        From values above 0 to the two numbers that it has (one may be unused), by maximum likelihood.
    frozen : callable
        From these to scipy's distribution.
    made : callable
        From these to ours.
    parameters : int
        How many it really has, for the AIC.
    """

    name: str
    fit: Callable[[Values], tuple[float, float]]
    frozen: Callable[[float, float], stats.rv_frozen]
    made: Callable[[float, float], Distribution]
    parameters: int = 2


def _fit_lognormal(values: Values) -> tuple[float, float]:
    logs = np.log(values)
    return float(logs.mean()), max(float(logs.std()), 1e-9)


def _fit_exponential(values: Values) -> tuple[float, float]:
    return float(values.mean()), 0.0


def _fit_gamma(values: Values) -> tuple[float, float]:
    """Solve ``log(shape) - digamma(shape) = log(mean) - mean(log)`` (Minka 2002)."""
    gap = max(math.log(values.mean()) - float(np.log(values).mean()), 1e-9)
    shape = optimize.brentq(lambda k: math.log(k) - float(special.digamma(k)) - gap, 1e-3, 1e10)
    return float(shape), float(values.mean() / shape)


def _fit_weibull(values: Values) -> tuple[float, float]:
    """Solve the likelihood equation of the shape; the scale follows."""
    scaled = values / values.max()  # so that powers cannot overflow
    logs = np.log(scaled)

    def slope(shape: float) -> float:
        powers = scaled**shape
        return float((powers * logs).sum() / powers.sum() - 1 / shape - logs.mean())

    shape = optimize.brentq(slope, 1e-3, SHAPE_MAX) if slope(SHAPE_MAX) > 0 else SHAPE_MAX
    return float(shape), float((scaled**shape).mean() ** (1 / shape) * values.max())


FAMILIES = (
    Family(
        "lognormal",
        _fit_lognormal,
        lambda mu, sigma: stats.lognorm(sigma, scale=math.exp(mu)),
        lambda mu, sigma: Lognormal(math.exp(mu), math.exp(mu + _Z95 * sigma)),
    ),
    Family("gamma", _fit_gamma, lambda shape, scale: stats.gamma(shape, scale=scale), Gamma),
    Family("weibull", _fit_weibull, lambda shape, scale: stats.weibull_min(shape, scale=scale), Weibull),
    Family(
        "exponential",
        _fit_exponential,
        lambda mean, _: stats.expon(scale=mean),
        lambda mean, _: Exponential(mean),
        parameters=1,
    ),
)


class Fit(NamedTuple):
    """How one family fits.

    Parameters
    ----------
    family : str
    distribution : Distribution
        With the likeliest parameters.
    aic : float
        Akaike's criterion: less is better; NaN for what was not fitted (`Constant`, `Empirical`).
    distance : float
        Kolmogorov-Smirnov, 0 to 1.
    p_value : float
        How often records of the fitted family itself would be at least so far from it; NaN where that was not asked.
    quantiles : tuple of (float, float, float)
        Share, the records' quantile, the fit's.
    """

    family: str
    distribution: Distribution
    aic: float
    distance: float
    p_value: float
    quantiles: tuple[tuple[float, float, float], ...]


class Fitted(NamedTuple):
    """What was chosen for one quantity, and all that was tried, best first.

    `recorded` are the records' quantiles at `QUANTILES` evenly spaced shares, from the least to the greatest value.
    """

    name: str
    unit: str
    size: int
    recorded: tuple[float, ...]
    chosen: Fit
    tried: tuple[Fit, ...]


class Calibration(NamedTuple):
    """A provider's model, as its records have it.

    Parameters
    ----------
    model : ProviderModel
        Ready for a scenario's `world`. Its `capacity` is the most calls that were seen under way at once.
    first_token, per_token, context_tokens, generated_tokens : Fitted
    calls, failed : int
    busiest : int or None
        Most calls at once; None where it was not recorded when they began.
    rate, dispersion : float or None
        Calls per second, and the index of dispersion of their counts in windows of 10 s: 1 for Poisson arrivals, more
        for bursts (Cox and Lewis 1966).
    """

    model: ProviderModel
    first_token: Fitted
    per_token: Fitted
    context_tokens: Fitted
    generated_tokens: Fitted
    calls: int
    failed: int
    busiest: int | None
    rate: float | None
    dispersion: float | None


def calibrate(calls: Sequence[Call]) -> Calibration:
    """Fit a provider's model to recorded calls.

    Raises
    ------
    CannotFit
        Fewer than `CALLS_MIN` calls were answered, or what they say cannot be.
    """
    answered = [call for call in calls if not call.failed]
    if len(answered) < CALLS_MIN:
        raise CannotFit(f"{len(answered)} answered calls are too few to fit: record at least {CALLS_MIN}")
    first = np.array([call.first_token_seconds for call in answered])
    seconds = np.array([call.seconds for call in answered])
    read = np.array([float(call.prompt_tokens) for call in answered])
    written = np.array([float(call.completion_tokens) for call in answered])
    _refuse_impossible(first, seconds)
    per_prompt_token = _per_prompt_token(first, read)
    longer = written > 1
    if longer.sum() < CALLS_MIN:
        raise CannotFit(f"{longer.sum()} calls wrote more than one token: record at least {CALLS_MIN}")
    rests = (seconds - first)[longer] / (written[longer] - 1)
    first_token = fit("time to first token, without its prompt", "s", first - per_prompt_token * read)
    per_token = fit("time for each token written", "s", rests)
    busiest = _busiest(answered)
    rate, dispersion = _arrivals(calls)
    return Calibration(
        model=ProviderModel(
            capacity=busiest or ProviderModel().capacity,
            first_token=first_token.chosen.distribution,
            per_prompt_token=Constant(per_prompt_token),
            per_token=per_token.chosen.distribution,
            failure_rate=(len(calls) - len(answered)) / len(calls),
        ),
        first_token=first_token,
        per_token=per_token,
        context_tokens=fit("tokens read", "tokens", read),
        generated_tokens=fit("tokens written", "tokens", written),
        calls=len(calls),
        failed=len(calls) - len(answered),
        busiest=busiest,
        rate=rate,
        dispersion=dispersion,
    )


class _Share(random.Random):
    """Chance that gives one number: every distribution draws by inversion, so what it draws is that quantile."""

    def __init__(self, share: float) -> None:
        self._share = share

    def random(self) -> float:
        return self._share


def quantile(distribution: Distribution, share: float) -> float:
    """Return the value that a share of a distribution's samples stay under; `share` is above 0 and below 1."""
    return distribution.draw(_Share(share))


def fit(name: str, unit: str, values: Values) -> Fitted:
    """Fit every family to values, and choose.

    Parameters
    ----------
    name, unit : str
        For reports.
    values : array of float, shape (n,)
        0 or more. Zeros, which no family has, count as half of the least value above 0.
    """
    if np.ptp(values) <= 1e-9 * abs(values.max()):
        exact = Fit("constant", Constant(float(values.mean())), math.nan, 0.0, math.nan, _shown(values, values.mean()))
        return Fitted(name, unit, len(values), (float(values.mean()),) * QUANTILES, exact, (exact,))
    ordered = np.sort(values)
    positive = np.maximum(ordered, ordered[ordered > 0][0] / 2)
    tried = sorted((_fitted(family, positive) for family in FAMILIES), key=lambda each: each.aic)
    best = tried[0]
    family = next(each for each in FAMILIES if each.name == best.family)
    best = best._replace(p_value=_p_value(family, positive, best.distance))
    records = _empirical(ordered)
    chosen = best if best.distance <= DISTANCE_MAX else records
    recorded = tuple(np.quantile(ordered, np.linspace(0, 1, QUANTILES)).tolist())
    return Fitted(name, unit, len(values), recorded, chosen, (best, *tried[1:], records))


def _fitted(family: Family, ordered: Values) -> Fit:
    parameters = family.fit(ordered)
    frozen = family.frozen(*parameters)
    aic = 2 * family.parameters - 2 * float(frozen.logpdf(ordered).sum())
    quantiles = _shown(ordered, frozen.ppf(SHOWN))
    return Fit(family.name, family.made(*parameters), aic, _distance(frozen, ordered), math.nan, quantiles)


def _empirical(ordered: Values) -> Fit:
    quantiles = np.quantile(ordered, np.linspace(0, 1, QUANTILES))
    shares = np.interp(ordered, quantiles, np.linspace(0, 1, QUANTILES))
    distance = float(np.abs(shares - (np.arange(len(ordered)) + 0.5) / len(ordered)).max())
    fitted = np.interp(SHOWN, np.linspace(0, 1, QUANTILES), quantiles)
    distribution = Empirical(tuple(float(f"{value:.6g}") for value in quantiles))
    return Fit("empirical", distribution, math.nan, distance, math.nan, _shown(ordered, fitted))


def _distance(frozen: stats.rv_frozen, ordered: Values) -> float:
    shares = frozen.cdf(ordered)
    steps = np.arange(len(ordered) + 1) / len(ordered)
    return float(max((steps[1:] - shares).max(), (shares - steps[:-1]).max()))


def _p_value(family: Family, ordered: Values, distance: float) -> float:
    """Return how often records drawn from the fit are as far from what is then fitted to them.

    Many records are thinned first: their distance shrinks with their number, so it is scaled to that.
    """
    count = min(len(ordered), BOOTSTRAP_SIZE_MAX)
    observed = distance * math.sqrt(len(ordered) / count)
    frozen = family.frozen(*family.fit(ordered))
    chance = np.random.default_rng(SEED)
    farther = 0
    for _ in range(BOOTSTRAPS):
        drawn = np.sort(np.maximum(frozen.rvs(size=count, random_state=chance), 1e-300))
        farther += _distance(family.frozen(*family.fit(drawn)), drawn) >= observed
    return (farther + 1) / (BOOTSTRAPS + 1)


def _shown(values: Values, fitted: Values | float) -> tuple[tuple[float, float, float], ...]:
    pairs = zip(SHOWN, np.quantile(values, SHOWN), np.broadcast_to(fitted, len(SHOWN)), strict=True)
    return tuple((share, float(recorded), float(model)) for share, recorded, model in pairs)


def _per_prompt_token(first: Values, read: Values) -> float:
    """Return the seconds for each token read under which the rest of the time to first token is likeliest."""
    if np.ptp(read) == 0 or np.ptp(first) == 0:
        return 0.0  # nothing tells the two apart
    most = float((first[read > 0] / read[read > 0]).min())

    def unlikeliness(share: float) -> float:
        rest = first - share * most * read
        return min(-float(each.frozen(*each.fit(rest)).logpdf(rest).sum()) for each in FAMILIES[:3])

    found = optimize.minimize_scalar(
        unlikeliness, bounds=(0.0, 1.0 - 1e-6), method="bounded", options={"xatol": PROFILE_XATOL}
    )
    return float(found.x) * most if found.fun < unlikeliness(0.0) else 0.0


def _refuse_impossible(first: Values, seconds: Values) -> None:
    if (first <= 0).any():
        raise CannotFit(f"{(first <= 0).sum()} calls had their first token after 0 s: record real times, in seconds")
    if (seconds < first).any():
        raise CannotFit(
            f"{(seconds < first).sum()} calls ended before their first token: both count from the call's begin"
        )


def _busiest(calls: Sequence[Call]) -> int | None:
    """Return the most calls under way at once."""
    if any(call.at is None for call in calls):
        return None
    steps = [(call.at + call.seconds, -1) for call in calls if call.at is not None]
    steps += [(call.at, 1) for call in calls if call.at is not None]
    return int(np.cumsum([step for _, step in sorted(steps)]).max())


def _arrivals(calls: Sequence[Call], window_s: float = 10.0) -> tuple[float | None, float | None]:
    """Return arrivals per second and the index of dispersion of counts; None where that cannot be told."""
    at = np.array([call.at for call in calls if call.at is not None])
    if len(at) < len(calls) or len(at) < CALLS_MIN or np.ptp(at) < 2 * window_s:
        return None, None
    whole = int(np.ptp(at) // window_s)
    counts, _ = np.histogram(at, bins=whole, range=(at.min(), at.min() + whole * window_s))
    return float((len(at) - 1) / np.ptp(at)), float(counts.var() / counts.mean())
