"""When clients come: arrival processes of an open loop, in seconds from the run's start.

    contract: `Arriving`: `times` up to a duration from a seeded stream, and `mean_rate` for who sizes a world by it
    siblings: `Poisson` (independent people), `OnOff` and `Modulated` (bursts), `Daily` and `Profile` (hours of a day)

Every process is exact, also at its start: a modulated one begins in its stationary distribution, so no warm-up is due.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from random import Random
from typing import Annotated, Protocol

from msgspec import Struct, field

from sim.quantities import DURATION, RATE, SHARE

DAY_S = 24 * 3600.0
STATES_MAX = 20
PROFILE_MAX = 168


class Arriving(Protocol):
    """A process of arrivals."""

    @property
    def mean_rate(self) -> float:
        """Arrivals a second in the long run."""
        ...

    def times(self, duration_s: float, chance: Random) -> Iterator[float]:
        """Yield the times of arrivals in order, each below `duration_s`."""
        ...


def _exponential(mean: float, chance: Random) -> float:
    return -mean * math.log(1.0 - chance.random())


class Poisson(Struct, frozen=True):
    """Many people who know nothing of each other: exponential gaps."""

    rate: float

    @property
    def mean_rate(self) -> float:
        """Arrivals a second."""
        return self.rate

    def times(self, duration_s: float, chance: Random) -> Iterator[float]:
        """Yield the times of arrivals; one draw each."""
        at, mean_gap = 0.0, 1.0 / self.rate
        while (at := at - mean_gap * math.log(1.0 - chance.random())) < duration_s:
            yield at


class State(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many come while the process is in one state, and how long it stays there."""

    rate: Annotated[float | None, RATE, "mean arrivals in this state; without it none come"] = None
    lasts: Annotated[float, DURATION, "how long it stays in this state, on average"] = field(name="for")


class Modulated(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="modulated"):
    """A Markov-modulated Poisson process: bursts, in which arrivals bring more arrivals.

    It stays in a state for an exponential time and goes to any other with equal chance. So in the long run it is in
    each for a share of the time that is proportional to the state's mean holding time.

    References
    ----------
    Fischer and Meier-Hellstern, "The Markov-modulated Poisson process (MMPP) cookbook", Performance Evaluation 18,
    1993.
    """

    states: Annotated[tuple[State, ...], "two or more, such as [{rate: 2/s, for: 5min}, {rate: 20/s, for: 30s}]"]

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (path, message) for what no single field shows."""
        if not 2 <= len(self.states) <= STATES_MAX:
            yield "states", f"{len(self.states)} are out of bounds: write 2 to {STATES_MAX}, or a plain `rate`"
        for index, state in enumerate(self.states):
            if state.lasts == 0:
                yield f"states[{index}].for", "0 lasts no time: write how long it stays there on average, such as 30s"
        if all(state.rate is None for state in self.states):
            yield "states", "no state has a rate, so nobody ever comes: give one of them a rate"

    @property
    def mean_rate(self) -> float:
        """Arrivals a second in the stationary distribution."""
        return sum((state.rate or 0.0) * state.lasts for state in self.states) / sum(s.lasts for s in self.states)

    def times(self, duration_s: float, chance: Random) -> Iterator[float]:
        """Yield the times of arrivals; one draw each, and two a change of state."""
        current = self._first(chance)
        at = 0.0
        while at < duration_s:
            state = self.states[current]
            end = at + _exponential(state.lasts, chance)
            if state.rate is not None:  # what is left of a gap begins anew: exponential gaps have no memory
                mean_gap = 1.0 / state.rate
                while (at := at + _exponential(mean_gap, chance)) < end:
                    if at >= duration_s:
                        return
                    yield at
            at = end
            step = 1 + int(chance.random() * (len(self.states) - 1))
            current = (current + step) % len(self.states)

    def _first(self, chance: Random) -> int:
        luck = chance.random() * sum(state.lasts for state in self.states)
        for index, state in enumerate(self.states):
            luck -= state.lasts
            if luck < 0:
                return index
        return len(self.states) - 1


class OnOff(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="on_off"):
    """Bursts: for some time many come, then for some time few or none (Kuczura's interrupted Poisson process, 1973)."""

    on: Annotated[float, RATE, "mean arrivals in a burst"]
    on_for: Annotated[float, DURATION, "how long a burst lasts, on average"]
    off_for: Annotated[float, DURATION, "how long it takes to the next one, on average"]
    off: Annotated[float | None, RATE, "mean arrivals between bursts; without it none come"] = None

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (path, message) for what no single field shows."""
        for name in ("on_for", "off_for"):
            if getattr(self, name) == 0:
                yield name, "0 lasts no time: write how long on average, such as 30s"

    @property
    def modulated(self) -> Modulated:
        """The same as a process of two states."""
        return Modulated(states=(State(rate=self.on, lasts=self.on_for), State(rate=self.off, lasts=self.off_for)))

    @property
    def mean_rate(self) -> float:
        """Arrivals a second in the long run."""
        return self.modulated.mean_rate

    def times(self, duration_s: float, chance: Random) -> Iterator[float]:
        """Yield the times of arrivals."""
        return self.modulated.times(duration_s, chance)


class Daily(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="daily"):
    """The rhythm of a day as a wave: the rate swings about its mean, highest at `peak_at`."""

    mean: Annotated[float, RATE, "mean arrivals over the whole day"]
    swing: Annotated[float, SHARE, "how far the rate goes above and below its mean"]
    peak_at: Annotated[float, DURATION, "when most come"] = DAY_S / 2
    period: Annotated[float, DURATION, "how long a day is"] = DAY_S

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (path, message) for what no single field shows."""
        if self.period == 0:
            yield "period", "0 is no time: write how long a day is, such as 24h"

    @property
    def mean_rate(self) -> float:
        """Arrivals a second over whole days."""
        return self.mean

    def rate_at(self, at: float) -> float:
        """Return the rate at a time."""
        return self.mean * (1.0 + self.swing * math.cos(2.0 * math.pi * (at - self.peak_at) / self.period))

    def times(self, duration_s: float, chance: Random) -> Iterator[float]:
        """Yield the times of arrivals."""
        return _thinned(self.rate_at, self.mean * (1.0 + self.swing), duration_s, chance)


class Profile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="profile"):
    """The rhythm of a day as measured: one rate after the other, each as long, and again from the first."""

    rates: Annotated[tuple[Annotated[float, RATE], ...], "mean arrivals in one part of the day after the other"]
    each: Annotated[float, DURATION, "how long each part is"] = 3600.0

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (path, message) for what no single field shows."""
        if not 1 <= len(self.rates) <= PROFILE_MAX:
            yield "rates", f"{len(self.rates)} are out of bounds: write 1 to {PROFILE_MAX}, such as one an hour"
        if self.each == 0:
            yield "each", "0 is no time: write how long each part is, such as 1h"

    @property
    def mean_rate(self) -> float:
        """Arrivals a second over the whole profile."""
        return sum(self.rates) / len(self.rates)

    def rate_at(self, at: float) -> float:
        """Return the rate at a time."""
        return self.rates[int(at // self.each) % len(self.rates)]

    def times(self, duration_s: float, chance: Random) -> Iterator[float]:
        """Yield the times of arrivals."""
        return _thinned(self.rate_at, max(self.rates), duration_s, chance)


def _thinned(rate_at: Callable[[float], float], rate_max: float, duration_s: float, chance: Random) -> Iterator[float]:
    """Yield a Poisson process of changing rate: one of the highest rate, of which each arrival stays with some chance.

    Two draws a candidate. Source: Lewis and Shedler, "Simulation of nonhomogeneous Poisson processes by thinning",
    Naval Research Logistics Quarterly 26, 1979.
    """
    at, mean_gap = 0.0, 1.0 / rate_max
    while (at := at + _exponential(mean_gap, chance)) < duration_s:
        if chance.random() * rate_max < rate_at(at):
            yield at


Process = OnOff | Modulated | Daily | Profile
"""What a scenario may write as `arrivals` instead of a plain `rate`."""
