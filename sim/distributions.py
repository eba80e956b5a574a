"""How long things take in a simulated world, and how many tokens they have: distributions by what people know of them.

People know a median and a 95th percentile, not the mu and sigma of a lognormal; so that is what they are asked for.
Every draw takes exactly one number from the stream, whatever the distribution: changing one model then leaves the
others' draws as they were (common random numbers; Law, Simulation Modeling and Analysis, 5th ed., section 11.2).
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from statistics import NormalDist

from msgspec import Struct

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
        return math.log(self.p95 / self.median) / _Z95

    @property
    def mean(self) -> float:
        """The expected value."""
        return self.median * math.exp(self.sigma**2 / 2)

    def draw(self, chance: random.Random) -> float:
        """Return a sample by inversion (Wichura's AS 241, as in `statistics.NormalDist`)."""
        return self.median * math.exp(self.sigma * _STANDARD.inv_cdf(max(chance.random(), _TINY)))


Distribution = Constant | Exponential | Lognormal
