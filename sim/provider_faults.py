"""What goes wrong with a provider, as plain data, and what it does to a call that comes, or starts, meanwhile.

Who refuses a call does so when it arrives (a blackout, a flapping endpoint, a rate limit, the 429s of an error mix);
all else is decided when its service starts. Several faults at once act together: slowdowns multiply, and shares
add up as those of independent events do.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, NamedTuple, TypeVar

from msgspec import Struct, field

from sim.entropy import derive
from sim.injection import Faults, Injection
from sim.provider_errors import ErrorMix, Luck
from sim.quantities import COUNT, DURATION, RATE, SHARE, lasting, show_duration
from sim.rate_limits import RateLimiter, RateLimits

ProviderName = Literal["main", "alternate"]
Refuses = Literal["refuses", "hangs"]
FACTOR_MAX = 10_000
DRAWS = 2.0**128


class _Scoped(Struct, frozen=True, kw_only=True):
    """What all of them say: when, and of which provider."""

    at: Annotated[float, DURATION, "when it starts, from the run's start"]
    lasts: Annotated[float, DURATION, "how long it lasts"] = field(name="for")
    provider: Annotated[ProviderName, "which one: main, or the world's alternate"] = "main"

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (path, message) for what no single field shows."""
        yield from lasting(self.lasts)

    @property
    def who(self) -> str:
        """The provider, as a reader calls it."""
        return "provider" if self.provider == "main" else "alternate"


class ProviderSlow(_Scoped, frozen=True, kw_only=True, tag="provider_slow"):
    """Calls that start meanwhile take `factor` times as long."""

    factor: Annotated[float, COUNT, "how many times longer a call takes, above 1"]

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (path, message) for what no single field shows."""
        yield from super().problems()
        yield from _too_fast(self.factor)

    @property
    def what(self) -> str:
        """The fault in a few words."""
        return f"{self.who} {self.factor:g}x slower"


class ProviderGray(_Scoped, frozen=True, kw_only=True, tag="provider_gray"):
    """A gray failure: some of the calls that start meanwhile take `factor` times as long, and the others do not."""

    share: Annotated[float, SHARE, "how many are slow"]
    factor: Annotated[float, COUNT, "how many times longer those take, above 1"]
    of: Annotated[
        Literal["calls", "conversations"],
        "who is slow: each call by chance, or some conversations for as long as they last, as on a bad backend",
    ] = "calls"

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (path, message) for what no single field shows."""
        yield from super().problems()
        yield from _too_fast(self.factor)
        yield from _nothing("share", self.share, "makes nobody slow")

    @property
    def what(self) -> str:
        """The fault in a few words."""
        return f"{self.who} {self.factor:g}x slower for {self.share:.0%} of {self.of}"


class ProviderFailing(_Scoped, frozen=True, kw_only=True, tag="provider_failing"):
    """A share of the calls that start meanwhile fails, at the time their first token was due."""

    rate: Annotated[float, SHARE, "share of calls that fail"]

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (path, message) for what no single field shows."""
        yield from super().problems()
        yield from _nothing("rate", self.rate, "makes nothing fail")

    @property
    def what(self) -> str:
        """The fault in a few words."""
        return f"{self.who} failing {self.rate:.0%}"


class ProviderMidstream(_Scoped, frozen=True, kw_only=True, tag="provider_midstream"):
    """A share of the answers that start meanwhile is broken off, somewhere after their first token."""

    rate: Annotated[float, SHARE, "share of answers that break off"]

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (path, message) for what no single field shows."""
        yield from super().problems()
        yield from _nothing("rate", self.rate, "breaks nothing off")

    @property
    def what(self) -> str:
        """The fault in a few words."""
        return f"{self.who} breaking off {self.rate:.0%}"


class ProviderErrors(_Scoped, frozen=True, kw_only=True, tag="provider_errors"):
    """Calls go wrong in several ways at once, each with its share."""

    mix: Annotated[ErrorMix, "which shares go wrong, and how"]

    @property
    def what(self) -> str:
        """The fault in a few words."""
        return f"{self.who} with {self.mix.what}"


class ProviderBlackout(_Scoped, frozen=True, kw_only=True, tag="provider_blackout"):
    """Nobody gets through: calls that arrive meanwhile are refused at once, or never hear anything."""

    how: Annotated[Refuses, "whether a call is refused at once, or hangs until its caller gives up"] = "refuses"

    @property
    def what(self) -> str:
        """The fault in a few words."""
        return f"{self.who} {'unreachable' if self.how == 'refuses' else 'silent'}"


class ProviderFlapping(_Scoped, frozen=True, kw_only=True, tag="provider_flapping"):
    """On and off: unreachable for the first part of each period, and well for the rest of it."""

    period: Annotated[float, DURATION, "from one outage's start to the next one's"]
    down: Annotated[float, SHARE, "the part of a period in which nobody gets through"] = 0.5
    how: Annotated[Refuses, "whether a call is refused at once, or hangs until its caller gives up"] = "refuses"

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (path, message) for what no single field shows."""
        yield from super().problems()
        if not 0 < self.period <= self.lasts:
            yield "period", f"{show_duration(self.period)} is out of bounds: write more than 0, and at most `for`"
        yield from _nothing("down", self.down, "is no outage")
        if self.down == 1:
            yield "down", "100% never comes back: write less, or provider_blackout"

    def is_down(self, now: float) -> bool:
        """Tell whether nobody gets through at `now`, which lies within the fault's time."""
        return (now - self.at) % self.period < self.period * self.down

    @property
    def what(self) -> str:
        """The fault in a few words."""
        return f"{self.who} flapping, {self.down:.0%} of each {show_duration(self.period)} down"


class ProviderRateLimited(_Scoped, frozen=True, kw_only=True, tag="provider_rate_limited"):
    """The provider lets less through than usual, and refuses the rest with 429 and a Retry-After."""

    requests: Annotated[float | None, RATE, "calls, such as 60/min; unlimited if left out"] = None
    tokens: Annotated[float | None, RATE, "tokens read and written, such as 9000/min; unlimited if left out"] = None
    over: Annotated[float, DURATION, "what this time brings may come at once"] = 60.0

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (path, message) for what no single field shows."""
        yield from super().problems()
        yield from self.limits.problems()

    @property
    def limits(self) -> RateLimits:
        """The limits alone."""
        return RateLimits(requests=self.requests, tokens=self.tokens, over=self.over)

    @property
    def what(self) -> str:
        """The fault in a few words."""
        rates = ((self.requests, "calls"), (self.tokens, "tokens"))
        shown = " and ".join(f"{rate * 60:,.4g} {name}/min" for rate, name in rates if rate is not None)
        return f"{self.who} limited to {shown}"


_F = TypeVar("_F", bound=_Scoped)

ProviderFault = (
    ProviderSlow
    | ProviderGray
    | ProviderFailing
    | ProviderMidstream
    | ProviderErrors
    | ProviderBlackout
    | ProviderFlapping
    | ProviderRateLimited
)


def _too_fast(factor: float) -> Iterator[tuple[str, str]]:
    if not 1 < factor <= FACTOR_MAX:
        yield "factor", f"{factor:g} is out of bounds: write more than 1, such as 8, at most {FACTOR_MAX}"


def _nothing(name: str, share: float, says: str) -> Iterator[tuple[str, str]]:
    if share == 0:
        yield name, f"0% {says}: write more"


# --- what they do ---------------------------------------------------------------------------------------------------


class Asked(NamedTuple):
    """A call, as far as faults look at it.

    Parameters
    ----------
    provider : str
        Which one is called.
    conversation : str
        What tells its conversation from others for as long as it lasts.
    luck, lot : Luck
        One draw decides how the call ends, another whether it is one of those that a gray failure hits.
    """

    provider: ProviderName
    conversation: str
    luck: Luck
    lot: Luck


def unreachable(faults: Faults, asked: Asked, now: float) -> Refuses | None:
    """Return how a call that arrives `now` is kept from getting through, if it is."""
    for injection in _active(faults, ProviderBlackout, asked):
        injection.touched += 1
        return injection.fault.how
    for flapping in _active(faults, ProviderFlapping, asked):
        if flapping.fault.is_down(now):
            flapping.touched += 1
            return flapping.fault.how
    return None


def told_to_wait(
    faults: Faults, asked: Asked, now: float, tokens: int, limiters: dict[Injection[ProviderRateLimited], RateLimiter]
) -> tuple[bool, float | None]:
    """Tell whether a call that arrives `now` is refused with 429, and with which Retry-After.

    `limiters` belongs to the provider and keeps what each rate limit in force has let in so far.
    """
    for injection in _active(faults, ProviderErrors, asked):
        if asked.luck.falls(injection.fault.mix.rate_limited):
            injection.touched += 1
            return True, injection.fault.mix.retry_after
    for limited in _active(faults, ProviderRateLimited, asked):
        if limited not in limiters:
            limiters[limited] = RateLimiter(limited.fault.limits)
        if wait_s := limiters[limited].admit(now, tokens):
            limited.touched += 1
            return True, wait_s
    return False, None


def slowdown(faults: Faults, asked: Asked) -> float:
    """Return the factor on a call whose service starts now."""
    factor = 1.0
    for slow in _active(faults, ProviderSlow, asked):
        slow.touched += 1
        factor *= slow.fault.factor
    for gray in _active(faults, ProviderGray, asked):
        if _is_hit(gray.fault, asked):
            gray.touched += 1
            factor *= gray.fault.factor
    return factor


def _is_hit(fault: ProviderGray, asked: Asked) -> bool:
    if fault.of == "calls":
        return asked.lot.falls(fault.share)
    return derive(0, asked.conversation) / DRAWS < fault.share


Ending = Literal["answered", "failed", "garbled", "hangs", "midstream"]
MIXED: tuple[Ending, ...] = ("failed", "garbled", "hangs", "midstream")


def ending(faults: Faults, asked: Asked) -> Ending:
    """Return how a call ends whose service starts now."""
    for failing in _active(faults, ProviderFailing, asked):
        if asked.luck.falls(failing.fault.rate):
            failing.touched += 1
            return "failed"
    for errors in _active(faults, ProviderErrors, asked):
        if (found := ending_of(errors.fault.mix, asked.luck)) != "answered":
            errors.touched += 1
            return found
    for midstream in _active(faults, ProviderMidstream, asked):
        if asked.luck.falls(midstream.fault.rate):
            midstream.touched += 1
            return "midstream"
    return "answered"


def ending_of(mix: ErrorMix, luck: Luck) -> Ending:
    """Return how a call of `luck` ends by `mix`, given that it was not refused with 429."""
    left = 1.0 - mix.rate_limited
    for name in MIXED:
        share: float = getattr(mix, name)
        if share:
            if luck.falls(share / left if share < left else 1.0):
                return name
            left -= share
    return "answered"


def _active(faults: Faults, kind: type[_F], asked: Asked) -> Iterator[Injection[_F]]:
    return (injection for injection in faults.active(kind) if injection.fault.provider == asked.provider)
