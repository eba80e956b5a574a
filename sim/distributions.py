"""How long things take in a simulated world, and how many tokens they have: distributions by what people know of them.

People know a median and a 95th percentile, not the mu and sigma of a lognormal; so that is what they are asked for. The
gamma, the Weibull and the empirical distribution are there for what is fitted to records (`sim.calibrate`).
Every draw takes exactly one number from the stream, whatever the distribution: changing one model then leaves the
others' draws as they were (common random numbers; Law, Simulation Modeling and Analysis, 5th ed., section 11.2).
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from statistics import NormalDist
from typing import Annotated

from msgspec import Struct

from sim.quantities import COUNT

_STANDARD = NormalDist()
_Z95 = _STANDARD.inv_cdf(0.95)
_TINY = 2.0**-54


class Constant(Struct, frozen=True, tag="constant"):
    """Always the same value."""

    value: float

    @property
    def mean(self) -> float:
        """The expected value."""
        return self.value

    def draw(self, chance: random.Random) -> float:
        """Return the value, spending one draw as its siblings do."""
        chance.random()
        return self.value


class Exponential(Struct, frozen=True, tag="exponential"):
    """Memoryless with this mean: what queueing theory is exact about."""

    mean: float

    def draw(self, chance: random.Random) -> float:
        """Return a sample by inversion."""
        return -self.mean * math.log(1.0 - chance.random())


@lru_cache(maxsize=1024)  # a turn draws from a few distributions fifteen times
def _sigma(median: float, p95: float) -> float:
    return math.log(p95 / median) / _Z95


class Lognormal(Struct, frozen=True, tag="lognormal"):
    """Skewed to the right, as service times are; given by its median and its 95th percentile."""

    median: float
    p95: float

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (path, message) for what no single field shows."""
        if self.p95 < self.median:
            yield "p95", "is below the median: it is the value that 95% of samples stay under"

    @property
    def sigma(self) -> float:
        """Standard deviation of the logarithm."""
        return _sigma(self.median, self.p95)

    @property
    def mean(self) -> float:
        """The expected value."""
        return self.median * math.exp(self.sigma**2 / 2)

    def draw(self, chance: random.Random) -> float:
        """Return a sample by inversion (Wichura's AS 241, as in `statistics.NormalDist`)."""
        z = _STANDARD.inv_cdf(chance.random() or _TINY)
        return self.median * math.exp(_sigma(self.median, self.p95) * z)


class Gamma(Struct, frozen=True, tag="gamma"):
    """A sum of `shape` exponential stages of mean `scale`, for any positive `shape`."""

    shape: Annotated[float, COUNT, "stages; 1 is an exponential, many are nearly constant"]
    scale: float

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (path, message) for what no single field shows."""
        yield from _shapely(self.shape)

    @property
    def mean(self) -> float:
        """The expected value."""
        return self.shape * self.scale

    def draw(self, chance: random.Random) -> float:
        """Return a sample by inversion."""
        from scipy.special import gammaincinv  # noqa: PLC0415 - half a second to import, and few ask for it

        return self.scale * float(gammaincinv(self.shape, chance.random()))


class Weibull(Struct, frozen=True, tag="weibull"):
    """What lasts a time whose hazard falls (shape below 1) or grows (above 1) with age."""

    shape: Annotated[float, COUNT, "below 1: a heavy tail; 1 is an exponential; above: a light one"]
    scale: float

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (path, message) for what no single field shows."""
        yield from _shapely(self.shape)

    @property
    def mean(self) -> float:
        """The expected value."""
        return self.scale * math.gamma(1 + 1 / self.shape)

    def draw(self, chance: random.Random) -> float:
        """Return a sample by inversion."""
        return float(self.scale * (-math.log(1.0 - chance.random())) ** (1 / self.shape))


class Empirical(Struct, frozen=True, tag="empirical"):
    """What was recorded: its quantiles at evenly spaced probabilities, from the least to the greatest value."""

    quantiles: tuple[float, ...]

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (path, message) for what no single field shows."""
        if len(self.quantiles) < 2:
            yield "quantiles", "are too few: write two or more, the least and the greatest value among them"
        if any(after < before for before, after in pairwise(self.quantiles)):
            yield "quantiles", "fall: write them from the least value to the greatest"

    @property
    def mean(self) -> float:
        """The expected value: quantiles are joined by straight lines."""
        first, *_, last = self.quantiles
        return (sum(self.quantiles) - (first + last) / 2) / (len(self.quantiles) - 1)

    def draw(self, chance: random.Random) -> float:
        """Return a sample by inversion."""
        place = chance.random() * (len(self.quantiles) - 1)
        below = int(place)
        low, high = self.quantiles[below], self.quantiles[below + 1]
        return low + (place - below) * (high - low)


def _shapely(shape: float) -> Iterator[tuple[str, str]]:
    if not 0.01 <= shape <= 10_000:
        yield "shape", f"{shape:g} is out of bounds: write 0.01 to 10000"


Distribution = Constant | Exponential | Lognormal | Gamma | Weibull | Empirical
